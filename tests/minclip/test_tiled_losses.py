"""Losses in tiles equal the written-out ones: values and every gradient, in float64; memory grows with the batch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minclip import tiled_losses
from minclip.losses import clip_loss, sigmoid_loss
from minclip.tiled_losses import tiled_clip_loss, tiled_sigmoid_loss, tiles

LOSSES = {"infonce": (clip_loss, tiled_clip_loss), "sigmoid": (sigmoid_loss, tiled_sigmoid_loss)}


def drawn(n_pairs, width, seed, scale, kind):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.nn.functional.normalize(
        torch.randn(2, n_pairs, width, generator=generator, dtype=torch.float64), dim=-1
    )
    scalars = [torch.tensor(scale, dtype=torch.float64)]
    if kind == "sigmoid":
        scalars.append(torch.tensor(-1.5, dtype=torch.float64))
    return [x.clone().requires_grad_() for x in (*embeddings, *scalars)]


@given(
    kind=st.sampled_from(sorted(LOSSES)),
    n_pairs=st.integers(1, 40),
    width=st.integers(1, 9),
    entries=st.integers(1, 500),
    n_groups=st.integers(0, 12),
    scale=st.floats(0, 4.6),
    weight=st.floats(0.1, 3),
    seed=st.integers(0, 999),
)
def test_the_loss_in_tiles_is_the_written_out_one(
    kind, n_pairs, width, entries, n_groups, scale, weight, seed
):
    """Values and the gradients of embeddings, scale and bias agree to 1e-10, however the rows are cut."""
    groups = torch.randint(n_groups, (n_pairs,)) if n_groups else None
    found = []
    for loss, tile_size in zip(LOSSES[kind], (None, entries), strict=True):
        inputs = drawn(n_pairs, width, seed, scale, kind)
        with pytest.MonkeyPatch.context() as patch:
            if tile_size:
                patch.setattr(tiled_losses, "TILE_SIZE", tile_size)
            value, count = loss(*inputs, groups)
            (weight * value).backward()
        assert count == n_pairs
        found.append((value.detach(), *(x.grad for x in inputs)))
    for written_out, in_tiles in zip(*found, strict=True):
        torch.testing.assert_close(in_tiles, written_out, rtol=1e-10, atol=1e-10)


@given(n_pairs=st.integers(1, 300), entries=st.integers(1, 2000))
def test_tiles_are_the_rows_in_order(n_pairs, entries):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiled_losses, "TILE_SIZE", entries)
        cut = list(tiles(n_pairs))
    assert [i for rows in cut for i in range(n_pairs)[rows]] == list(range(n_pairs))
    assert all(rows.stop - rows.start == 1 or (rows.stop - rows.start) * n_pairs <= entries for rows in cut)


@pytest.mark.parametrize("kind", sorted(LOSSES))
def test_the_largest_tensor_is_a_tile(kind, monkeypatch):
    """Of 512 pairs in tiles of 4,096 entries, forward and backward make no tensor of more entries than a tile has."""
    monkeypatch.setattr(tiled_losses, "TILE_SIZE", 4096)
    inputs = drawn(512, 8, 0, 2.0, kind)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            made = function(*args, **(kwargs or {}))
            for x in made if isinstance(made, tuple | list) else (made,):
                if isinstance(x, torch.Tensor):
                    largest = max(largest, x.untyped_storage().nbytes() // x.element_size())
            return made

    with Watch():
        LOSSES[kind][1](*inputs, torch.arange(512) // 2)[0].backward()
    assert largest <= 4096
