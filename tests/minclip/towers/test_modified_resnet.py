"""CLIP's ResNet against torch's own functions, layer by layer, and against its published size."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from minclip.towers.modified_resnet import (
    AntialiasedBlock,
    AttentionPooling,
    ModifiedResNet,
    ModifiedResNetConfig,
)
from tests.drawing import randomise_norms

seeds = st.integers(0, 10**6)
configs = st.builds(
    lambda depths, grid, d_model: ModifiedResNetConfig(
        depths=tuple(depths),
        image_size=tuple(4 * 2 ** (len(depths) - 1) * side for side in grid),
        d_model=d_model,
        n_heads=2,
    ),
    st.lists(st.integers(1, 2), min_size=1, max_size=2),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.sampled_from([2, 4]),
)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


def conv_norm(x: Tensor, weights: dict[str, Tensor], name: str, stride: int = 1) -> Tensor:
    """Convolution and BatchNorm of the layer of that name, from its state dict."""
    kernel = weights[f"{name}.0.weight"]
    x = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
    statistics = [weights[f"{name}.1.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
    return F.batch_norm(x, *statistics, eps=1e-5)


def block_by_hand(x: Tensor, weights: dict[str, Tensor], name: str, stride: int) -> Tensor:
    y = F.relu(conv_norm(x, weights, f"{name}branch.0"))
    y = F.relu(conv_norm(y, weights, f"{name}branch.1"))
    y = conv_norm(F.avg_pool2d(y, stride), weights, f"{name}branch.3")
    if f"{name}shortcut.1.0.weight" in weights:
        x = conv_norm(F.avg_pool2d(x, stride), weights, f"{name}shortcut.1")
    return F.relu(y + x)


def pooled_by_torch(tokens: Tensor, weights: dict[str, Tensor], name: str, n_heads: int) -> Tensor:
    """(B, T, D) -> (B, D) by torch's multi-head attention, whose output projection is the identity here."""
    x = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1) + weights[f"{name}positions"]
    x, width = x.transpose(0, 1), tokens.shape[2]  # (1 + T, B, D)
    projections = {f"{p}_proj_weight": weights[f"{name}{p}_proj.weight"] for p in "qkv"}
    out, _ = F.multi_head_attention_forward(
        x[:1],
        x,
        x,
        width,
        n_heads,
        in_proj_weight=None,
        in_proj_bias=torch.cat([weights[f"{name}{p}_proj.bias"] for p in "qkv"]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0,
        out_proj_weight=torch.eye(width, dtype=x.dtype),
        out_proj_bias=torch.zeros(width, dtype=x.dtype),
        training=False,
        use_separate_proj_weight=True,
        **projections,
    )
    return out[0]


@given(st.sampled_from([1, 2]), st.integers(1, 9), st.integers(1, 3), st.integers(1, 4), seeds)
def test_a_block_is_torchs_functions(stride, c_in, width, side, seed):
    block = randomise_norms(AntialiasedBlock(c_in, width, stride), seed)
    x = drawn(seed, 2, c_in, 2 * side, 2 * side + 2)
    same(block(x), block_by_hand(x, block.state_dict(), "", stride))
    assert isinstance(block.shortcut, nn.Identity) == (stride == 1 and c_in == 4 * width)


@given(st.integers(1, 9), st.integers(1, 3), st.integers(1, 5), seeds)
def test_attention_pooling_is_torchs_multi_head_attention(n_places, n_heads, head_size, seed):
    pooling = randomise_norms(AttentionPooling(n_places, n_heads * head_size, n_heads), seed)
    x = drawn(seed, 3, n_places, n_heads * head_size)
    same(pooling(x), pooled_by_torch(x, pooling.state_dict(), "", n_heads))


@given(configs, seeds)
def test_the_tower_is_torchs_functions(config, seed):
    model, images = randomise_norms(ModifiedResNet(config), seed), drawn(seed, 2, 3, *config.image_size)
    weights, x = model.state_dict(), images
    for i, stride in enumerate((2, 1, 1)):
        x = F.relu(conv_norm(x, weights, f"stem.{i}", stride))
    x = F.avg_pool2d(x, 2)
    strides = [
        2 if stage and i == 0 else 1 for stage, depth in enumerate(config.depths) for i in range(depth)
    ]
    for number, stride in enumerate(strides):
        x = block_by_hand(x, weights, f"blocks.{number}.", stride)
    tokens = x.flatten(2).transpose(1, 2)
    same(model.forward_tokens(images), tokens)
    same(model(images), pooled_by_torch(tokens, weights, "attention_pooling.", config.n_heads))
    assert tokens.shape[1:] == (config.n_places, config.width) == (config.n_places, model.width)


@given(st.sampled_from([1, 2]), st.integers(1, 2), seeds)
def test_a_new_block_is_its_shortcut(stride, width, seed):
    """The last BatchNorm's gain starts at zero, so each block starts as the identity."""
    block, x = AntialiasedBlock(4 * width, width, stride).double().eval(), drawn(seed, 2, 4 * width, 4, 4)
    same(block(x), block.shortcut(x).relu())


@given(st.sampled_from([32, 48]), seeds)
def test_attention_pooling_is_initialised_with_std_one_over_the_root_of_the_width(width, seed):
    """Positions and projections, as CLIP; biases at zero."""
    torch.manual_seed(seed)
    for name, value in AttentionPooling(width, width, 2).named_parameters():
        if name.endswith("bias"):
            assert (value == 0).all()
        else:
            measured = value.square().mean().sqrt().item()
            assert measured == pytest.approx(width**-0.5, rel=6 / (2 * value.numel()) ** 0.5), name


def test_published_size():
    """OpenAI's RN50: 38,316,896 with the projection to 1,024 that ends its attention pooling."""
    config = ModifiedResNetConfig()
    with torch.device("meta"):
        model = ModifiedResNet(config)
        assert model.forward_tokens(torch.zeros(2, 3, 224, 224)).shape == (2, 49, 2048)
    assert sum(p.numel() for p in model.parameters()) + (2048 + 1) * 1024 == 38_316_896


def test_other_image_sizes_are_refused():
    model = ModifiedResNet(ModifiedResNetConfig(image_size=(8, 16), depths=(1, 1), d_model=2, n_heads=2))
    with pytest.raises(ValueError, match=r"images \(1, 3, 16, 8\) must be of size \(8, 16\): resize"):
        model(torch.zeros(1, 3, 16, 8))


@pytest.mark.parametrize(
    "values, message",
    [
        ({"depths": ()}, r"depths is empty"),
        ({"depths": (2, 0)}, r"depths=\(2, 0\) must be at least 1"),
        ({"d_model": 1}, "d_model=1 must be at least 2"),
        ({"image_size": (0, 32)}, r"image_size=\(0, 32\) must be at least 1"),
        ({"image_size": (224, 230)}, r"image_size=\(224, 230\) must be multiples of the network's stride 32"),
        ({"n_heads": 3}, "n_heads=3 does not divide the features' width 2048"),
        ({"n_heads": 0}, "n_heads=0 must be at least 1"),
    ],
)
def test_impossible_configs_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ModifiedResNetConfig(**values)
