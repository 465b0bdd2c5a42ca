"""Evaluation against torchvision's transforms on Pillow images, put together as CLIP publishes them."""

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
def test_evaluation_is_bit_for_bit_that_of_clip(size, side, seed):
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
def test_photographs_are_bit_for_bit_those_of_open_clip(side, photographs):
    """No tolerance: both resample with Pillow and normalise with torch, in the same order."""
    open_clip = pytest.importorskip("open_clip")
    ours = ImageTransform(TransformConfig(), (side, side), train=False)
    published = open_clip.image_transform(side, is_train=False)
    assert len(photographs) >= 60
    assert len({image.size for image in photographs}) > 5
    for image in photographs:
        assert torch.equal(ours(image), published(image))


def test_photographs_are_those_of_transformers(photographs):
    """The same where it resamples with Pillow, but for the last bits of a float32; the torchvision variant that it
    prefers rounds bicubic weights otherwise, and is off by up to two of 255 grey levels.

    Only where the margin to crop is even: an odd one transformers always halves downwards, torchvision, which CLIP was
    published with, to the even half, one pixel further every other time.
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


def test_photographs_for_towers_of_imagenet_are_bit_for_bit_those_of_torchvision(photographs):
    """ResNets' and ViTs' own colours, bilinear."""
    config = TransformConfig(mean=IMAGENET_MEAN, std=IMAGENET_STD, interpolation="bilinear")
    ours = ImageTransform(config, (224, 224), train=False)
    steps = [theirs.Resize(224), theirs.CenterCrop(224), theirs.ToTensor()]
    published = theirs.Compose([*steps, theirs.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
    for image in photographs:
        assert torch.equal(ours(image), published(image))
