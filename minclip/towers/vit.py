"""The Vision Transformer: an image is cut into patches, and the patches are the tokens.

Dosovitskiy et al. 2021 (ViT). Shapes: B batch, C colour channels, h w pixels, P patch side, N patches, T tokens
(N, and one more with a class token), N' and T' those that patch dropout leaves, D d_model.
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
    pool: what becomes the image's features: a class token put before the patches, their mean, their mean with the
        last LayerNorm after it instead of before (timm's fc_norm), or the last one
    norm_input: LayerNorm before the first Block, as in CLIP
    patch_dropout: share of the patches that training leaves out, others in each picture and step
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
        """Patches down and across."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

    @property
    def n_patches(self) -> int:
        return self.grid[0] * self.grid[1]


class VisionTransformer(Tower):
    """Image tower: patches -> tokens + positions -> Transformer -> pooled features.

    The patch embedding is a convolution whose stride is its kernel: unfold into patches, then one linear map
    (Dosovitskiy et al. 2021, equation 1). Positions are learned, one for each token, and start with a deviation
    of 0.5, near that of the embedded patches: from CLIP's D^-1/2, a tenth of it, a short run does not find out
    where things are.
    """

    def __init__(self, config: VisionTransformerConfig):
        super().__init__()
        self.config = config
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
        self.freeze(self.transformer.blocks, self.transformer.norm, self.norm_mean)

    @property
    def width(self) -> int:
        """Width of the features."""
        return self.config.d_model

    def forward_tokens(self, images: Tensor) -> Tensor:
        """images (B, C, h, w) -> last hidden states (B, T, D), the class token first where there is one.

        Raises ValueError for another image size than the config's.
        """
        if tuple(images.shape[-2:]) != self.config.image_size:
            raise ValueError(
                f"images of {tuple(images.shape[-2:])} pixels, but this tower takes {self.config.image_size}: "
                f"resize the images, or the tower's positions with resize_positions()"
            )
        x = self.patch_embedding(images).flatten(2).transpose(1, 2)  # (B, N, D)
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(len(x), 1, -1), x], dim=1)  # (B, T, D)
        x = x + self.positions
        if self.training and self.config.patch_dropout:
            x = drop_patches(
                x, self.config.patch_dropout, n_extra=x.shape[1] - self.config.n_patches
            )  # (B, T', D)
        x = self.dropout(self.norm_input(x))
        return self.transformer(x)  # (B, T or T', D)

    def forward(self, images: Tensor) -> Tensor:
        """images (B, C, h, w) -> features (B, D)."""
        return self.pool(self.forward_tokens(images))  # (B, D)

    def pool(self, x: Tensor) -> Tensor:
        """Last hidden states (B, T, D) -> features (B, D)."""
        match self.config.pool:
            case "class":
                return x[:, 0]  # (B, D)
            case "mean":
                return x.mean(dim=1)  # (B, D)
            case "mean_norm":
                return self.norm_mean(x.mean(dim=1))  # (B, D)
            case "last":
                return x[:, -1]  # (B, D)


def drop_patches(x: Tensor, share: float, n_extra: int) -> Tensor:
    """Leave out `share` of the patches, another choice for each picture (Li et al. 2023, FLIP, section 3.1).

    x (B, T, D) with n_extra tokens (class) first, which stay -> (B, T', D): at least one patch is left.
    """
    n_patches = x.shape[1] - n_extra
    n_kept = max(1, round(n_patches * (1 - share)))
    order = torch.rand(len(x), n_patches, device=x.device).argsort(dim=1)  # (B, N)
    kept = order[:, :n_kept, None].expand(-1, -1, x.shape[2])  # (B, N', D)
    return torch.cat([x[:, :n_extra], x[:, n_extra:].gather(1, kept)], dim=1)  # (B, T', D)


def resize_positions(
    positions: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], antialias: bool = False
) -> Tensor:
    """Position vectors for another grid of patches (Dosovitskiy et al. 2021, section 3.2).

    positions (T, D) for old_grid (rows, columns), with any extra tokens (class) first -> (T', D) for new_grid.
    Bicubic in float32; the extra tokens are kept; the identity where the grids are equal. antialias: as in timm and
    open_clip, which average what they shrink and take Keys' cubic with a = -0.5; without, as in Hugging Face's
    models, each new position comes from its 16 nearest old ones, with a = -0.75.
    Raises ValueError where the table is smaller than the old grid.
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
