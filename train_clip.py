"""Train CLIP: preset -> data -> tokenizer -> model -> fit() -> figures and pictures.

    python train_clip.py                                              the built-in world, five minutes on two cores
    python train_clip.py --preset flickr8k --data.root DIR --minutes 20
    python train_clip.py --preset pairs --data.path captions.csv      your own images and captions
    python train_clip.py --resume runs/NAME                           continue what was stopped
    torchrun --nproc-per-node 2 train_clip.py ...                     two processes share each batch

Any field of the config is an option: --image.n_layers 6 --train.lr 5e-4. The run's folder holds config.json,
metrics.jsonl, the checkpoints, the pictures and result.json.
"""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from minclip.clip import CLIP
from minclip.data.dataset import check_images
from minclip.data.tokenizer import load_tokenizer
from minclip.evaluation.evaluate import choice_accuracy, evaluate_all, format_metrics
from minclip.evaluation.report import draw_plots, draw_where_it_looks, draw_zero_shot
from minclip.presets import ABOUT, FULL, PRESETS, RunConfig
from minclip.runs import check_splits, data_digest, make_model, make_tokenizer
from minclip.task import PairTask
from minlm.training.batches import fit_batch
from minlm.training.checkpoint import check_digest
from minlm.training.command import errors_in_one_line, run_training
from minlm.training.distributed import rank, world_size
from minlm.training.files import write_json
from minlm.training.loop import check_hardware, choose_device, fit
from minlm.training.record import begin_files, check_same_data, finished_result
from minlm.training.report import write_report


def train(config: RunConfig, run: Path, resume: bool = False) -> dict:
    """One training run, from data to figures -> what stands in result.json ({} in processes beside the first)."""
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
        check_digest(tokenizer.digest, config.text.vocab_digest, run)
    else:
        tokenizer = make_tokenizer(config, records)
        config = config.with_tokenizer(tokenizer)
    config = replace(config, train=fit_batch(config.train, len(records), world_size()))
    torch.manual_seed(config.train.seed)
    model = make_model(config, run, resume)
    config = replace(config, image=model.config.image, text=model.config.text)
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

    # First what cannot be had again without training, on disk; then what is printed and drawn from it.
    look = {"transform": config.image_transform(train=False), "tokenizer": tokenizer}
    names, templates = config.data.classes()
    evaluation = evaluate_all(
        model, dev, **look, class_names=names, templates=templates, train_records=records
    )
    asked = config.data.questions()
    told_apart = {
        name: choice_accuracy(model, questions=some, **look) for name, some in asked.items() if some
    }
    result = {
        "data": type(config.data).__name__.removesuffix("Config").lower(),
        "split": "dev",
        **evaluation.metrics,
        "zero_shot": told_apart,
        "corrupt_images": len(task.corrupt),
        "seconds": state.restored_seconds + time.monotonic() - started,
        "seed": config.train.seed,
    }
    write_json(run / "result.json", result)
    for name, message in task.corrupt:
        print(f"replaced in training: {name}: {message}")
    print(format_metrics(evaluation.metrics, evaluation.seconds))
    for name, row in told_apart.items():
        print(f"zero-shot {name}: {row['accuracy']:.1%} (chance {row['chance']:.1%}, {row['n']} questions)")
    draw_plots(run, dev, evaluation)
    draw_where_it_looks(run, model, dev, **look)
    if {"colour", "shape", "relation"} <= told_apart.keys():
        shown = [question for name in ("colour", "shape", "relation") for question in asked[name][:2]]
        draw_zero_shot(run, model, shown, **look)
    write_report(run)
    print(f"{result['seconds']:.0f} s in all; metrics, plots, report.html and checkpoints: {run}")
    return result


def parameters(model: CLIP) -> str:
    """How many there are, and how many are trained where not all are."""
    count, trained = (
        sum(p.numel() for p in model.parameters() if p.requires_grad or every) for every in (True, False)
    )
    return f"{count:,} parameters" + (f", {trained:,} of them trained" if trained < count else "")


main = partial(run_training, train, PRESETS, __doc__, FULL, ABOUT)

if __name__ == "__main__":
    with errors_in_one_line():
        main()
