"""Losses in tiles equal the written-out ones: values and every gradient, in float64; memory grows with the batch."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minclip import clip, losses
from minclip.clip import CLIP, contrastive_loss
from minclip.losses import clip_loss, contrastive_metrics, sigmoid_loss, tiles
from minclip.tiled_losses import tiled_clip_loss, tiled_sigmoid_loss
from tests.drawing import SMALL, LargestTensor

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
                patch.setattr(losses, "TILE_SIZE", tile_size)
            value, count = loss(*inputs, groups)
            (weight * value).backward()
        assert count == n_pairs
        found.append((value.detach(), *(x.grad for x in inputs)))
    for written_out, in_tiles in zip(*found, strict=True):
        torch.testing.assert_close(in_tiles, written_out, rtol=1e-10, atol=1e-10)


@given(n_pairs=st.integers(1, 300), entries=st.integers(1, 2000))
def test_tiles_are_the_rows_in_order(n_pairs, entries):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "TILE_SIZE", entries)
        cut = list(tiles(n_pairs))
    assert [i for rows in cut for i in range(n_pairs)[rows]] == list(range(n_pairs))
    assert all(rows.stop - rows.start == 1 or (rows.stop - rows.start) * n_pairs <= entries for rows in cut)


@pytest.mark.parametrize("kind", sorted(LOSSES))
def test_the_largest_tensor_is_a_tile(kind, monkeypatch):
    """Of 512 pairs in tiles of 4,096 entries, forward and backward make no tensor of more entries than a tile has."""
    monkeypatch.setattr(losses, "TILE_SIZE", 4096)
    inputs = drawn(512, 8, 0, 2.0, kind)
    with LargestTensor() as largest:
        LOSSES[kind][1](*inputs, torch.arange(512) // 2)[0].backward()
    assert largest.numel <= 4096


@given(
    n_pairs=st.integers(1, 40),
    entries=st.integers(1, 500),
    n_groups=st.integers(1, 12),
    seed=st.integers(0, 999),
)
def test_metrics_do_not_depend_on_the_tiles(n_pairs, entries, n_groups, seed):
    images, texts, scale, bias = drawn(n_pairs, 3, seed, 2.0, "sigmoid")
    groups = torch.randint(n_groups, (n_pairs,), generator=torch.Generator().manual_seed(seed))
    whole = contrastive_metrics(images, texts, scale, groups, bias)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "TILE_SIZE", entries)
        torch.testing.assert_close(contrastive_metrics(images, texts, scale, groups, bias), whole)


@pytest.mark.parametrize("kind", [*sorted(LOSSES), "soft_targets"])
def test_large_batches_are_computed_in_tiles(kind, monkeypatch):
    """From LARGE_BATCH pairs on: the same loss, and no tensor of loss or metrics is larger than a tile."""
    torch.manual_seed(0)
    model = CLIP(replace(SMALL, loss=kind)).double()
    images, texts, *_ = drawn(60, 7, 0, 2.0, "infonce")
    groups = torch.arange(60) // 2
    found = {}
    for large in (61, 60):
        monkeypatch.setattr(clip, "LARGE_BATCH", large)
        monkeypatch.setattr(losses, "TILE_SIZE", 600)
        with LargestTensor() as largest:
            found[large] = contrastive_loss(model, images, texts, groups)
            contrastive_metrics(images, texts, model.logit_scale, groups, model.logit_bias)
        assert (largest.numel <= 600) == (large == 60 and kind != "soft_targets")
    torch.testing.assert_close(found[60], found[61], rtol=1e-10, atol=1e-10)
