"""The configs of Hugging Face's CLIP folders are used, or refused by name."""

import pytest

from minclip.data.transforms import OPENAI_MEAN, TransformConfig
from minclip.pretrained import load_clip, load_clip_model
from tests.minclip.pretrained.published import WORDS, edit_json, hf_folder


def test_hugging_faces_end_of_text(tmp_path):
    """An eos_token_id of 2 is that of old config files, and means the largest id."""
    hf_folder(tmp_path)
    assert load_clip_model(tmp_path).config.text.end_id == WORDS.end_id
    edit_json(tmp_path / "config.json", lambda c: c["text_config"].update(eos_token_id=2))
    assert load_clip_model(tmp_path).config.text.end_id == WORDS.vocab_size - 1
    edit_json(tmp_path / "config.json", lambda c: c["text_config"].pop("eos_token_id"))
    assert load_clip_model(tmp_path).config.text.end_id == 49407


def test_images_are_prepared_as_the_folder_says(tmp_path):
    hf_folder(tmp_path, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), interpolation="bilinear")
    _, _, transform = load_clip(tmp_path)
    assert transform.config == TransformConfig(
        mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), interpolation="bilinear"
    )
    assert transform.image_size == (16, 16)
    edit_json(tmp_path / "preprocessor_config.json", lambda c: c.update(do_center_crop=False))
    with pytest.raises(ValueError, match="do_center_crop=False: only True"):
        load_clip(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    assert load_clip(tmp_path)[2].config.mean == OPENAI_MEAN


@pytest.mark.parametrize(
    "change, message",
    [
        ({"size": {"shortest_edge": 20}}, r"size=\{'shortest_edge': 20\}, the model takes \(16, 16\): only"),
        (
            {"size": {"height": 16, "width": 16}},
            r"size=\{'height': 16, 'width': 16\}, .* only \{'shortest_edge': 16\}",
        ),
        ({"size": {"shortest_edge": 16, "longest_edge": 20}}, "size=.* the model takes"),
        (
            {"crop_size": 14},
            r"crop_size=14, the model takes \(16, 16\): only \{'height': 16, 'width': 16\} can be",
        ),
        ({"crop_size": {"height": 16, "width": 14}}, "crop_size=.* the model takes"),
        ({"rescale_factor": 1.0}, "has rescale_factor=1.0: only 1/255 can be loaded"),
        ({"rescale_factor": "x"}, "the option rescale_factor='x' must be float, not str"),
        ({"do_pad": True}, "has do_pad=True: only False can be loaded"),
        ({"size": 16, "crop_size": 16, "rescale_factor": 0.00392156862745098}, None),
    ],
)
def test_images_prepared_otherwise_are_refused(change, message, tmp_path):
    hf_folder(tmp_path)
    edit_json(tmp_path / "preprocessor_config.json", lambda config: config.update(change))
    if message is None:
        assert load_clip(tmp_path)[2].image_size == (16, 16)
        assert load_clip(tmp_path, image_size=(24, 24))[2].image_size == (24, 24)
        return
    with pytest.raises(ValueError, match=f"^{tmp_path}[^\n]*{message}"):
        load_clip(tmp_path)


@pytest.mark.parametrize("part", ["vision_config", "text_config"])
@pytest.mark.parametrize(
    "name", ["hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads"]
)
def test_hugging_faces_sizes_are_those_of_the_tensors(part, name, tmp_path):
    """Whatever a config says, nothing is built that the file has no numbers for."""
    hf_folder(tmp_path)
    edit_json(tmp_path / "config.json", lambda config: config[part].update({name: 10**9}))
    with pytest.raises(ValueError, match=f"^{tmp_path}[^\n]*1000000000"):
        load_clip(tmp_path)
