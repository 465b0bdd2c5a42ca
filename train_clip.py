"""Train a CLIP: config -> data -> tokenizer -> model -> fit() -> metrics and plots.

    python train_clip.py                                              built-in data, five minutes on two cores
    python train_clip.py --preset flickr8k --data.root DIR --minutes 20
    python train_clip.py --preset pairs --data.path captions.csv      your own images and captions
    python train_clip.py --resume runs/NAME                           continue a stopped run
    torchrun --nproc-per-node 2 train_clip.py ...                     share each batch between two processes

Every field of the config is an option: --image.n_layers 6 --train.lr 5e-4. The run's folder holds config.json,
metrics.jsonl, the checkpoints, the plots and result.json.
"""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from minclip.clip import CLIP
from minclip.config import RunConfig
from minclip.data.dataset import check_images
from minclip.data.tokenizer import load_tokenizer
from minclip.evaluation.evaluate import choice_accuracy, evaluate_all, format_metrics
from minclip.evaluation.report import draw_image_attention, draw_plots, draw_zero_shot
from minclip.presets import ABOUT, FULL, PRESETS
from minclip.runs import check_splits, data_digest, make_model, make_tokenizer
from minclip.task import PairTask
from minlm.training.batches import fit_batch
from minlm.training.checkpoint import check_digest
from minlm.training.command import run_training
from minlm.training.distributed import rank, world_size
from minlm.training.errors import errors_in_one_line
from minlm.training.files import write_json
from minlm.training.loop import check_hardware, choose_device, fit
from minlm.training.record import begin_files, check_same_data, finished_result
from minlm.training.report import write_report


def train(config: RunConfig, run: Path, resume: bool = False) -> dict:
    """Run one training, from data to metrics and plots -> the content of result.json, or {} on ranks above 0."""
    started = time.monotonic()
    if resume and (result := finished_result(run, config)):
        return result
    check_hardware(config.train)
    splits = config.data.read()
    check_splits(splits)
    records, dev = splits["train"], splits["dev"]
    check_images(dev)
    if resume:
        tokenizer = load_tokenizer(run)
        check_digest(tokenizer.digest, config.model.text.vocab_digest, run)
    else:
        tokenizer = make_tokenizer(config, records)
        config = config.with_tokenizer(tokenizer)
    config = replace(config, train=fit_batch(config.train, len(records), world_size()))
    torch.manual_seed(config.train.seed)
    model = make_model(config, run, resume)
    config = replace(config, model=model.config)
    run.mkdir(parents=True, exist_ok=True)
    if rank() == 0:
        check_same_data(run, data_digest(records))
        begin_files(run, config, tokenizer, resume)
        print(
            f"{parameters(model)}; {len(records):,} training images in batches of {config.train.batch_size}; {run}"
        )
    task = PairTask(config, tokenizer, model.to(choose_device(config.train.device)), records, dev)
    state = fit(model, task, config.train, run)
    if rank():
        return {}

    # result.json is written before anything is printed or drawn.
    transform = config.image_transform(train=False)
    evaluation = evaluate_all(model, dev, transform, tokenizer, *config.data.classes(), records)
    questions = {name: some for name, some in config.data.questions().items() if some}
    choices = {name: choice_accuracy(model, tokenizer, transform, some) for name, some in questions.items()}
    result = {
        "data": type(config.data).__name__.removesuffix("Config").lower(),
        "split": "dev",
        **evaluation.metrics,
        "zero_shot": choices,
        "corrupt_images": len(task.corrupt),
        "seconds": state.restored_seconds + time.monotonic() - started,
        "seed": config.train.seed,
    }
    write_json(run / "result.json", result)
    for name, message in task.corrupt:
        print(f"replaced in training: {name}: {message}")
    print(format_metrics(evaluation.metrics, evaluation.seconds))
    for name, row in choices.items():
        print(f"zero-shot {name}: {row['accuracy']:.1%} (chance {row['chance']:.1%}, {row['n']} questions)")
    draw_plots(run, dev, evaluation)
    draw_image_attention(run, model, dev, transform, tokenizer)
    if {"colour", "shape", "relation"} <= questions.keys():
        shown = [question for name in ("colour", "shape", "relation") for question in questions[name][:2]]
        draw_zero_shot(run, model, shown, transform, tokenizer)
    write_report(run)
    print(f"{result['seconds']:.0f} s in all; metrics, plots, report.html and checkpoints: {run}")
    return result


def parameters(model: CLIP) -> str:
    """Describe the number of parameters, and of trained ones if some are frozen."""
    count = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f"{count:,} parameters" + (f", {trained:,} of them trained" if trained < count else "")


main = partial(run_training, train, PRESETS, __doc__, FULL, ABOUT)

if __name__ == "__main__":
    with errors_in_one_line():
        main()
