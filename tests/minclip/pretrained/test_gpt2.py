"""GPT-2 as a text tower, from its files to a run and back."""

from dataclasses import replace

import torch
from safetensors.torch import save_file

from minclip.data.tokenizer import encode_batch
from minclip.presets import FULL
from minclip.pretrained import save_text_tower
from minclip.runs import load, make_model, make_tokenizer
from minclip.towers.text import GPTTextConfig
from minclip.towers.vit import VisionTransformerConfig
from minlm.tokenizer import train_bpe
from minlm.training.config import files_beside_weights
from tests.minclip.pretrained.published import drawn_tower


def test_a_run_on_gpt2_with_its_own_vocabulary(tmp_path):
    """From GPT-2's files to a batch of captions, pooled at the end of text; and back from the run."""
    words = train_bpe("a dog on the beach, the cat " * 3, 270)
    sizes = {"d_model": 8, "n_heads": 2, "n_layers": 1, "context_length": 9, "activation": "gelu_tanh"}
    tower = drawn_tower(GPTTextConfig(**sizes, vocab_size=words.vocab_size, end_id=words.end_id))
    save_text_tower(tower, words, tmp_path)
    preset = FULL["vit-gpt-captions"]
    text = replace(preset.model.text, weights=str(tmp_path), context_length=7)
    image = VisionTransformerConfig(d_model=8, n_heads=2, n_layers=1)
    run = replace(preset, model=replace(preset.model, image=image, text=text), vocabulary=str(tmp_path))
    tokenizer = make_tokenizer(run, [])
    run = run.with_tokenizer(tokenizer)
    assert (run.model.text.vocab_size, run.model.text.end_id, run.model.text.vocab_digest) == (
        words.vocab_size,
        words.end_id,
        words.digest,
    )
    model = make_model(run, tmp_path / "run", resume=False).eval()
    tokens, token_mask, _ = encode_batch(tokenizer, ["a dog", "the beach on the cat"], 7)
    torch.testing.assert_close(model.text_tower(tokens, token_mask), tower(tokens, token_mask))
    files_beside_weights(replace(run, model=model.config), tokenizer)(tmp_path / "run")
    save_file(model.state_dict(), tmp_path / "run" / "model.safetensors")
    again, same, _ = load(tmp_path / "run")
    assert same.digest == words.digest
    expected = model.encode_text(tokens, token_mask)
    torch.testing.assert_close(again.encode_text(tokens, token_mask), expected)
