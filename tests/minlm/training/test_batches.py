"""The batch is a function of (seed, step), whichever process draws it and wherever the run is resumed."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset

from minlm.training.batches import Batches, epoch_order, fit_batch
from minlm.training.state import TrainConfig


class Keys(Dataset):
    """A dataset whose items are their keys."""

    def __init__(self, n_items):
        self.n_items = n_items

    def __len__(self):
        return self.n_items

    def __getitem__(self, key):
        return key

    def collate(self, items):
        return {"keys": torch.tensor(items)}


def drawn(batches, start, count):
    draw = batches.from_step(start)
    return [next(draw)["keys"].tolist() for _ in range(count)]


@given(st.integers(1, 40), st.integers(1, 7), st.integers(0, 99), st.integers(0, 5))
def test_an_epoch_is_a_permutation_in_which_neighbours_stay_together(n_items, neighbours, seed, epoch):
    """Each run fills one slot of the order; only one run may be cut, to fill the slot of the short one."""
    order = epoch_order(n_items, seed, epoch, neighbours)
    assert sorted(order) == list(range(n_items))
    slots = {tuple(order[i : i + neighbours]) for i in range(0, n_items, neighbours)}
    runs = [tuple(range(i, i + neighbours)) for i in range(0, n_items - neighbours + 1, neighbours)]
    divided = [run for run in runs if run not in slots]
    assert len(divided) <= (n_items % neighbours > 0), f"{divided} lie in two slots of {order}"
    assert order == epoch_order(n_items, seed, epoch, neighbours)


@given(st.integers(1, 9), st.integers(2, 5), st.integers(1, 3), st.integers(0, 99))
def test_batches_of_whole_runs_see_every_item(n_runs, neighbours, runs_per_batch, seed):
    """Over several epochs the short run at the end of the data is drawn too, whatever the sizes."""
    runs_per_batch = min(runs_per_batch, n_runs)
    n_items = n_runs * neighbours + seed % neighbours
    batches = Batches(Keys(n_items), runs_per_batch * neighbours, seed, neighbours=neighbours)
    seen = {i for step in range(60 * batches.steps_per_epoch) for _, i in batches.keys(step)}
    assert seen == set(range(n_items))


def test_epochs_and_seeds_differ():
    for neighbours in (1, 5):
        orders = [epoch_order(50, seed, epoch, neighbours) for seed in range(3) for epoch in range(3)]
        assert len(set(map(tuple, orders))) == 9


@given(st.integers(1, 30), st.integers(1, 8), st.integers(0, 99), st.integers(0, 20))
def test_resuming_continues_the_same_sequence(n_items, batch_size, seed, start):
    n_items = max(n_items, batch_size)  # fit_batch sees to that
    batches = Batches(Keys(n_items), batch_size, seed)
    whole = drawn(Batches(Keys(n_items), batch_size, seed), 0, start + 3)
    assert drawn(batches, start, 3) == whole[start:]


@given(st.integers(0, 40), st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.integers(1, 99))
def test_a_small_set_has_the_largest_batch_it_fills(n_items, share, neighbours, world_size, micro_batches):
    batch_size = share * neighbours * world_size
    config = TrainConfig(
        steps=1,
        batch_size=batch_size,
        neighbours=neighbours,
        micro_batches=min(micro_batches, batch_size),
    )
    allowed = [n for n in range(1, batch_size + 1) if n % neighbours == n % world_size == 0 and n <= n_items]
    if not allowed:
        with pytest.raises(ValueError, match=f"^{n_items} training items are too few .*--train.neighbours"):
            fit_batch(config, n_items, world_size)
        return
    fitted = fit_batch(config, n_items, world_size)
    assert fitted.batch_size == max(allowed)
    assert fitted.micro_batches == min(config.micro_batches, fitted.batch_size)
    assert replace(fitted, batch_size=batch_size, micro_batches=config.micro_batches) == config
    assert fit_batch(fitted, n_items, world_size) == fitted  # as a resumed run finds it in its config
    Batches(Keys(n_items), fitted.batch_size, 0, neighbours=neighbours, world_size=world_size)


def test_a_batch_that_processes_cannot_share_is_refused():
    with pytest.raises(ValueError, match=r"--train.batch_size 6 cannot be shared equally by 4 processes"):
        fit_batch(TrainConfig(steps=1, batch_size=6), 99, 4)


@given(st.integers(2, 30), st.integers(1, 8), st.integers(0, 99))
def test_no_item_is_drawn_twice_in_an_epoch(n_items, batch_size, seed):
    batch_size = min(batch_size, n_items)
    batches = Batches(Keys(n_items), batch_size, seed)
    keys = [tuple(key) for batch in drawn(batches, 0, 2 * batches.steps_per_epoch) for key in batch]
    assert len(set(keys)) == len(keys)
    per_epoch = batches.steps_per_epoch * batch_size
    assert [epoch for epoch, _ in keys] == [0] * per_epoch + [1] * per_epoch


def test_workers_draw_the_same_batches():
    inside, outside = Batches(Keys(20), 4, seed=3), Batches(Keys(20), 4, seed=3, workers=2)
    assert drawn(outside, 2, 6) == drawn(inside, 2, 6)


def test_drawing_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    drawn(Batches(Keys(20), 4, seed=3), 0, 7)
    assert torch.equal(torch.get_rng_state(), before)
