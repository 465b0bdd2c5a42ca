"""EncoderDecoder against torch.nn.Transformer, and the laws of padding, cache and future."""

from math import sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from minlm.embeddings import sinusoidal_positions
from minlm.masks import causal_mask
from minlm.seq2seq import EncoderDecoder, Seq2SeqConfig
from minlm.training.config import field_help
from minlm.transformer import record_attention
from tests.minlm.reference import randomise, torch_stack
from tests.minlm.test_lm import left_padded, same, words

seeds = st.integers(0, 10**6)


def seq2seq_configs(context_lengths=st.integers(1, 8)):  # noqa: B008
    return st.builds(
        lambda heads, size, layers, norm_first, vocab_size, context_length, start: Seq2SeqConfig(
            d_model=heads * size,
            n_heads=heads,
            n_layers=layers,
            norm_first=norm_first,
            vocab_size=vocab_size,
            context_length=context_length,
            start_id=start % vocab_size,
        ),
        st.integers(1, 3),
        st.sampled_from([4, 6]),
        st.integers(1, 2),
        st.booleans(),
        st.integers(2, 8),
        context_lengths,
        st.integers(0, 7),
    )


def encoder_decoder(config: Seq2SeqConfig, seed: int) -> EncoderDecoder:
    return randomise(EncoderDecoder(config), seed)


def drawn_length(data, config: Seq2SeqConfig) -> int:
    return data.draw(st.integers(1, config.context_length))


@given(seq2seq_configs(), seeds, st.integers(1, 3), st.data())
def test_it_is_torchs_transformer(config, seed, batch, data):
    """The paper's figure 1: embeddings, sines, torch.nn.Transformer's stacks, the transposed embedding."""
    model = encoder_decoder(config, seed)
    source = words(config.vocab_size, seed, batch, drawn_length(data, config))
    target = words(config.vocab_size, seed + 1, batch, drawn_length(data, config))
    padded = words(2, seed + 2, *source.shape) == 1
    padded[:, -1] = False  # torch gives NaN where nothing may be seen
    places = (~padded).cumsum(1).sub(1).clamp(min=0)
    table = model.embedding.tokens.weight
    sines = sinusoidal_positions(config.context_length, config.d_model).double()
    hollow = nn.Identity()  # given stacks of ours it would initialise their parameters anew
    theirs = nn.Transformer(
        config.d_model, config.n_heads, custom_encoder=hollow, custom_decoder=hollow, batch_first=True
    )
    theirs.encoder, theirs.decoder = torch_stack(model.encoder), torch_stack(model.decoder)
    out = theirs(
        table[source] * sqrt(config.d_model) + sines[places],
        table[target] * sqrt(config.d_model) + sines[: target.shape[1]],
        tgt_mask=~causal_mask(target.shape[1]),
        src_key_padding_mask=padded,
        memory_key_padding_mask=padded,
    )
    found = model(source, target, ~padded)
    torch.testing.assert_close(found, out @ table.T, atol=1e-12, rtol=1e-12)


@given(seq2seq_configs(), seeds, st.data())
def test_padding_of_source_and_target_changes_nothing(config, seed, data):
    model, n = encoder_decoder(config, seed), config.context_length
    lengths = data.draw(st.lists(st.tuples(st.integers(1, n), st.integers(1, n)), min_size=1, max_size=3))
    padding = data.draw(st.integers(0, config.vocab_size - 1))
    sources = [words(config.vocab_size, seed + i, 1, length) for i, (length, _) in enumerate(lengths)]
    targets = [words(config.vocab_size, seed - i - 1, 1, length) for i, (_, length) in enumerate(lengths)]
    source, source_mask = left_padded(sources, padding, n - max(s.shape[1] for s in sources))
    target, target_mask = left_padded(targets, padding, n - max(t.shape[1] for t in targets))
    left = model(source, target, source_mask, target_mask)
    flipped = source_mask.flip(1)  # the same real tokens, padded on the right
    right_source = torch.full_like(source, padding).masked_scatter(flipped, source[source_mask])
    right = model(right_source, target, flipped, target_mask)
    for i in range(len(lengths)):
        alone = model(sources[i], targets[i])[0]
        same(left[i, n - len(alone) :], alone)
        same(right[i, n - len(alone) :], alone)


