"""Losses of texts, against one forward pass a token, and the windows it is read in."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from minlm import evaluate
from minlm.data import ReplyDataset
from minlm.evaluate import (
    TextLoss,
    baselines,
    evaluate_replies,
    evaluate_text,
    pair_counts,
    random_batches_loss,
    reply_loss,
    strided_windows,
)
from minlm.lm import LMConfig, TransformerLM
from minlm.screenplay.source import ScreenplayConfig, floor_of
from minlm.seq2seq import EncoderDecoder, Seq2SeqConfig
from minlm.tokenizer import CharTokenizer, train_bpe
from tests.minlm.test_lm import language_model, lm_configs
from tests.minlm.test_seq2seq import encoder_decoder

seeds = st.integers(0, 10**6)
lms = lm_configs(context_lengths=st.integers(1, 7))
CHARACTERS = "aé€😀bcdef"  # of one to four bytes


def surprise(model, context, target) -> float:
    """-log p(target | context) in nats, from one forward pass for this token alone."""
    return -model(torch.tensor([context]))[0, -1].log_softmax(-1)[target].item()


def drawn_ids(config, n, seed):
    return np.random.default_rng(seed).integers(0, config.vocab_size, n)


@given(st.integers(2, 60), st.integers(1, 12), st.data())
def test_each_target_is_scored_once_with_the_context_promised(n_ids, context_length, data):
    stride = data.draw(st.integers(1, context_length))
    windows = strided_windows(n_ids, context_length, stride)
    targets = [t for _, end, first in windows for t in range(first + 1, end + 1)]
    assert targets == list(range(1, n_ids))
    for i, (start, end, first) in enumerate(windows):
        assert 0 <= start <= first < end
        assert end - start <= context_length
        assert i == 0 or end - first <= stride
        for t in range(first + 1, end + 1):
            assert t - start >= min(t, context_length - stride + 1)


@pytest.mark.parametrize("stride", [0, -1, 6])
def test_strides_that_leave_gaps_are_refused(stride):
    model = TransformerLM(LMConfig(d_model=8, n_heads=2, n_layers=1, vocab_size=3, context_length=5))
    with pytest.raises(ValueError, match=rf"stride={stride} must be in \[1, context_length=5\]"):
        evaluate_text(model, CharTokenizer("abc"), np.zeros(9, dtype=int), stride)


@given(lms, st.integers(2, 25), seeds, st.data())
def test_the_cost_is_that_of_the_tokens_one_by_one(config, n, seed, data):
    model, tokenizer = language_model(config, seed), CharTokenizer(CHARACTERS[: config.vocab_size])
    ids, length = drawn_ids(config, n, seed), config.context_length
    stride = data.draw(st.integers(1, length) | st.none())
    step = (length + 1) // 2 if stride is None else stride
    expected = 0.0
    for t in range(1, n):  # the window that scores t ends behind the first one by whole steps
        end = length if t <= length else min(length + -(-(t - length) // step) * step, n - 1)
        context = ids[max(0, end - length) : t].tolist()
        expected += surprise(model, context, ids[t])
    for batch_size in (1, 2, 64):
        loss = evaluate_text(model, tokenizer, ids, stride, batch_size)
        assert loss.nats == pytest.approx(expected, rel=1e-5)  # the loss is summed in float32
        text = tokenizer.decode(ids[1:].tolist())
        assert (loss.tokens, loss.characters, loss.bytes) == (n - 1, n - 1, len(text.encode()))


@given(lms, st.integers(2, 25), seeds)
def test_with_stride_one_each_token_is_told_from_a_full_context(config, n, seed):
    model, ids = language_model(config, seed), drawn_ids(config, n, seed)
    length = config.context_length
    expected = sum(surprise(model, ids[max(0, t - length) : t].tolist(), ids[t]) for t in range(1, n))
    loss = evaluate_text(model, CharTokenizer(CHARACTERS[: config.vocab_size]), ids, stride=1)
    assert loss.nats == pytest.approx(expected, rel=1e-5)


@given(st.text(CHARACTERS + " ", max_size=40), st.booleans())
def test_a_model_that_knows_nothing_costs_log_v_a_token(text, characters):
    """So that each figure has a closed form, for characters of several bytes and for tokens of parts of them."""
    text = "ab " + text
    tokenizer = CharTokenizer(CHARACTERS + " ") if characters else train_bpe("é€ é€ ab ab", 260)
    size, ids = tokenizer.vocab_size, tokenizer.encode(text)
    if len(ids) < 2:
        return
    model = TransformerLM(LMConfig(d_model=4, n_heads=1, n_layers=1, vocab_size=size, context_length=9))
    torch.nn.init.zeros_(model.embedding.tokens.weight)
    n_bytes = len(text.encode()) - len(tokenizer.decode(ids[:1]).encode())
    n_characters = len(text) - len(tokenizer.decode(ids[:1]))
    metrics = evaluate_text(model.eval(), tokenizer, np.array(ids)).metrics()
    assert metrics["bits_per_byte"] == pytest.approx((len(ids) - 1) * math.log2(size) / n_bytes, rel=1e-5)
    assert metrics["nats_per_character"] == pytest.approx(
        (len(ids) - 1) * math.log(size) / n_characters, rel=1e-5
    )
    assert metrics["perplexity"] == pytest.approx(size, rel=1e-4)
    counts = (metrics["tokens"], metrics["characters"], metrics["bytes"])
    assert counts == (len(ids) - 1, n_characters, n_bytes)


def test_the_figures_of_a_cost():
    loss = TextLoss(nats=6 * math.log(2), tokens=3, characters=2, bytes=4)
    assert loss.nats_per_token == pytest.approx(2 * math.log(2))
    assert loss.metrics() == {
        "nats_per_character": pytest.approx(3 * math.log(2)),
        "bits_per_byte": pytest.approx(1.5),
        "perplexity": pytest.approx(4),
        **{"tokens": 3, "characters": 2, "bytes": 4},
    }


def test_a_text_of_one_token_has_no_cost():
    model = TransformerLM(LMConfig(d_model=8, n_heads=2, n_layers=1, vocab_size=3))
    with pytest.raises(ValueError, match="a text of 1 tokens cannot be scored: give at least 2"):
        evaluate_text(model, CharTokenizer("abc"), np.zeros(1, dtype=int))


@given(lms, st.integers(1, 15), st.integers(1, 4), st.integers(1, 3), seeds, st.data())
def test_the_peers_estimate_is_the_mean_of_windows_drawn_alike(config, more, batch_size, n, seed, data):
    model = language_model(config, seed)
    length = data.draw(st.none() | st.integers(1, config.context_length))
    shown = length or config.context_length
    ids = drawn_ids(config, shown + more, seed)
    generator, losses = torch.Generator().manual_seed(seed), []
    for _ in range(n):
        for start in torch.randint(more, (batch_size,), generator=generator).tolist():
            window = torch.from_numpy(ids[start : start + shown + 1])
            losses.append(F.cross_entropy(model(window[None, :-1])[0], window[1:]).item())
    found = random_batches_loss(model, ids, batch_size, seed, n, length)
    assert found == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_the_peers_estimate_needs_a_whole_window():
    model = TransformerLM(LMConfig(d_model=8, n_heads=2, n_layers=1, vocab_size=3, context_length=5))
    with pytest.raises(ValueError, match="5 tokens do not fill a window of 5: give a longer text"):
        random_batches_loss(model, np.zeros(5, dtype=int), 2, 0)


id_lists = st.lists(st.integers(0, 4), min_size=1, max_size=30)


def following(targets, first=0):
    return np.array([first, *targets[:-1]]), np.array(targets)


@given(id_lists, id_lists, st.integers(5, 40))
def test_the_baselines_are_their_equations(train, validation, vocab_size):
    counts, pairs = Counter(train), Counter(pairwise([0, *train]))

    def unigram(w):
        return (counts[w] + len(counts) / vocab_size) / (len(train) + len(counts))

    def bigram(v, w):
        after = [n for (first, _), n in pairs.items() if first == v]
        kinds = len(after) or 1
        return (pairs[v, w] + kinds * unigram(w)) / (sum(after) + kinds)

    found = baselines(following(train), following(validation), vocab_size, 7)
    assert found == {
        "chance": pytest.approx(len(validation) * math.log(vocab_size) / 7),
        "unigram": pytest.approx(-sum(math.log(unigram(w)) for w in validation) / 7),
        "bigram": pytest.approx(-sum(math.log(bigram(*pair)) for pair in pairwise([0, *validation])) / 7),
    }


@given(id_lists, st.integers(0, 6))
def test_the_baselines_are_distributions(train, v):
    """After every token, also one that training lacks, the probabilities of all ids sum to one."""
    losses = [baselines(following(train), (np.array([v]), np.array([w])), 7, 1) for w in range(7)]
    for name in losses[0]:
        assert math.fsum(math.exp(-loss[name]) for loss in losses) == pytest.approx(1), name


@given(id_lists, st.integers(1, 9))
def test_pairs_are_counted_in_every_part(targets, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "PAIRS", size)
        codes, counts = pair_counts(following(targets), 5)
    expected = Counter(5 * v + w for v, w in pairwise([0, *targets]))
    assert dict(zip(codes.tolist(), counts.tolist(), strict=True)) == expected
    assert codes.tolist() == sorted(expected)


@pytest.mark.parametrize("vocab_size", [0, 400])
def test_no_baseline_lies_above_a_model_that_knows_nothing(vocab_size):
    """Whatever the tokens: bigrams of characters lose to chance where the tokens are long."""
    texts = ScreenplayConfig(n_scenes=20, validation_scenes=4).read()
    train, validation = texts["train"], texts["validation"]
    tokenizer = train_bpe(train, vocab_size) if vocab_size else CharTokenizer(train + validation)
    sides = [following(tokenizer.encode(text)) for text in (train, validation)]
    losses = baselines(*sides, tokenizer.vocab_size, len(validation))
    assert floor_of(validation) < losses["bigram"] < losses["unigram"] < losses["chance"]


lines = st.text("aé€", min_size=1, max_size=6)


@given(st.lists(st.tuples(lines, lines), min_size=1, max_size=5), st.integers(1, 3), st.booleans(), seeds)
def test_replies_cost_what_each_costs_alone(pairs, batch_size, norm_first, seed):
    tokenizer = CharTokenizer("aé€", ("end", "pad", "start"))
    sizes = {"d_model": 8, "n_heads": 2, "n_layers": 1, "context_length": 6, "norm_first": norm_first}
    config = Seq2SeqConfig(vocab_size=tokenizer.vocab_size, start_id=tokenizer.start_id, **sizes)
    model = encoder_decoder(config, seed)
    dataset = ReplyDataset(pairs, tokenizer, config.context_length)
    expected = 0.0
    for line, reply in dataset.pairs:
        logits = model(torch.tensor([line]), torch.tensor([[tokenizer.start_id, *reply[:-1]]]))
        expected += F.cross_entropy(logits[0], torch.tensor(reply), reduction="sum").item()
    loss = evaluate_replies(model, dataset, batch_size)
    assert loss.nats == pytest.approx(expected, rel=1e-5)
    replies = [reply[:5] for _, reply in pairs]
    assert loss.tokens == sum(len(reply) + 1 for reply in replies)
    assert loss.characters == sum(len(reply) + 1 for reply in replies)  # each end is a line end
    assert loss.bytes == sum(len(reply.encode()) + 1 for reply in replies)


def test_replies_are_smoothed_in_training_only_where_they_are_real():
    tokenizer = CharTokenizer("ab", ("end", "pad", "start"))
    config = Seq2SeqConfig(d_model=8, n_heads=2, n_layers=1, vocab_size=5, start_id=4, dropout=0.0)
    model = EncoderDecoder(config).eval()
    dataset = ReplyDataset([("a", "ba"), ("bb", "abba")], tokenizer, 9)
    nats, count = reply_loss(model, next(dataset.batches(2)), label_smoothing=0.3)
    expected = 0.0
    for line, reply in dataset.pairs:
        logits = model(torch.tensor([line]), torch.tensor([[4, *reply[:-1]]]))[0]
        expected += F.cross_entropy(logits, torch.tensor(reply), reduction="sum", label_smoothing=0.3).item()
    assert nats.item() == pytest.approx(expected, rel=1e-5)
    assert count == 3 + 5
