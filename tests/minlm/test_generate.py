"""Generation: a cache, neighbours, padding and streaming change nothing; beams against brute force; the filters."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minlm.generate import (
    DecodingState,
    SamplingConfig,
    beam_search,
    generate,
    min_p_filter,
    penalise_repetition,
    sample,
    token_probabilities,
    top_k_filter,
    top_p_filter,
    window,
)
from minlm.lm import LMConfig, TransformerLM
from minlm.seq2seq import EncoderDecoder
from minlm.training.config import field_help
from tests.minlm.reference import randomise
from tests.minlm.test_lm import lm_configs
from tests.minlm.test_seq2seq import seq2seq_configs

seeds = st.integers(0, 10**6)
short_contexts = st.integers(1, 7)
lms = lm_configs(context_lengths=short_contexts)
any_config = st.one_of(lms, seq2seq_configs(short_contexts))
samplings = st.builds(
    lambda **options: SamplingConfig(max_new_tokens=9, **options),
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    top_k=st.sampled_from([0, 2, 5]),
    top_p=st.sampled_from([1.0, 0.8]),
    min_p=st.sampled_from([0.0, 0.1]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    seed=st.integers(0, 1000),
)
greedy = SamplingConfig(max_new_tokens=9, temperature=0)


def model_of(config, seed):
    return randomise((TransformerLM if isinstance(config, LMConfig) else EncoderDecoder)(config), seed)


def drawn_prompts(data, config, n_most=3):
    """Ragged; longer than the context too where they are continued, not encoded."""
    longest = 3 * config.context_length + 2 if isinstance(config, LMConfig) else config.context_length
    ids = st.integers(0, config.vocab_size - 1)
    return data.draw(st.lists(st.lists(ids, min_size=1, max_size=longest), min_size=1, max_size=n_most))


def plain_logits(model, prompt, text):
    """(V): what follows the text, from one forward pass over its window without batch, padding or cache."""
    if isinstance(model, TransformerLM):
        return model(torch.tensor([window(prompt + text, model.config.context_length)]))[0, -1]
    seen = window([model.config.start_id, *text], model.config.context_length)
    return model(torch.tensor([prompt]), torch.tensor([seen]))[0, -1]


@given(st.integers(1, 12), st.integers(1, 60))
def test_the_window_drops_its_older_half_when_it_is_full(context_length, length):
    """Told step by step: tokens come in one by one, and when one does not fit, the newer half is kept."""
    seen = []
    for token in range(length):
        if len(seen) == context_length:
            seen = seen[len(seen) - context_length // 2 :]
        seen.append(token)
    assert window(list(range(length)), context_length) == seen


@given(any_config, seeds, st.data())
def test_cache_is_no_cache_and_no_batch(config, seed, data):
    """Logits along any continuation, for prompts of any lengths, far past the window, in every position form."""
    model = model_of(config, seed)
    prompts = drawn_prompts(data, config)
    state, texts = DecodingState(model, prompts), [[] for _ in prompts]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(2 * config.context_length + 2):
        logits = state.next_logits()
        for row, prompt in enumerate(prompts):
            expected = plain_logits(model, prompt, texts[row])
            torch.testing.assert_close(logits[row], expected, atol=1e-10, rtol=1e-10)
        tokens = torch.randint(config.vocab_size, (len(prompts),), generator=generator).tolist()
        state.append(tokens)
        for text, token in zip(texts, tokens, strict=True):
            text.append(token)


def test_with_a_cache_each_token_is_read_once_and_the_arrays_are_made_once():
    config = LMConfig(d_model=8, n_heads=2, n_layers=1, vocab_size=5, context_length=8)
    model, widths = model_of(config, 0), []
    model.transformer.register_forward_pre_hook(lambda _, inputs: widths.append(inputs[0].shape[1]))
    state = DecodingState(model, [[1, 2, 3]])
    (cache,) = state.caches.values()
    arrays = cache.keys.data_ptr()
    for _ in range(12):
        state.next_logits()
        state.append([4])
    # 8 tokens are full: 4 of them and the new one are computed again.
    assert widths == [3, *[1] * 5, 5, 1, 1, 1, 5, 1]
    assert cache.keys.data_ptr() == arrays
    assert cache.keys.shape[2] == 8


@given(any_config, seeds, samplings, st.data())
def test_a_text_is_what_it_is_alone(config, seed, sampling, data):
    """Text i of a batch = the text alone, drawn with seed + i; and with a cache = without."""
    model, prompts = model_of(config, seed), drawn_prompts(data, config)
    stop = data.draw(st.none() | st.integers(0, config.vocab_size - 1))
    texts = generate(model, prompts, sampling, stop)
    for i, prompt in enumerate(prompts):
        options = vars(sampling) | {"seed": sampling.seed + i}
        assert [texts[i]] == generate(model, [prompt], SamplingConfig(**options), stop)


def test_each_token_is_given_before_the_next_is_computed():
    model, calls = model_of(LMConfig(d_model=8, n_heads=2, n_layers=1, vocab_size=5), 0), []
    model.transformer.register_forward_hook(lambda *_: calls.append(1))
    steps = sample(DecodingState(model, [[1, 2]]), greedy)
    for n in range(4):
        assert len(calls) == n
        next(steps)


@given(any_config, seeds, samplings, st.data())
def test_a_stop_cuts_the_text_and_changes_nothing_before_it(config, seed, sampling, data):
    model, prompts = model_of(config, seed), drawn_prompts(data, config)
    stop = data.draw(st.integers(0, config.vocab_size - 1))
    whole = generate(model, prompts, sampling)
    assert {len(text) for text in whole} == {9}
    cut = [text[: text.index(stop)] if stop in text else text for text in whole]
    assert generate(model, prompts, sampling, stop) == cut


@given(any_config, seeds, st.integers(0, 1000), st.data())
def test_greedy_takes_the_likeliest_token_whatever_the_seed(config, seed, sampling_seed, data):
    model, prompts = model_of(config, seed), drawn_prompts(data, config)
    found = generate(model, prompts, SamplingConfig(max_new_tokens=9, temperature=0, seed=sampling_seed))
    for prompt, new in zip(prompts, found, strict=True):
        for place, token in enumerate(new):
            assert token == plain_logits(model, prompt, new[:place]).argmax().item()


@given(lms, seeds, st.integers(1, 8), st.data())
def test_a_text_continued_later_is_the_same(config, seed, n_first, data):
    model, prompts = model_of(config, seed), drawn_prompts(data, config)
    whole = generate(model, prompts, greedy)
    begun = [prompt + text[:n_first] for prompt, text in zip(prompts, whole, strict=True)]
    rest = generate(model, begun, SamplingConfig(max_new_tokens=9 - n_first, temperature=0))
    assert rest == [text[n_first:] for text in whole]


def test_the_same_seed_gives_the_same_text_and_another_another():
    model = TransformerLM(LMConfig(d_model=8, n_heads=2, n_layers=1)).eval()  # untrained: near uniform
    texts = [generate(model, [[1], [1]], SamplingConfig(max_new_tokens=20, seed=s)) for s in (3, 3, 9)]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]
    assert texts[0][0] != texts[0][1]  # nor do equal prompts of a batch give equal texts


@pytest.mark.parametrize("options", [{}, {"temperature": 2.0}, {"top_k": 3}, {"top_p": 0.7}, {"min_p": 0.6}])
def test_tokens_come_as_often_as_they_are_probable(options):
    model, n = model_of(LMConfig(d_model=8, n_heads=2, n_layers=1, vocab_size=6), 5), 2000
    config = SamplingConfig(max_new_tokens=1, **options)
    drawn = torch.tensor(generate(model, [[2, 3]] * n, config)).flatten().bincount(minlength=6) / n
    scores = (plain_logits(model, [2, 3], []) / options.get("temperature", 1.0)).tolist()
    weights = {token: math.exp(score) for token, score in enumerate(scores)}
    share = {token: weight / sum(weights.values()) for token, weight in weights.items()}
    falling = sorted(share, key=share.get, reverse=True)
    kept = falling[: options.get("top_k", 6)]
    kept = [t for i, t in enumerate(kept) if sum(share[u] for u in falling[:i]) < options.get("top_p", 1)]
    kept = [t for t in kept if share[t] >= options.get("min_p", 0) * share[falling[0]]]
    assert options in ({}, {"temperature": 2.0}) or len(kept) < 6
    for token in range(6):
        expected = share[token] / sum(share[t] for t in kept) if token in kept else 0.0
        error = math.sqrt(expected * (1 - expected) / n)
        assert drawn[token].item() == pytest.approx(expected, abs=5 * error)


# ---- filters


def drawn_logits(seed: int, vocab_size: int, ties: bool) -> torch.Tensor:
    """(3, V); whole numbers, so that many are equal, or not."""
    logits = (
        torch.randn(3, vocab_size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2
    )
    return logits.round() if ties else logits


vocab_sizes = st.integers(1, 30)


@given(seeds, vocab_sizes, st.booleans(), st.integers(1, 35))
def test_top_k_keeps_exactly_the_k_largest_and_lower_ids_of_equal_ones(seed, vocab_size, ties, k):
    logits = drawn_logits(seed, vocab_size, ties)
    for row, found in zip(logits.tolist(), top_k_filter(logits, k).tolist(), strict=True):
        kept = sorted(range(vocab_size), key=lambda token: (-row[token], token))[:k]
        assert found == [row[token] if token in kept else -math.inf for token in range(vocab_size)]


@given(seeds, vocab_sizes, st.booleans(), st.floats(0.01, 1))
def test_top_p_keeps_the_smallest_set_of_that_probability(seed, vocab_size, ties, p):
    logits = drawn_logits(seed, vocab_size, ties)
    for row, found in zip(logits.tolist(), top_p_filter(logits, p).tolist(), strict=True):
        weights = [math.exp(value) for value in row]
        falling = sorted(range(vocab_size), key=lambda token: (-row[token], token))
        kept = [token for token in falling if found[token] > -math.inf]
        assert kept == falling[: len(kept)]
        assert all(found[token] == row[token] for token in kept)
        mass = [sum(weights[token] for token in kept[:n]) / sum(weights) for n in range(len(kept) + 1)]
        assert mass[-1] >= p - 1e-12
        assert mass[-2] < p + 1e-12  # without the last one it would be too little


@given(seeds, vocab_sizes, st.booleans(), st.floats(0, 0.99))
def test_min_p_keeps_tokens_near_the_likeliest(seed, vocab_size, ties, p):
    logits = drawn_logits(seed, vocab_size, ties)
    for row, found in zip(logits.tolist(), min_p_filter(logits, p).tolist(), strict=True):
        for value, result in zip(row, found, strict=True):
            share = math.exp(value - max(row))
            if abs(share - p) > 1e-9:
                assert result == (value if share > p else -math.inf)


@given(seeds, vocab_sizes, st.booleans(), samplings)
def test_probabilities_sum_to_one_and_keep_the_likeliest(seed, vocab_size, ties, sampling):
    if sampling.temperature == 0:
        sampling = SamplingConfig(temperature=1e-300)  # as low as can be: still numbers
    logits = drawn_logits(seed, vocab_size, ties)
    probabilities = token_probabilities(logits, sampling)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(3).double())
    assert (probabilities.argmax(-1) == logits.argmax(-1)).all()


@given(seeds, st.integers(1, 8), st.floats(1, 3))
def test_repetition_makes_seen_tokens_less_likely(seed, vocab_size, penalty):
    logits = drawn_logits(seed, vocab_size, ties=False)
    seen = drawn_logits(seed + 1, vocab_size, ties=False) > 0
    found = penalise_repetition(logits, seen, penalty)
    for row in range(3):
        for token in range(vocab_size):
            value = logits[row, token].item()
            if seen[row, token]:
                value = value / penalty if value > 0 else value * penalty
            assert found[row, token].item() == pytest.approx(value)


@given(any_config, seeds, st.data())
def test_what_was_seen_is_the_whole_text(config, seed, data):
    """The prompt (a decoder's start) and all new tokens, those too that the window has lost."""
    model, prompts = model_of(config, seed), drawn_prompts(data, config)
    sampling = SamplingConfig(max_new_tokens=9, temperature=0, repetition_penalty=1.5)
    for prompt, new in zip(prompts, generate(model, prompts, sampling), strict=True):
        before = prompt if isinstance(config, LMConfig) else [config.start_id]
        for place, token in enumerate(new):
            logits = plain_logits(model, prompt, new[:place])
            for old in {*before, *new[:place]}:
                logits[old] = logits[old] / 1.5 if logits[old] > 0 else logits[old] * 1.5
            assert token == logits.argmax().item()


# ---- beams


@torch.no_grad()
def log_probability(model, prompt, reply):
    return sum(
        plain_logits(model, prompt, reply[:place]).log_softmax(-1)[token].item()
        for place, token in enumerate(reply)
    )


def divisor(length, length_penalty):
    return ((5 + length) / 6) ** length_penalty


def best_of_all(model, prompt, n_new, stop, length_penalty):
    """Brute force: all sequences of n tokens, and where there is a stop id all shorter ones that end in it."""
    candidates = [
        list(sequence)
        for length in range(1, n_new + 1)
        for sequence in itertools.product(range(model.config.vocab_size), repeat=length)
        if stop not in sequence[:-1] and (length == n_new or sequence[-1] == stop)
    ]
    scores = [log_probability(model, prompt, c) / divisor(len(c), length_penalty) for c in candidates]
    best = candidates[max(range(len(scores)), key=scores.__getitem__)]
    return best[:-1] if best[-1] == stop else best, max(scores)


@settings(max_examples=8)
@given(
    st.one_of(lm_configs(context_lengths=st.integers(1, 4)), seq2seq_configs(st.integers(1, 4))),
    seeds,
    st.integers(1, 3),
    st.booleans(),
    st.sampled_from([0.0, 0.6, 2.0]),
    st.data(),
)
def test_a_beam_as_wide_as_the_tree_finds_the_best(config, seed, n_new, stops, length_penalty, data):
    config = type(config)(
        **vars(config) | {"vocab_size": 3} | ({} if isinstance(config, LMConfig) else {"start_id": 1})
    )
    model, prompts = model_of(config, seed), drawn_prompts(data, config, n_most=2)
    stop = data.draw(st.integers(0, 2)) if stops else None
    found = beam_search(model, prompts, n_new, 3**n_new, stop, length_penalty)
    for prompt, (reply, score) in zip(prompts, found, strict=True):
        best, best_score = best_of_all(model, prompt, n_new, stop, length_penalty)
        assert (reply, score) == (best, pytest.approx(best_score, abs=1e-9))


def test_a_beam_goes_on_where_a_long_reply_may_be_better():
    """To a model that finds all tokens nearly alike, with such a penalty, the longest is the best."""
    model = TransformerLM(LMConfig(d_model=8, n_heads=2, n_layers=1, vocab_size=2)).double().eval()
    best, best_score = best_of_all(model, [0], 5, stop=1, length_penalty=6.0)
    assert best[:4] == [0] * 4
    assert beam_search(model, [[0]], 5, 32, 1, 6.0) == [(best, pytest.approx(best_score, abs=1e-9))]


@given(any_config, seeds, st.integers(1, 4), st.sampled_from([0.0, 0.6]), st.data())
def test_a_beam_reports_its_replys_score_and_neighbours_change_nothing(
    config, seed, width, length_penalty, data
):
    model, prompts = model_of(config, seed), drawn_prompts(data, config)
    stop = data.draw(st.none() | st.integers(0, config.vocab_size - 1))
    found = beam_search(model, prompts, 7, width, stop, length_penalty)
    for prompt, (reply, score) in zip(prompts, found, strict=True):
        ended = reply if len(reply) == 7 else [*reply, stop]
        expected = log_probability(model, prompt, ended) / divisor(len(ended), length_penalty)
        assert score == pytest.approx(expected, abs=1e-9)
        ((_, own_score),) = beam_search(model, [prompt], 7, width, stop, length_penalty)
        assert own_score == pytest.approx(score, abs=1e-9)  # of replies that tie, rounding chooses one


@given(any_config, seeds, st.data())
def test_a_beam_of_one_is_greedy(config, seed, data):
    model, prompts = model_of(config, seed), drawn_prompts(data, config)
    assert [reply for reply, _ in beam_search(model, prompts, 9, 1)] == generate(model, prompts, greedy)


# ---- errors


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"temperature": -0.1}, "temperature=-0.1 must be at least 0"),
        ({"temperature": float("nan")}, "temperature=nan must be at least 0"),
        ({"temperature": float("inf")}, "temperature=inf must be at least 0"),
        ({"top_k": -1}, "top_k=-1 must be at least 0"),
        ({"top_p": 0.0}, r"top_p=0.0 must be in \(0, 1\]"),
        ({"top_p": 1.1}, r"top_p=1.1 must be in \(0, 1\]"),
        ({"min_p": 1.0}, r"min_p=1.0 must be in \[0, 1\)"),
        ({"min_p": -0.1}, r"min_p=-0.1 must be in \[0, 1\)"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty=0.0 must be in \[0.01, 100\]"),
        ({"repetition_penalty": 1e-300}, r"repetition_penalty=1e-300 must be in \[0.01, 100\]"),
        ({"repetition_penalty": float("nan")}, r"repetition_penalty=nan must be in \[0.01, 100\]"),
        ({"repetition_penalty": float("inf")}, r"repetition_penalty=inf must be in \[0.01, 100\]"),
    ],
)
def test_impossible_samplings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**options)


