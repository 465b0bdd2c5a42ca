"""Import of a torchvision that was built for another torch (with CUDA, say), for its Python parts.

Its import registers shapes for two compiled operators and fails where their library could not be loaded. Declaring
the operators' schemas first is enough: the models and transforms that the tests compare with use neither.
"""

import importlib.util
from pathlib import Path

import torch

SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def declare_missing_operators() -> None:
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return
    for library in Path(found.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(library)
        except OSError:
            continue  # torchvision passes over it too
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", SIGNATURE)


declare_missing_operators()
