"""A run of the real training script, small enough for every test that needs a trained folder."""

from dataclasses import replace
from pathlib import Path

import pytest

import train_clip
from minclip.clip import CLIPConfig
from minclip.config import RunConfig
from minclip.data.shapes import ShapesConfig
from minclip.presets import PRESETS
from minclip.towers.text import GPTTextConfig
from minclip.towers.vit import VisionTransformerConfig
from minlm.training.state import TrainConfig


@pytest.fixture(scope="session")
def tiny_config() -> RunConfig:
    return replace(
        PRESETS["shapes"],
        model=CLIPConfig(
            image=VisionTransformerConfig(
                d_model=16, n_heads=2, n_layers=1, image_size=(32, 32), patch_size=(8, 8)
            ),
            text=GPTTextConfig(
                d_model=16, n_heads=2, n_layers=1, vocab_size=200, context_length=48, dropout=0.1
            ),
            embed_dim=8,
        ),
        data=ShapesConfig(train_size=64, dev_size=90, image_size=32),
        train=TrainConfig(steps=6, batch_size=16, ema_decay=0.9, evaluate_every=3, save_every=2),
    )


@pytest.fixture(scope="session")
def tiny_run(tiny_config, tmp_path_factory) -> Path:
    """The folder of a finished run of train_clip.py."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    train_clip.train(tiny_config, run)
    return run
