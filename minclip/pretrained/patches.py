"""Patch embeddings and position grids: what the formats of Vision Transformers share."""

from math import isqrt, prod
from typing import Any

import torch

from minlm.pretrained.key_map import BATCHED, SAME, Tensors, Transform


def square_grid(n_places: int, where: Any) -> tuple[int, int]:
    """Return (rows, columns) of a square grid, assumed if no config gives the size. Raises ValueError if not square."""
    side = isqrt(n_places)
    if side * side != n_places:
        raise ValueError(
            f"{where} has positions for {n_places} places, which is not a square grid: put the "
            f"config.json with its image_size beside it"
        )
    return side, side


def vit_sizes(patches: torch.Size, n_patches: int, stated: Any, where: Any) -> dict[str, Any]:
    """Return {patch_size, image_size} from a patch embedding's shape (D, C, P, P) and its number of positions.

    stated: the config's image_size, a number or (height, width); None = a square image.
    """
    height, width = patches[-2:]
    if stated is None:
        rows, columns = square_grid(n_patches, where)
        size = (rows * height, columns * width)
    else:
        size = tuple(stated) if isinstance(stated, list | tuple) else (stated, stated)
        n_stated = prod(
            side // step for side, step in zip(size, (height, width), strict=False) if type(side) is int
        )
        if n_stated != n_patches:
            raise ValueError(
                f"{where}: its config says image_size={stated!r}, its positions are for {n_patches} patches"
            )
    return {"patch_size": (height, width), "image_size": size}


def without_bias(n_extra: int, batched: bool = False) -> Transform:
    """Make the transform between (patches, positions) without a bias and our (patches, bias, positions).

    Reading gives a zero bias. Writing adds the bias to the patches' positions, which is the same function; the first
    n_extra positions are of tokens that are no patches.
    """
    inner = BATCHED if batched else SAME

    def to_ours(tensors: Tensors) -> Tensors:
        patches, positions = tensors
        return [patches, torch.zeros_like(patches[:, :1, :1, :1].flatten()), *inner.to_ours([positions])]

    def to_theirs(tensors: Tensors) -> Tensors:
        patches, bias, positions = tensors
        moved = torch.cat([positions[:n_extra], positions[n_extra:] + bias])
        return [patches, *inner.to_theirs([moved])]

    return Transform(to_ours, to_theirs)
