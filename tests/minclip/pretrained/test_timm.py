"""timm's config.json says what a state dict does not."""

import json

import pytest

from minclip.data.transforms import TransformConfig
from minclip.pretrained import load_image_tower, save_image_tower
from minclip.towers.vit import VisionTransformerConfig
from tests.minclip.pretrained.published import VIT, drawn_tower


@pytest.mark.parametrize(
    "options, message",
    [
        ({"model_args": []}, r"the option model_args=\[\] must be dict, not list"),
        ({"model_args": {"num_heads": 2.0}}, "n_heads=2.0 must be int, not float"),
        ({"model_args": {"num_heads": True}}, "n_heads=True must be int, not bool"),
        ({"pretrained_cfg": "x"}, "the option pretrained_cfg='x' must be dict, not str"),
        ({"pretrained_cfg": {"input_size": 16}}, "the option input_size=16 must be 3 values"),
        ({"pretrained_cfg": {"input_size": [3, "x", 8]}}, "the option input_size='x' must be int, not str"),
        ({"architecture": ["vit_tiny"]}, r"the option architecture=\['vit_tiny'\] must be str, not list"),
    ],
)
def test_timms_options_are_of_their_kind(options, message, tmp_path):
    config = VisionTransformerConfig(**VIT | {"image_size": (16, 16)}, pool="mean", norm_eps=1e-6)
    save_image_tower(drawn_tower(config), TransformConfig(), tmp_path)
    known = {"architecture": "vit_x_patch8", "model_args": {"num_heads": 2}}
    (tmp_path / "config.json").write_text(json.dumps(known))
    load_image_tower(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(known | options))
    with pytest.raises(ValueError, match=f"^{tmp_path}.*: {message}"):
        load_image_tower(tmp_path)
