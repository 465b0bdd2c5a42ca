"""The order of samples from shards: every sample once per epoch over all processes, exact resuming."""

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minclip.data.shards import ShardBatches, ShardRecords, shard_order

SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(lambda sizes: sum(sizes) > 0)


@given(SIZES, st.integers(0, 99), st.integers(0, 3), st.integers(1, 12))
def test_the_order_is_a_permutation_that_reads_shard_after_shard(sizes, seed, epoch, buffer):
    order = shard_order(sizes, seed, epoch, buffer)
    assert sorted(order) == list(range(sum(sizes)))
    assert order == shard_order(sizes, seed, epoch, buffer)
    shard_of = [number for number, size in enumerate(sizes) for _ in range(size)]
    # Undo the shuffle within each piece: whole shards remain, one after the other.
    sequence = list(dict.fromkeys(shard_of[index] for index in order))
    pieces = [order[start : start + buffer] for start in range(0, len(order), buffer)]
    ordered = [sorted(piece, key=lambda i: sequence.index(shard_of[i])) for piece in pieces]
    runs = [shard_of[i] for i in itertools.chain(*ordered)]
    order_of_first = {shard: min(k for k, s in enumerate(runs) if s == shard) for shard in set(runs)}
    for shard, first in order_of_first.items():
        last = max(k for k, s in enumerate(runs) if s == shard)
        assert last - first < sizes[shard] + buffer  # samples of a shard are read close together


def test_epochs_and_seeds_differ_in_shards_and_in_pieces():
    orders = [tuple(shard_order([5] * 6, seed, epoch, 10)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9
    assert len({tuple(sorted(order[:10])) for order in orders}) > 3  # each epoch combines other shards
    assert any(list(order[:10]) != sorted(order[:10]) for order in orders)


class Keys(torch.utils.data.Dataset):
    """Dataset whose items are their keys, over shards of these sizes."""

    def __init__(self, sizes: list[int]):
        self.records = ShardRecords([Path(f"{k}.tar") for k in range(len(sizes))], sizes, (), 1)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key):
        return key

    def collate(self, items):
        return {"keys": torch.tensor(items)}


def drawn(batches: ShardBatches, start: int, count: int) -> list[list[list[int]]]:
    draw = batches.from_step(start)
    return [next(draw)["keys"].tolist() for _ in range(count)]


def keys_of(batches: ShardBatches, start: int, count: int) -> list[list[tuple[int, int]]]:
    return [batches.keys(step) for step in range(start, start + count)]


workers_of = st.integers(0, 4)


@given(SIZES, st.integers(1, 4), st.integers(1, 4), workers_of, st.integers(0, 99), st.integers(1, 12))
def test_all_processes_together_see_every_sample_once_per_epoch(
    sizes, batch_size, world_size, workers, seed, buffer
):
    data, total = Keys(sizes), sum(sizes)
    options = {
        "batch_size": batch_size * world_size,
        "seed": seed,
        "buffer": buffer,
        "world_size": world_size,
    }
    options["workers"] = workers
    if total < batch_size * world_size:  # refused by fit_batch
        return
    processes = [ShardBatches(data, rank=rank, **options) for rank in range(world_size)]
    steps = processes[0].steps_per_epoch
    for epoch in range(2):
        keys = [tuple(k) for b in processes for batch in keys_of(b, epoch * steps, steps) for k in batch]
        assert {e for e, _ in keys} == {epoch}
        assert len(set(keys)) == len(keys) == world_size * steps * batch_size
        assert total - len(keys) < world_size * batch_size  # less than a batch


@given(SIZES, st.integers(1, 4), st.integers(1, 3), workers_of, st.integers(0, 99))
def test_each_worker_of_each_process_reads_shards_of_its_own(sizes, batch_size, world_size, workers, seed):
    """Readers of consecutive stretches share at most one shard with the next reader."""
    if sum(sizes) < batch_size * world_size:
        return
    data, readers = Keys(sizes), max(1, workers)
    shard_of = [number for number, size in enumerate(sizes) for _ in range(size)]
    read = {}
    for rank in range(world_size):
        batches = ShardBatches(data, batch_size * world_size, seed, 1, workers, rank, world_size)
        for step in range(batches.steps_per_epoch):
            reader = read.setdefault((rank, step % readers), [])
            reader += [shard_of[i] for _, i in batches.keys(step)]
    for shards in read.values():  # one after the other
        assert len(list(itertools.groupby(shards))) == len(set(shards))
    places = [set(shards) for shards in read.values()]
    assert sum(map(len, places)) <= len(set.union(*places)) + len(places) - 1


class ReadBy(Keys):
    """Dataset whose batches include the number of the worker that drew them."""

    def collate(self, items):
        return {"keys": torch.tensor(items), "worker": torch.utils.data.get_worker_info().id}


@pytest.mark.parametrize("start", [0, 1])
def test_each_loader_worker_reads_its_own_shards(start):
    """4 shards of 6 samples are 8 batches of 3; each of two workers reads two shards."""
    data = ReadBy([6, 6, 6, 6])
    draw = ShardBatches(data, 3, seed=0, workers=2, buffer=1).from_step(start)
    read = {0: set(), 1: set()}
    for _ in range(8 - start):
        batch = next(draw)
        read[batch["worker"]] |= {index // 6 for _, index in batch["keys"].tolist()}
    assert [len(shards) for shards in read.values()] == [2, 2]
    assert not read[0] & read[1]


@given(SIZES, st.integers(1, 4), st.integers(0, 30), st.integers(0, 99), st.integers(0, 1))
def test_resuming_continues_the_same_sequence(sizes, batch_size, start, seed, rank):
    if sum(sizes) < 2 * batch_size:
        return
    first, second = (ShardBatches(Keys(sizes), 2 * batch_size, seed, 5, 0, rank, 2) for _ in range(2))
    assert drawn(second, start, 3) == drawn(first, 0, start + 3)[start:]