@pytest.mark.parametrize(
    "prompts, stop, message",
    [
        ([], None, "no prompts: give at least one"),
        ([[1], []], None, "prompt 1 is empty: give at least one token"),
        ([[1], [2, 5]], None, "id 5 is outside the vocabulary: ids of this model run from 0 to 4"),
        ([[-1]], None, "id -1 is outside the vocabulary: ids of this model run from 0 to 4"),
        ([[1]], 7, "id 7 is outside the vocabulary: ids of this model run from 0 to 4"),
    ],
)
def test_impossible_prompts_are_refused_before_the_first_token(prompts, stop, message):
    model = model_of(LMConfig(d_model=8, n_heads=2, n_layers=1, vocab_size=5), 0)
    with pytest.raises(ValueError, match=message):
        generate(model, prompts, greedy, stop)
    with pytest.raises(ValueError, match=message):
        beam_search(model, prompts, 3, 2, stop)


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(ValueError, match=r"in training mode, with dropout: call model.eval\(\) first"):
        generate(TransformerLM(LMConfig(n_layers=1)), [[1]], greedy)


@pytest.mark.parametrize("change", [{"width": 0}, {"max_new_tokens": 0}, {"length_penalty": -1.0}])
def test_impossible_beams_are_refused(change):
    ((name, value),) = change.items()
    options = {"max_new_tokens": 3, "width": 2} | change
    with pytest.raises(ValueError, match=f"{name}={value}[, ].*at least 0"):
        beam_search(model_of(LMConfig(n_layers=1), 0), [[1]], **options)


def test_every_option_has_a_help_text():
    assert all(field_help(SamplingConfig).values())
