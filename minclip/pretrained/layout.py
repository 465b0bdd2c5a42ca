"""Description of a format for load.py, and the steps that several formats share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from minclip.clip import CLIPConfig
from minclip.data.transforms import TransformConfig
from minlm.pretrained.key_map import Plan, Row, prefixed
from minlm.pretrained.options import complete
from minlm.pretrained.weight_files import WeightFile

Part = Literal["image tower", "text tower", "CLIP"]


@dataclass(frozen=True)
class Layout:
    """Names and options under which one format stores an image tower, a text tower or a whole CLIP.

    name: for error messages
    anchor: name of a tensor that no other layout has
    read: (file, prefix, given) -> plan. given: the caller's options; for a whole CLIP the plans of its two towers
    prefixes: what may precede the tensors' names
    beside: a file that must lie beside the weights
    antialias: whether the format's owner antialiases when it shrinks position grids (see `resize_positions`)
    """

    name: str
    part: Part
    anchor: str
    read: Callable[[WeightFile, str, dict[str, Any]], Plan]
    prefixes: tuple[str, ...] = ("",)
    beside: str | None = None
    antialias: bool = True


def clip_plan(
    source: WeightFile, towers: dict[str, Plan], embed_dim: int, joint: list[Row], ignored: dict[str, str]
) -> Plan:
    """Plan a whole CLIP from the plans of its two towers and the rows that join them."""
    image, text = towers["image tower"], towers["text tower"]
    loss = "sigmoid" if "logit_bias" in source.tensors else "infonce"
    config = CLIPConfig(image=image.config, text=text.config, embed_dim=embed_dim, loss=loss)
    return Plan(config, clip_rows(image.rows, text.rows, joint), ignored)


def clip_rows(image: list[Row], text: list[Row], joint: list[Row]) -> list[Row]:
    """Combine the tables of two towers into that of a whole CLIP."""
    return [*prefixed(image, ours="image_tower."), *prefixed(text, ours="text_tower."), *joint]


def unmet(*conditions: tuple[bool, str]) -> list[str]:
    """Return the messages of the conditions that do not hold."""
    return [message for holds, message in conditions if not holds]


def make_transform(mean: Any, std: Any, interpolation: Any, where: Any) -> TransformConfig:
    """Make a TransformConfig, with CLIP's own values for None. Raises ValueError for impossible values."""
    given = {"mean": mean, "std": std, "interpolation": interpolation}
    given = {name: value for name, value in given.items() if value is not None}
    return complete(TransformConfig, given, {}, where)


def require_size(
    options: dict[str, Any], name: str, forms: list[Any], image_size: tuple[int, int], where: Any
) -> None:
    """Raise ValueError unless a preprocessor's size is absent or one of `forms`, the spellings of image_size."""
    if options.get(name) not in (None, *forms):
        raise ValueError(
            f"{where} prepares images with {name}={options[name]!r}, the model takes {image_size}: only {forms[-1]} "
            f"can be loaded"
        )
