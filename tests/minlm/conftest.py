"""Two runs of the real training script, small enough for every test that needs a trained folder."""

from dataclasses import replace
from pathlib import Path

import pytest

import train_lm
from minlm.lm import LMConfig
from minlm.presets import RunConfig
from minlm.screenplay.source import ScreenplayConfig
from minlm.seq2seq import Seq2SeqConfig
from minlm.training.state import TrainConfig

LM = RunConfig(
    tokens="byte-pairs",
    model=LMConfig(
        d_model=16,
        n_heads=2,
        n_layers=1,
        context_length=32,
        vocab_size=300,
        positions="rotary",
        dropout=0.1,
    ),
    data=ScreenplayConfig(n_scenes=6, validation_scenes=2),
    train=TrainConfig(steps=6, batch_size=4, ema_decay=0.9, evaluate_every=3, save_every=2),
)
REPLY = replace(
    LM,
    tokens="characters",
    label_smoothing=0.1,
    model=Seq2SeqConfig(d_model=16, n_heads=2, n_layers=1, context_length=80),
)


@pytest.fixture(scope="session")
def lm_run(tmp_path_factory) -> Path:
    """The folder of a finished run that continues text."""
    run = tmp_path_factory.mktemp("runs") / "lm"
    train_lm.train(LM, run)
    return run


@pytest.fixture(scope="session")
def reply_run(tmp_path_factory) -> Path:
    """The folder of a finished run that replies to lines."""
    run = tmp_path_factory.mktemp("runs") / "reply"
    train_lm.train(REPLY, run)
    return run
