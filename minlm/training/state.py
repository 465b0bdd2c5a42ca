"""The options of training, and all state that the next step depends on."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from minlm.training.bounds import Bounded, above, at_least, within
from minlm.training.checkpoint import (
    last_checkpoint,
    load_training_state,
    load_weights,
    random_states,
    restore_random_states,
    save_checkpoint,
)
from minlm.training.distributed import from_every_process, rank, world_size
from minlm.training.optim import (
    AveragedWeights,
    Muon,
    Schedule,
    by_lr_factor,
    hidden_matrices,
    parameter_groups,
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Bounded):
    """Optimizer, schedule, batches and saving.

    The run ends at the first of the limits (epochs, steps, minutes) that is set.

    epochs: passes over the data; 0 = no such limit
    steps: optimizer steps; 0 = no such limit
    minutes: wall time, which the learning rate then follows; 0 = no such limit
    batch_size: items per step
    neighbours: consecutive items of the data that share a batch, as hard negatives
    micro_batches: parts of a batch computed one by one, to save memory; the gradient is that of the whole batch
    lr: peak learning rate of AdamW
    muon_lr: peak learning rate of Muon for the hidden matrices; 0 = AdamW trains them too
    muon_momentum: momentum of Muon; lower for runs of a few hundred steps
    min_lr_ratio: last learning rate, as a share of the peak
    warmup: share of the run in which the learning rate rises
    schedule: shape of the decay after the warm-up
    weight_decay: decoupled decay of matrices, multiplied by the learning rate
    beta2: AdamW's decay of squared gradients (beta1 is 0.9)
    grad_clip_norm: largest norm of the whole gradient; 0 = no clipping
    precision: of matrix products in the forward pass; weights and optimizer stay float32; auto = bf16 if the
        hardware multiplies it, else float32; fp16 is for GPUs
    ema_decay: decay of the moving average of weights, which is evaluated and saved instead of them; 0 = none
    evaluate_every: steps between evaluations; 0 = only at the end
    save_every: steps between checkpoints; 0 = as save_minutes says
    save_minutes: wall time between checkpoints; 0 = as save_every says
    workers: processes that load items; 0 = the training process itself
    device: auto = cuda or mps if there is such a GPU, else cpu
    seed: of initial weights, order of the data, augmentation and dropout
    """

    epochs: Annotated[float, at_least(0)] = 0.0
    steps: Annotated[int, at_least(0)] = 0
    minutes: Annotated[float, at_least(0)] = 0.0
    batch_size: Annotated[int, at_least(1)] = 128
    neighbours: Annotated[int, at_least(1)] = 1
    micro_batches: Annotated[int, at_least(1)] = 1
    lr: Annotated[float, above(0)] = 1e-3
    muon_lr: Annotated[float, at_least(0)] = 0.0
    muon_momentum: Annotated[float, within("[0, 1)")] = 0.95
    min_lr_ratio: Annotated[float, within("[0, 1]")] = 0.0
    warmup: Annotated[float, within("[0, 1)")] = 0.05
    schedule: Schedule = "cosine"
    weight_decay: Annotated[float, at_least(0)] = 0.1
    beta2: Annotated[float, within("[0, 1)")] = 0.98
    grad_clip_norm: Annotated[float, at_least(0)] = 1.0
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    ema_decay: Annotated[float, within("[0, 1)")] = 0.0
    evaluate_every: Annotated[int, at_least(0)] = 0
    save_every: Annotated[int, at_least(0)] = 0
    save_minutes: Annotated[float, at_least(0)] = 3.0
    workers: Annotated[int, at_least(0)] = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    seed: Annotated[int, within(f"[0, {2**32})")] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.epochs or self.steps or self.minutes):
            raise ValueError("the run has no end: set epochs, steps or minutes above 0")
        if self.schedule == "inverse_sqrt" and not self.warmup:
            raise ValueError("schedule=inverse_sqrt falls from the end of the warm-up: set warmup above 0")
        if self.batch_size % self.neighbours:
            raise ValueError(f"neighbours={self.neighbours} does not divide batch_size={self.batch_size}")
        if self.batch_size < self.micro_batches:
            raise ValueError(f"micro_batches={self.micro_batches} is more than batch_size={self.batch_size}")

    def progress(self, step: float, steps_per_epoch: int, seconds: float) -> float:
        """Return the share of the run that is done after `step` steps and `seconds`, by the nearest limit."""
        shares = [0.0]
        if self.epochs > 0:
            # 1.1 epochs of 50 steps are 55 steps, though 1.1 * 50 is a little more in floating point.
            shares.append(step / max(1, ceil(round(self.epochs * steps_per_epoch, 6))))
        if self.steps > 0:
            shares.append(step / self.steps)
        if self.minutes > 0:
            shares.append(seconds / (60 * self.minutes))
        return max(shares)


class TrainingState:
    """All state that the next step depends on: weights, optimizers, scaler, average, step, time spent."""

    def __init__(self, model: nn.Module, config: TrainConfig, scaler: torch.amp.GradScaler):
        self.model, self.config, self.scaler = model, config, scaler
        self.optimizers = make_optimizers(model, config)
        self.average = AveragedWeights(model, config.ema_decay) if config.ema_decay else None
        self.step, self.seconds = 0, 0.0
        self.restored_seconds, self.saved_at = 0.0, (0, 0.0)  # (step, seconds) of the last checkpoint

    def optimize(self, factor: float) -> float:
        """Clip the gradients of the parameters and take one step -> the norm of the whole gradient.

        factor: multiplies every peak learning rate. In fp16, all optimizers skip a step whose gradient overflows, and
        the loss scale is lowered. Otherwise a NaN or infinite gradient raises ValueError, before any weight changes.
        """
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        norm = nn.utils.get_total_norm(gradients)
        finite = bool(norm.isfinite())
        if not finite and not self.scaler.is_enabled():
            raise ValueError(
                f"the gradient's norm is {norm.item()} at step {self.step + 1}: lower --train.lr, or continue "
                "from the last checkpoint with --resume"
            )
        if (
            finite
        ):  # checked once: scaler.step alone would skip only the optimizers whose gradients overflowed
            nn.utils.clip_grads_with_norm_(parameters, self.config.grad_clip_norm or float("inf"), norm)
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["peak_lr"] * factor
                self.scaler.step(optimizer)
        self.scaler.update()
        self.step += 1
        return norm.item()

    def save_is_due(self) -> bool:
        """Return True if enough steps or minutes have passed since the last checkpoint."""
        every, minutes, (step, seconds) = self.config.save_every, self.config.save_minutes, self.saved_at
        by_steps = every > 0 and self.step % every == 0
        return self.step > step and (by_steps or (minutes > 0 and self.seconds - seconds >= 60 * minutes))

    def averaged(self) -> Any:
        """Give the model its averaged weights within the context; with ema_decay=0, change nothing."""
        return self.average.swapped_into(self.model) if self.average else nullcontext()

    def save(self, run: Path, inference_files: Callable[[Path], None]) -> None:
        """Write a checkpoint of this step into the run's folder, in rank 0."""
        random = from_every_process(random_states())
        self.saved_at = self.step, self.seconds
        if rank():
            return
        weights = self.model.state_dict()
        training = {
            "step": self.step,
            "seconds": self.seconds,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "random": random,
        }
        if self.average:
            training |= {"weights": weights, "updates": self.average.updates}
            weights = self.average.average
        save_checkpoint(run, self.step, weights, training, inference_files)

    def restore(self, run: Path) -> None:
        """Load the newest checkpoint of the run.

        Raises ValueError if another number of processes wrote it, or if it does not fit this config.
        """
        folder = last_checkpoint(run)
        weights, training = load_weights(folder), load_training_state(folder)
        try:
            processes = len(training["random"])
            if processes == world_size():
                self._put_back(weights, training)
        except Exception as error:  # of another config: names, shapes or parts differ
            reason = str(error).splitlines()[-1].strip()
            raise ValueError(
                f"{folder} is not a checkpoint of this run's config.json ({reason}): put back the one it was "
                "trained with"
            ) from None
        if processes != world_size():
            raise ValueError(
                f"{run} was trained by {processes} processes, now there are {world_size()}: start as many again"
            )

    def _put_back(self, weights: dict[str, Tensor], training: dict[str, Any]) -> None:
        """Load what `save` wrote into model, optimizers, scaler and random states."""
        if self.average:
            self.average.load_state_dict({"updates": training["updates"], "average": weights})
            weights = training["weights"]
        self.model.load_state_dict(weights)
        for optimizer, saved in zip(self.optimizers, training["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.scaler.load_state_dict(training["scaler"])
        restore_random_states(training["random"][rank()])
        self.step, self.seconds = training["step"], training["seconds"]
        self.restored_seconds, self.saved_at = self.seconds, (self.step, self.seconds)


def make_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Make AdamW for all trainable parameters; with muon_lr, Muon takes the hidden matrices.

    A part of the model with an `lr_factor` has its peak learning rates multiplied by it.
    """
    groups = parameter_groups(model, config.weight_decay)
    hidden = hidden_matrices(model) if config.muon_lr else {}
    by_muon = {id(p) for parameters in hidden.values() for p in parameters}
    for group in groups:
        group["params"] = [p for p in group["params"] if id(p) not in by_muon]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, config.lr, betas=(0.9, config.beta2), fused=True)
    ]
    if by_muon:
        groups = [group for n, some in hidden.items() for group in by_lr_factor(model, some, stacked=n)]
        optimizers.append(Muon(groups, config.muon_lr, config.weight_decay, config.muon_momentum))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"] * group["lr_factor"]
    return optimizers
