"""The Transformer, language models made of it, and the training tools that minclip shares. `load(path)` opens a run."""

from minlm.runs import load

__all__ = ["load"]
