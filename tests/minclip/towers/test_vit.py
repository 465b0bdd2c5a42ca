"""The Vision Transformer against one assembled from torch.nn, and the laws of patches, pooling and position grids."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st

from minclip.towers.vit import VisionTransformer, VisionTransformerConfig, drop_patches, resize_positions
from minlm.transformer import record_attention
from tests.minlm.reference import normal, randomise, torch_stack

seeds = st.integers(0, 10**6)
batches = st.integers(1, 3)
grids = st.tuples(st.integers(1, 4), st.integers(1, 4))
wide_grids = st.tuples(st.integers(1, 9), st.integers(1, 9))
configs = st.builds(
    lambda heads, size, layers, patch, grid, pool, **fields: VisionTransformerConfig(
        d_model=heads * size,
        n_heads=heads,
        n_layers=layers,
        patch_size=patch,
        image_size=(grid[0] * patch[0], grid[1] * patch[1]),
        pool=pool,
        **fields,
    ),
    st.integers(1, 3),
    st.sampled_from([4, 6]),  # at a width of 2 LayerNorm leaves signs only
    st.integers(1, 2),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    grids,
    st.sampled_from(["class", "mean", "mean_norm", "last"]),
    d_ff=st.sampled_from([None, 5]),
    activation=st.sampled_from(["gelu", "quick_gelu"]),
    norm_first=st.booleans(),
    norm_input=st.booleans(),
    norm_eps=st.sampled_from([1e-5, 1e-2]),
)


def tower(config: VisionTransformerConfig, seed: int) -> VisionTransformer:
    return randomise(VisionTransformer(config), seed)


def photos(config: VisionTransformerConfig, batch: int, seed: int) -> torch.Tensor:
    return normal(seed + 1, batch, 3, *config.image_size)


def first_tokens(model: VisionTransformer, images: torch.Tensor) -> torch.Tensor:
    """The input of the Transformer: embedded patches plus positions."""
    seen = []
    handle = model.transformer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model.forward_tokens(images)
    handle.remove()
    return seen[0]


def unfolded(model: VisionTransformer, images: torch.Tensor) -> torch.Tensor:
    """first_tokens by torch's unfold and one linear map (Dosovitskiy et al. 2021, equation 1)."""
    config, convolution = model.config, model.patch_embedding
    patches = F.unfold(images, config.patch_size, stride=config.patch_size).transpose(1, 2)  # (B, N, C P P)
    x = F.linear(patches, convolution.weight.flatten(1), convolution.bias)  # (B, N, D)
    if config.pool == "class":
        x = torch.cat([torch.stack([model.class_token[None]] * len(x)), x], dim=1)  # (B, T, D)
    x = x + model.positions
    if config.norm_input:
        x = F.layer_norm(
            x, (config.d_model,), model.norm_input.weight, model.norm_input.bias, config.norm_eps
        )
    return x


@given(configs, batches, seeds)
def test_patches_are_unfolded_and_mapped(config, batch, seed):
    model, images = tower(config, seed), photos(config, batch, seed)
    torch.testing.assert_close(first_tokens(model, images), unfolded(model, images), atol=1e-12, rtol=1e-12)


@given(configs, batches, seeds)
def test_the_tower_is_one_assembled_from_torchs_layers(config, batch, seed):
    model, images = tower(config, seed), photos(config, batch, seed)
    hidden = torch_stack(model.transformer)(unfolded(model, images))
    torch.testing.assert_close(model.forward_tokens(images), hidden, atol=1e-12, rtol=1e-12)
    mean = hidden.sum(dim=1) / hidden.shape[1]
    pooled = {"class": hidden[:, 0], "mean": mean, "last": hidden[:, -1]}
    if config.pool == "mean_norm":
        norm = model.norm_mean
        pooled["mean_norm"] = (
            F.layer_norm(mean, mean.shape[1:], norm.weight, norm.bias, config.norm_eps)
            if config.norm_first
            else mean
        )
    torch.testing.assert_close(model(images), pooled[config.pool], atol=1e-12, rtol=1e-12)
    assert model.width == model(images).shape[1]


