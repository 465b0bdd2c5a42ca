"""The Transformer against torch.nn's layers, the written-out attention against the fused one, and the masks' laws."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from minlm.embeddings import Rotary
from minlm.masks import causal_mask, key_mask
from minlm.transformer import (
    ACTIVATIONS,
    MLP,
    Caches,
    Context,
    KeyValueCache,
    MultiHeadAttention,
    Transformer,
    TransformerConfig,
    attention,
    quick_gelu,
    record_attention,
)
from tests.laws import close
from tests.minlm.reference import normal, randomise, torch_stack

seeds = st.integers(0, 10**6)
# What torch.nn's layers can do too: its activations are given as functions.
configs = st.builds(
    lambda heads, size, layers, d_ff, activation, norm_first: TransformerConfig(
        d_model=heads * size,
        n_heads=heads,
        n_layers=layers,
        d_ff=d_ff,
        activation=activation,
        norm_first=norm_first,
        norm_eps=1e-5 if norm_first else 1e-12,
    ),
    st.integers(1, 4),
    st.sampled_from([4, 6]),
    st.integers(1, 3),
    st.sampled_from([None, 5]),
    st.sampled_from(list(ACTIVATIONS)),
    st.booleans(),
)


def random_mask(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.6


@given(configs, st.integers(1, 3), st.integers(1, 6), seeds, st.booleans())
def test_encoder_is_torchs_encoder(config, batch, length, seed, causal):
    ours = randomise(Transformer(config), seed)
    x = normal(seed + 1, batch, length, config.d_model)
    token_mask = random_mask(seed + 2, batch, length)
    token_mask[:, 0] = True  # torch gives NaN where nothing may be seen
    theirs = torch_stack(ours)(
        x, mask=~causal_mask(length) if causal else None, src_key_padding_mask=~token_mask, is_causal=False
    )
    context = Context(causal=causal, mask=key_mask(token_mask))
    law = "the Transformer must be torch.nn's encoder of the same weights"
    close(ours(x, context), theirs, law, atol=1e-12, rtol=1e-12)


@given(configs, st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), seeds)
def test_decoder_is_torchs_decoder(config, batch, length, memory_length, seed):
    ours = randomise(Transformer(config, cross_attention=True), seed)
    x, memory = (
        normal(seed + 1, batch, length, config.d_model),
        normal(seed + 2, batch, memory_length, config.d_model),
    )
    token_mask = random_mask(seed + 3, batch, memory_length)
    token_mask[:, 0] = True
    theirs = torch_stack(ours)(x, memory, ~causal_mask(length), memory_key_padding_mask=~token_mask)
    found = ours(x, Context(causal=True, memory=memory, memory_mask=key_mask(token_mask)))
    law = "with cross-attention it must be torch.nn's decoder of the same weights"
    close(found, theirs, law, atol=1e-12, rtol=1e-12)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), seeds)
def test_attention_is_the_equation(batch, heads, n_queries, n_keys, seed):
    """Written a third time, with loops: softmax(q . k / sqrt(K)) over the keys that may be seen."""
    query, key = normal(seed, batch, heads, n_queries, 4), normal(seed + 1, batch, heads, n_keys, 4)
    value, mask = (
        normal(seed + 2, batch, heads, n_keys, 3),
        random_mask(seed + 3, batch, 1, n_queries, n_keys),
    )
    out, weights = attention(query, key, value, mask)
    for b in range(batch):
        for h in range(heads):
            for t in range(n_queries):
                seen = [s for s in range(n_keys) if mask[b, 0, t, s]]
                e = {s: math.exp(query[b, h, t].dot(key[b, h, s]).item() / 2) for s in seen}
                for s in range(n_keys):
                    expected = e[s] / sum(e.values()) if s in e else 0.0
                    law = f"the weight of key {s} for query {t} must be the softmax over the visible keys"
                    assert weights[b, h, t, s].item() == pytest.approx(expected, abs=1e-12), law
                mean = sum((weights[b, h, t, s] * value[b, h, s] for s in seen), torch.zeros(3).double())
                close(out[b, h, t], mean, "attention must give the values' mean by its weights")


@given(st.integers(1, 3), st.integers(1, 6), st.integers(0, 6), st.booleans(), st.booleans(), seeds)
def test_fused_attention_is_the_written_out_one(batch, n_queries, n_earlier, causal, masked, seed):
    """Whatever the mask, and with earlier keys, where torch's own causal mask would be another one."""
    layer = randomise(MultiHeadAttention(TransformerConfig(d_model=8, n_heads=2)), seed)
    earlier, x = normal(seed + 1, batch, n_earlier, 8), normal(seed + 2, batch, n_queries, 8)
    mask = random_mask(seed + 4, batch, 1, 1, n_earlier + n_queries) if masked else None

    def run() -> torch.Tensor:
        cache = KeyValueCache(batch, n_earlier + n_queries, 2, 4, x)
        layer(earlier, Context(caches={layer: cache}))
        return layer(x, Context(causal=causal, mask=mask, caches={layer: cache}))

    fused = run()
    with record_attention(layer) as weights:
        written = run()
    assert len(weights) == 2
    law = "fused and written-out attention must be the same function, with earlier keys in a cache too"
    close(fused, written, law, atol=1e-12, rtol=1e-12)


