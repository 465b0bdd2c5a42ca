"""The order of the data: the batch is a function of (seed, step), whatever was drawn before.

An epoch is one permutation of the items, without replacement; its last items that do not fill a batch are
dropped (another permutation drops others). Resuming at step n starts the same sequence at its n-th batch. Of
several processes, each draws an equal share of that batch.
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from math import lcm

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from minlm.training.state import TrainConfig

Batch = dict[str, Tensor]
Key = tuple[int, int]  # (epoch, index): what a dataset needs to draw an item again exactly


def epoch_order(n_items: int, seed: int, epoch: int, neighbours: int = 1) -> list[int]:
    """A permutation of the items in which runs of `neighbours` items stay together and begin at its multiples.

    Where `neighbours` does not divide n_items, the last run is short. Items of the run that comes last in the
    permutation fill its place up, so that no other run is shifted over the border between two batches.
    """
    starts = list(range(0, n_items, neighbours))
    random.Random(f"{seed}/{epoch}").shuffle(starts)
    order = [i for start in starts for i in range(start, min(start + neighbours, n_items))]
    missing, end = -n_items % neighbours, order.index(n_items - 1) + 1
    if missing and end < n_items:
        order[end:] = order[-missing:] + order[end:-missing]
    return order


def fit_batch(config: TrainConfig, n_items: int, world_size: int = 1) -> TrainConfig:
    """The config with a batch that `n_items` training items fill: a small set is one batch, in as many parts at most.

    Where it is lowered, the batch stays a multiple of `neighbours` and of the `world` processes that share it. A run
    that keeps the returned config in its folder draws the same batches when it is resumed. Raises ValueError where
    not even one such batch can be filled, or where the processes cannot share the batch equally.
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
    """Batches of a dataset that is indexed by (epoch, index) and offers `collate(items)`.

    workers: processes that draw items ahead; 0 draws in the training process. The batches are the same.
    neighbours: see `epoch_order`. rank, world: which process of how many this is; each draws an equal share of a
    batch, and `fit_batch` sees to it that there is one.
    """

    def __init__(
        self,
        dataset: Dataset,
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

    def keys(self, step: int) -> list[Key]:
        """The items of one batch that are this process's."""
        epoch, place = divmod(step, self.steps_per_epoch)
        start = self._start(place)
        return [(epoch, i) for i in self._order(epoch)[start : start + self.share]]

    def _start(self, place: int) -> int:
        """Where, in the epoch's order, this process's share of its batch number `place` begins."""
        return place * self.batch_size + self.rank * self.share

    def _order(self, epoch: int) -> list[int]:
        if getattr(self, "_kept", (None,))[0] != epoch:
            self._kept = (epoch, epoch_order(len(self.dataset), self.seed, epoch, self.neighbours))
        return self._kept[1]

    def _key_batches(self, step: int) -> Iterator[list[Key]]:
        while True:
            yield self.keys(step)
            step += 1

    def from_step(self, step: int) -> Iterator[dict]:
        """Batch `step`, and those after it, without end."""
        return iter(
            DataLoader(
                self.dataset,
                batch_sampler=self._key_batches(step),
                collate_fn=self.dataset.collate,
                num_workers=self.workers,
                # A generator of its own: the loader would otherwise draw its workers' seeds from the global
                # one, and the model's dropout would depend on when the run was resumed.
                generator=torch.Generator(),
            )
        )


def split(batch: Batch, n_parts: int) -> Iterator[Batch]:
    """Cut a batch into n_parts of about equal size, or as many as it has items."""
    chunks = {name: value.chunk(n_parts) for name, value in batch.items()}
    for values in zip(*chunks.values(), strict=True):
        yield dict(zip(chunks, values, strict=True))
