"""A model, its tokenizer and its transform: made for a run, kept in its checkpoints, and loaded again."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from minclip.clip import CLIP
from minclip.data.records import Record
from minclip.data.shards import ShardRecords
from minclip.data.tokenizer import Tokenizer, WordPiece, load_tokenizer
from minclip.data.transforms import ImageTransform
from minclip.presets import RunConfig
from minclip.pretrained import is_published, load_clip, pretrained_towers
from minlm.training.checkpoint import check_depth, check_digest, has_checkpoint, last_checkpoint, load_into
from minlm.training.config import load_config


def check_splits(splits: dict[str, Sequence[Record]]) -> None:
    """ValueError where there is nothing to learn from, or nothing to be judged on."""
    for name, purpose in (("train", "learn from"), ("dev", "be judged on")):
        if name not in splits:
            raise ValueError(f"this data has no split {name} to {purpose}: there are {', '.join(splits)}")


def make_tokenizer(config: RunConfig, records: Sequence[Record]) -> Tokenizer:
    """The vocabulary file the config names, or a WordPiece trained on the captions of `records`."""
    if config.vocabulary:
        return load_tokenizer(config.vocabulary)
    captions = [caption for record in records for caption in record.captions]
    return WordPiece.train(captions, config.text.vocab_size)


def make_model(config: RunConfig, run: Path, resume: bool) -> CLIP:
    """The model as it is before the first step of a run, or of its continuation.

    Towers whose config names `weights` have the shapes and the weights of that file; see `pretrained_towers`.
    """
    if resume and has_checkpoint(run):
        folder = last_checkpoint(run)
        check_depth(n_layers(config), folder)
        return load_into(CLIP(config), folder).train()
    config, weights = pretrained_towers(config)
    model = CLIP(config)
    model.init_logit_bias(config.train.batch_size)
    model.load_state_dict(weights, strict=False)  # strict where they were read; here the heads are missing
    return model


def n_layers(config: RunConfig) -> int:
    """The layers of both towers, each of which has a tensor at least."""
    image = config.image
    return config.text.n_layers + (sum(image.depths) if hasattr(image, "depths") else image.n_layers)


def data_digest(records: Sequence[Record]) -> str:
    """SHA-256 of what a run learns from: the names and captions of its images, or its shards and their sizes."""
    if isinstance(records, ShardRecords):
        told = [(path.name, size) for path, size in zip(records.shards, records.sizes, strict=True)]
    else:
        told = [(record.image_id, record.captions) for record in records]
    return hashlib.sha256(repr(told).encode()).hexdigest()


def load(path: str | Path, vocabulary: str | Path | None = None) -> tuple[CLIP, Tokenizer, ImageTransform]:
    """(model in eval mode, tokenizer, transform) of a run folder, one of its checkpoints, or a published CLIP.

    vocabulary: CLIP's merges file, for published weights without one beside them.
    Raises ValueError where files are missing or damaged, weights and config disagree, numbers are NaN or infinite,
    or the vocabulary is not the one the model was trained with.
    """
    if is_published(path):
        return load_clip(path, vocabulary)
    folder = last_checkpoint(Path(path))
    config: RunConfig = load_config(RunConfig, folder / "config.json")
    tokenizer = load_tokenizer(folder)
    check_digest(tokenizer.digest, config.text.vocab_digest, folder)
    end_id = getattr(config.text, "end_id", tokenizer.end_id)  # of a GPT
    if end_id != tokenizer.end_id:
        raise ValueError(
            f"a text ends with id {tokenizer.end_id} in the vocabulary of {folder}, its config.json says "
            f"end_id={end_id}: put the run's own config.json back"
        )
    check_depth(n_layers(config), folder)
    with torch.device("meta"):  # nothing is initialised only to be overwritten
        model = CLIP(config)
    return load_into(model, folder), tokenizer, config.image_transform(train=False)
