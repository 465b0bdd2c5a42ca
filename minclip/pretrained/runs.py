"""This project's own runs: model.safetensors, config.json and the vocabulary, as a checkpoint holds them."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from minclip.clip import CLIP, CLIPConfig
from minclip.config import ModelConfig
from minclip.data.tokenizer import Tokenizer
from minclip.data.transforms import TransformConfig
from minclip.pretrained.layout import Layout
from minclip.towers.freezing import TowerConfig
from minlm.pretrained.key_map import Plan, Row, count_layers, own
from minlm.pretrained.options import complete
from minlm.pretrained.weight_files import WeightFile
from minlm.training.config import files_beside_weights, from_dict


def read(source: WeightFile, prefix: str, given: dict[str, Any]) -> Plan:
    """Plan a tower of a CLIP that this project trained, by the config.json beside it."""
    part = prefix.removesuffix("_tower.")
    try:
        found = getattr(
            from_dict(CLIPConfig, {part: source.read_json("config.json").get("model", {}).get(part)}), part
        )
    except ValueError as error:
        raise ValueError(f"the config.json beside {source.path} is not its run's: {error}") from None
    n_layers = sum(found.depths) if hasattr(found, "depths") else found.n_layers
    stored = count_layers(source.tensors, rf"{prefix}(?:transformer\.)?blocks\.(\d+)\.")
    if stored != n_layers:
        raise ValueError(
            f"{source.path}: its config says {n_layers} layers, its tensors say {stored}: put its own config beside it"
        )
    training = {field.name for field in fields(TowerConfig)}
    facts = {name: value for name, value in vars(found).items() if value is not None and name not in training}
    rows = [Row(name, name.removeprefix(prefix)) for name in source.tensors if name.startswith(prefix)]
    rest = {rf"(?!{part}_tower\.).*": "the rest of the CLIP"}
    return Plan(complete(type(found), facts, given, source.path), rows, rest)


def obstacles(config: CLIPConfig) -> list[str]:
    """Return no reasons: a run can hold every model."""
    return []


def write(model: CLIP, tokenizer: Tokenizer, transform: TransformConfig, folder: Path) -> None:
    """Write a folder for minclip.load."""
    config = ModelConfig(model=model.config, transform=transform)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: own(x) for name, x in model.state_dict().items()}, folder / "model.safetensors")
    files_beside_weights(config, tokenizer)(folder)


LAYOUTS = [
    Layout("this project's ViT", "image tower", "patch_embedding.weight", read, ("image_tower.",)),
    Layout("this project's ResNet", "image tower", "blocks.0.branch.0.0.weight", read, ("image_tower.",)),
    Layout("this project's text tower", "text tower", "embedding.tokens.weight", read, ("text_tower.",)),
]
