"""Evaluation equals its formula exactly; strips take little memory; invalid configs are refused."""

import random
from math import inf

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from minclip.data import transforms
from minclip.data.transforms import IMAGENET_MEAN, IMAGENET_STD, TransformConfig
from tests.minclip.data.views import SEEDS, SIZES, gradient, make, photo, plain


def test_the_statistics_are_the_published_ones():
    """The statistics of CLIP and torchvision, with which published weights were trained."""
    clip = TransformConfig()
    assert clip.mean == (0.48145466, 0.4578275, 0.40821073)
    assert clip.std == (0.26862954, 0.26130258, 0.27577711)
    assert IMAGENET_MEAN == (0.485, 0.456, 0.406)
    assert IMAGENET_STD == (0.229, 0.224, 0.225)


@given(SIZES, SEEDS, st.booleans())
def test_an_image_of_the_target_size_is_only_normalised(size, seed, imagenet):
    statistics = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD} if imagenet else {}
    transform, image = make(False, image_size=size, **statistics), photo(*size, seed)
    result = transform(image)
    assert result.dtype == torch.float32
    assert torch.equal(result, plain(image, transform))


@given(SIZES, st.integers(1, 40), SEEDS, st.sampled_from(["bilinear", "bicubic"]))
@example((20, 23), 20, 0, "bicubic")  # half of 3 pixels: rounded up, to even
@example((23, 20), 20, 0, "bicubic")
@example((20, 25), 20, 0, "bicubic")  # half of 5 pixels: rounded down, to even
def test_evaluation_of_square_targets_is_the_published_one(size, side, seed, interpolation):
    """The rounding of torchvision's Resize and CenterCrop, written out; tests/parity compares with torchvision."""
    height, width = size
    image = photo(height, width, seed)
    short, long = min(size), max(size)
    new_long = int(side * long / short)
    new_width, new_height = (side, new_long) if width <= height else (new_long, side)
    resized = np.asarray(image.resize((new_width, new_height), Image.Resampling[interpolation.upper()]))
    top, left = round((new_height - side) / 2.0), round((new_width - side) / 2.0)
    expected = Image.fromarray(resized[top : top + side, left : left + side])
    transform = make(False, image_size=(side, side), interpolation=interpolation)
    assert torch.equal(transform(image), plain(expected, transform))


@given(SIZES, SIZES)
def test_any_target_is_covered_and_one_side_is_shown_whole(size, target):
    """No border appears, and only one of the two sides loses anything."""
    white = make(False, image_size=target).cover(Image.new("RGB", size[::-1], "white"))
    assert white.size == target[::-1]
    assert (np.asarray(white) == 255).all()
    (height, width), (h, w) = size, target
    resized = []
    original = Image.Image.resize
    transform = make(False, image_size=target)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "resize", lambda *a: resized.append(a[1]) or original(*a))
        patch.setattr(transforms, "WHOLE_RESIZE", inf)
        transform.cover(photo(height, width))
    ((new_width, new_height),) = resized
    assert (new_height == h and new_width >= w) or (new_width == w and new_height >= h)
    assert new_width <= max(w, h * width / height)  # and no larger than the covering scale needs
    assert new_height <= max(h, w * height / width)


def test_the_centre_is_kept():
    view = np.asarray(make(False, image_size=(40, 20)).cover(gradient(80, 100))).astype(int)
    assert abs(view[..., 0].mean() - 49.5) < 0.6
    assert abs(view[..., 1].mean() - 39.5) < 0.6
    assert abs((view[0, -1, 0] - view[0, 0, 0]) - 38) <= 1  # 20 of the 50 columns that 100 became
    assert abs((view[-1, 0, 1] - view[0, 0, 1]) - 78) <= 1  # every row


@given(SIZES, SIZES, SEEDS)
def test_scale_one_without_flip_is_evaluation(size, target, seed):
    image = photo(*size, seed)
    train, evaluation = make(True, image_size=target, crop_scale=(1.0, 1.0)), make(False, image_size=target)
    assert torch.equal(train(image, random.Random(seed)), evaluation(image))


