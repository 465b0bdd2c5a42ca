"""Hugging Face's GPT-2 as a text tower. For the language model see minlm/pretrained/gpt2.py."""

from pathlib import Path
from typing import Any

from torch import nn

from minclip.pretrained.layout import Layout, unmet
from minclip.towers.text import GPTTextConfig
from minlm.pretrained.gpt2 import HINT, IGNORED, gpt2_facts, gpt2_options, gpt2_rows
from minlm.pretrained.key_map import Plan, export_weights, prefixed
from minlm.pretrained.options import complete
from minlm.pretrained.weight_files import WeightFile, write_tensors
from minlm.training.files import write_json


def read(source: WeightFile, prefix: str, given: dict[str, Any]) -> Plan:
    """Plan a GPT-2, pooled at the first end-of-text token."""
    facts = gpt2_facts(source, prefix)
    facts["end_id"] = source.read_json("config.json").get("eos_token_id")
    config = complete(GPTTextConfig, facts, given, source.path, HINT)
    head = {r"lm_head\.weight": "the head of the language model"}
    return Plan(config, prefixed(gpt2_rows(config.n_layers), theirs=prefix), IGNORED | head)


def obstacles(config: GPTTextConfig) -> list[str]:
    """List why GPT-2 cannot express this network."""
    return unmet((config.norm_first, "its text tower has its LayerNorms after the sublayers"))


def write(tower: nn.Module, config: GPTTextConfig, folder: Path) -> None:
    """Write a folder for GPT2Model.from_pretrained."""
    options = gpt2_options(config) | {"architectures": ["GPT2Model"], "eos_token_id": config.end_id}
    table = gpt2_rows(config.n_layers)
    write_tensors(folder / "model.safetensors", export_weights(tower.state_dict(), table))
    write_json(folder / "config.json", options)


LAYOUTS = [Layout("GPT-2", "text tower", "h.0.attn.c_attn.weight", read, ("", "transformer."))]
