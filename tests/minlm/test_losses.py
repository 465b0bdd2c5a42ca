"""The token loss against its equation and torch's, and the laws of masks and parts."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from minlm.losses import bits_per_byte, perplexity, token_loss

seeds = st.integers(0, 10**6)
sizes = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 7))  # B, T, V
smoothings = st.sampled_from([0.0, 0.1, 0.5])


def drawn(seed, batch, length, vocab_size):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, length, vocab_size, generator=generator) * 3
    targets = torch.randint(vocab_size, (batch, length), generator=generator)
    return logits, targets, torch.rand(batch, length, generator=generator) < 0.6


@given(sizes, smoothings, seeds)
def test_the_loss_is_the_equation_over_real_targets(shape, smoothing, seed):
    logits, targets, token_mask = drawn(seed, *shape)
    total, count = token_loss(logits, targets, token_mask, smoothing)
    expected, places = 0.0, token_mask.nonzero().tolist()
    for b, t in places:
        scores = logits[b, t].double().tolist()
        normaliser = math.log(sum(math.exp(x) for x in scores))
        surprise = [normaliser - x for x in scores]
        expected += (1 - smoothing) * surprise[targets[b, t]] + smoothing * sum(surprise) / len(surprise)
    assert total.item() == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert count == len(places)
    assert type(count) is int


@given(sizes, smoothings, seeds)
def test_without_a_mask_all_targets_count_as_in_torch(shape, smoothing, seed):
    logits, targets, _ = drawn(seed, *shape)
    total, count = token_loss(logits, targets, label_smoothing=smoothing)
    mean = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), label_smoothing=smoothing)
    assert count == targets.numel()
    torch.testing.assert_close(total / count, mean)


@given(sizes, smoothings, seeds, st.sampled_from([float("nan"), float("inf"), 1e30]))
def test_what_stands_at_padding_changes_nothing(shape, smoothing, seed, junk):
    """Not the target there, which may be no id at all, nor the logits, nor any gradient."""
    logits, targets, token_mask = drawn(seed, *shape)
    other = torch.where(token_mask[..., None], logits, junk).requires_grad_()
    logits.requires_grad_()
    expected, _ = token_loss(logits, targets, token_mask, smoothing)
    found, _ = token_loss(other, torch.where(token_mask, targets, -7), token_mask, smoothing)
    expected.backward()
    found.backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(other.grad[token_mask], logits.grad[token_mask])
    assert (logits.grad[~token_mask] == 0).all()


@given(sizes, smoothings, seeds)
def test_parts_add_up_to_the_whole(shape, smoothing, seed):
    logits, targets, token_mask = drawn(seed, *shape)
    drawn_parts = zip(logits.split(1), targets.split(1), token_mask.split(1), strict=True)
    parts = [token_loss(*part, smoothing) for part in drawn_parts]
    total, count = token_loss(logits, targets, token_mask, smoothing)
    torch.testing.assert_close(sum(part for part, _ in parts), total)
    assert sum(n for _, n in parts) == count


@given(st.integers(1, 50), smoothings)
def test_a_model_that_knows_nothing_has_the_vocabulary_as_its_perplexity(vocab_size, smoothing):
    total, count = token_loss(
        torch.zeros(2, 3, vocab_size), torch.zeros(2, 3, dtype=torch.int64), None, smoothing
    )
    assert perplexity(total.item() / count) == pytest.approx(vocab_size, rel=1e-5)


@pytest.mark.parametrize("nats", [709.0, 710.0, 1e30, math.inf])
def test_a_diverged_model_has_a_perplexity(nats):
    assert perplexity(nats) == (math.exp(709.0) if nats == 709 else math.inf)


def test_bfloat16_logits_are_summed_in_float32():
    logits, targets, _ = drawn(0, 4, 50, 20)
    rounded = logits.bfloat16()
    total, _ = token_loss(rounded, targets)
    exact, _ = token_loss(rounded.double(), targets)
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(exact.item(), rel=1e-6)


@given(st.integers(1, 40), st.integers(2, 300))
def test_bits_per_byte_of_a_fair_choice(n_bytes, n_choices):
    """A text of n bytes, each one of so many with equal chance, costs their log2 a byte."""
    nats = n_bytes * math.log(n_choices)
    assert bits_per_byte(nats, n_bytes) == pytest.approx(math.log2(n_choices))


def test_impossible_values_are_refused():
    with pytest.raises(ValueError, match="n_bytes=0 must be at least 1"):
        bits_per_byte(1.0, 0)
    for value in (-0.1, 1.0):
        with pytest.raises(ValueError, match=rf"label_smoothing={value} must lie in \[0, 1\)"):
            token_loss(torch.zeros(1, 1, 2), torch.zeros(1, 1, dtype=torch.int64), None, value)
