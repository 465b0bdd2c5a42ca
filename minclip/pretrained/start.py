"""A run that starts from pretrained towers: their sizes for the config, their weights for the model."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from minclip.clip import CLIPConfig
from minclip.pretrained.resize import resize_image, resize_text
from minclip.pretrained.towers import (
    IMAGE_LAYOUTS,
    TEXT_LAYOUTS,
    antialiased,
    import_tower,
    plan_tower,
    read_source,
)

# What a run's config decides although the weights come from a file.
KEPT = ("weights", "trained_blocks", "lr_factor", "dropout", "patch_dropout", "vocab_digest", "end_id")


def pretrained_towers(config: CLIPConfig) -> tuple[CLIPConfig, dict[str, Tensor]]:
    """(config, weights): the config with the sizes of the towers whose `weights` it names, and those weights.

    The weights are {name in CLIP's state dict: tensor}, for load_state_dict(weights, strict=False); empty where no file
    is named. The picture's size, the context, the pooling of a BERT and everything about training stay the config's:
    positions are resized to them. Raises ValueError as load_image_tower does, and where the text tower is of another
    kind or vocabulary than the config's.
    """
    weights: dict[str, Tensor] = {}
    if config.image.weights is not None:
        image, tensors = read_image(config.image)
        weights |= {f"image_tower.{name}": value for name, value in tensors.items()}
        config = replace(config, image=image)
    if config.text.weights is not None:
        text, tensors = read_text(config.text)
        weights |= {f"text_tower.{name}": value for name, value in tensors.items()}
        config = replace(config, text=text)
    return config, weights


def keep(wanted: Any, found: Any) -> Any:
    """The config of a file's tower with what the run decides."""
    names = [name for name in KEPT if hasattr(wanted, name) and hasattr(found, name)]
    return replace(found, **{name: getattr(wanted, name) for name in names})


def read_image(wanted: Any) -> tuple[Any, dict[str, Tensor]]:
    """(config, weights) of the file that an image tower's config names, at its image_size."""
    source = read_source(wanted.weights)
    plan = plan_tower(source, IMAGE_LAYOUTS, {})
    weights = import_tower(source, plan)
    found, weights = resize_image(plan.config, weights, wanted.image_size, antialiased(source))
    return keep(wanted, found), weights


def read_text(wanted: Any) -> tuple[Any, dict[str, Tensor]]:
    """(config, weights) of the file that a text tower's config names; it must be of that kind and vocabulary."""
    source = read_source(wanted.weights)
    plan = plan_tower(source, TEXT_LAYOUTS, {})
    if type(plan.config) is not type(wanted):
        raise ValueError(
            f"{source.path} is a tower for {type(plan.config).__name__}, the config has {type(wanted).__name__}"
        )
    if hasattr(wanted, "pool"):
        plan = plan_tower(source, TEXT_LAYOUTS, {"pool": wanted.pool})
    found, weights = resize_text(
        plan.config, import_tower(source, plan), context_length=wanted.context_length
    )
    if found.vocab_size != wanted.vocab_size:
        raise ValueError(
            f"{source.path} knows {found.vocab_size} tokens, the vocabulary has {wanted.vocab_size}: give the one that "
            f"belongs to these weights with --vocabulary"
        )
    return keep(wanted, found), weights
