"""CLIP from scratch: two towers, one contrastive loss. `load(path)` opens a trained run."""

from minclip.runs import load

__all__ = ["load"]