@given(SIZES, SIZES, SEEDS)
def test_invert_gives_back_every_pixel(size, target, seed):
    transform, image = make(False, image_size=target), photo(*size, seed)
    np.testing.assert_array_equal(np.asarray(transform.invert(transform(image))), transform.cover(image))


def test_invert_clips():
    shown = make(False, image_size=(1, 1)).invert(torch.tensor([99.0, -99.0, 0.0]).view(3, 1, 1))
    assert shown.getpixel((0, 0)) == (255, 0, 104)  # the third is the mean of blue, 0.408 * 255


@given(SIZES, SIZES, SEEDS, st.booleans())
def test_without_random_crops_a_shrunk_image_gives_the_same_view(size, target, seed, train):
    transform = make(train, image_size=target, flip=True)
    image = photo(*size, seed)
    kept = transform.shrink(image)
    assert kept.size == target[::-1]
    assert torch.equal(transform(kept, random.Random(seed)), transform(image, random.Random(seed)))


STRIPS = st.tuples(st.integers(1, 20), st.integers(200, 4000)).flatmap(st.permutations)


@given(STRIPS, st.tuples(st.integers(1, 40), st.integers(1, 40)), SEEDS, st.booleans())
def test_only_the_visible_part_of_a_strip_is_resized(size, target, seed, noise):
    """The result equals that of resizing the whole strip and cropping it, to one grey level.

    Noise for bilinear only: where bicubic weights overshoot, Pillow's clipping depends on which side it resizes first.
    """
    image = photo(*size, seed) if noise else gradient(*size)
    transform = make(False, image_size=target, interpolation="bilinear" if noise else "bicubic")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transforms, "WHOLE_RESIZE", inf)
        whole = np.asarray(transform.cover(image)).astype(int)
        patch.setattr(transforms, "WHOLE_RESIZE", 0)
        part = np.asarray(transform.cover(image)).astype(int)
    assert part.shape == whole.shape
    assert np.abs(part - whole).max() <= 1


@pytest.mark.parametrize("size", [(1, 1_000_000), (1_000_000, 1), (2, 65_535)])
def test_a_strip_takes_little_memory(size, monkeypatch):
    """A line of a million pixels, resized as a whole, would take 200 GB."""
    resized = []
    original = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda *a, **k: resized.append(a[1]) or original(*a, **k))
    image = Image.new("RGB", size, "red")
    for transform in (
        make(False, image_size=(224, 224)),
        make(True, image_size=(224, 224), crop_scale=(0.3, 1)),
    ):
        view = transform(transform.shrink(image), random.Random(0))
        assert torch.equal(view, plain(Image.new("RGB", (224, 224), "red"), transform))
    assert set(resized) == {(224, 224)}


def test_grey_images_get_three_colours():
    grey = photo(8, 8).convert("L")
    transform = make(False, image_size=(8, 8))
    assert torch.equal(transform(grey), transform(grey.convert("RGB")))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"mean": (0.5,)}, "three finite colours"),
        ({"std": (0.5, 0.0, 0.5)}, "must be at least 1e-06"),
        ({"std": (0.5, 1e-300, 0.5)}, "must be at least 1e-06"),  # which is 0 in float32
        ({"std": (0.5, float("inf"), 0.5)}, "must be at least 1e-06"),
        ({"std": (0.5, 0.5, float("nan"))}, "must be at least 1e-06"),
        ({"mean": (float("nan"), 0.5, 0.5)}, "three finite colours"),
        ({"mean": (0.5, 0.5, -float("inf"))}, "three finite colours"),
        ({"interpolation": "nearest"}, "'nearest' must be one of bilinear, bicubic"),
        ({"crop_scale": (0.0, 1.0)}, r"crop_scale=\(0.0, 1.0\) must be in"),
        ({"crop_scale": (0.9, 0.5)}, "two shares of the area, low,high"),
        ({"crop_scale": (0.9, 1.5)}, r"must be in \(0, 1\]"),
        ({"color_jitter": 1.5}, "color_jitter=1.5 must be in"),
        ({"color_jitter": -0.1}, "color_jitter=-0.1 must be in"),
    ],
)
def test_invalid_configs_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TransformConfig(**fields)
