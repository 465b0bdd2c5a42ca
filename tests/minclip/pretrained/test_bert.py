"""BERT's names, old and new, alone and in a task's model."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from minclip.pretrained import load_text_tower, save_text_tower
from tests.minclip.pretrained.published import (
    TEXT_CONFIGS,
    WORDS,
    drawn_half,
    drawn_tower,
    token_batch,
)


@given(st.sampled_from(["module.", "_orig_mod.", "bert.", "module.bert."]), st.booleans(), st.booleans())
def test_prefixes_heads_half_precision_and_old_names(tmp_path_factory, prefix, half, old):
    folder = tmp_path_factory.mktemp("bert")
    tower = drawn_tower(TEXT_CONFIGS[1])
    save_text_tower(tower, WORDS, folder)
    tensors = {}
    for name, value in load_file(folder / "model.safetensors").items():
        if old:
            name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            )
        tensors[prefix + name] = value.half() if half else value
    if "bert" in prefix:
        outer = prefix.removesuffix("bert.")
        tensors[f"{outer}cls.predictions.bias"] = torch.zeros(3)
        tensors[f"{prefix}embeddings.position_ids"] = torch.arange(9)[None]
    save_file(tensors, folder / "model.safetensors")
    again = load_text_tower(folder)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
    expected = drawn_half(tower) if half else tower
    assert torch.equal(again(*token_batch()), expected(*token_batch()))
