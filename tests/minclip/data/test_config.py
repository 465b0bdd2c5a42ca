"""The interface that every data format implements."""

from typing import get_args

import pytest
import torch

from minclip.config import Data
from minclip.data.config import TEMPLATES, DataConfig
from minclip.data.shapes import ShapesConfig
from minlm.training.state import TrainConfig


@pytest.mark.parametrize("cls", get_args(Data))
def test_every_format_is_a_data_config_with_its_own_reader(cls):
    assert issubclass(cls, DataConfig)
    assert cls.read is not DataConfig.read


def test_without_classes_there_are_templates_only():
    assert ShapesConfig().classes() == ((), TEMPLATES)


def test_the_built_in_world_has_questions():
    config = ShapesConfig(train_size=3, dev_size=90)
    assert config.questions().keys() >= {"colour", "shape", "relation"}


def test_batches_follow_the_training_config():
    data = torch.utils.data.TensorDataset(torch.arange(12))
    data.collate = list
    batches = ShapesConfig().batches(data, TrainConfig(steps=1, batch_size=4, neighbours=2, seed=3))
    assert (batches.batch_size, batches.neighbours, batches.seed, batches.share) == (4, 2, 3, 4)
