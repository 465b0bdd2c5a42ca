"""Evaluation equals its formula exactly; training's crops and flips obey laws of geometry and chance."""

import random
from math import inf

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from minclip.data import transforms
from minclip.data.transforms import IMAGENET_MEAN, IMAGENET_STD, ImageTransform, TransformConfig

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


def test_a_flip_is_a_mirror_image_and_happens_half_of_the_time():
    image, transform = photo(9, 7), make(True, image_size=(9, 7), flip=True)
    straight = plain(image, transform)
    flipped = 0
    for seed in range(400):
        result = transform(image, random.Random(seed))
        if torch.equal(result, straight):
            continue
        assert torch.equal(result.flip(-1), straight)
        mirrored = Image.fromarray(np.asarray(image)[:, ::-1])
        assert torch.equal(transform(mirrored, random.Random(seed)), straight)  # two flips cancel out
        flipped += 1
    assert abs(flipped - 200) < 50  # five standard deviations


@given(st.tuples(st.integers(60, 250), st.integers(60, 250)), st.tuples(SIDES, SIDES), SEEDS)
def test_a_crop_is_inside_the_image_with_the_required_area_and_aspect_ratio(size, target, seed):
    (height, width), (h, w) = size, (target[0] + 9, target[1] + 9)
    transform = make(True, image_size=(h, w), crop_scale=(0.3, 0.5))
    boxes = []
    original = Image.Image.resize
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "resize", lambda *a, **k: boxes.append(k.get("box")) or original(*a, **k))
        patch.setattr(transform, "cover", lambda image: image)  # the fallback, which has its own test
        view = np.asarray(transform.random_crop(gradient(height, width), random.Random(seed))).astype(float)
    if not boxes:  # nothing of this shape fits
        return
    (box,) = boxes
    left, top, right, bottom = box
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert 0.3 - 1e-9 <= (right - left) * (bottom - top) / (height * width) <= 0.5 + 1e-9
    assert 3 / 4 - 1e-9 <= (right - left) / (bottom - top) / (w / h) <= 4 / 3 + 1e-9
    assert abs(view[..., 0].mean() - ((left + right) / 2 - 0.5)) < 1.0  # the view shows that box
    assert abs(view[..., 1].mean() - ((top + bottom) / 2 - 0.5)) < 1.0


def test_areas_positions_and_aspect_ratios_are_uniform():
    transform, rng = make(True, image_size=(8, 8), crop_scale=(0.2, 0.6)), random.Random(0)
    boxes = []
    original = Image.Image.resize
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "resize", lambda *a, **k: boxes.append(k["box"]) or original(*a, **k))
        for _ in range(4000):
            transform.random_crop(Image.new("RGB", (100, 100)), rng)
    left, top, right, bottom = np.array(boxes).T
    area, stretch = (right - left) * (bottom - top) / 1e4, np.log((right - left) / (bottom - top))
    across, down = left / (100 - (right - left)), top / (100 - (bottom - top))
    limit = np.log(4 / 3)
    for values, low, high in ((area, 0.2, 0.6), (stretch, -limit, limit), (across, 0, 1), (down, 0, 1)):
        quarters = np.histogram(values, 4, (low, high))[0]
        assert quarters.sum() == 4000
        assert abs(quarters - 1000).max() < 140  # five standard deviations


def test_an_image_too_narrow_for_any_crop_gives_its_centre():
    transform, image = make(True, image_size=(20, 20), crop_scale=(0.9, 1.0)), photo(10, 200)
    assert torch.equal(transform(image, random.Random(0)), make(False, image_size=(20, 20))(image))


@given(SEEDS, SEEDS)
def test_the_view_is_a_function_of_the_random_state_alone(seed, other):
    transform, image = make(True, image_size=(16, 16), crop_scale=(0.2, 1.0), flip=True), photo(50, 40)
    first, again = (transform(image, random.Random(seed)) for _ in range(2))
    assert torch.equal(first, again)
    if seed != other:
        assert not torch.equal(first, transform(image, random.Random(other)))


@given(SIZES, SIZES, SEEDS, st.booleans())
def test_without_random_crops_a_shrunk_image_gives_the_same_view(size, target, seed, train):
    transform = make(train, image_size=target, flip=True)
    image = photo(*size, seed)
    kept = transform.shrink(image)
    assert kept.size == target[::-1]
    assert torch.equal(transform(kept, random.Random(seed)), transform(image, random.Random(seed)))


