"""ResNets in torchvision's names, which timm shares, and which CLIP's own ResNets (openai.py) use for their blocks."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minclip.data.transforms import TransformConfig
from minclip.pretrained import timm
from minclip.pretrained.layout import Layout, unmet
from minclip.towers.modified_resnet import ModifiedResNetConfig
from minclip.towers.resnet import ResNetConfig
from minlm.pretrained.key_map import Plan, Row, count_layers, export_weights, module
from minlm.pretrained.options import complete
from minlm.pretrained.weight_files import WeightFile, write_tensors
from minlm.training.files import write_json

BATCH_NORM = "weight bias running_mean running_var num_batches_tracked"
IGNORED = {r"fc\.(weight|bias)": "the classifier, which follows the features"}
PUBLISHED_SIZE = (224, 224)  # a ResNet takes any image size; published weights were trained at this one
# (block, depths) of the networks with a name: 64 channels and an ImageNet stem
NAMES: dict[tuple[str, tuple[int, ...]], str] = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
}


def with_counters(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add BatchNorm's num_batches_tracked as 0 if a file lacks it; no output depends on it."""
    counters = [
        name.replace("running_mean", "num_batches_tracked") for name in tensors if "running_mean" in name
    ]
    return {name: torch.tensor(0) for name in counters} | tensors


def convolution_rows(convolution: str, norm: str, ours: str) -> list[Row]:
    """Return the rows of a convolution and its BatchNorm. ours: name of the Sequential of both."""
    return [Row(f"{convolution}.weight", f"{ours}.0.weight"), *module(norm, f"{ours}.1", leaves=BATCH_NORM)]


def block_rows(theirs: str, ours: str, branch: tuple[int, ...], shortcut: str | None) -> list[Row]:
    """Return a residual block's rows. branch: indices of its convolutions in ours; shortcut: our projection, if any."""
    rows = []
    for number, place in enumerate(branch, start=1):
        rows += convolution_rows(f"{theirs}.conv{number}", f"{theirs}.bn{number}", f"{ours}.branch.{place}")
    if shortcut:
        rows += convolution_rows(f"{theirs}.downsample.0", f"{theirs}.downsample.1", f"{ours}.{shortcut}")
    return rows


def stage_rows(depths: tuple[int, ...], branch: tuple[int, ...], shortcut: str, first: bool) -> list[Row]:
    """Return the rows of all blocks. first: whether the first stage has a projected shortcut."""
    rows, number = [], 0
    for stage, depth in enumerate(depths, start=1):
        for i in range(depth):
            projects = i == 0 and (stage > 1 or first)
            theirs, ours = f"layer{stage}.{i}", f"blocks.{number}"
            rows += block_rows(theirs, ours, branch, shortcut if projects else None)
            number += 1
    return rows


def count_depths(tensors: dict[str, Tensor], prefix: str) -> tuple[int, ...]:
    """Count the blocks per stage."""
    stages = count_layers(tensors, rf"{prefix}layer(\d+)\.")
    return tuple(count_layers(tensors, rf"{prefix}layer{stage}\.(\d+)\.") for stage in range(1, stages + 1))


def rows(config: ResNetConfig) -> list[Row]:
    """Return the table of a ResNet without its classifier."""
    bottleneck = config.block == "bottleneck"
    return [
        *convolution_rows("conv1", "bn1", "stem.0" if config.stem == "imagenet" else "stem"),
        *stage_rows(config.depths, (0, 1, 2) if bottleneck else (0, 1), "shortcut", first=bottleneck),
    ]


def read(source: WeightFile, prefix: str, given: dict[str, Any]) -> Plan:
    """Plan a ResNet of basic or bottleneck blocks; the file shows everything but the image size."""
    d_model, _, _, kernel = source.shape("conv1.weight", 4)
    facts = {
        "image_size": PUBLISHED_SIZE,
        "block": "bottleneck" if "layer1.0.conv3.weight" in source.tensors else "basic",
        "depths": count_depths(source.tensors, ""),
        "d_model": d_model,
        "stem": "imagenet" if kernel == 7 else None,
    }
    config = complete(ResNetConfig, facts, given, source.path)
    return Plan(config, rows(config), IGNORED)


def obstacles(config: ResNetConfig | ModifiedResNetConfig) -> list[str]:
    """List why torchvision's ResNet cannot express this network."""
    match config:
        case ResNetConfig():
            return unmet((config.stem != "small", "stem='small' is this project's own ResNet stem"))
    return ["CLIP's ResNet is part of CLIP's own formats"]


def write(tower: nn.Module, config: ResNetConfig, transform: TransformConfig, folder: Path) -> None:
    """Write the state dict, with timm's config.json where the network has a name there."""
    write_tensors(folder / "model.safetensors", export_weights(tower.state_dict(), rows(config)))
    name = NAMES.get((config.block, config.depths))
    if name and (config.d_model, config.stem) == (64, "imagenet"):
        write_json(folder / "config.json", timm.options(name, config.image_size, transform))


LAYOUTS = [Layout("torchvision's or timm's ResNet", "image tower", "layer1.0.conv1.weight", read)]
