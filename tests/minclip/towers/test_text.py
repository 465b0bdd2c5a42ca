"""The text towers against torch.nn's encoder, and the laws of the end of text and of padding."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from minclip.towers.text import BertTextConfig, BertTextEncoder, GPTTextConfig, GPTTextEncoder
from minlm.masks import causal_mask
from tests.minlm.reference import normal, randomise, torch_stack

seeds = st.integers(0, 10**6)
batches = st.integers(1, 4)
shapes = st.builds(
    lambda heads, size, layers, d_ff, activation, context_length: {
        "d_model": heads * size,
        "n_heads": heads,
        "n_layers": layers,
        "d_ff": d_ff,
        "activation": activation,
        "context_length": context_length,
    },
    st.integers(1, 3),
    st.sampled_from([4, 6]),  # at a width of 2 LayerNorm leaves signs only
    st.integers(1, 2),
    st.sampled_from([None, 5]),
    st.sampled_from(["gelu", "quick_gelu"]),
    st.integers(3, 9),
)
# Few words, so that the end id occurs often, and anywhere in the vocabulary, so that larger ids follow it.
vocabularies = st.integers(2, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1)))
gpt_configs = st.builds(
    lambda shape, vocabulary: GPTTextConfig(**shape, vocab_size=vocabulary[0], end_id=vocabulary[1]),
    shapes,
    vocabularies,
)
bert_configs = st.builds(
    lambda shape, **fields: BertTextConfig(**shape, **fields),
    shapes,
    vocab_size=st.integers(2, 9),
    pool=st.sampled_from(["first", "pooler", "mean"]),
    token_types=st.integers(0, 3),
)
any_config = st.one_of(gpt_configs, bert_configs)
ENCODERS = {GPTTextConfig: GPTTextEncoder, BertTextConfig: BertTextEncoder}


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def encoder(config: GPTTextConfig | BertTextConfig, seed: int) -> GPTTextEncoder | BertTextEncoder:
    return randomise(ENCODERS[type(config)](config), seed)


def words(config, seed: int, batch: int, length: int) -> torch.Tensor:
    """tokens (B, T), any ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, (batch, length), generator=generator)


def lengths(seed: int, batch: int, length: int) -> torch.Tensor:
    return torch.randint(1, length + 1, (batch,), generator=torch.Generator().manual_seed(seed))


