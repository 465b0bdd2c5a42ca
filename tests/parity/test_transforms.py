"""Evaluation equals torchvision's transforms on Pillow images, composed as CLIP publishes them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from minclip.data.records import open_image
from minclip.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    OPENAI_MEAN,
    OPENAI_STD,
    ImageTransform,
    TransformConfig,
)

theirs = pytest.importorskip("torchvision.transforms")


@given(st.tuples(st.integers(1, 400), st.integers(1, 400)), st.integers(1, 240), st.integers(0, 2**32 - 1))
def test_evaluation_equals_clips_bit_for_bit(size, side, seed):
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))
    published = theirs.Compose(
        [
            theirs.Resize(side, interpolation=theirs.InterpolationMode.BICUBIC),
            theirs.CenterCrop(side),
            theirs.ToTensor(),
            theirs.Normalize(OPENAI_MEAN, OPENAI_STD),
        ]
    )
    ours = ImageTransform(TransformConfig(), (side, side), train=False)
    assert torch.equal(ours(image), published(image))


@pytest.fixture(scope="module")
def photographs(data_root) -> list[Image.Image]:
    return [open_image(path) for path in sorted((data_root / "flickr8k_originals" / "Images").iterdir())]


@pytest.mark.parametrize("side", [224, 336, 96])
def test_photographs_equal_open_clips_bit_for_bit(side, photographs):
    """Without tolerance: both resample with Pillow and normalise with torch, in the same order."""
    open_clip = pytest.importorskip("open_clip")
    ours = ImageTransform(TransformConfig(), (side, side), train=False)
    published = open_clip.image_transform(side, is_train=False)
    assert len(photographs) >= 60
    assert len({image.size for image in photographs}) > 5
    for image in photographs:
        assert torch.equal(ours(image), published(image))


def test_photographs_equal_transformers(photographs):
    """Equal to the variant that resamples with Pillow, up to the last bits of a float32.

    The torchvision variant, its default, rounds bicubic weights differently, by up to two of 255 grey levels. Only
    even margins are compared: transformers rounds half an odd one down, torchvision to the nearest even number.
    """
    transformers = pytest.importorskip("transformers")
    ours = ImageTransform(TransformConfig(), (224, 224), train=False)
    variants = [(transformers.CLIPImageProcessor(), 2.001)]
    if hasattr(transformers, "CLIPImageProcessorPil"):
        variants.append((transformers.CLIPImageProcessorPil(), 1e-3))
    even = [image for image in photographs if int(224 * max(image.size) / min(image.size)) % 2 == 0]
    assert len(even) > 20
    for processor, grey_levels in variants:
        for image in even:
            theirs_pixels = processor(image, return_tensors="pt")["pixel_values"][0]
            difference = (ours(image) - theirs_pixels).abs() * torch.tensor(OPENAI_STD).view(3, 1, 1) * 255
            assert difference.max() <= grey_levels


def test_photographs_for_imagenet_towers_equal_torchvisions_bit_for_bit(photographs):
    """ImageNet's mean and std, bilinear."""
    config = TransformConfig(mean=IMAGENET_MEAN, std=IMAGENET_STD, interpolation="bilinear")
    ours = ImageTransform(config, (224, 224), train=False)
    steps = [theirs.Resize(224), theirs.CenterCrop(224), theirs.ToTensor()]
    published = theirs.Compose([*steps, theirs.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
    for image in photographs:
        assert torch.equal(ours(image), published(image))
