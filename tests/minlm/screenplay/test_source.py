"""Probability and entropy of the built-in script: round trips, laws, and a large sample."""

import hashlib
import math
import os
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minlm.screenplay import scene
from minlm.screenplay.grammar import expectations
from minlm.screenplay.source import ScreenplayConfig, entropy_rate, floor_of, log_probability, write_scenes
from tests.minlm.screenplay.continuity import check_facts

SCENES = write_scenes(ScreenplayConfig(seed=1, n_scenes=400))


def test_every_scene_parses_to_the_probability_it_was_drawn_with():
    for text, log_p in SCENES:
        assert log_probability(text) == pytest.approx(log_p, rel=1e-12)


def test_scenes_multiply_and_pieces_of_scenes_are_impossible():
    (first, p), (second, q) = SCENES[:2]
    assert log_probability(first + second) == pytest.approx(p + q, rel=1e-12)
    assert log_probability("") == 0.0
    assert log_probability(first[:-1]) == -math.inf
    assert log_probability(first[1:]) == -math.inf
    assert floor_of(first + second) == pytest.approx(-(p + q) / len(first + second), rel=1e-12)
    assert floor_of("FADE IN:\n\n" + first) == math.inf


def test_entropy_is_the_mean_of_a_large_sample():
    """Entropy and length of a scene, and their ratio, lie within four standard errors of the exact values."""
    nats, characters = expectations(scene.SCENE)
    rate = entropy_rate()
    assert rate == nats / characters
    samples = write_scenes(ScreenplayConfig(seed=2, n_scenes=2000))
    for residuals in (
        [-log_p - nats for _, log_p in samples],
        [len(text) - characters for text, _ in samples],
        [-log_p - rate * len(text) for text, log_p in samples],
    ):
        mean = math.fsum(residuals) / len(samples)
        error = math.sqrt(math.fsum((d - mean) ** 2 for d in residuals)) / len(samples)
        assert abs(mean) < 4 * error
    assert 0.2 < rate < 0.45  # learnable by a small model, but not trivial
    assert 800 < characters < 1600


def test_equal_seeds_write_equal_scripts_in_every_process():
    config = ScreenplayConfig(seed=3, n_scenes=5)
    code = (
        "import hashlib; from minlm.screenplay.source import *;"
        "print(hashlib.sha256(repr(write_scenes(ScreenplayConfig(seed=3, n_scenes=5))).encode()).hexdigest())"
    )
    here = hashlib.sha256(repr(write_scenes(config)).encode()).hexdigest()
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        output = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        assert output.stdout.strip() == here
    assert write_scenes(ScreenplayConfig(seed=3, n_scenes=6))[:5] == write_scenes(config)
    assert write_scenes(ScreenplayConfig(seed=4, n_scenes=5)) != write_scenes(config)


@given(
    st.integers(0, len(SCENES) - 1), st.integers(0, 2**32), st.sampled_from("abcdefghilmnoprstwy.,\nABCDI ")
)
def test_one_changed_character_is_detected(index, place, character):
    """The changed text is impossible, unless a word became another of the same list."""
    text, log_p = SCENES[index]
    place %= len(text)
    changed = text[:place] + character + text[place + 1 :]
    if changed == text:
        assert log_probability(changed) == pytest.approx(log_p, rel=1e-12)
    elif log_probability(changed) > -math.inf:
        assert check_facts(changed) == []
        word, other = (
            (re.split(r"\W", t[:place])[-1] + re.split(r"\W", t[place:])[0]).lower() for t in (text, changed)
        )
        assert any(
            word.removesuffix("s") in words and other.removesuffix("s") in words
            for words in scene.WORDS.values()
        )


def test_an_unknown_character_is_impossible_everywhere():
    text, _ = min(SCENES)
    for place in range(len(text)):
        assert log_probability(text[:place] + "~" + text[place + 1 :]) == -math.inf
        assert log_probability(text[:place] + text[place + 1 :]) == -math.inf  # a missing character too


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: ScreenplayConfig(n_scenes=0), "n_scenes=0 must be at least 1"),
        (lambda: floor_of(""), "an empty text has no floor"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
