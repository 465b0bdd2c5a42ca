"""Building the model and tokenizer of a run, and loading them again from its checkpoints."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from minclip.clip import CLIP, CLIPConfig
from minclip.config import ModelConfig, RunConfig
from minclip.data.records import Record
from minclip.data.shards import ShardRecords
from minclip.data.tokenizer import Tokenizer, WordPiece, load_tokenizer
from minclip.data.transforms import ImageTransform
from minclip.pretrained import is_published, load_clip, pretrained_towers
from minlm.training.checkpoint import check_depth, check_digest, has_checkpoint, last_checkpoint, load_into
from minlm.training.config import load_config
from minlm.training.files import read_object


def check_splits(splits: Mapping[str, Sequence[Record]]) -> None:
    """Raise ValueError unless there are splits train and dev."""
    for name in ("train", "dev"):
        if name not in splits:
            raise ValueError(
                f"this data has no split {name}, only {', '.join(splits)}: train and dev are needed"
            )


def make_tokenizer(config: RunConfig, records: Sequence[Record]) -> Tokenizer:
    """Load the config's vocabulary file, or train a WordPiece on the captions of the records."""
    if config.vocabulary:
        return load_tokenizer(config.vocabulary)
    captions = [caption for record in records for caption in record.captions]
    return WordPiece.train(captions, config.model.text.vocab_size)


def make_model(config: RunConfig, run: Path, resume: bool) -> CLIP:
    """Build the model of a new run, or load the last checkpoint of the run to be resumed.

    Towers whose config names `weights` have the sizes and weights of that file; see `pretrained_towers`.
    """
    if resume and has_checkpoint(run):
        return load_model(config.model, last_checkpoint(run)).train()
    with_towers, weights = pretrained_towers(config.model)
    model = CLIP(with_towers)
    model.init_logit_bias(config.train.batch_size)
    model.load_state_dict(weights, strict=False)  # names were checked on reading; the heads have none here
    return model


def load_model(config: CLIPConfig, folder: Path) -> CLIP:
    """Load the model of a config from a checkpoint, in eval mode; ValueError if they do not match."""
    check_depth(config.image.n_layers + config.text.n_layers, folder)
    with torch.device("meta"):  # skip the initialisation
        model = CLIP(config)
    load_into(model, folder)
    return model


def data_digest(records: Sequence[Record]) -> str:
    """Compute the SHA-256 of the training data: names and captions of images, or shards and their sizes."""
    if isinstance(records, ShardRecords):
        items = [(path.name, size) for path, size in zip(records.shards, records.sizes, strict=True)]
    else:
        items = [(record.image_id, record.captions) for record in records]
    return hashlib.sha256(repr(items).encode()).hexdigest()


def read_config(folder: Path) -> ModelConfig:
    """Read the config.json of a checkpoint, a RunConfig; that of an exported model has no training."""
    path = folder / "config.json"
    exported = "train" not in read_object(path, missing_ok=True)
    return load_config(ModelConfig if exported else RunConfig, path)


def load(path: str | Path, vocabulary: str | Path | None = None) -> tuple[CLIP, Tokenizer, ImageTransform]:
    """Load (model in eval mode, tokenizer, transform) from a run folder, one of its checkpoints, or a published CLIP.

    vocabulary: CLIP's merges file, for published weights without one beside them.
    Raises ValueError if files are missing or damaged, weights do not match the config, weights are NaN or infinite, or
    the vocabulary is not the one the model was trained with.
    """
    if is_published(path):
        return load_clip(path, vocabulary)
    folder = last_checkpoint(Path(path))
    config = read_config(folder)
    tokenizer = load_tokenizer(folder)
    check_digest(tokenizer.digest, config.model.text.vocab_digest, folder)
    if config != config.with_tokenizer(tokenizer):
        raise ValueError(
            f"{folder}: config.json has another vocab_size or end_id than the vocabulary ({tokenizer.vocab_size}, "
            f"{tokenizer.end_id}): put the run's own config.json back"
        )
    return load_model(config.model, folder), tokenizer, config.image_transform(train=False)