@given(
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.integers(1, 60),
    st.integers(1, 60),
    st.floats(0.1, 0.9),
    SEEDS,
)
def test_no_crop_of_a_shrunk_image_is_enlarged(size, h, w, low, seed):
    """An image that is too small is kept unchanged; at most twice the area needed is kept."""
    image = Image.new("RGB", size)
    transform = make(True, image_size=(h, w), crop_scale=(low, low))
    kept = transform.shrink(image)
    assert transform.shrink(kept).size == kept.size  # shrinking twice changes nothing
    if kept is image:
        assert size[0] * size[1] <= 2 * 4 / 3 * h * w / low + 1e-6 or min(size[0] / w, size[1] / h) <= 2**0.5
        return
    scale = min(k / s for k, s in zip(kept.size, size, strict=True))
    assert max(abs(k - scale * s) for k, s in zip(kept.size, size, strict=True)) <= 1 + max(size) / min(size)
    boxes = []
    original = Image.Image.resize
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "resize", lambda *a, **k: boxes.append(k.get("box")) or original(*a, **k))
        transform.random_crop(kept, random.Random(seed))
    left, top, right, bottom = boxes[0] or (0, 0, *kept.size)
    assert right - left >= w - 1e-6
    assert bottom - top >= h - 1e-6


def test_a_view_of_a_shrunk_image_is_as_sharp_as_the_original():
    """Compare the contrast of neighbouring pixels of noise; an image shrunk too far would lose a fifth of it."""
    image = photo(400, 500).resize((1500, 1200), Image.Resampling.BICUBIC).resize((500, 400))
    transform = make(True, image_size=(32, 32), crop_scale=(0.25, 1.0), interpolation="bilinear")
    kept = transform.shrink(image)
    assert kept.size == (83, 67)
    shown, true = (
        torch.stack([transform(some, random.Random(seed)) for seed in range(40)]) for some in (kept, image)
    )
    contrast, whole = (views.diff(dim=-1).abs().mean() for views in (shown, true))

    assert 0.9 < contrast / whole < 1.1


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


@pytest.mark.parametrize("fields", [{"flip": True}, {"crop_scale": (0.5, 1.0)}, {"color_jitter": 0.1}])
def test_a_random_view_needs_a_random_state(fields):
    with pytest.raises(ValueError, match="call it with rng="):
        make(True, image_size=(4, 4), **fields)(photo(4, 4))
    assert make(False, image_size=(4, 4), **fields)(photo(4, 4)).shape == (3, 4, 4)  # evaluation needs none


@given(st.floats(0.01, 1), SEEDS)
def test_colours_change_as_the_equation_says(color_jitter, seed):
    """Brightness scales, contrast spreads about the mean grey, saturation about each pixel's grey."""
    transform = make(True, image_size=(4, 5), color_jitter=color_jitter)
    colours = torch.from_numpy(np.random.default_rng(seed).uniform(0.3, 0.5, (3, 4, 5)))
    changed = transform.change_colours(colours, random.Random(seed))
    rng = random.Random(seed)
    b, c, s = (rng.uniform(1 - color_jitter, 1 + color_jitter) for _ in range(3))
    mean = colours.mean().item()
    for y in range(4):
        for x in range(5):
            grey = sum(colours[k, y, x].item() for k in range(3)) / 3
            for k in range(3):
                expected = b * (mean + c * (grey - mean) + c * s * (colours[k, y, x].item() - grey))
                assert changed[k, y, x].item() == pytest.approx(min(1, max(0, expected)), abs=1e-9)


def test_jitter_is_for_training_only_and_keeps_the_range():
    image = photo(8, 8)
    fields = {"image_size": (8, 8), "color_jitter": 0.9}
    assert torch.equal(make(False, **fields)(image), plain(image, make(False, image_size=(8, 8))))
    transform = make(True, **fields)
    views = [transform(image, random.Random(seed)) for seed in range(40)]
    assert len({tuple(view.flatten().tolist()) for view in views}) == 40
    lowest, highest = ((v - transform.mean) / transform.std for v in (0, 1))
    assert all((view >= lowest - 1e-6).all() and (view <= highest + 1e-6).all() for view in views)
