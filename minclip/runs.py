"""A model, its tokenizer and its transform: made for a run, kept in its checkpoints, and loaded again."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minclip.clip import CLIP, TOWERS
from minclip.data.cifar10 import Cifar10Config
from minclip.data.records import Record
from minclip.data.shards import ShardsConfig
from minclip.evaluate import TEMPLATES
from minclip.presets import DataConfig, RunConfig
from minclip.pretrained import load_image_tower, load_text_tower
from minclip.text import GPTTextConfig, TextConfig
from minclip.tokenizer import ClipBPE, WordPiece, load_tokenizer
from minclip.transforms import ImageTransform
from minlm.training.checkpoint import check_digest, last_checkpoint, load_into, load_weights
from minlm.training.config import load_config, save_config

# What a file of weights does not hold, or what reading it needs: everything else is the file's.
CHOSEN = (
    *("weights", "trained_blocks", "lr_factor", "dropout", "patch_dropout", "image_size"),
    *("n_heads", "activation"),
)


def make_tokenizer(config: RunConfig, records: Sequence[Record]) -> WordPiece | ClipBPE:
    """The vocabulary file the config names, or a WordPiece trained on the captions of `records`."""
    if config.vocabulary:
        return load_tokenizer(config.vocabulary)
    captions = [caption for record in records for caption in record.captions]
    return WordPiece.train(captions, config.text.vocab_size)


def files_beside_weights(config: RunConfig, tokenizer: WordPiece | ClipBPE) -> Callable[[Path], None]:
    """A function that writes into a folder what its weights need to be used: config and vocabulary."""

    def write(folder: Path) -> None:
        tokenizer.save(folder)
        save_config(config, folder / "config.json")  # last: a folder that has it can be resumed or loaded

    return write


def make_model(config: RunConfig, run: Path, resume: bool) -> CLIP:
    """The model as it is before the first step of a run, or of its continuation.

    Towers whose config names `weights` have the shapes and facts of that file, and its weights; what was chosen
    for their training stays, and a picture size that is not the file's resizes its positions. ValueError where
    file and config contradict each other, or the file's vocabulary is of another size than the tokenizer's.
    """
    if resume and (run / "last").exists():
        model = CLIP(config)
        model.load_state_dict(load_weights(last_checkpoint(run)))
        return model
    towers = {
        name: pretrained_tower(part, load_it)
        for name, part, load_it in (
            ("image", config.image, load_image_tower),
            ("text", config.text, load_text_tower),
        )
        if part.weights
    }
    model = CLIP(replace(config, **{name: tower.config for name, tower in towers.items()}))
    for name, tower in towers.items():
        setattr(model, f"{name}_tower", tower)
    return model


def pretrained_tower(config: Any, load_it: Callable[..., nn.Module]) -> nn.Module:
    """The tower in the file that a config names, trained as the config says."""
    chosen = {name: getattr(config, name) for name in CHOSEN if hasattr(config, name)}
    tower = load_it(config.weights, **chosen)
    if type(tower.config) is not type(config):
        raise ValueError(
            f"{config.weights} holds a {type(tower).__name__}, which is no {TOWERS[type(config)].__name__}: "
            f"choose a preset with such a tower"
        )
    if isinstance(config, TextConfig):
        known = {"vocab_digest": config.vocab_digest}
        known |= {"end_id": config.end_id} if isinstance(config, GPTTextConfig) else {}
        if tower.config.vocab_size != config.vocab_size:
            raise ValueError(
                f"{config.weights} has {tower.config.vocab_size} tokens, the vocabulary {config.vocab_size}: "
                f"give its own with --vocabulary FILE"
            )
        tower.config = replace(tower.config, **known)
    return tower


def classes_of(data: DataConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(class names, templates) where records' groups are classes, else ((), ...)."""
    if isinstance(data, Cifar10Config):
        return data.class_names(), data.templates
    if isinstance(data, ShardsConfig):
        return data.class_names(), data.class_templates()
    return (), TEMPLATES


def load(path: str | Path) -> tuple[CLIP, WordPiece | ClipBPE, ImageTransform]:
    """(model in eval mode, tokenizer, transform) of a run folder or of one of its checkpoints.

    Raises ValueError where files are missing or damaged, weights and config disagree, or the vocabulary is
    not the one the model was trained with.
    """
    folder = last_checkpoint(Path(path))
    config: RunConfig = load_config(RunConfig, folder / "config.json")
    tokenizer = load_tokenizer(folder)
    check_digest(tokenizer.digest, config.text.vocab_digest, folder)
    with torch.device("meta"):  # nothing is initialised only to be overwritten
        model = CLIP(config)
    return load_into(model, folder), tokenizer, config.image_transform(train=False)