@given(seq2seq_configs(st.integers(2, 8)), seeds, st.data())
def test_the_future_changes_nothing(config, seed, data):
    model, length = encoder_decoder(config, seed), config.context_length
    now = data.draw(st.integers(1, length - 1))
    source = words(config.vocab_size, seed, 2, length)
    target, other = words(config.vocab_size, seed, 2, length), words(config.vocab_size, seed + 1, 2, length)
    other[:, :now] = target[:, :now]
    other[:, now] = (target[:, now] + 1) % config.vocab_size
    same(model(source, other)[:, :now], model(source, target)[:, :now])
    assert not torch.allclose(model(source, other)[:, now:], model(source, target)[:, now:])


@given(seq2seq_configs(), seeds, st.data())
def test_cache_is_no_cache(config, seed, data):
    """A target fed in pieces of any lengths = fed at once; with sources and targets of unequal length."""
    model = encoder_decoder(config, seed)
    rows = [words(config.vocab_size, seed + i, 1, drawn_length(data, config)) for i in range(4)]
    source, source_mask = left_padded(rows[:2], 0)
    target, target_mask = left_padded(rows[2:], 0)
    memory = model.encode(source, source_mask)
    caches, found, start = model.new_caches(2, memory.shape[1]), [], 0
    while start < target.shape[1]:
        end = start + data.draw(st.integers(1, target.shape[1] - start))
        found.append(model.features(target[:, start:end], memory, source_mask, target_mask[:, :end], caches))
        start = end
    found, whole = torch.cat(found, 1), model.features(target, memory, source_mask, target_mask)
    for i, row in enumerate(rows[2:]):
        same(found[i, -row.shape[1] :], whole[i, -row.shape[1] :])


def test_one_matrix_embeds_source_and_target_and_is_the_head():
    model = EncoderDecoder(Seq2SeqConfig(vocab_size=77, n_layers=1))
    assert [name for name, value in model.state_dict().items() if 77 in value.shape] == [
        "embedding.tokens.weight"
    ]
    assert not [name for name in model.state_dict() if "positions" in name]


@given(st.sampled_from([32, 48]), seeds)
def test_initial_deviation_is_the_docstrings(d_model, seed):
    torch.manual_seed(seed)
    weight = EncoderDecoder(Seq2SeqConfig(d_model=d_model, n_layers=1, vocab_size=64)).embedding.tokens.weight
    table = EncoderDecoder.__doc__.partition("embedding.tokens.weight ")[2].split(";")[0]
    expected = eval(table, {"sqrt": sqrt, "D": d_model})
    assert weight.square().mean().sqrt().item() == pytest.approx(expected, rel=6 / sqrt(2 * weight.numel()))


def test_dropout_falls_on_both_embeddings():
    model = EncoderDecoder(Seq2SeqConfig(n_layers=1, dropout=0.5)).train()
    for stack in (model.encoder, model.decoder):
        for block in stack.blocks:
            block.dropout.p = block.attention.dropout = 0.0
        if stack is model.decoder:
            block.cross_attention.dropout = 0.0
    tokens = words(256, 0, 1, 5)
    memory = model.encode(tokens)
    assert not torch.equal(memory, model.encode(tokens))
    assert not torch.equal(model.features(tokens, memory), model.features(tokens, memory))
    model.eval()
    assert torch.equal(model(tokens, tokens), model(tokens, tokens))


def test_weights_are_collected_in_the_order_they_run():
    model = EncoderDecoder(Seq2SeqConfig(n_layers=2)).eval()
    with record_attention(model) as weights:
        model(words(256, 0, 1, 7), words(256, 0, 1, 5))
    assert [tuple(w.shape) for w in weights] == [(1, 4, 7, 7)] * 2 + [(1, 4, 5, 5), (1, 4, 5, 7)] * 2


def test_every_option_has_a_help_text():
    assert all(field_help(Seq2SeqConfig).values())


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"vocab_size": 0}, "vocab_size=0 must be at least 1"),
        ({"start_id": 256}, "start_id=256 is outside the vocabulary of 256"),
        ({"start_id": -1}, "start_id=-1 must be at least 0"),
    ],
)
def test_impossible_sizes_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        Seq2SeqConfig(**sizes)


def test_too_long_a_source_or_target_is_refused():
    model = EncoderDecoder(Seq2SeqConfig(context_length=4))
    short, long = words(256, 0, 1, 4), words(256, 0, 1, 5)
    for pair in ((short, long), (long, short)):
        with pytest.raises(ValueError, match="5 tokens are more than context_length=4: cut the text"):
            model(*pair)