@given(configs, seeds, st.data())
def test_tokens_are_rows_of_patches_from_the_top_left(config, seed, data):
    """One pixel changed in the patch at (row, column) changes the token row * columns + column, no other."""
    model, images = tower(config, seed), photos(config, 1, seed)
    y, x = (data.draw(st.integers(0, side - 1)) for side in config.image_size)
    changed = images.clone()
    changed[:, data.draw(st.integers(0, 2)), y, x] += 1
    differs = (first_tokens(model, images) != first_tokens(model, changed)).any(dim=-1)[0]
    patch_height, patch_width = config.patch_size
    token = y // patch_height * config.grid[1] + x // patch_width + (config.pool == "class")
    assert differs.nonzero().flatten().tolist() == [token]


@given(configs, batches, seeds)
def test_every_token_attends_to_every_token(config, batch, seed):
    model, images = tower(config, seed), photos(config, batch, seed)
    with record_attention(model) as weights:
        hidden = model.forward_tokens(images)
    n_tokens = config.n_patches + (config.pool == "class")
    assert len(weights) == config.n_layers
    for layer in weights:
        assert layer.shape == (batch, config.n_heads, n_tokens, n_tokens)
        assert (layer > 0).all()
        torch.testing.assert_close(layer.sum(dim=-1), torch.ones_like(layer[..., 0]))
    torch.testing.assert_close(hidden, model.forward_tokens(images), atol=1e-12, rtol=1e-12)


@given(configs, batches, seeds)
def test_patches_permuted_with_their_positions_change_nothing(config, batch, seed):
    """Only positions tell patches apart; the class token and the mean do not see the order of a set."""
    config = replace(config, pool="class" if config.pool == "last" else config.pool)
    model, images = tower(config, seed), photos(config, batch, seed)
    before = model(images)
    order = torch.randperm(config.n_patches, generator=torch.Generator().manual_seed(seed))
    patches = F.unfold(images, config.patch_size, stride=config.patch_size)[:, :, order]
    permuted = F.fold(patches, config.image_size, config.patch_size, stride=config.patch_size)
    n_extra = int(config.pool == "class")
    with torch.no_grad():
        model.positions[n_extra:] = model.positions[n_extra:][order]
    torch.testing.assert_close(model(permuted), before, atol=1e-12, rtol=1e-12)


@given(configs, batches, seeds, st.sampled_from([0.25, 0.5]))
def test_dropout_acts_on_the_first_tokens_in_training_only(config, batch, seed, dropout):
    model, images = tower(replace(config, dropout=dropout), seed), photos(config, batch, seed)
    whole = first_tokens(model, images)
    torch.testing.assert_close(whole, unfolded(model, images), atol=1e-12, rtol=1e-12)
    torch.manual_seed(seed)
    dropped = first_tokens(model.train(), images.repeat(40, 1, 1, 1))
    whole = whole.repeat(40, 1, 1)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], whole[kept] / (1 - dropout), atol=1e-12, rtol=1e-12)
    assert 0 < kept.double().mean() < 1


@given(configs, st.tuples(st.integers(1, 14), st.integers(1, 14)), seeds)
def test_images_of_another_size_are_refused(config, size, seed):
    model = tower(config, seed)
    if size == config.image_size:
        model(normal(seed, 1, 3, *size))
        return
    with pytest.raises(ValueError, match=rf"images \(1, 3, {size[0]}, {size[1]}\) must be of size"):
        model(normal(seed, 1, 3, *size))


