"""BERT and DistilBERT of transformers, bare and in task models."""

import random

import pytest
import torch

from minclip.data.tokenizer import WordPiece
from minclip.pretrained import load_text_tower, save_text_tower
from minclip.pretrained.load import plan_tower, read_source
from tests.parity.drawing import agree, assert_identity, difference, randomise

transformers = pytest.importorskip("transformers")
BOTH = (torch.float32, torch.float64)
BERTS = ["BertModel", "BertForMaskedLM", "BertForSequenceClassification", "BertForPreTraining"]
DISTILBERTS = ["Model", "ForMaskedLM", "ForSequenceClassification", "ForQuestionAnswering"]


def bert_config(seed: int):
    rng = random.Random(f"bert/{seed}")
    heads = rng.choice([1, 2, 3])
    return transformers.BertConfig(
        hidden_size=heads * 8,
        num_attention_heads=heads,
        num_hidden_layers=rng.randint(1, 3),
        intermediate_size=rng.choice([12, 32]),
        vocab_size=rng.randint(20, 60),
        max_position_embeddings=rng.randint(8, 16),
        type_vocab_size=rng.choice([1, 2, 3]),
        hidden_act=rng.choice(["gelu", "relu", "gelu_new"]),
        layer_norm_eps=rng.choice([1e-12, 1e-5]),
    )


def distilbert_config(seed: int):
    rng = random.Random(f"distilbert/{seed}")
    heads = rng.choice([1, 2, 3])
    return transformers.DistilBertConfig(
        dim=heads * 8,
        n_heads=heads,
        n_layers=rng.randint(1, 3),
        hidden_dim=rng.choice([12, 32]),
        vocab_size=rng.randint(20, 60),
        max_position_embeddings=rng.randint(8, 16),
        activation=rng.choice(["gelu", "relu"]),
    )


def compare(folder, model, prefix: str, dtypes=BOTH) -> None:
    """Compare the file's tower with the model's body on real tokens; padding is masked in both."""
    model.save_pretrained(folder)
    body = getattr(model, prefix.rstrip("."), model)
    ours = load_text_tower(folder)
    source = read_source(folder)
    rows = plan_tower(source, "text tower", {}).rows
    assert_identity(ours, rows, source.tensors)
    tokens = torch.randint(1, model.config.vocab_size, (3, 8))  # 0 is padding, which gets no gradient there
    mask = torch.tensor([8, 3, 5])[:, None] > torch.arange(8)

    def run(dtype):
        theirs = body(tokens, attention_mask=mask.long())
        features = theirs.last_hidden_state[:, 0]
        if ours.config.pool == "pooler":
            features = theirs.pooler_output
        return (
            [ours.forward_tokens(tokens, mask)[mask], ours(tokens, mask)],
            [theirs.last_hidden_state[mask], features],
        )

    bare = source.tensors.keys() & {"embeddings.word_embeddings.weight"}
    agree(ours, body, rows, run, their_prefix="" if bare else prefix, dtypes=dtypes)
    save_text_tower(ours.float(), WordPiece.train(["a b c"] * 2, 20), folder / "back")
    back = transformers.AutoModel.from_pretrained(folder / "back").eval()
    expected = body.float()(tokens, attention_mask=mask.long()).last_hidden_state
    assert (
        difference(back(tokens, attention_mask=mask.long()).last_hidden_state[mask], expected[mask]) <= 1e-5
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", BERTS)
def test_drawn_berts(name, seed, tmp_path):
    compare(tmp_path, randomise(getattr(transformers, name)(bert_config(seed)), seed), "bert.")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", DISTILBERTS)
def test_drawn_distilberts(name, seed, tmp_path):
    kind = getattr(transformers, f"DistilBert{name}")
    compare(tmp_path, randomise(kind(distilbert_config(seed)), seed), "distilbert.")


def test_published_size(tmp_path):
    """DistilBERT-base."""
    config = transformers.DistilBertConfig()
    compare(tmp_path, randomise(transformers.DistilBertModel(config), 0), "distilbert.", (torch.float32,))


def test_the_pooling_of_another_choice(tmp_path):
    model = randomise(transformers.BertModel(bert_config(1)), 1)
    model.save_pretrained(tmp_path)
    assert load_text_tower(tmp_path).config.pool == "pooler"
    tokens = torch.randint(20, (2, 5))
    mask = torch.ones(2, 5, dtype=torch.bool)
    states = model(tokens).last_hidden_state
    assert difference(load_text_tower(tmp_path, pool="mean")(tokens, mask), states.mean(dim=1)) <= 1e-5
    assert difference(load_text_tower(tmp_path, pool="first")(tokens, mask), states[:, 0]) <= 1e-5
