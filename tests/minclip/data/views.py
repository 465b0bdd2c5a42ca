"""Images and transforms for the tests of transforms."""

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image

from minclip.data.transforms import ImageTransform, TransformConfig

SIDES = st.integers(1, 70)
SIZES = st.tuples(SIDES, SIDES)
SEEDS = st.integers(0, 2**32 - 1)


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def gradient(height: int, width: int) -> Image.Image:
    """Return an image whose red grows by 1 per pixel to the right, and green by 1 per pixel downwards."""
    down, right = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([right, down, 0 * down], axis=-1).astype(np.uint8))


def make(train: bool, image_size: tuple[int, int], **fields) -> ImageTransform:
    return ImageTransform(TransformConfig(**fields), image_size, train)


def plain(image: Image.Image, transform: ImageTransform) -> torch.Tensor:
    """Return the normalised pixels: (v / 255 - mean) / std."""
    values = torch.tensor(np.asarray(image)).permute(2, 0, 1) / 255  # (C, h, w)
    mean, std = (torch.tensor(v)[:, None, None] for v in (transform.config.mean, transform.config.std))
    return (values - mean) / std
