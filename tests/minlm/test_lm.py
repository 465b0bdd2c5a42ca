"""TransformerLM against torch.nn's encoder, its initial values, and the laws of padding, cache and future."""

import re
from math import log, sqrt

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from minlm.lm import LMConfig, TransformerLM
from minlm.masks import causal_mask
from minlm.training.config import field_help, from_dict, to_dict
from minlm.transformer import record_attention
from tests.minlm.reference import randomise, torch_stack

seeds = st.integers(0, 10**6)
POSITIONS = ("learned", "sinusoidal", "rotary")


def lm_configs(positions=POSITIONS, context_lengths=st.integers(1, 9)):  # noqa: B008
    return st.builds(
        lambda heads, size, layers, activation, norm_first, vocab_size, context_length, positions, tied: (
            LMConfig(
                d_model=heads * size,
                n_heads=heads,
                n_layers=layers,
                activation=activation,
                norm_first=norm_first,
                vocab_size=vocab_size,
                context_length=context_length,
                positions=positions,
                tied=tied,
            )
        ),
        st.integers(1, 3),
        st.sampled_from([4, 6]),
        st.integers(1, 2),
        st.sampled_from(["gelu_tanh", "relu"]),
        st.booleans(),
        st.integers(2, 9),
        context_lengths,
        st.sampled_from(positions),
        st.booleans(),
    )


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-11, rtol=1e-11)


def language_model(config: LMConfig, seed: int) -> TransformerLM:
    return randomise(TransformerLM(config), seed)


