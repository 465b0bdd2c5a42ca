"""A run that starts from pretrained towers: their sizes for the config, their weights for the model."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from minclip.clip import CLIPConfig
from minclip.presets import PRESETS
from minclip.pretrained.load import antialiased, import_tower, plan_tower, read_source
from minclip.pretrained.resize import resize_image, resize_text

# Options that stay the run's although the weights come from a file: how the tower is trained, and the vocabulary.
TRAINING = ("weights", "trained_blocks", "lr_factor", "dropout", "attention_dropout", "patch_dropout")
KEPT = (*TRAINING, "vocab_digest", "end_id")
POOLED_OVER_PATCHES = {"mean", "last"}  # poolings that need the same weights


def pretrained_towers(config: CLIPConfig) -> tuple[CLIPConfig, dict[str, Tensor]]:
    """Return (config, weights): the config with the sizes of the towers whose `weights` it names, and those weights.

    The weights are {name in CLIP's state dict: tensor}, for load_state_dict(weights, strict=False); empty where no file
    is named. The image size, the context, the pooling and everything about training stay the config's: positions
    are resized to them. Raises ValueError as load_image_tower does, where the text tower is of another kind or
    vocabulary than the config's, and where the file's tower has no place for what the config asks for.
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
    """Replace what the run decides in the config of a file's tower. ValueError for an option the tower lacks."""
    names = [name for name in KEPT if hasattr(wanted, name)]
    for name in names:
        value = getattr(wanted, name)
        if name in TRAINING and not hasattr(found, name) and value:
            raise ValueError(
                f"{wanted.weights} is a tower for {type(found).__name__}, which has no {name}={value}: leave {name} out"
            )
    return replace(found, **{name: getattr(wanted, name) for name in names if hasattr(found, name)})


def read_image(wanted: Any) -> tuple[Any, dict[str, Tensor]]:
    """Read (config, weights) of the file that an image tower's config names, resized to its image_size."""
    source = read_source(wanted.weights)
    plan = plan_tower(source, "image tower", {})
    weights = import_tower(source, plan)
    found, weights = resize_image(plan.config, weights, wanted.image_size, antialiased(source))
    pools = getattr(wanted, "pool", None), getattr(found, "pool", None)
    if None not in pools and pools[0] != pools[1]:
        if not POOLED_OVER_PATCHES.issuperset(pools):
            raise ValueError(
                f"image.pool={pools[0]} needs other weights than {source.path} has: give --image.pool {pools[1]}"
            )
        found = replace(found, pool=wanted.pool)
    return keep(wanted, found), weights


def read_text(wanted: Any) -> tuple[Any, dict[str, Tensor]]:
    """Read (config, weights) of the file that a text tower's config names, of the same kind and vocabulary."""
    source = read_source(wanted.weights)
    plan = plan_tower(source, "text tower", {})
    kind = type(plan.config)
    if kind is not type(wanted):
        raise ValueError(
            f"{source.path} is a tower for {kind.__name__}, the config has {type(wanted).__name__}: take one of "
            f"--preset {', '.join(name for name, preset in PRESETS.items() if type(preset.model.text) is kind)}, or a "
            f'--config FILE with "type": "{kind.__name__}" in its "text"'
        )
    if hasattr(wanted, "pool"):
        plan = plan_tower(source, "text tower", {"pool": wanted.pool})
    found, weights = resize_text(
        plan.config, import_tower(source, plan), context_length=wanted.context_length
    )
    way_out = "give the one that belongs to these weights with --vocabulary"
    if found.vocab_size != wanted.vocab_size:
        raise ValueError(
            f"{source.path} knows {found.vocab_size} tokens, the vocabulary has {wanted.vocab_size}: {way_out}"
        )
    if found.vocab_digest not in ("", wanted.vocab_digest):  # of a run of this project
        raise ValueError(f"{source.path} was trained with another vocabulary: {way_out} {source.folder}")
    return keep(wanted, found), weights
