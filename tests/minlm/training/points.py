"""A small task for tests of the loop: noisy points of a linear map, a model with dropout, and runs that are killed."""

import json
from collections import OrderedDict
from types import SimpleNamespace

import torch
from torch import nn
from torch.utils.data import Dataset

from minlm.task import TokenTask
from minlm.training.batches import Batches
from minlm.training.loop import fit


class Points(Dataset):
    """Points of a linear map; a mask leaves some out, as it leaves out padding."""

    def __init__(self, n_items=24):
        generator = torch.Generator().manual_seed(5)
        self.x = torch.randn(n_items, 4, generator=generator)
        self.y = self.x @ torch.randn(4, 2, generator=generator)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, key):
        epoch, index = key
        return {
            "x": self.x[index] + 0.01 * epoch,
            "targets": self.y[index],
            "token_mask": torch.tensor(index % 3 > 0),
        }

    def collate(self, items):
        return {name: torch.stack([item[name] for item in items]) for name in items[0]}


def model_with_dropout() -> nn.Sequential:
    """Return an MLP with dropout and BatchNorm, the same at each call."""
    torch.manual_seed(1)
    blocks = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3), nn.ReLU(), nn.BatchNorm1d(8))
    layers = {"stem": nn.Linear(4, 8), "blocks": blocks, "head": nn.Linear(8, 2)}
    return nn.Sequential(OrderedDict(layers))


def squared_error(model, batch):
    """Return the sum of squared errors over the points that count, and their number."""
    x = batch["x"].to(next(model.parameters()).dtype)
    error = (model(x) - batch["targets"]).square().sum(dim=1)
    return (error * batch["token_mask"]).sum(), int(batch["token_mask"].sum())


class PointsTask(TokenTask):
    """The task of fitting Points; a test can replace any of its methods."""

    def __init__(self, config, loss=squared_error, rank=0, world_size=1, **replaced):
        self.config = SimpleNamespace(train=config, model=SimpleNamespace(vocab_size=2))
        self.batches = Batches(Points(), config.batch_size, config.seed, rank=rank, world_size=world_size)
        self.loss = loss
        for name, function in replaced.items():
            setattr(self, name, function)

    def evaluate(self, model):
        return {}

    def score(self, metrics):
        return 0.0

    def inference_files(self, folder):
        pass


class Stop(Exception):
    """A simulated kill, before the loss of some step."""


def train(run, config, stop_after=None, dtype=torch.float32, **replaced):
    """Start or continue a run in the folder `run`, up to its end or to a kill after `stop_after` losses."""
    calls = 0

    def loss(model, batch):
        nonlocal calls
        calls += 1
        if stop_after is not None and calls > stop_after:
            raise Stop
        return squared_error(model, batch)

    run.mkdir(exist_ok=True)
    model = model_with_dropout().to(dtype)
    fit(model, PointsTask(config, loss, **replaced), config, run)
    return model


def rows(run, *left_out):
    """Return the lines of a run's metrics without the keys left out."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in left_out} for line in lines if len(line) > 1]
