"""Findings of the command `doctor`: each is a level and a line. Those on schedule, hardware and model are here."""

import sys
from collections.abc import Callable, Iterable, Iterator
from math import ceil

import torch
from torch import nn

from minlm.training.batches import fit_batch
from minlm.training.loop import check_hardware, choose_device
from minlm.training.state import TrainConfig

Finding = tuple[str, str]  # ("ok" | "note" | "problem", what was found)


def examine_schedule(train: TrainConfig, n_items: int, name: str) -> Iterator[Finding]:
    """Report batch size, run length and warm-up for `n_items` training items, which are called `name`."""
    try:
        fitted = fit_batch(train, n_items)
    except ValueError as error:
        yield "problem", str(error)
        return
    if fitted.batch_size < train.batch_size:
        text = f"--train.batch_size {train.batch_size} would be lowered to {fitted.batch_size}"
        yield "note", f"{text}: there are {n_items:,} {name}"
    steps_per_epoch = n_items // fitted.batch_size
    limits = [n for n in (train.steps, ceil(train.epochs * steps_per_epoch)) if n]
    if limits:
        steps = min(limits)
        warm = round(train.warmup * steps)
        text = (
            f"at most {steps:,} steps, {steps / steps_per_epoch:.1f} epochs; warm-up takes {warm:,} of them"
        )
        yield "problem" if train.warmup and warm < 1 else "ok", text
    if train.minutes:
        warm = 60 * train.minutes * train.warmup
        yield "ok", f"at most {train.minutes:g} minutes; warm-up takes {warm:.0f} s of them"


def examine_hardware(train: TrainConfig) -> Finding:
    """Report if this machine has the device and the precision."""
    try:
        check_hardware(train)
    except ValueError as error:
        return "problem", str(error)
    return "ok", f"computed on {choose_device(train.device)}, precision {train.precision}"


def examine_model(make: Callable[[], nn.Module]) -> Finding:
    """Report if the model can be built, on the meta device, and its number of parameters."""
    try:
        with torch.device("meta"):
            model = make()
    except ValueError as error:
        return "problem", str(error)
    return "ok", f"the model has {sum(p.numel() for p in model.parameters()):,} parameters"


def print_findings(findings: Iterable[Finding]) -> None:
    """Print one line per finding and exit, with status 1 if one is a problem."""
    levels = []
    for level, text in findings:
        levels.append(level)
        print(f"{level:>7}: {text}")
    sys.exit(1 if "problem" in levels else 0)
