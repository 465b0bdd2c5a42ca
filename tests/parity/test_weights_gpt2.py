"""GPT-2 of transformers, imported and exported, as a language model and as a text tower."""

import random

import pytest
import torch

from minclip.pretrained import load_text_tower
from minclip.pretrained.load import plan_tower, read_source
from minlm.pretrained import load_gpt2, save_gpt2
from minlm.pretrained.gpt2 import HEAD, gpt2_rows
from minlm.pretrained.key_map import prefixed
from minlm.pretrained.weight_files import read_weights
from minlm.tokenizer import load_tokenizer
from tests.parity.drawing import agree, assert_identity, difference, randomise

transformers = pytest.importorskip("transformers")


def draw_config(seed: int):
    rng = random.Random(f"gpt2/{seed}")
    heads = rng.choice([1, 2, 3])
    return transformers.GPT2Config(
        n_embd=heads * rng.choice([4, 8]),
        n_head=heads,
        n_layer=rng.randint(1, 3),
        n_inner=rng.choice([None, 20]),
        vocab_size=rng.randint(20, 60),
        n_positions=rng.randint(8, 16),
        activation_function=rng.choice(["gelu_new", "gelu", "relu"]),
        layer_norm_epsilon=rng.choice([1e-5, 1e-3]),
        tie_word_embeddings=rng.random() < 0.7,
        eos_token_id=rng.randint(0, 19),
        bos_token_id=0,
    )


def compare_language_model(theirs, folder, length: int, dtypes) -> None:
    theirs.save_pretrained(folder)
    ours = load_gpt2(folder)
    tokens = torch.randint(theirs.config.vocab_size, (2, length))
    rows = [*prefixed(gpt2_rows(ours.config.n_layers), theirs="transformer."), HEAD]
    assert_identity(ours, rows[:-1] if ours.config.tied else rows, read_weights(folder).tensors)
    agree(ours, theirs, rows, lambda dtype: ([ours(tokens)], [theirs(tokens).logits]), dtypes=dtypes)
    save_gpt2(ours.float(), folder / "back")
    back = transformers.GPT2LMHeadModel.from_pretrained(folder / "back").eval()
    assert difference(back(tokens).logits, theirs.float()(tokens).logits) <= 1e-5


@pytest.mark.parametrize("seed", range(5))
def test_drawn_models(seed, tmp_path):
    theirs = randomise(transformers.GPT2LMHeadModel(draw_config(seed)), seed)
    compare_language_model(theirs, tmp_path, 7, (torch.float32, torch.float64))


def test_published_size(tmp_path):
    """GPT-2 124M."""
    theirs = randomise(transformers.GPT2LMHeadModel(transformers.GPT2Config()), 0)
    compare_language_model(theirs, tmp_path, 24, (torch.float32,))


@pytest.mark.parametrize("seed", range(3))
def test_text_tower(seed, tmp_path):
    theirs = randomise(transformers.GPT2Model(draw_config(seed)), seed)
    theirs.save_pretrained(tmp_path)
    ours = load_text_tower(tmp_path)
    assert ours.config.end_id == theirs.config.eos_token_id
    tokens = torch.randint(theirs.config.vocab_size, (2, 6))
    rows = plan_tower(read_source(tmp_path), "text tower", {}).rows
    agree(
        ours,
        theirs,
        rows,
        lambda dtype: ([ours.forward_tokens(tokens)], [theirs(tokens).last_hidden_state]),
    )


def test_the_written_vocabulary_is_gpt2s(data_root, tmp_path):
    """The merges are recovered from the ranks and equal those of the published file."""
    tokenizer = load_tokenizer(data_root / "vocab")
    config = transformers.GPT2Config(n_embd=4, n_head=1, n_layer=1, n_positions=4)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "theirs")
    save_gpt2(load_gpt2(tmp_path / "theirs"), tmp_path / "ours", tokenizer)
    written = (tmp_path / "ours" / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert written[1:] == (data_root / "vocab" / "vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    text = "A café, 12 dogs' 日本 \U0001f600  and\n\nso on"
    assert theirs(text)["input_ids"] == tokenizer.encode(text)
    assert load_tokenizer(tmp_path / "ours").digest == tokenizer.digest
