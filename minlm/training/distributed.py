"""Several processes, one gradient: each computes its share of every batch, all take the same step.

    torchrun --nproc-per-node 2 train_clip.py --preset flickr8k --data.root DIR

Two rules, and no flags:

1. Gradients are averaged over the processes. A loss that is a sum over items is therefore divided by the mean number
   of items per process, and its mean over the processes is the mean over all items.
2. A loss that compares every item with every other sees the whole batch through `gather`. Each of W processes then
   computes that same loss. gather's backward sums over the processes, and the average divides by W, so every
   parameter's gradient, the towers' and logit_scale's alike, is the single process's.

Without torchrun there is one process, and every function here leaves its arguments as they are.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

PATIENCE = timedelta(hours=2)  # process 0 evaluates and draws while the others wait


def rank() -> int:
    """Which process this is: 0 is the one that writes files and speaks."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def processes() -> Iterator[None]:
    """Initialise the process group under torchrun, one GPU per process if available."""
    if "RANK" not in os.environ:
        yield
        return
    on_gpus = torch.cuda.is_available()
    if on_gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Each tensor goes the way of its device, so that --train.device cpu works beside GPUs too.
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


class Gather(torch.autograd.Function):
    """x_r of each process r -> all of them in order; the gradient of x_r is the sum of what all processes ask of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        whole = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(whole)
        return whole.chunk(world_size())[rank()]


def gather(x: Tensor) -> Tensor:
    """This process's rows (B, ...) -> those of all (W B, ...), in the order of the processes, with gradient."""
    return Gather.apply(x) if world_size() > 1 else x


def mean_over_processes(x: Tensor) -> Tensor:
    """Replace x by its mean over the processes, and return it."""
    if world_size() > 1:
        dist.all_reduce(x)
        x /= world_size()
    return x


def average_gradients(model: nn.Module) -> None:
    """Replace each gradient by its mean over the processes."""
    for parameter in model.parameters() if world_size() > 1 else ():
        if parameter.grad is not None:
            mean_over_processes(parameter.grad)


def from_every_process(value: Any) -> list[Any]:
    """The values of all processes, in their order: anything that can be pickled."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def from_first_process(make: Callable[[], Any]) -> Any:
    """What make() gives in process 0, the only one that calls it, for all."""
    values = [make() if rank() == 0 else None]
    if world_size() > 1:
        dist.broadcast_object_list(values)
    return values[0]


@contextmanager
def first_process_first() -> Iterator[None]:
    """Process 0 goes through the block before the others do: it writes a file, they find it there."""
    if rank() > 0:
        dist.barrier()
    yield
    if rank() == 0 and world_size() > 1:
        dist.barrier()
