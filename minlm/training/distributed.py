"""Several processes, one gradient: each computes its share of every batch, and all take the same step.

    torchrun --nproc-per-node 2 train_clip.py --preset flickr8k --data.root DIR

Two rules:

1. Gradients are averaged over the processes. A loss that is a sum over items is therefore divided by the mean number
   of items per process; its mean over the processes is then the mean over all items.
2. A loss that compares every item with every other gets the whole batch from `gather`, so each of W processes
   computes the same loss. The backward pass of gather sums over the processes and the average divides by W, so the
   gradient of every parameter equals that of a single process.

Without torchrun there is one process, and the functions here return their arguments unchanged.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

PATIENCE = timedelta(hours=2)  # the others wait while process 0 evaluates


def rank() -> int:
    """Return the number of this process; process 0 writes the files and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
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
    # One backend per device, so that --train.device cpu works on a machine with GPUs too.
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


class Gather(torch.autograd.Function):
    """Concatenate the x of all processes; the gradient of an x is the sum of its gradients in all processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        whole = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(whole)
        return whole.chunk(world_size())[rank()]


def gather(x: Tensor) -> Tensor:
    """Return the rows of all W processes in order, (B, ...) -> (W B, ...), with gradient."""
    return Gather.apply(x) if world_size() > 1 else x


def mean_over_processes(x: Tensor) -> Tensor:
    """Replace x by its mean over the processes and return it."""
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
    """Return the values of all processes in order; a value is anything that can be pickled."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def from_first_process(make: Callable[[], Any]) -> Any:
    """Call make() in process 0 and return its result in every process."""
    values = [make() if rank() == 0 else None]
    if world_size() > 1:
        dist.broadcast_object_list(values)
    return values[0]


@contextmanager
def first_process_first() -> Iterator[None]:
    """Let process 0 run the block before the others, which then find the files that it wrote."""
    if rank() > 0:
        dist.barrier()
    yield
    if rank() == 0 and world_size() > 1:
        dist.barrier()