@given(st.integers(1, 3), st.integers(1, 6), st.booleans(), seeds)
def test_bfloat16_attention_agrees_with_float32(batch, length, causal, seed):
    """In bfloat16 a CPU runs the written-out form; it is the same function within that type's rounding."""
    layer = randomise(MultiHeadAttention(TransformerConfig(d_model=8, n_heads=2)), seed).float()
    x, mask = normal(seed + 1, batch, length, 8).float(), random_mask(seed + 2, batch, 1, 1, length)
    exact = layer(x, Context(causal=causal, mask=mask))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = layer(x, Context(causal=causal, mask=mask))
    law = "bfloat16 must only round"
    assert (rounded - exact).abs().max() <= 0.05 * exact.abs().max(), law


@given(st.booleans(), st.integers(1, 3), st.integers(1, 5), seeds)
def test_a_row_that_may_look_nowhere_gives_zero_and_finite_gradients(written, batch, length, seed):
    tensors = [normal(seed + i, batch, 2, length, 4).requires_grad_() for i in range(3)]
    mask = random_mask(seed + 3, batch, 1, length, length)
    mask[0, 0, 0] = False
    out = attention(*tensors, mask)[0] if written else F.scaled_dot_product_attention(*tensors, mask)
    assert (out[0, :, 0] == 0).all(), "a query that may attend nowhere must give zeros, not NaN or a mean"
    out.square().sum().backward()
    for tensor in tensors:
        assert tensor.grad.isfinite().all(), "a query that may attend nowhere must leave gradients finite"
    assert (tensors[0].grad[0, :, 0] == 0).all()


@given(configs, st.integers(2, 6), st.integers(1, 3), seeds)
def test_padding_changes_nothing(config, length, n_padding, seed):
    """Neither what stands at padded places nor how many there are, left or right."""
    model = randomise(Transformer(config), seed)
    x = normal(seed + 1, 2, length, config.d_model)
    plain = model(x)
    padding = normal(seed + 2, 2, n_padding, config.d_model) * 100
    real, no = torch.ones(2, length, dtype=torch.bool), torch.zeros(2, n_padding, dtype=torch.bool)
    after, before = (Context(mask=key_mask(torch.cat(parts, 1))) for parts in ([real, no], [no, real]))
    right = model(torch.cat([x, padding], 1), after)[:, :length]
    left = model(torch.cat([padding, x], 1), before)[:, n_padding:]
    close(right, plain, "padding on the right must change nothing", atol=1e-12, rtol=1e-12)
    close(left, plain, "padding on the left must change nothing", atol=1e-12, rtol=1e-12)


@given(configs, st.integers(2, 7), st.data(), seeds)
def test_the_future_changes_nothing(config, length, data, seed):
    model, context = randomise(Transformer(config), seed), Context(causal=True)
    x = normal(seed + 1, 2, length, config.d_model)
    now = data.draw(st.integers(1, length - 1))
    other = torch.cat([x[:, :now], normal(seed + 2, 2, length - now, config.d_model)], dim=1)
    found, expected = model(other, context), model(x, context)
    law = f"tokens from {now} on must not change the outputs before them"
    close(found[:, :now], expected[:, :now], law, atol=1e-12, rtol=1e-12)
    assert not torch.allclose(found[:, now:], expected[:, now:]), "a query must see itself"


@given(configs, st.lists(st.integers(1, 3), min_size=1, max_size=4), st.booleans(), st.booleans(), seeds)
def test_cache_is_no_cache(config, pieces, turned, crossed, seed):
    """Fed in pieces of any lengths with a cache = fed at once; with rotary positions and cross-attention too."""
    model = randomise(Transformer(config, cross_attention=crossed), seed)
    length = sum(pieces)
    x = normal(seed + 1, 2, length, config.d_model)
    memory = normal(seed + 2, 2, 3, config.d_model) if crossed else None
    rotary = Rotary(config.head_size).double()

    def context(start: int, n: int, caches: Caches | None = None) -> Context:
        rotation = rotary(torch.arange(start, start + n)) if turned else None
        return Context(causal=True, rotation=rotation, memory=memory, caches=caches)

    whole, caches = model(x, context(0, length)), Caches(model, 2, length, memory_length=3)
    for _ in range(2):  # once more after the text is forgotten
        found, start = [], 0
        for n in pieces:
            assert caches.length == start, "a cache must be as long as what was fed"
            found.append(model(x[:, start : start + n], context(start, n, caches)))
            start += n
        caches.clear()
    law = f"a text fed in pieces of {pieces} with a cache must be the text fed at once"
    close(torch.cat(found, 1), whole, law, atol=1e-12, rtol=1e-12)