def words(vocab_size: int, seed: int, *shape: int) -> torch.Tensor:
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def left_padded(
    rows: list[torch.Tensor], padding: int, n_extra: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (1, T) of any lengths -> tokens, token_mask (B, T), with any id as padding, and more than needed."""
    width = max(row.shape[1] for row in rows) + n_extra
    tokens = torch.full((len(rows), width), padding)
    token_mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        tokens[i, width - row.shape[1] :] = row
        token_mask[i, width - row.shape[1] :] = True
    return tokens, token_mask


@given(lm_configs(("learned", "sinusoidal")), seeds, st.integers(1, 3), st.data())
def test_logits_are_those_of_torchs_encoder(config, seed, batch, data):
    model = language_model(config, seed)
    length = data.draw(st.integers(1, config.context_length))
    tokens = words(config.vocab_size, seed, batch, length)
    table = model.embedding.tokens.weight
    x = table[tokens] * (sqrt(config.d_model) if config.positions == "sinusoidal" else 1)
    x = x + model.embedding.positions.weight[:length]
    x = torch_stack(model.transformer)(x, mask=~causal_mask(length), is_causal=False)
    same(model(tokens), x @ (table if config.tied else model.head.weight).T)


@given(st.sampled_from(POSITIONS), seeds)
def test_every_form_of_positions_sees_the_order(positions, seed):
    """One layer without positions would read the earlier tokens as a set."""
    config = LMConfig(d_model=8, n_heads=2, n_layers=1, vocab_size=5, context_length=4, positions=positions)
    model = language_model(config, seed)
    last = model(torch.tensor([[0, 1, 2, 3], [1, 0, 2, 3]]))[:, -1]
    assert (last[0] - last[1]).abs().max() > 1e-6


@given(lm_configs(context_lengths=st.integers(2, 9)), seeds, st.data())
def test_the_future_changes_nothing(config, seed, data):
    model, length = language_model(config, seed), config.context_length
    now = data.draw(st.integers(1, length - 1))
    tokens, other = words(config.vocab_size, seed, 2, length), words(config.vocab_size, seed + 1, 2, length)
    other[:, :now] = tokens[:, :now]
    other[:, now] = (tokens[:, now] + 1) % config.vocab_size
    same(model(other)[:, :now], model(tokens)[:, :now])
    assert not torch.allclose(model(other)[:, now:], model(tokens)[:, now:])


@given(lm_configs(), seeds, st.data())
def test_padding_changes_nothing(config, seed, data):
    """Neither what it is nor how much: every row of a ragged batch has the logits it has alone."""
    model = language_model(config, seed)
    lengths = data.draw(st.lists(st.integers(1, config.context_length), min_size=1, max_size=3))
    rows = [words(config.vocab_size, seed + i, 1, length) for i, length in enumerate(lengths)]
    n_extra = data.draw(st.integers(0, config.context_length - max(lengths)))
    padding = data.draw(st.integers(0, config.vocab_size - 1))
    tokens, token_mask = left_padded(rows, padding, n_extra)
    found, mirrored = model(tokens, token_mask), model(tokens.roll(-n_extra, 1), token_mask.roll(-n_extra, 1))
    for i, row in enumerate(rows):
        same(found[i, tokens.shape[1] - row.shape[1] :], model(row)[0])
        same(mirrored[i, tokens.shape[1] - n_extra - row.shape[1] :][: row.shape[1]], model(row)[0])


@given(lm_configs(), seeds, st.booleans(), st.data())
def test_cache_is_no_cache(config, seed, ragged, data):
    """Fed in pieces of any lengths = fed at once; with texts of unequal length too."""
    model = language_model(config, seed)
    rows = [words(config.vocab_size, seed, 1, config.context_length)] * 2
    if ragged:
        rows[1] = rows[1][:, : data.draw(st.integers(1, config.context_length))]
    tokens, token_mask = left_padded(rows, 0)
    token_mask = token_mask if ragged else None
    caches, found, start = model.new_caches(2), [], 0
    while start < tokens.shape[1]:
        end = start + data.draw(st.integers(1, tokens.shape[1] - start))
        so_far = None if token_mask is None else token_mask[:, :end]
        found.append(model(tokens[:, start:end], so_far, caches))
        start = end
    found, whole = torch.cat(found, 1), model(tokens, token_mask)
    for i, row in enumerate(rows):
        same(found[i, -row.shape[1] :], whole[i, -row.shape[1] :])


@given(lm_configs(), seeds)
def test_a_tied_head_is_the_embedding_and_one_key_of_the_state_dict(config, seed):
    model = language_model(config, seed)
    tokens = words(config.vocab_size, seed, 2, config.context_length)
    wide = [name for name, value in model.state_dict().items() if config.vocab_size in value.shape[:1]]
    wide = [name for name in wide if name in ("embedding.tokens.weight", "head.weight")]
    assert wide == ["embedding.tokens.weight"] + ([] if config.tied else ["head.weight"])
    matrix = model.embedding.tokens.weight if config.tied else model.head.weight
    same(model(tokens), model.features(tokens) @ matrix.T)


def test_gpt2_has_the_published_number_of_parameters():
    """124M for the smallest GPT-2: a model of one Block, one token and one position, and what the others add."""
    model = TransformerLM(LMConfig(d_model=768, n_heads=12, n_layers=1, vocab_size=1, context_length=1))
    n_all, n_block = (sum(p.numel() for p in m.parameters()) for m in (model, model.transformer.blocks[0]))
    assert n_all + 11 * n_block + (50256 + 1023) * 768 == 124_439_808


def std_table(doc: str) -> dict[str, str]:
    """{end of a parameter's name: its deviation as an expression in D and L}, from the docstring."""
    table = {}
    for line in doc[doc.index("Initial std") : doc.index("Differences")].splitlines()[1:]:
        if line.strip():
            names, value = re.fullmatch(r"\s+(.+?)\s{2,}(.+)", line).groups()
            table |= {name: value for name in ([names] if names.startswith("every") else names.split())}
    return table


@given(st.integers(1, 3), st.sampled_from([32, 48]), st.sampled_from(POSITIONS), st.booleans(), seeds)
def test_initial_deviations_are_the_docstrings(n_layers, d_model, positions, tied, seed):
    torch.manual_seed(seed)
    sizes = {"d_model": d_model, "n_layers": n_layers, "vocab_size": 64, "context_length": 64}
    model = TransformerLM(LMConfig(**sizes, positions=positions, tied=tied))
    table = std_table(TransformerLM.__doc__)
    assert len(table) == 9
    for name, value in model.named_parameters():
        if name.endswith(".bias"):
            assert table["every bias"] == "0"
            assert (value == 0).all()
        elif "norm" in name:
            assert table["every gain of a LayerNorm"] == "0, around 1"
            assert (value == 1).all()
        else:
            (row,) = [row for row in table if f".{name}".endswith(f".{row}")]
            expected = eval(table[row], {"sqrt": sqrt, "D": d_model, "L": n_layers})
            measured = value.square().mean().sqrt().item()  # about zero
            assert measured == pytest.approx(expected, rel=6 / sqrt(2 * value.numel())), name


@pytest.mark.parametrize("positions", POSITIONS)
def test_an_untrained_model_is_near_chance(positions):
    config = LMConfig(positions=positions)
    tokens = words(config.vocab_size, 0, 4, config.context_length)
    logits = TransformerLM(config)(tokens)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(log(config.vocab_size), abs=0.1)


def test_dropout_falls_on_the_embedding_too():
    model = TransformerLM(LMConfig(dropout=0.5))
    tokens = words(256, 0, 1, 5)
    for block in model.transformer.blocks:
        block.dropout.p = block.attention.dropout = 0.0
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


def test_weights_are_collected_layer_by_layer():
    model = TransformerLM(LMConfig(n_layers=3)).eval()
    with record_attention(model) as weights:
        model(words(256, 0, 2, 5))
    model(words(256, 0, 2, 5))  # afterwards nothing is recorded
    assert [tuple(w.shape) for w in weights] == [(2, 4, 5, 5)] * 3
    torch.testing.assert_close(weights[0].sum(-1), torch.ones(2, 4, 5))


def test_every_option_has_a_help_text_and_survives_json():
    assert all(field_help(LMConfig).values())
    config = LMConfig(positions="rotary", vocab_digest="ab", tied=False)
    assert from_dict(LMConfig, to_dict(config)) == config


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"vocab_size": 0}, "vocab_size=0 must be at least 1"),
        ({"context_length": 0}, "context_length=0 must be at least 1"),
        ({"n_heads": 3}, "n_heads=3 does not divide d_model=128"),
    ],
)
def test_impossible_sizes_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        LMConfig(**sizes)


@pytest.mark.parametrize("positions", POSITIONS)
def test_too_many_tokens_are_refused_with_a_cache_too(positions):
    model = TransformerLM(LMConfig(context_length=4, positions=positions))
    with pytest.raises(ValueError, match="5 tokens are more than context_length=4: cut the text"):
        model(words(256, 0, 1, 5))
    caches = model.new_caches(1)
    model(words(256, 0, 1, 3), caches=caches)
    with pytest.raises(ValueError, match="5 tokens are more than context_length=4: cut the text"):
        model(words(256, 0, 1, 2), caches=caches)


def test_a_mask_without_the_cached_tokens_is_refused():
    model = TransformerLM(LMConfig())
    caches, token_mask = model.new_caches(1), torch.ones(1, 3, dtype=torch.bool)
    model(words(256, 0, 1, 3), token_mask, caches)
    with pytest.raises(ValueError, match="token_mask covers 1 of 4 tokens: cover the cached ones too"):
        model(words(256, 0, 1, 1), token_mask[:, :1], caches)
