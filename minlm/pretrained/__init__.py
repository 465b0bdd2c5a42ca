"""Published weights in and out: strict key maps, files read as data, GPT-2."""

from minlm.pretrained.gpt2 import load_gpt2, save_gpt2

__all__ = ["load_gpt2", "save_gpt2"]
