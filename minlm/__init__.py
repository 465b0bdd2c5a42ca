"""The Transformer, language models made of it, and the training tools. `load(path)` opens a trained run."""

from minlm.runs import load

__all__ = ["load"]
