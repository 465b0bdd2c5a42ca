"""Hugging Face's ViT says what it is."""

import json

import pytest

from minclip.data.transforms import TransformConfig
from minclip.pretrained import load_image_tower, save_image_tower
from tests.minclip.pretrained.published import IMAGE_CONFIGS, drawn_tower


def test_a_config_of_another_model_is_refused(tmp_path):
    save_image_tower(drawn_tower(IMAGE_CONFIGS[2]), TransformConfig(), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="has model_type='bert': only 'vit' can be loaded"):
        load_image_tower(tmp_path)