@given(st.tuples(st.integers(0, 12), st.integers(0, 12)), st.tuples(st.integers(0, 6), st.integers(0, 6)))
@example((0, 4), (2, 2))
def test_a_patch_divides_the_image_or_is_refused(size, patch):
    fits = [0 < p <= side and side % p == 0 for side, p in zip(size, patch, strict=True)]
    if all(fits):
        config = VisionTransformerConfig(image_size=size, patch_size=patch)
        assert (config.grid[0] * patch[0], config.grid[1] * patch[1]) == size
        assert config.n_patches * patch[0] * patch[1] == size[0] * size[1]
        return
    wrong = fits.index(False)
    name = ("height", "width")[wrong]
    message = f"patch_size {name} {patch[wrong]} does not divide image_size {name} {size[wrong]}"
    if min(*size, *patch) < 1:
        message = "must be at least 1"
    with pytest.raises(ValueError, match=message):
        VisionTransformerConfig(image_size=size, patch_size=patch)


def cubic_matrix(old: int, new: int) -> torch.Tensor:
    """(new, old) weights of cubic convolution (Keys 1981, a = -3/4), pixel centres at half-integers, edges held."""
    matrix = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        centre = (i + 0.5) * old / new - 0.5
        first = int(centre // 1) - 1
        for tap in range(first, first + 4):
            d, a = abs(centre - tap), -0.75
            near = (a + 2) * d**3 - (a + 3) * d**2 + 1
            far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
            matrix[i, min(max(tap, 0), old - 1)] += near if d <= 1 else far if d < 2 else 0
    return matrix


@given(wide_grids, wide_grids, st.integers(0, 2), st.integers(1, 5), seeds, st.booleans())
def test_positions_are_resized_by_cubic_convolution(old, new, n_extra, d_model, seed, half):
    positions = normal(seed, n_extra + old[0] * old[1], d_model)
    positions = positions.to(torch.bfloat16 if half else torch.float32)
    resized = resize_positions(positions, old, new)
    assert resized.dtype == positions.dtype
    assert torch.equal(resized[:n_extra], positions[:n_extra])
    grid = positions[n_extra:].double().unflatten(0, old)
    expected = torch.einsum(
        "rq,cp,qpd->rcd", cubic_matrix(old[0], new[0]), cubic_matrix(old[1], new[1]), grid
    )
    tolerance = 1e-2 if half else 1e-5  # bfloat16 is rounded once, at the end
    found = resized[n_extra:].double().unflatten(0, new)
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@given(wide_grids, st.integers(0, 2), seeds)
def test_an_equal_grid_changes_nothing(grid, n_extra, seed):
    positions = normal(seed, n_extra + grid[0] * grid[1], 3)
    assert torch.equal(resize_positions(positions, grid, grid), positions)


@given(wide_grids, wide_grids, st.integers(0, 2), seeds)
def test_a_constant_grid_stays_constant(old, new, n_extra, seed):
    vector, extra = normal(seed, 4).float(), normal(seed + 1, n_extra, 4).float()
    resized = resize_positions(torch.cat([extra, vector.repeat(old[0] * old[1], 1)]), old, new)
    expected = torch.cat([extra, vector.repeat(new[0] * new[1], 1)])
    torch.testing.assert_close(resized, expected, atol=1e-5, rtol=1e-5)


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 32), st.integers(1, 8), st.booleans())
def test_a_ramp_stays_a_ramp(n_steps, n_across, new_steps, new_across, down):
    """Rising along one axis, constant across it, up to four times as fine (past six, cubic edges overshoot)."""
    new_steps = min(new_steps, 4 * n_steps)
    ramp = torch.arange(n_steps).float()[:, None].expand(n_steps, n_across)
    old, new = (n_steps, n_across), (new_steps, new_across)
    if not down:
        ramp, old, new = ramp.T, old[::-1], new[::-1]
    resized = resize_positions(ramp.reshape(-1, 1), old, new).reshape(new)
    resized = resized if down else resized.T
    assert (resized.diff(dim=0) > 0).all() or n_steps == 1
    torch.testing.assert_close(resized, resized[:, :1].expand_as(resized), atol=1e-5, rtol=1e-5)


