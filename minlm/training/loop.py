"""fit(): the only training loop of the repository.

In this order: draw, forward, backward, clip, step, log, evaluate, save. It knows nothing of language or
images: a model, batches that are a function of (seed, step), and a loss that returns (sum, count, figures).
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minlm.training.batches import Batches
from minlm.training.checkpoint import InferenceFiles, best_score, has_checkpoint, save_best, truncate_metrics
from minlm.training.distributed import from_first_process, rank, sum_over_processes
from minlm.training.log import Log
from minlm.training.optim import schedule
from minlm.training.state import TrainConfig, TrainingState

Batch = dict[str, Tensor]
Loss = Callable[[nn.Module, Batch], tuple[Tensor, int, dict[str, Tensor | float]]]
Autocast = Callable[[], AbstractContextManager]


def choose_device(name: str) -> torch.device:
    """auto = cuda, else mps (Apple), where there is one. ValueError for a device that is absent: no silent fallback."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, present in there.items() if present)
    if not there[name]:
        raise ValueError(
            f"device={name}, but torch sees no such GPU: use cpu, or a build of torch that has it"
        )
    return torch.device(name)


def forward_precision(precision: str, device: torch.device) -> Any:
    """The autocast context for a forward pass; ValueError for fp16 on a CPU."""
    if precision == "auto":
        precision = "bf16" if multiplies_bfloat16(device) else "float32"
    if precision == "float32":
        return nullcontext()
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("--train.precision fp16 needs a GPU: use bf16 or float32 on a CPU")
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


def check_hardware(config: TrainConfig) -> None:
    """ValueError where this machine cannot train so: said before anything is read or written."""
    forward_precision(config.precision, choose_device(config.device))


def multiplies_bfloat16(device: torch.device) -> bool:
    """Tell if the hardware has bfloat16 products; elsewhere they are emulated, and slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def to_device(batch: Batch, device: torch.device) -> Batch:
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def accumulate(
    model: nn.Module,
    batch: Batch,
    loss: Loss,
    n_parts: int,
    scale: Callable[[Tensor], Tensor],
    autocast: Autocast = nullcontext,
) -> tuple[Tensor, int, dict[str, Any]]:
    """Gradients of the mean loss of a batch, computed in parts: -> (mean, count, figures of the last part).

    Sums are differentiated and divided once by the whole count, so parts of unequal counts (padding, a
    ragged last part) weigh as they do in the full batch. For losses that are sums over the items; a
    contrastive loss, which is not, has its own way (minclip/gradcache.py).
    autocast: the context of the forward pass. Backward runs outside it: each gradient then has the precision of
    its forward product, and what is float32 in the loss stays float32.
    """
    total, count = 0.0, 0
    for part in split(batch, n_parts):
        with autocast():
            part_sum, part_count, figures = loss(model, part)
        scale(part_sum).backward()
        total, count = total + part_sum.detach(), count + part_count
    return *average(model, total, count), figures


def split(batch: Batch, n_parts: int) -> Iterator[Batch]:
    chunks = {name: value.chunk(n_parts) for name, value in batch.items()}
    for values in zip(*chunks.values(), strict=True):
        yield dict(zip(chunks, values, strict=True))


def average(model: nn.Module, total: Tensor, count: int) -> tuple[Tensor, int]:
    """From sums over this process's items to means over all processes': the gradients, in place, and the loss.

    total, count: the sum of the losses, and of how many -> (mean loss, count) of all processes.
    """
    total, items = sum_over_processes(torch.stack([total, total.new_tensor(count)]))
    count = int(items)
    for parameter in model.parameters():
        if parameter.grad is not None:
            sum_over_processes(parameter.grad)
            parameter.grad /= count
    return total / count, count


def fit(
    model: nn.Module,
    batches: Batches,
    loss: Loss,
    config: TrainConfig,
    run: Path,
    *,
    inference_files: InferenceFiles,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    score: Callable[[dict[str, float]], float] | None = None,
    after_step: Callable[[], None] | None = None,
    backward: Callable = accumulate,
) -> TrainingState:
    """Train the model in place and leave metrics.jsonl and checkpoints in the folder `run`.

    A run that has a checkpoint already is continued from it. Where no limit is in minutes, the result is the
    undisturbed run's, bit for bit on a CPU (GPU kernels are not asked to be deterministic). Of several processes,
    each computes its share of every batch; the first writes the files.
    loss(model, batch) -> (sum, count, figures to log). inference_files(folder) writes what a checkpoint needs
    beside its weights. evaluate(model) -> figures, called in eval mode with the averaged weights where an
    average is kept. score(figures): higher is better; the best weights are kept in run/best. after_step() puts
    parameters back into their bounds. backward: see `accumulate`.
    -> the state at the end; the model carries the weights that were evaluated.
    Raises ValueError if the loss or the gradient is not finite, Interrupted after SIGINT or SIGTERM: the step that
    was under way is finished and saved first.
    """
    device = choose_device(config.device)
    state = TrainingState(model.to(device), config, device)
    torch.manual_seed(config.seed + rank())  # dropout draws other masks for another share
    if has_checkpoint(run):
        state.restore(run)
    first = rank() == 0
    if first:
        truncate_metrics(run / "metrics.jsonl", state.step)
    started = from_first_process(time.monotonic) - state.seconds
    draw, best = batches.from_step(state.step), best_score(run)
    autocast = partial(forward_precision, config.precision, device)

    def progress(half: float = 0.0) -> float:
        return config.progress(state.step + half, batches.steps_per_epoch, state.seconds)

    model.train()
    with (
        Log(run / "metrics.jsonl" if first else Path(os.devnull), progress()) as log,
        signals_noted() as noted,
    ):
        while progress() < 1:
            batch = to_device(next(draw), device)
            # The schedule is read in the middle of the step: neither the first nor the last step has rate zero.
            factor = schedule(min(1.0, progress(0.5)), config.warmup, config.schedule, config.lr_floor)
            model.zero_grad(set_to_none=True)
            value, count, figures = backward(
                model, batch, loss, config.micro_batches, state.scaler.scale, autocast
            )
            if not torch.isfinite(value):
                raise ValueError(
                    f"the loss is {value.item()} at step {state.step + 1}: lower --train.lr (it is {config.lr})"
                )
            norm = state.optimize(factor)
            if after_step:
                after_step()
            if state.average:
                state.average.update(model)

            # One clock: the processes read the schedule from it, and stop at the same step.
            now, stop = from_first_process(lambda: (time.monotonic(), list(noted)))
            step_seconds = now - started - state.seconds
            state.seconds += step_seconds
            row = {"step": state.step, "epoch": state.step / batches.steps_per_epoch, "loss": value.item()}
            row |= {name: float(figure) for name, figure in figures.items()}
            row |= {"lr": config.lr * factor, "gradient_norm": norm, "seconds": state.seconds}
            row |= {"items_per_second": count / step_seconds}
            log.step(row, progress())
            if evaluate and first and due(config.evaluate_every, state.step, progress()):
                model.eval()
                with state.averaged():
                    evaluated = evaluate(model)
                    if score and score(evaluated) > best:
                        best = score(evaluated)
                        save_best(run, state.step, best, model.state_dict(), inference_files)
                model.train()
                log.evaluation({"step": state.step, **evaluated})
            if progress() >= 1 or stop or state.save_is_due():
                state.save(run, inference_files)
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
