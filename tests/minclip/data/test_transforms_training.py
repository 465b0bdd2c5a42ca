"""Random crops, flips and colours obey laws of geometry and chance; shrunk images keep what crops need."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.minclip.data.views import SEEDS, SIDES, gradient, make, photo, plain


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