def ended(config: GPTTextConfig, seed: int, batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """tokens (B, T) whose first end id is at the drawn positions end (B); anything may follow."""
    end = lengths(seed + 1, batch, length) - 1
    tokens = words(config, seed, batch, length)
    text = (torch.arange(length) < end[:, None]) & (tokens == config.end_id)
    tokens[text] = (config.end_id + 1) % config.vocab_size
    tokens[torch.arange(batch), end] = config.end_id
    return tokens, end


def prefix_mask(config, seed: int, batch: int, length: int) -> torch.Tensor:
    """token_mask (B, T): at least one real token per row, then padding."""
    return torch.arange(length) < lengths(seed + 1, batch, length)[:, None]


@given(gpt_configs, batches, seeds, st.data())
def test_gpt_is_torchs_causal_encoder_pooled_at_the_first_end(config, batch, seed, data):
    model, length = encoder(config, seed), data.draw(st.integers(1, config.context_length))
    tokens, end = ended(config, seed, batch, length)
    x = model.embedding.tokens.weight[tokens] + model.embedding.positions.weight[:length]
    hidden = torch_stack(model.transformer)(x, mask=~causal_mask(length))
    same(model.forward_tokens(tokens), hidden)
    expected = [hidden[row, ids.index(config.end_id)] for row, ids in enumerate(tokens.tolist())]
    same(model(tokens), torch.stack(expected))
    assert [ids.index(config.end_id) for ids in tokens.tolist()] == end.tolist()
    assert model.width == config.d_model


@given(gpt_configs, batches, seeds)
def test_gpt_ignores_tokens_after_the_end(config, batch, seed):
    """And their number: the text alone gives the same features."""
    model, length = encoder(config, seed), config.context_length
    tokens, end = ended(config, seed, batch, length)
    after = torch.arange(length) > end[:, None]
    other = torch.where(after, words(config, seed + 2, batch, length), tokens)
    same(model(other), model(tokens))
    for row in range(batch):
        same(model(tokens[row : row + 1, : end[row] + 1])[0], model(tokens)[row])


@given(gpt_configs, batches, seeds, st.data())
def test_the_future_changes_nothing(config, batch, seed, data):
    model, length = encoder(config, seed), config.context_length
    tokens, other = words(config, seed, batch, length), words(config, seed + 1, batch, length)
    now = data.draw(st.integers(0, length - 1))
    other[:, : now + 1] = tokens[:, : now + 1]
    same(model.forward_tokens(other)[:, : now + 1], model.forward_tokens(tokens)[:, : now + 1])


@given(gpt_configs, batches, seeds, st.data())
def test_a_text_without_end_is_named(config, batch, seed, data):
    model, length = encoder(config, seed), config.context_length
    tokens, _ = ended(config, seed, batch, length)
    rows = data.draw(st.sets(st.integers(0, batch - 1), min_size=1))
    for row in rows:
        tokens[row, tokens[row] == config.end_id] = (config.end_id + 1) % config.vocab_size
    message = rf"text {min(rows)} of the batch has no end-of-text token \(id {config.end_id}\)"
    with pytest.raises(ValueError, match=message):
        model(tokens)


@given(bert_configs, batches, seeds, st.data())
def test_bert_is_torchs_encoder(config, batch, seed, data):
    model, length = encoder(config, seed), data.draw(st.integers(1, config.context_length))
    tokens, token_mask = words(config, seed, batch, length), prefix_mask(config, seed, batch, length)
    x = model.embedding.tokens.weight[tokens] + model.embedding.positions.weight[:length]
    if config.token_types:
        x = x + F.embedding(torch.zeros_like(tokens), model.token_types.weight)
    x = F.layer_norm(x, (config.d_model,), model.norm.weight, model.norm.bias, eps=1e-12)
    hidden = torch_stack(model.transformer)(x, src_key_padding_mask=~token_mask)
    same(model.forward_tokens(tokens, token_mask)[token_mask], hidden[token_mask])
    first, mean = (
        hidden[:, 0],
        [states[real].mean(dim=0) for states, real in zip(hidden, token_mask, strict=True)],
    )
    expected = {"first": first, "mean": torch.stack(mean)}
    if config.pool == "pooler":
        expected["pooler"] = (first @ model.pooler.weight.T + model.pooler.bias).tanh()
    same(model(tokens, token_mask), expected[config.pool])
    has = {name.split(".weight")[0] for name in model.state_dict()}
    assert ("token_types" in has, "pooler" in has) == (
        config.token_types > 0,
        config.pool == "pooler",
    )
    assert model.width == config.d_model


def test_bert_is_post_norm_with_its_own_epsilon():
    config = BertTextConfig()
    assert (config.norm_first, config.norm_eps) == (False, 1e-12)
    model = BertTextEncoder(config)
    assert [m.eps for m in model.modules() if isinstance(m, torch.nn.LayerNorm)] == [1e-12] * (2 * 4 + 1)


@given(bert_configs, batches, seeds)
def test_bert_does_not_see_padding(config, batch, seed):
    """Neither what it holds nor how much of it there is."""
    model, length = encoder(config, seed), config.context_length
    tokens, token_mask = words(config, seed, batch, length), prefix_mask(config, seed, batch, length)
    features = model(tokens, token_mask)
    same(model(torch.where(token_mask, tokens, words(config, seed + 2, batch, length)), token_mask), features)
    for row, real in enumerate(token_mask.sum(dim=1).tolist()):
        alone = model(tokens[row : row + 1, :real], torch.ones(1, real, dtype=torch.bool))
        same(alone[0], features[row])


@given(bert_configs, batches, seeds)
def test_padding_may_be_anywhere(config, batch, seed):
    """Real tokens need not come first: a masked token in between is ignored too."""
    model, length = encoder(config, seed), config.context_length
    tokens = words(config, seed, batch, length)
    token_mask = normal(seed + 1, batch, length) > 0
    token_mask[:, 0] = True
    other = torch.where(token_mask, tokens, words(config, seed + 2, batch, length))
    same(model(other, token_mask), model(tokens, token_mask))


@given(bert_configs, seeds)
def test_the_mean_over_no_token_is_zero(config, seed):
    """With finite gradients, zeros for an all-padding row, and its neighbours as without it."""
    config = replace(config, pool="mean")
    model, tokens = encoder(config, seed), words(config, seed, 2, config.context_length)
    token_mask = torch.ones_like(tokens, dtype=torch.bool)
    token_mask[1] = False
    features = model(tokens, token_mask)
    assert torch.equal(features[1], torch.zeros(config.d_model, dtype=torch.float64))
    same(features[:1], model(tokens[:1], token_mask[:1]))
    features.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@given(any_config, batches, seeds)
def test_no_gradient_reaches_padding(config, batch, seed):
    """Exactly none: at the embedding of every token behind the end, and of every masked one."""
    model, length, is_gpt = encoder(config, seed), config.context_length, isinstance(config, GPTTextConfig)
    if is_gpt:
        tokens, end = ended(config, seed, batch, length)
        token_mask = torch.arange(length) <= end[:, None]
    else:
        tokens, token_mask = words(config, seed, batch, length), prefix_mask(config, seed, batch, length)
    embedded = []
    model.embedding.register_forward_hook(lambda module, inputs, out: embedded.append(out))
    features = model(tokens, token_mask)
    features.backward(normal(seed + 2, *features.shape), inputs=embedded)
    gradient = embedded[0].grad
    assert (gradient[~token_mask] == 0).all()
    assert (gradient[token_mask] != 0).any(dim=-1).all()  # and every token that is seen gets one


@given(any_config, batches, seeds, st.data())
def test_a_text_may_fill_the_context_and_no_more(config, batch, seed, data):
    model = encoder(config, seed)
    full = words(config, seed, batch, config.context_length)
    full[:, -1] = getattr(config, "end_id", 0)
    token_mask = torch.ones_like(full, dtype=torch.bool)
    assert model(full, token_mask).shape == (batch, config.d_model)
    more = data.draw(st.integers(1, 3))
    longer = full.repeat(1, 2)[:, : config.context_length + more]
    message = f"{longer.shape[1]} tokens are more than context_length={config.context_length}: cut the text"
    with pytest.raises(ValueError, match=message):
        model(longer, token_mask.repeat(1, 2)[:, : longer.shape[1]])


@given(any_config, batches, seeds, st.sampled_from([0.25, 0.5]))
def test_dropout_acts_on_the_first_tokens_in_training_only(config, batch, seed, dropout):
    model = encoder(replace(config, dropout=dropout), seed)
    tokens = words(config, seed, 40 * batch, config.context_length)
    token_mask, seen = torch.ones_like(tokens, dtype=torch.bool), []
    model.transformer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    in_evaluation = model.forward_tokens(tokens, token_mask)
    same(in_evaluation, encoder(config, seed).forward_tokens(tokens, token_mask))
    torch.manual_seed(seed)
    model.train().forward_tokens(tokens, token_mask)
    whole, dropped = seen
    kept = dropped != 0
    same(dropped[kept], whole[kept] / (1 - dropout))
    assert 0 < kept.double().mean() < 1


@given(bert_configs, batches, seeds)
def test_only_positions_tell_berts_tokens_apart(config, batch, seed):
    """Tokens permuted with their positions: the same mean, padding at its new places hidden too."""
    config = replace(config, pool="mean")
    model, length = encoder(config, seed), config.context_length
    tokens, token_mask = words(config, seed, batch, length), prefix_mask(config, seed, batch, length)
    before = model(tokens, token_mask)
    order = torch.randperm(length, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        model.embedding.positions.weight[:] = model.embedding.positions.weight[order]
    same(model(tokens[:, order], token_mask[:, order]), before)


@pytest.mark.parametrize("config_class", [GPTTextConfig, BertTextConfig])
@pytest.mark.parametrize(
    "wrong", [{"vocab_size": 0}, {"context_length": 2}, {"n_heads": 3}, {"dropout": 1.0}]
)
def test_impossible_configs_are_refused(config_class, wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
        config_class(**wrong)


@given(st.sampled_from([32, 48]), seeds)
def test_berts_own_weights_are_initialised_with_its_stds(d_model, seed):
    """0.02 for the token types, one over the root of the width for the pooler, and zero biases."""
    torch.manual_seed(seed)
    sizes = {"d_model": d_model, "n_heads": 2, "n_layers": 1}
    model = BertTextEncoder(BertTextConfig(**sizes, pool="pooler", token_types=64))
    for weight, expected in ((model.token_types.weight, 0.02), (model.pooler.weight, d_model**-0.5)):
        measured = weight.square().mean().sqrt().item()
        assert measured == pytest.approx(expected, rel=6 / (2 * weight.numel()) ** 0.5)
    assert (model.pooler.bias == 0).all()


def test_a_negative_table_of_token_types_is_refused():
    with pytest.raises(ValueError, match="token_types=-1 must be at least 0"):
        BertTextConfig(token_types=-1)
