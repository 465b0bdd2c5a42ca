"""OpenAI's archives are read as data."""

import pytest
import torch

from minclip.pretrained import load_clip_model, load_image_tower, load_text_tower
from tests.minclip.pretrained.published import (
    CLIP_RESNET,
    CLIP_VIT,
    WORDS,
    archive,
    clip_batch,
    drawn_half,
    openai_file,
)


@pytest.mark.parametrize("image", [CLIP_VIT, CLIP_RESNET], ids=["ViT", "ResNet"])
@pytest.mark.parametrize("half", [False, True])
def test_an_archive_is_read_as_data(image, half, tmp_path):
    model, tensors = openai_file(tmp_path, image)
    if half:
        tensors = {name: x.half() if x.is_floating_point() else x for name, x in tensors.items()}
        drawn_half(model)
    archive(tensors, tmp_path / "any.pt")
    again = load_clip_model(tmp_path / "any.pt")
    assert again.config.text.n_heads == 1
    assert again.config.text.end_id == WORDS.vocab_size - 1
    batch_of = clip_batch(model, WORDS.vocab_size - 1)
    torch.testing.assert_close(again(*batch_of), model(*batch_of))
    images, tokens, mask = batch_of
    torch.testing.assert_close(load_image_tower(tmp_path / "any.pt")(images), model.image_tower(images))
    torch.testing.assert_close(
        load_text_tower(tmp_path / "any.pt")(tokens, mask), model.text_tower(tokens, mask)
    )


def test_a_bare_state_dict_needs_heads_and_activation(tmp_path):
    """Without OpenAI's numbers or open_clip's config, heads and activation must be given."""
    model, tensors = openai_file(tmp_path)
    bare = {
        f"module.{name}": tensors[name] for name in tensors if "." in name or "_p" in name or "logit" in name
    }
    bare["module.positional_embedding"] = tensors["positional_embedding"]
    torch.save({"state_dict": bare}, tmp_path / "bare.pt")
    with pytest.raises(
        ValueError, match=r"n_heads=1, activation='quick_gelu'; .*image_heads=... and text_heads="
    ):
        load_clip_model(tmp_path / "bare.pt")
    given = {"activation": "quick_gelu", "image_heads": 1, "text_heads": 1}
    again = load_clip_model(tmp_path / "bare.pt", **given)
    end_id = again.config.text.end_id
    torch.testing.assert_close(again(*clip_batch(model, end_id)), model(*clip_batch(model, end_id)))
    with pytest.raises(
        ValueError, match=r"\['heads'\] are not options of a published CLIP: there are image_size"
    ):
        load_clip_model(tmp_path / "bare.pt", heads=3)
