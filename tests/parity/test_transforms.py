"""Evaluation against torchvision's transforms on Pillow images, put together as CLIP publishes them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from minclip.transforms import OPENAI_MEAN, OPENAI_STD, ImageTransform, TransformConfig

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
