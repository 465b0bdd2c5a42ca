"""Residual networks against the papers' counts, and block by block against their equations."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from minclip.towers.resnet import ResidualBlock, ResNet, ResNetConfig
from tests.drawing import randomise_norms

seeds = st.integers(0, 10**6)
SIZES = {  # He et al. 2016, table 1; parameters without the classifier, as torchvision's models have them
    18: (ResNetConfig(image_size=(224, 224), block="basic", depths=(2, 2, 2, 2)), 11_176_512),
    34: (ResNetConfig(image_size=(224, 224), block="basic", depths=(3, 4, 6, 3)), 21_284_672),
    50: (ResNetConfig(image_size=(224, 224), block="bottleneck", depths=(3, 4, 6, 3)), 23_508_032),
    101: (ResNetConfig(image_size=(224, 224), block="bottleneck", depths=(3, 4, 23, 3)), 42_500_160),
}


@pytest.mark.parametrize("layers", SIZES)
def test_published_sizes(layers):
    config, parameters = SIZES[layers]
    with torch.device("meta"):
        model = ResNet(config)
        tokens = model.forward_tokens(torch.zeros(2, 3, 224, 224))
    assert sum(p.numel() for p in model.parameters()) == parameters
    convolutions = [
        m for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and "shortcut" not in name
    ]
    assert len(convolutions) + 1 == layers  # the classifier is the last layer the name counts
    assert tokens.shape == (2, 49, model.width)
    assert model.width == (512 if config.block == "basic" else 2048)


def by_hand(x, conv, norm, stride):
    """Convolution by unfold, then BatchNorm by its equation."""
    weight, kernel = conv.weight, conv.weight.shape[-1]
    columns = nn.functional.unfold(x, kernel, padding=kernel // 2, stride=stride)  # (B, C k k, places)
    side = [(s + 2 * (kernel // 2) - kernel) // stride + 1 for s in x.shape[2:]]
    y = (weight.flatten(1) @ columns).unflatten(-1, side)
    mean, var, gain, bias = (
        v.view(1, -1, 1, 1) for v in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (y - mean) / (var + norm.eps).sqrt() * gain + bias


@given(st.booleans(), st.sampled_from([1, 2]), st.integers(1, 3), st.integers(1, 3), st.integers(3, 7), seeds)
def test_a_block_is_its_equation(bottleneck, stride, c_in, width, side, seed):
    block = randomise_norms(ResidualBlock(c_in, width, stride, bottleneck), seed)
    x = torch.randn(2, c_in, side, side + 1, generator=torch.Generator().manual_seed(seed)).double()
    strides = [1, stride, 1] if bottleneck else [stride, 1]  # in the 3x3 of a bottleneck
    y = x
    for i, (layer, s) in enumerate(zip(block.branch, strides, strict=True)):
        y = by_hand(y, layer[0], layer[1], s)
        if i < len(strides) - 1:
            y = y.relu()
    same = stride == 1 and c_in == width * (4 if bottleneck else 1)
    shortcut = x if same else by_hand(x, block.shortcut[0], block.shortcut[1], stride)
    torch.testing.assert_close(block(x), (y + shortcut).relu())


@given(
    st.sampled_from(["imagenet", "cifar", "small"]),
    st.lists(st.integers(1, 2), min_size=1, max_size=3),
    st.integers(1, 3),
    st.integers(1, 3),
    seeds,
)
def test_features_are_the_mean_of_the_last_map_of_the_configs_stride(stem, depths, rows, columns, seed):
    stride = (1 if stem == "cifar" else 4) * 2 ** (len(depths) - 1)
    size = (stride * rows, stride * columns)
    model = ResNet(ResNetConfig(image_size=size, depths=tuple(depths), d_model=4, stem=stem)).eval()
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(seed))
    tokens = model.forward_tokens(images)
    assert model.config.stride == stride
    assert tokens.shape == (2, rows * columns, model.width)
    torch.testing.assert_close(model(images), tokens.mean(dim=1))


def test_memory_layout_changes_nothing():
    model = ResNet(ResNetConfig(depths=(1, 1), d_model=4, stem="small")).eval()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model(images), model(images.to(memory_format=torch.channels_last)))


@pytest.mark.parametrize(
    "values, message",
    [
        ({"depths": ()}, r"depths is empty"),
        ({"depths": (2, 0)}, r"depths=\(2, 0\) must be at least 1"),
        ({"image_size": (16, 64)}, r"image_size=\(16, 64\) is smaller than the network's stride 32"),
    ],
)
def test_impossible_configs_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ResNetConfig(**values)
