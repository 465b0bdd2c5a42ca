"""A run starts from the towers of another run."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from minclip.clip import CLIP, CLIPConfig
from minclip.config import RunConfig
from minclip.data.tokenizer import encode_batch
from minclip.pretrained import load_image_tower, load_text_tower, pretrained_towers
from minclip.towers.modified_resnet import ModifiedResNetConfig
from minclip.towers.resnet import ResNetConfig
from minclip.towers.text import BertTextConfig, GPTTextConfig
from minclip.towers.vit import VisionTransformerConfig
from minlm.lm import LMConfig, TransformerLM
from minlm.training.checkpoint import save_checkpoint
from minlm.training.config import files_beside_weights
from minlm.training.state import TrainConfig
from tests.minclip.pretrained.published import WORDS

OWN_TEXT = {"d_model": 8, "n_heads": 2, "n_layers": 2, "vocab_size": WORDS.vocab_size, "context_length": 9}
OWN = [
    (VisionTransformerConfig(d_model=8, n_heads=2, n_layers=3, norm_input=True), BertTextConfig(**OWN_TEXT)),
    (ResNetConfig(depths=(1, 2), d_model=4, stem="small"), GPTTextConfig(**OWN_TEXT, end_id=WORDS.end_id)),
    (
        ModifiedResNetConfig(depths=(1, 1), d_model=4, n_heads=2, image_size=(64, 64)),
        BertTextConfig(**OWN_TEXT, pool="pooler"),
    ),
]


def own_run(folder, image, text) -> CLIP:
    """A run of this project with one checkpoint."""
    config = RunConfig(
        model=CLIPConfig(
            image=replace(image, weights="elsewhere", trained_blocks=0),
            text=text,
        ),
        train=TrainConfig(epochs=1),
    ).with_tokenizer(WORDS)
    model = CLIP(config.model).eval()
    save_checkpoint(folder, 3, model.state_dict(), {}, files_beside_weights(config, WORDS))
    return model


@pytest.mark.parametrize("image, text", OWN, ids=["ViT", "ResNet", "CLIP's ResNet"])
@pytest.mark.parametrize("place", ["", "step-00000003", "step-00000003/model.safetensors"])
def test_a_run_starts_from_the_towers_of_another(image, text, place, tmp_path):
    model = own_run(tmp_path / "run", image, text)
    weights = str(tmp_path / "run" / place)
    digest = {"vocab_size": WORDS.vocab_size, "vocab_digest": WORDS.digest}
    wanted = CLIPConfig(
        image=replace(type(image)(image_size=(64, 64)), weights=weights),
        text=replace(type(text)(context_length=9), weights=weights, **digest),
    )
    if isinstance(text, BertTextConfig):
        wanted = replace(wanted, text=replace(wanted.text, pool=text.pool))
    config, tensors = pretrained_towers(wanted)
    assert config.image == replace(image, weights=weights)
    assert config.text.n_layers == 2
    again = CLIP(config).eval()
    again.load_state_dict(tensors, strict=False)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(again.image_tower(images), model.image_tower(images))
    tokens, mask, _ = encode_batch(WORDS, ["a dog on the beach", "the cat"], 9)
    if isinstance(text, BertTextConfig):
        torch.testing.assert_close(again.text_tower(tokens, mask), model.text_tower(tokens, mask))
    torch.testing.assert_close(load_image_tower(weights)(images), model.image_tower(images))


def test_runs_that_do_not_fit_are_refused_with_a_way_out(tmp_path):
    own_run(tmp_path, *OWN[0])
    weights = str(tmp_path)
    text = BertTextConfig(
        weights=weights, context_length=9, vocab_size=WORDS.vocab_size, vocab_digest="other"
    )
    with pytest.raises(
        ValueError, match=r"was trained with another vocabulary: give .* --vocabulary .*step-00000003$"
    ):
        pretrained_towers(CLIPConfig(text=text))
    path = tmp_path / "step-00000003" / "config.json"
    config = json.loads(path.read_text())
    for n_layers, message in (
        (10**9, "its config says 1000000000 layers, its tensors say 3: put its own config beside it"),
        (0, "is not its run's: image.n_layers=0 must be at least 1"),
    ):
        path.write_text(json.dumps({"model": {"image": config["model"]["image"] | {"n_layers": n_layers}}}))
        with pytest.raises(ValueError, match=message):
            load_image_tower(weights)
    path.unlink()
    with pytest.raises(
        ValueError, match=r"the config.json beside .*model.safetensors is not its run's: image"
    ):
        load_image_tower(weights)
    model = TransformerLM(LMConfig(d_model=8, n_heads=2, n_layers=1, tied=False))
    save_file(model.state_dict(), tmp_path / "lm.safetensors")
    with pytest.raises(ValueError, match=r": first write it with python -m minlm export --to hf-gpt2$"):
        load_text_tower(tmp_path / "lm.safetensors")
