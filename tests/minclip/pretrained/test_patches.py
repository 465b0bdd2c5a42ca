"""Patch biases and position grids between formats."""

import pytest
import torch

from minclip.pretrained import export, load_clip
from minclip.pretrained.patches import square_grid
from tests.minclip.pretrained.published import (
    CLIP_VIT,
    LAST,
    clip_batch,
    drawn_clip,
    text_config,
    transform_of,
)


@pytest.mark.parametrize("to", ["hf-clip", "open_clip", "openai"])
def test_a_patch_bias_moves_into_the_positions(to, tmp_path):
    model = drawn_clip(CLIP_VIT, text_config(LAST))
    export(model, LAST, transform_of(model), tmp_path, to)
    again, _, _ = load_clip(tmp_path)
    assert not again.image_tower.patch_embedding.bias.any()
    inputs = clip_batch(model, LAST.end_id)
    torch.testing.assert_close(again(*inputs), model(*inputs))


def test_without_a_config_the_grid_is_square():
    assert square_grid(49, "FILE") == (7, 7)
    with pytest.raises(
        ValueError, match=r"FILE has positions for 50 places, which is not a square grid: put the config"
    ):
        square_grid(50, "FILE")
