"""The order of the data: the batch is a function of (seed, step), whatever was drawn before.

An epoch is one permutation of the items. Its last items are dropped if they do not fill a batch; each permutation
drops others. Resuming at step n starts the same sequence at its n-th batch. Of several processes, each draws an equal
share of the batch.
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from math import lcm
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from minlm.training.state import TrainConfig

Batch = dict[str, Tensor]
Key = tuple[int, int]  # (epoch, index): the same key draws the same item, augmentation included


def epoch_order(n_items: int, seed: int, epoch: int, neighbours: int = 1) -> list[int]:
    """Return a permutation of the items in which runs of `neighbours` items stay together.

    Each run begins at a multiple of `neighbours`. If `neighbours` does not divide n_items, one run is short; items
    of the last run in the permutation fill it up, so that no other run is cut by the border between two batches.
    """
    starts = list(range(0, n_items, neighbours))
    random.Random(f"{seed}/{epoch}").shuffle(starts)
    order = [i for start in starts for i in range(start, min(start + neighbours, n_items))]
    missing, end = -n_items % neighbours, order.index(n_items - 1) + 1
    if missing and end < n_items:
        order[end:] = order[-missing:] + order[end:-missing]
    return order


def fit_batch(config: TrainConfig, n_items: int, world_size: int = 1) -> TrainConfig:
    """Return the config with the batch size lowered, if necessary, to what `n_items` training items fill.

    A lowered batch size is a multiple of `neighbours` and of `world_size`, the number of processes. Raises ValueError
    if the items do not fill one such batch, or if the processes cannot share the batch equally.
    """
    if config.batch_size % world_size:
        raise ValueError(
            f"--train.batch_size {config.batch_size} cannot be shared equally by {world_size} processes: "
            f"give a multiple of {world_size}"
        )
    if n_items >= config.batch_size:
        return config
    unit = lcm(config.neighbours, world_size)
    size = n_items - n_items % unit
    if not size:
        raise ValueError(
            f"{n_items} training items are too few for one batch: a batch is a multiple of {unit} with "
            f"--train.neighbours {config.neighbours} and {world_size} processes; give more data, or lower them"
        )
    return replace(config, batch_size=size, micro_batches=min(config.micro_batches, size))


class Batches:
    """Batches of a dataset that has a length, is indexed by (epoch, index) and has a method `collate(items)`.

    workers: processes that draw items ahead; 0 = the training process itself. The batches are the same.
    neighbours: see `epoch_order`. rank, world_size: this process's number and the number of processes; each draws an
    equal share of a batch (see `fit_batch`).
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        seed: int,
        workers: int = 0,
        neighbours: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.dataset, self.batch_size, self.seed, self.workers = dataset, batch_size, seed, workers
        self.neighbours, self.rank, self.world_size = neighbours, rank, world_size
        self.share = batch_size // world_size
        self.steps_per_epoch = len(dataset) // batch_size
        self._kept: tuple[int, list[int]] = (-1, [])  # an epoch and its order

    def keys(self, step: int) -> list[Key]:
        """Return the keys of this process's share of a batch."""
        epoch, place = divmod(step, self.steps_per_epoch)
        start = self._start(place)
        return [(epoch, i) for i in self._order(epoch)[start : start + self.share]]

    def _start(self, place: int) -> int:
        """Return the position in the epoch's order where this process's share of batch `place` begins."""
        return place * self.batch_size + self.rank * self.share

    def _order(self, epoch: int) -> list[int]:
        """Return the order of an epoch, which is kept until another is asked for."""
        if self._kept[0] != epoch:
            self._kept = (epoch, epoch_order(len(self.dataset), self.seed, epoch, self.neighbours))
        return self._kept[1]

    def from_step(self, step: int) -> Iterator[Batch]:
        """Yield batch `step` and all that follow, without end."""
        return iter(
            DataLoader(
                self.dataset,
                batch_sampler=map(self.keys, count(step)),
                collate_fn=self.dataset.collate,
                num_workers=self.workers,
                # Without its own generator, the loader draws its workers' seeds from the global one, and the
                # model's dropout depends on when the run was resumed.
                generator=torch.Generator(),
            )
        )


def split(batch: Batch, n_parts: int) -> Iterator[Batch]:
    """Yield a batch in n_parts of about equal size, or in as many as it has items."""
    chunks = {name: value.chunk(n_parts) for name, value in batch.items()}
    for values in zip(*chunks.values(), strict=True):
        yield dict(zip(chunks, values, strict=True))
