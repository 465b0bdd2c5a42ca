"""fit(): the only training loop of the repository.

In this order: draw, forward, backward, clip, step, log, evaluate, save. It knows nothing of language or images: a
`Task` defines the batches, the gradients and the evaluation.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from minlm.training.batches import Batch, Batches
from minlm.training.checkpoint import best_score, has_checkpoint, save_best
from minlm.training.distributed import from_first_process, rank
from minlm.training.log import Log, truncate_metrics
from minlm.training.optim import schedule
from minlm.training.state import TrainConfig, TrainingState

Metrics = dict[str, Tensor | float]


def choose_device(name: str) -> torch.device:
    """Return the torch device of a name; auto = cuda, else mps (Apple), else cpu.

    Raises ValueError if the device is absent: there is no silent fallback.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device in present if present[device])
    if not present[name]:
        raise ValueError(
            f"device={name}, but torch sees no such GPU: use cpu, or a build of torch that has it"
        )
    return torch.device(name)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Return True if the hardware multiplies bfloat16; emulation is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


class Precision:
    """Mixed precision of a training step (Micikevicius et al. 2018): weights and optimizer stay float32.

    name: as TrainConfig.precision. Raises ValueError for fp16 on a CPU.
    """

    def __init__(self, name: str, device: torch.device):
        if name == "auto":
            name = "bf16" if multiplies_bfloat16(device) else "float32"
        if name == "fp16" and device.type == "cpu":
            raise ValueError("--train.precision fp16 needs a GPU: use bf16 or float32 on a CPU")
        self.device = device
        self.dtype = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def forward(self) -> AbstractContextManager:
        """Return the context of a forward pass: matrix products in 16 bits, if the precision has 16."""
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients to the parameters; in fp16 they are scaled up, so that small ones survive.

        Call it outside `forward`: each gradient then has the precision of its forward product.
        """
        self.scaler.scale(loss).backward()


def check_hardware(config: TrainConfig) -> None:
    """Raise ValueError if this machine lacks the device or the precision, before anything is read or written."""
    Precision(config.precision, choose_device(config.device))


class Task(Protocol):
    """The batches, gradients and evaluation that `fit` trains a model with."""

    batches: Batches
    unit: str  # of the count that `backward` returns: tokens, pairs

    def backward(self, model: Any, batch: Batch, precision: Precision) -> tuple[Tensor, int, Metrics]:
        """Fill the gradients of a whole batch's mean loss -> (that loss, its number of items, metrics to log)."""
        ...

    def after_step(self, model: Any) -> None:
        """Put parameters back into their bounds."""

    def evaluate(self, model: Any) -> dict[str, float]:
        """Compute metrics on held-out data; the model is in eval mode."""
        ...

    def score(self, metrics: dict[str, float]) -> float:
        """Return the score of an evaluation; the weights with the highest score are kept."""
        ...

    def inference_files(self, folder: Path, /) -> None:
        """Write into a folder the files that its weights need to be used: config, tokenizer."""


def fit(model: nn.Module, task: Task, config: TrainConfig, run: Path) -> TrainingState:
    """Train the model in place; write metrics.jsonl, checkpoints and the best weights into the folder `run`.

    A run with a checkpoint is continued from it. If no limit is in minutes, the result equals that of an
    uninterrupted run, bit for bit on a CPU (GPU kernels need not be deterministic). Of several processes, each
    computes its share of every batch; the first evaluates and writes the files.
    Returns the state at the end; the model has the weights that were evaluated (with ema_decay, the averaged ones).
    Raises ValueError if the loss or the gradient is not finite, and Interrupted after SIGINT or SIGTERM, once the
    current step is finished and saved.
    """
    device = choose_device(config.device)
    precision = Precision(config.precision, device)
    state = TrainingState(model.to(device), config, precision.scaler)
    torch.manual_seed(config.seed + rank())  # dropout draws different masks for each process's share
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

            # One clock for all processes: they read the schedule from it, and stop at the same step.
            now, stop = from_first_process(lambda: (time.monotonic(), list(noted)))
            step_seconds = now - started - state.seconds
            state.seconds += step_seconds
            row = {
                "step": state.step,
                "epoch": state.step / task.batches.steps_per_epoch,
                "loss": loss.item(),
                **{name: float(value) for name, value in metrics.items()},
                "lr": config.lr * factor,
                "gradient_norm": norm,
                "seconds": state.seconds,
                f"{task.unit}_per_second": count / step_seconds,
            }
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


def due(every: int, step: int, progress: float) -> bool:
    """Return True after each `every`-th step (0 = none), and at the end of the run."""
    return progress >= 1 or (every > 0 and step % every == 0)


class Interrupted(KeyboardInterrupt):
    """The end of a run after SIGINT or SIGTERM, once its checkpoint is saved."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.number = number  # of the signal; the exit status is 128 + number


@contextmanager
def signals_noted() -> Iterator[list[int]]:
    """Within the context, append the first SIGINT or SIGTERM to the yielded list; the second ends the process."""
    noted: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, frame: Any) -> None:
        noted.append(number)
        signal.signal(number, before[number])

    if threading.current_thread() is threading.main_thread():  # Python lets no other thread handle signals
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            signal.signal(number, note)
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
