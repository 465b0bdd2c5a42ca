"""The config of a run: its model, its data and its training."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Self

from minclip.clip import CLIPConfig
from minclip.data.cifar10 import Cifar10Config
from minclip.data.coco import CocoConfig
from minclip.data.flickr8k import Flickr8kConfig
from minclip.data.flickr30k import Flickr30kConfig
from minclip.data.karpathy import KarpathyConfig
from minclip.data.parquet import ParquetConfig
from minclip.data.shapes import ShapesConfig
from minclip.data.shards import ShardsConfig
from minclip.data.table import TableConfig
from minclip.data.tokenizer import Tokenizer
from minclip.data.transforms import ImageTransform, TransformConfig
from minclip.towers.text import GPTTextConfig
from minlm.training.bounds import Bounded, at_least
from minlm.training.state import TrainConfig

Data = (
    ShapesConfig
    | Flickr8kConfig
    | Flickr30kConfig
    | KarpathyConfig
    | CocoConfig
    | Cifar10Config
    | TableConfig
    | ParquetConfig
    | ShardsConfig
)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Bounded):
    """A CLIP and the preparation of its images: what its weights need to be used, besides a vocabulary.

    model: towers, heads and loss
    transform: from images to tensors
    """

    model: CLIPConfig = field(default_factory=CLIPConfig, metadata={"inline": True})
    transform: TransformConfig = field(default_factory=TransformConfig)

    def image_transform(self, train: bool) -> ImageTransform:
        return ImageTransform(self.transform, self.model.image.image_size, train)

    def with_tokenizer(self, tokenizer: Tokenizer) -> Self:
        """Return this config with the text tower's fields that are set from the tokenizer."""
        known = {"vocab_size": tokenizer.vocab_size, "vocab_digest": tokenizer.digest}
        if isinstance(self.model.text, GPTTextConfig):
            known["end_id"] = tokenizer.end_id
        return replace(self, model=replace(self.model, text=replace(self.model.text, **known)))


@dataclass(frozen=True, kw_only=True)
class RunConfig(ModelConfig):
    """A model, its training data and its training.

    vocabulary: vocab.txt of a WordPiece, CLIP's merges file, or GPT-2's files; none = train a WordPiece of
        text.vocab_size tokens on the training captions
    cache_gib: most GiB of memory for decoded training images and features of frozen towers
    data: images and captions
    train: optimizer, schedule and batches
    """

    vocabulary: str | None = None
    cache_gib: Annotated[float, at_least(0)] = 4.0
    data: Data = field(default_factory=ShapesConfig)
    train: TrainConfig
