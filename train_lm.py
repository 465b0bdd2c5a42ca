"""Train a language model: preset -> text -> tokens -> model -> fit() -> figures, a sample and pictures.

    python train_lm.py                                                the built-in script, five minutes on two cores
    python train_lm.py --preset shakespeare-char --data.path input.txt
    python train_lm.py --preset script-lm --data.path script.txt      your own screenplay
    python train_lm.py --preset script-seq2seq --data.path script.txt     what is replied to a line
    python train_lm.py --resume runs/NAME                             continue what was stopped
    torchrun --nproc-per-node 2 train_lm.py ...                       two processes share each batch

Any field of the config is an option: --model.n_layers 6 --train.lr 5e-4. The run's folder holds config.json,
metrics.jsonl, the checkpoints, the pictures, sample.txt and result.json.
"""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from minlm.data import encode_splits, fit_context, texts_digest
from minlm.evaluate import Cost, device_of
from minlm.plots import loss_curve
from minlm.presets import FULL, PRESETS, RunConfig
from minlm.runs import MODELS, make_tokenizer
from minlm.screenplay import ScreenplayConfig, entropy_rate, floor_of
from minlm.seq2seq import Seq2SeqConfig
from minlm.tasks import Continuation, Replies, Task
from minlm.tokenizer import load_tokenizer
from minlm.training.batches import Batches, fit_batch
from minlm.training.checkpoint import check_digest, check_same_data, replace_text, write_json
from minlm.training.command import run_main, run_training
from minlm.training.config import files_beside_weights
from minlm.training.distributed import first_process_first, rank, world
from minlm.training.loop import check_hardware, fit, forward_precision
from minlm.training.report import begin_files, finished_result, write_report


def train(config: RunConfig, run: Path, resume: bool = False) -> dict:
    """One training run, from text to figures -> what stands in result.json ({} in processes beside the first)."""
    started = time.monotonic()
    if resume and (result := finished_result(run, config)):
        return result
    check_hardware(config.train)
    texts = config.data.read()
    if resume:
        tokenizer = load_tokenizer(run)
        check_digest(tokenizer.digest, config.model.vocab_digest, run)
    else:
        tokenizer = make_tokenizer(config, texts)
        config = config.with_tokenizer(tokenizer)
    run.mkdir(parents=True, exist_ok=True)
    if rank() == 0:
        check_same_data(run, texts_digest(texts))
    task: Task
    if isinstance(config.model, Seq2SeqConfig):
        task = Replies(config, tokenizer, texts)
    else:
        with first_process_first():
            splits = encode_splits(texts, tokenizer, run)
        wanted = config.model.context_length
        length = fit_context(wanted, splits)
        if length < wanted:
            print(
                f"context_length={wanted} is shortened to {length}: the shortest split has {length + 1} tokens"
            )
        config = replace(config, model=replace(config.model, context_length=length))
        task = Continuation(config, tokenizer, splits)

    settings = fit_batch(config.train, len(task.dataset), world())
    if settings.batch_size < config.train.batch_size and rank() == 0:
        print(f"--train.batch_size is lowered to {settings.batch_size}: there are no more training items")
    config = replace(config, train=settings)
    drawn, which = (settings.batch_size, settings.seed, settings.workers), {"rank": rank(), "world": world()}
    batches = Batches(task.dataset, *drawn, settings.neighbours, **which)
    torch.manual_seed(settings.seed)
    model = MODELS[type(config.model)](config.model)
    if rank() == 0:
        begin_files(run, config, tokenizer, resume)
        print(f"{sum(p.numel() for p in model.parameters()):,} parameters; {task.describe()}; {run}")
    state = fit(
        model,
        batches,
        task.loss,
        settings,
        run,
        inference_files=files_beside_weights(config, tokenizer),
        evaluate=partial(validation_figures, task=task, precision=settings.precision),
        score=lambda figures: -figures["validation_loss"],
    )
    if rank():
        return {}

    # First what cannot be had again without training, on disk; then what is printed and drawn from it.
    cost = task.cost(model)
    result = cost.figures() | floors(config, texts, task)
    seconds = state.restored_seconds + time.monotonic() - started
    result |= {"split": "validation", "seconds": seconds, "seed": settings.seed}
    sample = task.sample(model)
    write_json(run / "result.json", result)
    replace_text(run / "sample.txt", sample)
    print(describe(result))
    print(f"\n{sample}")
    loss_curve(run, run / "loss.png")
    task.draw(model, run / "attention.png")
    write_report(run)
    print(f"{result['seconds']:.0f} s in all; figures, pictures, report.html and checkpoints: {run}")
    return result


def validation_figures(model: torch.nn.Module, task: Task, precision: str) -> dict[str, float]:
    """What is followed during training: the whole validation text, in windows end to end, in the run's precision."""
    with forward_precision(precision, device_of(model)):
        cost: Cost = task.cost(model, stride=task.config.model.context_length)
    figures = cost.figures()
    shown = ("nats_per_character", "bits_per_byte")
    return {"validation_loss": cost.nats_per_token, **{name: figures[name] for name in shown}}


def floors(config: RunConfig, texts: dict[str, str], task: Task) -> dict[str, Any]:
    """Losses in nats per character to compare with: chance, unigrams and bigrams of the model's own tokens, and the
    source's own entropy where it is known.
    """
    figures: dict[str, Any] = task.baselines()
    figures["chance"] = {"nats_per_character": figures["chance"]}
    if isinstance(config.data, ScreenplayConfig) and not isinstance(config.model, Seq2SeqConfig):
        figures["source_entropy_nats_per_character"] = entropy_rate()
        figures["validation_floor_nats_per_character"] = floor_of(texts["validation"])
    return figures


def describe(result: dict[str, Any]) -> str:
    """The figures of a validation text in one line."""
    nats = result["nats_per_character"]
    chance = result["chance"]["nats_per_character"]
    beside = f"bigrams {result['bigram']:.3f}, unigrams {result['unigram']:.3f}, chance {chance:.3f}"
    if "source_entropy_nats_per_character" in result:
        source, floor = (
            result[f"{name}_nats_per_character"] for name in ("source_entropy", "validation_floor")
        )
        beside = (
            f"the source's entropy {source:.4f}, {nats / source - 1:+.1%}; on this very text {floor:.4f}, "
            f"{nats / floor - 1:+.1%}; {beside}"
        )
    return (
        f"validation: {nats:.4f} nats per character ({beside}), {result['bits_per_byte']:.4f} bits per byte, "
        f"perplexity {result['perplexity']:.3f}; {result['tokens']:,} tokens, {result['characters']:,} characters"
    )


def main() -> None:
    run_training(train, PRESETS, __doc__, FULL)


if __name__ == "__main__":
    run_main(main)
