"""Train a language model: preset -> text -> tokens -> model -> fit() -> metrics, a sample and plots.

    python train_lm.py                                                the built-in script, five minutes on two cores
    python train_lm.py --preset shakespeare-char --data.path input.txt
    python train_lm.py --preset script-lm --data.path script.txt      your own screenplay
    python train_lm.py --preset script-seq2seq --data.path script.txt     reply to a line
    python train_lm.py --resume runs/NAME                             continue a stopped run
    torchrun --nproc-per-node 2 train_lm.py ...                       two processes share each batch

Any field of the config is an option: --model.n_layers 6 --train.lr 5e-4. The run's folder holds config.json,
metrics.jsonl, the checkpoints, the plots, sample.txt and result.json.
"""

import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from minlm.data import texts_digest
from minlm.plots import loss_curve
from minlm.presets import ABOUT, FULL, PRESETS, RunConfig
from minlm.runs import MODELS, make_tokenizer
from minlm.task import TASKS, TokenTask
from minlm.tokenizer import load_tokenizer
from minlm.training.checkpoint import check_depth, check_digest, has_checkpoint, last_checkpoint
from minlm.training.command import run_training
from minlm.training.distributed import rank
from minlm.training.errors import errors_in_one_line
from minlm.training.files import replace_text, write_json
from minlm.training.loop import check_hardware, fit
from minlm.training.record import begin_files, check_same_data, finished_result
from minlm.training.report import write_report


def train(config: RunConfig, run: Path, resume: bool = False) -> dict:
    """Train a model and evaluate it -> the content of result.json ({} in processes other than the first)."""
    started = time.monotonic()
    if resume and (result := finished_result(run, config)):
        return result
    check_hardware(config.train)
    texts = config.data.read()
    if resume:
        tokenizer = load_tokenizer(run)
        check_digest(tokenizer.digest, config.model.vocab_digest, run)
        if has_checkpoint(run):
            check_depth(config.model.n_layers, last_checkpoint(run))
    else:
        tokenizer = make_tokenizer(config, texts)
        config = config.with_tokenizer(tokenizer)
    run.mkdir(parents=True, exist_ok=True)
    if rank() == 0:
        check_same_data(run, texts_digest(texts))
    task = TASKS[type(config.model)](config, tokenizer, texts, run)
    config = task.config
    torch.manual_seed(config.train.seed)
    model = MODELS[type(config.model)](config.model)
    if rank() == 0:
        begin_files(run, config, tokenizer, resume, task.entropy(texts["validation"]))
        size = f"{sum(p.numel() for p in model.parameters()):,} parameters"
        print(f"{size}; {task.describe()}; batches of {config.train.batch_size}; {run}")
    state = fit(model, task, config.train, run)
    if rank():
        return {}

    # First write the results, then print and plot them.
    loss = task.text_loss(model)
    result = loss.metrics() | floors(task, texts)
    seconds = state.restored_seconds + time.monotonic() - started
    result |= {"split": "validation", "seconds": seconds, "seed": config.train.seed}
    sample = task.sample(model)
    write_json(run / "result.json", result)
    replace_text(run / "sample.txt", sample)
    print(describe(result))
    print(f"\n{sample}")
    loss_curve(run, run / "loss.png")
    task.draw(model, run / "attention.png")
    write_report(run)
    print(f"{result['seconds']:.0f} s in all; metrics, plots, report.html and checkpoints: {run}")
    return result


def floors(task: TokenTask, texts: dict[str, str]) -> dict[str, Any]:
    """Compute baselines in nats per character: chance, unigrams, bigrams, and the source's entropy if known."""
    metrics: dict[str, Any] = task.baselines()
    metrics["chance"] = {"nats_per_character": metrics["chance"]}
    return metrics | task.entropy(texts["validation"])


def describe(result: dict[str, Any]) -> str:
    """Summarise the metrics of a validation text in one line."""
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


main = partial(run_training, train, PRESETS, __doc__ or "", FULL, ABOUT)

if __name__ == "__main__":
    with errors_in_one_line():
        main()
