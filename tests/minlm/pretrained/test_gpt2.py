"""GPT-2's format, without its library: what is written is read again; what does not fit is named."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from minlm.lm import LMConfig, TransformerLM
from minlm.pretrained import load_gpt2, save_gpt2
from minlm.pretrained.gpt2 import parents
from minlm.tokenizer import CharTokenizer, load_tokenizer, train_bpe

TINY = LMConfig(d_model=8, n_heads=2, n_layers=2, vocab_size=11, context_length=6)


def saved(folder, **options) -> TransformerLM:
    model = TransformerLM(replace(TINY, **options)).eval()
    save_gpt2(model, folder)
    return model


@given(
    st.integers(1, 3),
    st.sampled_from(["gelu", "gelu_tanh", "quick_gelu", "relu"]),
    st.booleans(),
    st.sampled_from([None, 5, 32]),
    st.sampled_from([1e-5, 1e-3]),
)
def test_written_and_read_again_it_is_the_same_model(tmp_path_factory, layers, activation, tied, d_ff, eps):
    folder = tmp_path_factory.mktemp("gpt2")
    options = {"n_layers": layers, "activation": activation, "tied": tied, "d_ff": d_ff, "norm_eps": eps}
    model = saved(folder, **options)
    again = load_gpt2(folder)
    assert again.config == replace(model.config, d_ff=model.config.mlp_width)
    assert not again.training
    tokens = torch.randint(11, (2, 6))
    assert torch.equal(again(tokens), model(tokens))
    assert all(parameter.requires_grad for parameter in again.parameters())


def test_matrices_are_stored_transposed_and_fused(tmp_path):
    model = saved(tmp_path)
    theirs = load_file(tmp_path / "model.safetensors")
    assert theirs["transformer.h.1.attn.c_attn.weight"].shape == (8, 24)
    attention = model.transformer.blocks[1].attention
    assert torch.equal(theirs["transformer.h.1.attn.c_attn.weight"].T, attention.in_proj.weight)
    assert "lm_head.weight" not in theirs


def change(folder, edit) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")


def test_older_files(tmp_path):
    """Mask buffers, no prefix, a head that is the embedding again, half precision."""
    model = saved(tmp_path)

    def edit(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name).half()
        for layer in range(2):
            tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 6, 6)
            tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
        tensors["lm_head.weight"] = tensors["wte.weight"].clone()

    change(tmp_path, edit)
    again = load_gpt2(tmp_path)
    assert again.config.tied
    assert torch.equal(again.embedding.tokens.weight, model.embedding.tokens.weight.half().float())
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}


def test_a_bare_file_needs_what_it_cannot_say(tmp_path):
    model = saved(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"does not say n_heads, activation: .*n_heads=12, 16, 20 or 25"):
        load_gpt2(tmp_path)
    again = load_gpt2(tmp_path / "model.safetensors", n_heads=2, activation="gelu_tanh", dropout=0.1)
    assert again.config.dropout == 0.1
    tokens = torch.randint(11, (2, 6))
    assert torch.equal(again(tokens), model(tokens))
    with pytest.raises(ValueError, match="n_heads=3 does not divide"):
        load_gpt2(tmp_path, n_heads=3, activation="gelu")


@pytest.mark.parametrize(
    "option, value",
    [
        ("scale_attn_weights", False),
        ("scale_attn_by_inverse_layer_idx", True),
        ("model_type", "bert"),
        ("activation_function", "swish"),
    ],
)
def test_another_function_is_refused(option, value, tmp_path):
    saved(tmp_path)
    options = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(options | {option: value}))
    with pytest.raises(ValueError, match=f"{value!r}"):
        load_gpt2(tmp_path)


def test_leftovers_are_listed(tmp_path):
    saved(tmp_path)

    def edit(tensors):
        tensors["score.weight"] = torch.zeros(2, 8)
        del tensors["transformer.ln_f.bias"]

    change(tmp_path, edit)
    with pytest.raises(ValueError, match=r"1 not used: score.weight; 1 not filled: transformer.norm.bias"):
        load_gpt2(tmp_path)
    change(tmp_path, lambda tensors: tensors.pop("transformer.wpe.weight"))
    with pytest.raises(ValueError, match=r"has no transformer.wpe.weight"):
        load_gpt2(tmp_path)
    change(tmp_path, lambda tensors: [tensors.pop(name) for name in list(tensors) if ".h." in name])
    with pytest.raises(ValueError, match="is not a GPT-2"):
        load_gpt2(tmp_path)


def test_a_missing_untied_head_is_refused(tmp_path):
    saved(tmp_path, tied=False)
    change(tmp_path, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(
        ValueError, match=r"has no lm_head.weight, and its config.json says that it is not tied"
    ):
        load_gpt2(tmp_path)


@pytest.mark.parametrize(
    "options", [{"positions": "rotary"}, {"positions": "sinusoidal"}, {"norm_first": False}]
)
def test_models_of_another_layout_are_not_written(options, tmp_path):
    with pytest.raises(ValueError, match=r"train one with --model.positions learned"):
        saved(tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_vocabularies_travel(tmp_path):
    text = "the cat sat on the mat, the dog sat on the cat. " * 3
    bpe = train_bpe(text, 270)
    model = TransformerLM(replace(TINY, vocab_size=270))
    save_gpt2(model, tmp_path / "bpe", bpe)
    assert load_tokenizer(tmp_path / "bpe").digest == bpe.digest
    assert json.loads((tmp_path / "bpe" / "config.json").read_text())["eos_token_id"] == bpe.end_id == 269
    characters = CharTokenizer(text)
    save_gpt2(model, tmp_path / "characters", characters)
    assert load_tokenizer(tmp_path / "characters").digest == characters.digest


def test_parents_are_the_merge_that_made_a_token():
    bpe = train_bpe("abcabcabc abc ab ab bcbc" * 4, 266)
    for token, rank in bpe.ranks.items():
        if len(token) > 1:
            first, second = parents(token, bpe.ranks)
            assert first + second == token
            assert max(bpe.ranks[first], bpe.ranks[second]) < rank