@given(wide_grids, wide_grids, st.integers(1, 3))
def test_a_table_too_small_for_its_grid_is_refused(old, new, missing):
    n_positions = max(0, old[0] * old[1] - missing)
    message = f"{n_positions} positions cannot hold a grid of {old[0]} x {old[1]} patches"
    with pytest.raises(ValueError, match=message):
        resize_positions(torch.zeros(n_positions, 2), old, new)


@given(configs, grids, batches, seeds)
def test_a_tower_with_resized_positions_takes_images_of_the_new_size(config, grid, batch, seed):
    """On a grid of equal position vectors the resized tower is the same tower with that vector everywhere."""
    small = tower(config, seed)
    with torch.no_grad():
        small.positions[:] = normal(seed + 2, config.d_model)
    size = grid[0] * config.patch_size[0], grid[1] * config.patch_size[1]
    large = tower(replace(config, image_size=size), seed)
    positions = resize_positions(small.positions.detach(), config.grid, grid)
    large.load_state_dict(small.state_dict() | {"positions": positions})
    images = normal(seed + 3, batch, 3, *size)
    found = first_tokens(large, images)
    with torch.no_grad():
        large.positions[:] = small.positions[0]
    torch.testing.assert_close(found, unfolded(large, images), atol=1e-4, rtol=1e-4)


@given(st.sampled_from([64, 128, 192]), st.sampled_from([4, 8, 16]), seeds)
def test_positions_start_at_the_size_of_the_embedded_patches(d_model, patch, seed):
    """So that the first layer distinguishes positions: within a factor of three for normalised images."""
    torch.manual_seed(seed)
    config = VisionTransformerConfig(
        d_model=d_model, image_size=(2 * patch, 2 * patch), patch_size=(patch, patch)
    )
    model = VisionTransformer(config)
    content = model.patch_embedding(torch.randn(64, 3, *config.image_size))
    assert 1 / 3 < (model.positions.std() / content.std()).item() < 3


@given(configs, st.integers(1, 5), seeds, st.floats(0.05, 0.95))
def test_patch_dropout_keeps_a_share_of_the_patches_in_training_only(config, batch, seed, share):
    """Kept tokens are unchanged, the class token among them; the choice differs per image and step."""
    config = replace(config, pool="class" if config.pool == "last" else config.pool)
    model, images = tower(replace(config, patch_dropout=share), seed), photos(config, batch, seed)
    whole = first_tokens(model, images)
    torch.testing.assert_close(whole, unfolded(model, images), atol=1e-12, rtol=1e-12)  # in evaluation all
    kept = first_tokens(model.train(), images)
    n_extra = int(config.pool == "class")
    n_kept = max(1, round(config.n_patches * (1 - share)))
    assert kept.shape == (batch, n_extra + n_kept, config.d_model)
    assert torch.equal(kept[:, :n_extra], whole[:, :n_extra])
    for some, every in zip(kept[:, n_extra:].tolist(), whole[:, n_extra:].tolist(), strict=True):
        places = [every.index(token) for token in some]
        assert len(set(places)) == n_kept


def test_patch_dropout_draws_every_patch_equally_often():
    tokens = torch.arange(9.0).expand(4000, 9)[..., None]
    drawn = drop_patches(tokens, 0.5, n_extra=1)[:, 1:].flatten()  # 4 of 8 patches
    counts = drawn.long().bincount(minlength=9)[1:]
    assert ((counts - 2000).abs() < 5 * 1000**0.5).all()  # five deviations of a binomial
    assert drawn.min() > 0  # the extra token is none of them
    assert not torch.equal(*drawn.view(4000, 4)[:2])


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"patch_dropout": 1.0}, r"patch_dropout=1.0 must be in \[0, 1\)"),
        (
            {"patch_dropout": 0.5, "trained_blocks": 0},
            "patch_dropout=0.5 acts before the Blocks that trained_blocks=0 freezes",
        ),
        (
            {"patch_dropout": 0.5, "pool": "last"},
            "patch_dropout=0.5 would drop the last patch, which is pooled",
        ),
    ],
)
def test_impossible_patch_dropout_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        VisionTransformerConfig(**wrong)
