"""Residual networks in torchvision's names, which timm shares, and in those of CLIP's package."""

from typing import Any

import torch
from torch import Tensor

from minclip.towers.modified_resnet import ModifiedResNetConfig
from minclip.towers.resnet import ResNetConfig
from minlm.pretrained.key_map import Plan, Row, count_layers, module, prefixed
from minlm.pretrained.options import complete
from minlm.pretrained.weight_files import WeightFile

BATCH_NORM = "weight bias running_mean running_var num_batches_tracked"
IGNORED = {r"fc\.(weight|bias)": "the classifier, which follows the features"}
PUBLISHED_SIZE = (224, 224)  # a residual network takes any size; this is the one they are published with


def with_counters(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """With BatchNorm's num_batches_tracked, which nothing is computed from and older files lack, as 0."""
    counters = [
        name.replace("running_mean", "num_batches_tracked") for name in tensors if "running_mean" in name
    ]
    return {name: torch.tensor(0) for name in counters} | tensors


def convolution_rows(convolution: str, norm: str, ours: str) -> list[Row]:
    """A convolution and its BatchNorm; ours: the Sequential of minclip.towers.resnet.convolution."""
    return [Row(f"{convolution}.weight", f"{ours}.0.weight"), *module(norm, f"{ours}.1", leaves=BATCH_NORM)]


def block_rows(theirs: str, ours: str, branch: tuple[int, ...], shortcut: str | None) -> list[Row]:
    """A residual block. branch: places of the convolutions in our branch; shortcut: our projection, if any."""
    rows = []
    for number, place in enumerate(branch, start=1):
        rows += convolution_rows(f"{theirs}.conv{number}", f"{theirs}.bn{number}", f"{ours}.branch.{place}")
    if shortcut:
        rows += convolution_rows(f"{theirs}.downsample.0", f"{theirs}.downsample.1", f"{ours}.{shortcut}")
    return rows


def stage_rows(depths: tuple[int, ...], branch: tuple[int, ...], shortcut: str, first: bool) -> list[Row]:
    """All blocks. first: whether the first stage changes the width, and so has a shortcut with weights."""
    rows, number = [], 0
    for stage, depth in enumerate(depths, start=1):
        for i in range(depth):
            projects = i == 0 and (stage > 1 or first)
            theirs, ours = f"layer{stage}.{i}", f"blocks.{number}"
            rows += block_rows(theirs, ours, branch, shortcut if projects else None)
            number += 1
    return rows


def resnet_rows(config: ResNetConfig) -> list[Row]:
    """torchvision's and timm's table. ValueError for a stem that they do not have."""
    if config.stem == "small":
        raise ValueError(
            "stem='small' is this project's own: torchvision's and timm's have imagenet or cifar"
        )
    bottleneck = config.block == "bottleneck"
    return [
        *convolution_rows("conv1", "bn1", "stem.0" if config.stem == "imagenet" else "stem"),
        *stage_rows(config.depths, (0, 1, 2) if bottleneck else (0, 1), "shortcut", first=bottleneck),
    ]


def count_depths(tensors: dict[str, Tensor], prefix: str) -> tuple[int, ...]:
    """Blocks of each stage."""
    stages = count_layers(tensors, rf"{prefix}layer(\d+)\.")
    return tuple(count_layers(tensors, rf"{prefix}layer{stage}\.(\d+)\.") for stage in range(1, stages + 1))


def resnet_plan(source: WeightFile, prefix: str, given: dict[str, Any]) -> Plan:
    """ResNet-18, -34, -50, -101 and others of their blocks; everything but the picture's size is in the file."""
    d_model, _, _, kernel = source.shape(f"{prefix}conv1.weight", 4)
    facts = {
        "image_size": PUBLISHED_SIZE,
        "block": "bottleneck" if "layer1.0.conv3.weight" in source.tensors else "basic",
        "depths": count_depths(source.tensors, prefix),
        "d_model": d_model,
        "stem": "imagenet" if kernel == 7 else None,
    }
    config = complete(ResNetConfig, facts, given, source.path)
    return Plan(config, resnet_rows(config), IGNORED)


def modified_resnet_rows(config: ModifiedResNetConfig) -> list[Row]:
    """CLIP's table, without visual. in front and without the projection at the end (c_proj)."""
    stem = [row for i in range(3) for row in convolution_rows(f"conv{i + 1}", f"bn{i + 1}", f"stem.{i}")]
    projections = "{q_proj,k_proj,v_proj}"
    return [
        *stem,
        *stage_rows(config.depths, (0, 1, 3), "shortcut.1", first=True),
        Row("attnpool.positional_embedding", "attention_pooling.positions"),
        *module(f"attnpool.{projections}", f"attention_pooling.{projections}"),
    ]


def visual_resnet_rows(config: ModifiedResNetConfig) -> list[Row]:
    return prefixed(modified_resnet_rows(config), theirs="visual.")
