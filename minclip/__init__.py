"""CLIP from scratch in plain PyTorch. `load(path)` opens a trained run or a published CLIP."""

from minclip.runs import load

__all__ = ["load"]