def test_weights_are_collected_layer_by_layer_and_sum_to_one():
    model = Transformer(TransformerConfig(d_model=8, n_heads=2, n_layers=3))
    with record_attention(model) as weights:
        model(torch.randn(2, 5, 8), Context(causal=True))
    model(torch.randn(2, 5, 8))  # afterwards nothing is recorded
    assert [w.shape for w in weights] == [(2, 2, 5, 5)] * 3
    for w in weights:
        close(w.sum(-1), torch.ones(2, 2, 5), "the weights of a query must sum to one")
        assert (w.triu(1) == 0).all(), "a causal query must give no weight to later keys"


@given(seeds)
def test_gelu_forms(seed):
    x = normal(seed, 50) * 3
    exact = 0.5 * x * (1 + torch.erf(x / 2**0.5))
    tanh = 0.5 * x * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3)))
    torch.testing.assert_close(ACTIVATIONS["gelu"](x), exact)
    torch.testing.assert_close(ACTIVATIONS["gelu_tanh"](x), tanh)
    torch.testing.assert_close(quick_gelu(x), x / (1 + torch.exp(-1.702 * x)))
    assert not torch.allclose(exact, tanh)


@given(st.sampled_from(list(ACTIVATIONS)), seeds)
def test_mlp_is_two_matrices_and_an_activation(activation, seed):
    mlp = randomise(MLP(TransformerConfig(d_model=6, n_heads=2, d_ff=9, activation=activation)), seed)
    x = normal(seed + 1, 4, 6)
    hidden = ACTIVATIONS[activation](x @ mlp.fc1.weight.T + mlp.fc1.bias)
    torch.testing.assert_close(mlp(x), hidden @ mlp.fc2.weight.T + mlp.fc2.bias)


def test_dropout_acts_in_training_only_and_on_weights_too():
    config = TransformerConfig(d_model=8, n_heads=2, n_layers=1, dropout=0.5)
    model, x = Transformer(config), torch.randn(2, 5, 8)
    model.eval()
    assert torch.equal(model(x), model(x)), "dropout must be off in eval mode"
    model.train()
    assert not torch.equal(model(x), model(x)), "dropout must act in training"
    model.blocks[0].dropout.p = 0.0  # what is left is dropout on the attention weights
    assert not torch.equal(model(x), model(x)), "dropout must act on attention weights too"


@given(st.sampled_from([32, 64, 128]), st.integers(1, 6))
def test_initial_deviations_are_those_of_the_docstring(d_model, n_layers):
    blocks = Transformer(TransformerConfig(d_model=d_model, n_heads=2, n_layers=n_layers)).blocks
    writes = (2 * n_layers) ** -0.5
    table = {
        "attention.in_proj": 1,
        "attention.out_proj": writes,
    }
    table |= {"mlp.fc1": 0.5**0.5, "mlp.fc2": writes}
    for name, factor in table.items():
        layer = blocks[0].get_submodule(name)
        std = factor * d_model**-0.5
        # Of n normal draws the deviation strays by deviation / sqrt(2 n): five of those are allowed.
        tolerance = 5 * std / (2 * layer.weight.numel()) ** 0.5
        assert layer.weight.std().item() == pytest.approx(std, abs=tolerance)
        assert (layer.bias == 0).all()


@pytest.mark.parametrize(
    "values, message",
    [
        ({"d_model": 10, "n_heads": 4}, "n_heads=4 does not divide d_model=10"),
        ({"n_layers": 0}, "n_layers=0 must be at least 1"),
        ({"d_ff": 0}, "d_ff=0 must be at least 1"),
        ({"d_ff": -1}, "d_ff=-1 must be at least 1"),
        ({"norm_eps": 0.0}, "norm_eps=0.0 must be above 0"),
        ({"norm_eps": float("nan")}, "norm_eps=nan must be above 0"),
        ({"norm_eps": float("inf")}, "norm_eps=inf must be above 0"),
        ({"dropout": 1.0}, r"dropout=1.0 must be in \[0, 1\)"),
        ({"dropout": float("nan")}, r"dropout=nan must be in \[0, 1\)"),
        ({"attention_dropout": float("nan")}, r"attention_dropout=nan must be in \[0, 1\)"),
    ],
)
def test_impossible_configs_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**values)
