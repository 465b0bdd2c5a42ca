"""CLIP's residual network: a deeper stem, average pooling in place of strides, and attention pooling.

Radford et al. 2021, section 2.4. Shapes: B batch, C channels, h w pixels, T positions of the last feature map,
D features, H heads, K = D / H head size.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minclip.towers.freezing import Tower, TowerConfig
from minclip.towers.resnet import convolution
from minlm.training.bounds import at_least


@dataclass(frozen=True, kw_only=True)
class ModifiedResNetConfig(TowerConfig):
    """CLIP's ResNet of bottleneck blocks. RN50: depths 3,4,6,3, d_model 64, n_heads 32. RN101: depths 3,4,23,3.

    image_size: height,width in pixels; multiples of the network's stride (32 for four stages)
    depths: blocks per stage; each stage but the first halves height and width and doubles the channels
    d_model: width of the first stage
    n_heads: heads of the attention pooling; must divide the features' width, d_model * 2^(stages - 1) * 4
    """

    image_size: Annotated[tuple[int, int], at_least(1)] = (224, 224)
    depths: Annotated[tuple[int, ...], at_least(1)] = (3, 4, 6, 3)
    d_model: Annotated[int, at_least(2)] = 64
    n_heads: Annotated[int, at_least(1)] = 32

    def __post_init__(self):
        super().__post_init__()
        if not self.depths:
            raise ValueError("depths is empty: give the number of blocks of each stage")
        if any(side % self.stride for side in self.image_size):
            raise ValueError(
                f"image_size={self.image_size} must be multiples of the network's stride {self.stride}"
            )
        if self.width % self.n_heads:
            raise ValueError(f"n_heads={self.n_heads} does not divide the features' width {self.width}")

    @property
    def stride(self) -> int:
        """Pixels per position of the last feature map, along each side."""
        return 4 * 2 ** (len(self.depths) - 1)

    @property
    def n_places(self) -> int:
        """Number of positions of the last feature map."""
        return (self.image_size[0] // self.stride) * (self.image_size[1] // self.stride)

    @property
    def width(self) -> int:
        """Width of the features."""
        return self.d_model * 2 ** (len(self.depths) - 1) * 4

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return sum(self.depths)


class AntialiasedBlock(nn.Module):
    """Bottleneck with average pooling in place of strides, in the branch and in the shortcut.

    No position is skipped (Zhang 2019, Making Convolutional Networks Shift-Invariant Again).
    """

    def __init__(self, c_in: int, width: int, stride: int):
        super().__init__()
        last = convolution(width, 4 * width, 1, relu=False)
        self.branch = nn.Sequential(
            convolution(c_in, width, 1), convolution(width, width, 3), nn.AvgPool2d(stride), last
        )
        nn.init.zeros_(last.get_parameter("1.weight"))  # as in CLIP, each block starts as its shortcut
        self.shortcut = nn.Identity()
        if stride != 1 or c_in != 4 * width:
            self.shortcut = nn.Sequential(nn.AvgPool2d(stride), convolution(c_in, 4 * width, 1, relu=False))

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, C, h, w) to (B, C', h / stride, w / stride)."""
        return torch.relu(self.branch(x) + self.shortcut(x))  # (B, C', h', w')


class AttentionPooling(nn.Module):
    """Multi-head attention with one query, the mean of all positions; keys are the mean and every position.

    The output projection, which in CLIP maps to the joint space, is CLIP.image_projection here.
    """

    def __init__(self, n_places: int, width: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.positions = nn.Parameter(torch.randn(n_places + 1, width) * width**-0.5)  # the mean comes first
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            nn.init.normal_(projection.weight, std=width**-0.5)
            nn.init.zeros_(projection.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Pool positions x (B, T, D) to (B, D)."""
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.positions  # (B, 1 + T, D)
        query, key, value = (
            projected.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # (B, H, 1 or 1 + T, K)
            for projected in (self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x))
        )
        return F.scaled_dot_product_attention(query, key, value).flatten(1)  # (B, D)


class ModifiedResNet(Tower):
    """Image tower: stem of three convolutions and a mean -> stages of AntialiasedBlocks -> AttentionPooling."""

    def __init__(self, config: ModifiedResNetConfig):
        super().__init__()
        self.config, self.width, width = config, config.width, config.d_model
        self.stem = nn.Sequential(
            convolution(3, width // 2, 3, 2),
            convolution(width // 2, width // 2, 3),
            convolution(width // 2, width, 3),
            nn.AvgPool2d(2),
        )
        blocks, c_in = [], width
        for stage, depth in enumerate(config.depths):
            for i in range(depth):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(AntialiasedBlock(c_in, width * 2**stage, stride))
                c_in = 4 * width * 2**stage
        self.blocks = nn.Sequential(*blocks)
        self.attention_pooling = AttentionPooling(config.n_places, config.width, config.n_heads)
        self.freeze(config, self.blocks, self.attention_pooling)

    def forward_tokens(self, images: Tensor) -> Tensor:
        """Compute the last feature map (B, T, D) of images (B, C, h, w), row by row."""
        if tuple(images.shape[-2:]) != self.config.image_size:
            raise ValueError(
                f"images {tuple(images.shape)} must be of size {self.config.image_size}: resize them"
            )
        x = self.stem(images.contiguous(memory_format=torch.channels_last))  # (B, d_model, h / 4, w / 4)
        return self.blocks(x).flatten(2).transpose(1, 2)  # (B, T, D)

    def forward(self, images: Tensor) -> Tensor:
        """Compute features (B, D) of images (B, C, h, w)."""
        return self.attention_pooling(self.forward_tokens(images))  # (B, D)
