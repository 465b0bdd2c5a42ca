"""fit(): the only training loop of the repository.

In this order: draw, forward, backward, clip, step, log, evaluate, save. It knows nothing of language or images: a
`Task` says what a batch is, what its gradients are, and how well the model does.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from minlm.training.batches import Batch, Batches
from minlm.training.checkpoint import best_score, has_checkpoint, save_best, truncate_metrics
from minlm.training.distributed import from_first_process, rank
from minlm.training.hardware import Precision, choose_device
from minlm.training.log import Log
from minlm.training.optim import schedule
from minlm.training.state import TrainConfig, TrainingState

Metrics = dict[str, Tensor | float]


class Task(Protocol):
    """What a model is trained for: all that `fit` needs to know of it."""

    batches: Batches
    unit: str  # what `backward` counts: tokens, pairs

    def backward(self, model: nn.Module, batch: Batch, precision: Precision) -> tuple[Tensor, int, Metrics]:
        """Fill the gradients of a whole batch's mean loss -> (that loss, items it is a mean of, metrics to log)."""

    def after_step(self, model: nn.Module) -> None:
        """Put parameters back into their bounds."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Compute metrics on held-out data; the model is in eval mode."""

    def score(self, metrics: dict[str, float]) -> float:
        """Compare evaluations: higher is better, and the best weights are kept."""

    def inference_files(self, folder: Path) -> None:
        """Write what makes weights usable (config, tokenizer) into their folder."""


def fit(model: nn.Module, task: Task, config: TrainConfig, run: Path) -> TrainingState:
    """Train the model in place and leave metrics.jsonl, checkpoints and the best weights in the folder `run`.

    A run that has a checkpoint already is continued from it. Where no limit is in minutes, the result is the
    undisturbed run's, bit for bit on a CPU (GPU kernels are not asked to be deterministic). Of several processes,
    each computes its share of every batch; the first evaluates and writes the files.
    Returns the state at the end; the model carries the weights that were evaluated, the averaged ones where an
    average is kept. Raises ValueError if the loss or the gradient is not finite, Interrupted after SIGINT or SIGTERM:
    the step that was under way is finished and saved first.
    """
    device = choose_device(config.device)
    precision = Precision(config.precision, device)
    state = TrainingState(model.to(device), config, precision.scaler)
    torch.manual_seed(config.seed + rank())  # dropout draws other masks for another share
    if has_checkpoint(run):
        state.restore(run)
    first = rank() == 0
    if first:
        truncate_metrics(run / "metrics.jsonl", state.step)
    started = from_first_process(time.monotonic) - state.seconds
    draw, best = task.batches.from_step(state.step), best_score(run)

    def progress(half: float = 0.0) -> float:
        return config.progress(state.step + half, task.batches.steps_per_epoch, state.seconds)

    model.train()
    with (
        Log(run / "metrics.jsonl" if first else Path(os.devnull), progress()) as log,
        signals_noted() as noted,
    ):
        while progress() < 1:
            batch = {name: value.to(device, non_blocking=True) for name, value in next(draw).items()}
            # The schedule is read in the middle of the step: neither the first nor the last step has rate zero.
            factor = schedule(min(1.0, progress(0.5)), config.warmup, config.schedule, config.min_lr_ratio)
            model.zero_grad(set_to_none=True)
            loss, count, metrics = task.backward(model, batch, precision)
            if not torch.isfinite(loss):
                raise ValueError(
                    f"the loss is {loss.item()} at step {state.step + 1}: lower --train.lr (it is {config.lr})"
                )
            norm = state.optimize(factor)
            task.after_step(model)
            if state.average:
                state.average.update(model)

            # One clock: the processes read the schedule from it, and stop at the same step.
            now, stop = from_first_process(lambda: (time.monotonic(), list(noted)))
            step_seconds = now - started - state.seconds
            state.seconds += step_seconds
            row = {
                "step": state.step,
                "epoch": state.step / task.batches.steps_per_epoch,
                "loss": loss.item(),
            }
            row |= {name: float(value) for name, value in metrics.items()}
            row |= {"lr": config.lr * factor, "gradient_norm": norm, "seconds": state.seconds}
            row |= {f"{task.unit}_per_second": count / step_seconds}
            log.step(row, progress())
            if first and due(config.evaluate_every, state.step, progress()):
                model.eval()
                with state.averaged():
                    evaluated = task.evaluate(model)
                    if task.score(evaluated) > best:
                        best = task.score(evaluated)
                        save_best(run, state.step, best, model.state_dict(), task.inference_files)
                model.train()
                log.evaluation({"step": state.step, **evaluated})
            if progress() >= 1 or stop or state.save_is_due():
                state.save(run, task.inference_files)
            if stop:
                raise Interrupted(stop[0], f"stopped after step {state.step}; continue with --resume {run}")
    if state.average:
        model.load_state_dict(state.average.average)
    model.eval()
    return state


class Interrupted(KeyboardInterrupt):
    """The end of a run that SIGINT or SIGTERM asked for, after its checkpoint was saved."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.number = number  # of the signal: the exit status is 128 more


@contextmanager
def signals_noted() -> Iterator[list[int]]:
    """Inside, the first SIGINT or SIGTERM is noted in a list instead of ending the process; the second ends it."""
    noted: list[int] = []
    before = {}

    def note(number: int, frame: Any) -> None:
        noted.append(number)
        signal.signal(number, before[number])

    if threading.current_thread() is threading.main_thread():  # Python allows no other to handle signals
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            signal.signal(number, note)
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def due(every: int, step: int, progress: float) -> bool:
    """Tell if something done each `every` steps (0 = only at the end) is done after this one."""
    return progress >= 1 or (every > 0 and step % every == 0)
