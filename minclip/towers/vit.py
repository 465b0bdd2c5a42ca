"""Vision Transformer: the patches of an image are the tokens (Dosovitskiy et al. 2021).

Shapes: B batch, C colour channels, h w pixels, P patch side, N patches, T tokens (N, or N + 1 with a class token),
N' and T' after patch dropout, D d_model.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minclip.towers.freezing import Tower, TowerConfig
from minlm.training.bounds import at_least, within
from minlm.transformer import Transformer, TransformerConfig


@dataclass(frozen=True, kw_only=True)
class VisionTransformerConfig(TransformerConfig, TowerConfig):
    """A Vision Transformer.

    image_size: height,width in pixels
    patch_size: height,width of a patch; must divide image_size
    pool: source of the image's features: a class token before the patches, the mean of the patches, their mean
        with the last LayerNorm after it instead of before (timm's fc_norm), or the last patch
    norm_input: LayerNorm before the first Block, as in CLIP
    patch_dropout: share of the patches that training drops, drawn anew for each image and step
    """

    image_size: Annotated[tuple[int, int], at_least(1)] = (64, 64)
    patch_size: Annotated[tuple[int, int], at_least(1)] = (8, 8)
    pool: Literal["class", "mean", "mean_norm", "last"] = "class"
    norm_input: bool = False
    patch_dropout: Annotated[float, within("[0, 1)")] = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.patch_dropout and self.trained_blocks != -1:
            raise ValueError(
                f"patch_dropout={self.patch_dropout} acts before the Blocks that trained_blocks={self.trained_blocks} "
                f"freezes: give trained_blocks -1 or patch_dropout 0"
            )
        if self.patch_dropout and self.pool == "last":
            raise ValueError(
                f"patch_dropout={self.patch_dropout} would drop the last patch, which is pooled: "
                f"pool class or mean"
            )
        for side, patch, name in zip(self.image_size, self.patch_size, ("height", "width"), strict=True):
            if side % patch:
                raise ValueError(
                    f"patch_size {name} {patch} does not divide image_size {name} {side}: "
                    f"choose an image_size that is a multiple of the patch"
                )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

    @property
    def n_patches(self) -> int:
        return self.grid[0] * self.grid[1]


class VisionTransformer(Tower):
    """Image tower: patches -> tokens + positions -> Transformer -> pooled features.

    The patch embedding, a convolution with stride equal to its kernel, is a linear map of each patch (Dosovitskiy et
    al. 2021, equation 1). Positions are learned, one per token, and drawn with std 0.5, near that of the embedded
    patches. With CLIP's std of D^-1/2, a tenth of that, a short run learns no positions.
    """

    def __init__(self, config: VisionTransformerConfig):
        super().__init__()
        self.config, self.width = config, config.d_model
        self.patch_embedding = nn.Conv2d(3, config.d_model, config.patch_size, stride=config.patch_size)
        self.class_token = None
        n_tokens = config.n_patches
        if config.pool == "class":
            self.class_token = nn.Parameter(torch.randn(config.d_model) * config.d_model**-0.5)
            n_tokens += 1
        self.positions = nn.Parameter(torch.randn(n_tokens, config.d_model) * 0.5)
        self.norm_input = (
            nn.LayerNorm(config.d_model, config.norm_eps) if config.norm_input else nn.Identity()
        )
        self.dropout = nn.Dropout(config.dropout)
        self.transformer = Transformer(config)
        self.norm_mean = nn.Identity()
        if config.pool == "mean_norm":
            self.norm_mean, self.transformer.norm = self.transformer.norm, self.norm_mean
        self.freeze(config, self.transformer.blocks, self.transformer.norm, self.norm_mean)

    def forward_tokens(self, images: Tensor) -> Tensor:
        """Compute the last hidden states (B, T, D) of images (B, C, h, w), the class token first if there is one."""
        if tuple(images.shape[-2:]) != self.config.image_size:
            raise ValueError(
                f"images {tuple(images.shape)} must be of size {self.config.image_size}: resize them"
            )
        x = self.patch_embedding(images).flatten(2).transpose(1, 2)  # (B, N, D)
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(len(x), 1, -1), x], dim=1)  # (B, T, D)
        x = x + self.positions
        if self.training and self.config.patch_dropout:
            x = drop_patches(x, self.config.patch_dropout, x.shape[1] - self.config.n_patches)  # (B, T', D)
        return self.transformer(self.dropout(self.norm_input(x)))  # (B, T or T', D)

    def forward(self, images: Tensor) -> Tensor:
        """Compute features (B, D) of images (B, C, h, w)."""
        x = self.forward_tokens(images)  # (B, T or T', D)
        match self.config.pool:
            case "class":
                return x[:, 0]  # (B, D)
            case "mean" | "mean_norm":
                return self.norm_mean(x.mean(dim=1))  # (B, D)
            case "last":
                return x[:, -1]  # (B, D)


def drop_patches(x: Tensor, share: float, n_extra: int) -> Tensor:
    """Drop a share of the patches, drawn for each image (Li et al. 2023, FLIP, section 3.1).

    x: (B, T, D). The first n_extra tokens (class) and at least one patch are kept. Returns (B, T', D).
    """
    n_patches = x.shape[1] - n_extra
    n_kept = max(1, round(n_patches * (1 - share)))
    order = torch.rand(len(x), n_patches, device=x.device).argsort(dim=1)  # (B, N)
    kept = order[:, :n_kept, None].expand(-1, -1, x.shape[2])  # (B, N', D)
    return torch.cat([x[:, :n_extra], x[:, n_extra:].gather(1, kept)], dim=1)  # (B, T', D)


def resize_positions(
    positions: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], antialias: bool = False
) -> Tensor:
    """Interpolate position vectors to another grid of patches (Dosovitskiy et al. 2021, section 3.2).

    positions: (T, D) for old_grid (rows, columns), extra tokens (class) first; these are kept. Returns (T', D) for
    new_grid. Bicubic, in float32. antialias: as timm and open_clip, with a low-pass filter when shrinking and Keys'
    cubic with a = -0.5; otherwise as Hugging Face, from the 16 nearest old positions with a = -0.75.
    Raises ValueError if there are fewer positions than patches in old_grid.
    """
    n_extra = len(positions) - old_grid[0] * old_grid[1]
    if n_extra < 0:
        raise ValueError(
            f"{len(positions)} positions cannot hold a grid of {old_grid[0]} x {old_grid[1]} patches"
        )
    if old_grid == new_grid:
        return positions
    extra, grid = positions[:n_extra], positions[n_extra:]  # (n_extra, D), (N, D)
    image = grid.float().T.reshape(1, -1, *old_grid)  # (1, D, rows, columns)
    image = F.interpolate(
        image, new_grid, mode="bicubic", align_corners=False, antialias=antialias
    )  # (1, D, rows', columns')
    resized = image.flatten(2)[0].T.to(positions.dtype)  # (N', D)
    return torch.cat([extra, resized])  # (T', D)
