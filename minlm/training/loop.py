"""fit(): the only training loop of the repository.

In this order: draw, forward, backward, clip, step, log, evaluate, save. It knows nothing of language or
images: a model, batches that are a function of (seed, step), and a loss that returns (sum, count, figures).
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minlm.training.batches import Batches
from minlm.training.checkpoint import has_checkpoint, truncate_metrics
from minlm.training.distributed import from_first_process, rank, sum_over_processes
from minlm.training.log import Log
from minlm.training.optim import schedule
from minlm.training.state import TrainConfig, TrainingState

Batch = dict[str, Tensor]
Loss = Callable[[nn.Module, Batch], tuple[Tensor, int, dict[str, Tensor | float]]]


def choose_device(name: str) -> torch.device:
    """auto = cuda where there is one. ValueError where cuda is asked for and absent: no silent fallback."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "device=cuda, but torch sees no GPU: use device=cpu, or install a CUDA build of torch"
        )
    return torch.device(name)


def forward_precision(precision: str, device: torch.device) -> Any:
    """The autocast context for a forward pass; ValueError for fp16 on a CPU."""
    if precision == "auto":
        precision = "bf16" if multiplies_bfloat16(device) else "float32"
    if precision == "float32":
        return nullcontext()
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("precision=fp16 needs a GPU: use bf16 or float32 on a CPU")
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


def check_hardware(config: TrainConfig) -> None:
    """ValueError where this machine cannot train so: said before anything is read or written."""
    forward_precision(config.precision, choose_device(config.device))


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the hardware has bfloat16 products; elsewhere they are emulated, and slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported()


def to_device(batch: Batch, device: torch.device) -> Batch:
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def accumulate(
    model: nn.Module, batch: Batch, loss: Loss, n_parts: int, scale: Callable[[Tensor], Tensor]
) -> tuple[Tensor, int, dict[str, Any]]:
    """Gradients of the mean loss of a batch, computed in parts: -> (mean, count, figures of the last part).

    Sums are differentiated and divided once by the whole count, so parts of unequal counts (padding, a
    ragged last part) weigh as they do in the full batch. For losses that are sums over the items; a
    contrastive loss, which is not, has its own way (minclip/gradcache.py).
    """
    total, count = 0.0, 0
    for part in split(batch, n_parts):
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
    inference_files: Callable[[Path], None],
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    after_step: Callable[[], None] | None = None,
    backward: Callable = accumulate,
) -> dict[str, float]:
    """Train the model in place and leave metrics.jsonl and checkpoints in the folder `run`.

    A run that has a checkpoint already is continued from it; where no limit is in minutes, the result is the
    undisturbed run's, bit for bit. Of several processes, each computes its share of every batch; the first writes
    the files.
    loss(model, batch) -> (sum, count, figures to log). inference_files(folder) writes what a checkpoint needs
    beside its weights. evaluate(model) -> figures, called in eval mode with the averaged weights where an
    average is kept. after_step() puts parameters back into their bounds. backward: see `accumulate`.
    -> the last evaluation's figures; the model carries the weights that were evaluated.
    Raises ValueError when the loss is not finite.
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
    draw, evaluated = batches.from_step(state.step), {}

    def progress(half: float = 0.0) -> float:
        return config.progress(state.step + half, batches.steps_per_epoch, state.seconds)

    model.train()
    with Log(run / "metrics.jsonl" if first else Path(os.devnull), progress()) as log:
        while progress() < 1:
            batch = to_device(next(draw), device)
            # The schedule is read in the middle of the step: neither the first nor the last step has rate zero.
            factor = schedule(min(1.0, progress(0.5)), config.warmup, config.schedule, config.lr_floor)
            model.zero_grad(set_to_none=True)
            with forward_precision(config.precision, device):
                value, count, figures = backward(model, batch, loss, config.micro_batches, state.scaler.scale)
            if not torch.isfinite(value):
                raise ValueError(f"the loss is {value.item()} at step {state.step + 1}: lower lr={config.lr}")
            norm = state.optimize(factor)
            if after_step:
                after_step()
            if state.average:
                state.average.update(model)

            # One clock: the processes read the schedule from it, and stop at the same step.
            step_seconds = from_first_process(time.monotonic) - started - state.seconds
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
                model.train()
                log.evaluation({"step": state.step, **evaluated})
            if due(config.save_every, state.step, progress()):
                state.save(run, inference_files)
    if state.average:
        model.load_state_dict(state.average.average)
    model.eval()
    return evaluated


def due(every: int, step: int, progress: float) -> bool:
    """Whether something done each `every` steps (0 = only at the end) is done after this one."""
    return progress >= 1 or (every > 0 and step % every == 0)
