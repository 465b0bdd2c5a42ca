"""Residual networks: convolutional image towers, which learn faster than a ViT from little data.

He et al. 2016 (Deep Residual Learning), with a bottleneck's stride in its 3x3 convolution, as in torchvision.
Shapes: B batch, C channels, h w pixels, T = h w / stride^2 positions of the last feature map, D features.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from minclip.towers.freezing import Tower, TowerConfig
from minlm.training.bounds import at_least


@dataclass(frozen=True, kw_only=True)
class ResNetConfig(TowerConfig):
    """A residual network.

    ResNet-18: basic, depths 2,2,2,2. ResNet-34: basic, 3,4,6,3. ResNet-50: bottleneck, 3,4,6,3. ResNet-101:
    bottleneck, 3,4,23,3.

    image_size: height,width in pixels
    block: two 3x3 convolutions (basic), or 1x1, 3x3, 1x1 with four times the width at the end (bottleneck)
    depths: blocks per stage; each stage but the first halves height and width and doubles the channels
    d_model: width of the first stage
    stem: 7x7 convolution and max pooling, both of stride 2 (imagenet); one 3x3 of stride 1, for 32 pixels (cifar);
        or two 3x3 of stride 2, for 64 to 96 pixels (small)
    """

    image_size: Annotated[tuple[int, int], at_least(1)] = (64, 64)
    block: Literal["basic", "bottleneck"] = "basic"
    depths: Annotated[tuple[int, ...], at_least(1)] = (2, 2, 2, 2)
    d_model: Annotated[int, at_least(2)] = 64
    stem: Literal["imagenet", "cifar", "small"] = "imagenet"

    def __post_init__(self):
        super().__post_init__()
        if not self.depths:
            raise ValueError("depths is empty: give the number of blocks of each stage")
        if min(self.image_size) < self.stride:
            raise ValueError(
                f"image_size={self.image_size} is smaller than the network's stride {self.stride}: use larger "
                f"images, fewer stages or the cifar stem"
            )

    @property
    def stride(self) -> int:
        """Pixels per position of the last feature map, along each side."""
        return (1 if self.stem == "cifar" else 4) * 2 ** (len(self.depths) - 1)

    @property
    def expansion(self) -> int:
        return 4 if self.block == "bottleneck" else 1

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return sum(self.depths)

    @property
    def width(self) -> int:
        """Width of the features."""
        return self.d_model * 2 ** (len(self.depths) - 1) * self.expansion


def convolution(c_in: int, c_out: int, kernel: int, stride: int = 1, relu: bool = True) -> nn.Sequential:
    """Build a convolution, a BatchNorm and an optional ReLU; padded so that only the stride changes the size."""
    layers = [nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(c_out)]
    return nn.Sequential(*layers, *([nn.ReLU()] if relu else []))


class ResidualBlock(nn.Module):
    """Basic or bottleneck block, relu(branch(x) + shortcut(x)) (He et al. 2016, figure 5).

    The shortcut is the identity, or a 1x1 convolution (projection, option B) if size or width changes.
    """

    def __init__(self, c_in: int, width: int, stride: int, bottleneck: bool):
        super().__init__()
        c_out = 4 * width if bottleneck else width
        if bottleneck:
            self.branch = nn.Sequential(
                convolution(c_in, width, 1),
                convolution(width, width, 3, stride),
                convolution(width, c_out, 1, relu=False),
            )
        else:
            self.branch = nn.Sequential(
                convolution(c_in, width, 3, stride), convolution(width, width, 3, relu=False)
            )
        self.shortcut = nn.Identity()
        if stride != 1 or c_in != c_out:
            self.shortcut = convolution(c_in, c_out, 1, stride, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, C, h, w) to (B, C', h / stride, w / stride)."""
        return torch.relu(self.branch(x) + self.shortcut(x))  # (B, C', h', w')


class ResNet(Tower):
    """Image tower: stem -> stages of residual blocks -> mean over the last feature map.

    Convolutions are drawn normal with variance 2 / (outputs * kernel area) (He et al. 2015, backward form).
    """

    def __init__(self, config: ResNetConfig):
        super().__init__()
        self.config, self.width, width = config, config.width, config.d_model
        self.stem = {
            "imagenet": lambda: nn.Sequential(convolution(3, width, 7, 2), nn.MaxPool2d(3, 2, 1)),
            "cifar": lambda: convolution(3, width, 3),
            "small": lambda: nn.Sequential(
                convolution(3, width // 2, 3, 2), convolution(width // 2, width, 3, 2)
            ),
        }[config.stem]()
        blocks, c_in = [], width
        for stage, depth in enumerate(config.depths):
            for i in range(depth):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(ResidualBlock(c_in, width * 2**stage, stride, config.block == "bottleneck"))
                c_in = width * 2**stage * config.expansion
        self.blocks = nn.Sequential(*blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.freeze(config, self.blocks)

    def forward_tokens(self, images: Tensor) -> Tensor:
        """Compute the last feature map (B, T, D) of images (B, C, h, w), row by row."""
        # Convolutions run fastest in the channels-last layout, on CPUs and GPUs.
        x = self.stem(images.contiguous(memory_format=torch.channels_last))  # (B, d_model, h', w')
        return self.blocks(x).flatten(2).transpose(1, 2)  # (B, T, D)

    def forward(self, images: Tensor) -> Tensor:
        """Compute features (B, D) of images (B, C, h, w)."""
        return self.forward_tokens(images).mean(dim=1)  # (B, D)
