"""What one training run is, and the recipes that `train_clip.py --preset` offers."""

from dataclasses import dataclass, field, replace

from minclip.clip import CLIPConfig
from minclip.data.flickr8k import Flickr8kConfig
from minclip.data.shapes import ShapesConfig
from minclip.data.table import TableConfig
from minclip.resnet import ResNetConfig
from minclip.text import BertTextConfig, GPTTextConfig
from minclip.tokenizer import ClipBPE, WordPiece
from minclip.transforms import ImageTransform, TransformConfig
from minclip.vit import VisionTransformerConfig
from minlm.training.state import TrainConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig(CLIPConfig):
    """A CLIP, the data it learns from, and how it learns.

    vocabulary: vocab.txt of a WordPiece, or CLIP's merges file; none = a WordPiece of text.vocab_size tokens is
        trained on the training captions
    cache_gib: decoded training images are kept in memory where they fit into this many GiB
    transform: from pictures to tensors
    data: pictures and captions
    train: how the model is trained
    """

    vocabulary: str | None = None
    cache_gib: float = 4.0
    transform: TransformConfig = field(default_factory=TransformConfig)
    data: ShapesConfig | Flickr8kConfig | TableConfig = field(default_factory=ShapesConfig)
    train: TrainConfig

    def image_transform(self, train: bool) -> ImageTransform:
        return ImageTransform(self.transform, self.image.image_size, train)

    def with_tokenizer(self, tokenizer: WordPiece | ClipBPE) -> "RunConfig":
        """This config with what the text tower must know of the tokenizer."""
        known = {"vocab_size": tokenizer.vocab_size, "vocab_digest": tokenizer.digest}
        if isinstance(self.text, GPTTextConfig):
            known["end_id"] = tokenizer.end_id
        return replace(self, text=replace(self.text, **known))


PRESETS = {
    "shapes": RunConfig(
        image=VisionTransformerConfig(
            d_model=128, n_heads=4, n_layers=4, image_size=(64, 64), patch_size=(8, 8)
        ),
        text=GPTTextConfig(d_model=128, n_heads=4, n_layers=2, vocab_size=400, context_length=48),
        embed_dim=128,
        data=ShapesConfig(train_size=20_000),
        train=TrainConfig(
            steps=550,
            minutes=4,
            batch_size=256,
            neighbours=2,
            lr=1e-3,
            muon_lr=0.02,
            warmup=0.1,
            average=0.99,
            evaluate_every=100,
            save_every=100,
        ),
    ),
    "flickr8k": RunConfig(
        image=ResNetConfig(image_size=(96, 96), block="basic", depths=(1, 1, 1), d_model=64, stem="small"),
        text=BertTextConfig(
            d_model=256, n_heads=4, n_layers=1, vocab_size=4000, context_length=40, dropout=0.3
        ),
        embed_dim=256,
        transform=TransformConfig(crop_scale=(0.25, 1.0), flip=True, jitter=0.4, interpolation="bilinear"),
        data=Flickr8kConfig(root=""),
        train=TrainConfig(
            minutes=20,
            batch_size=256,
            lr=1e-3,
            muon_lr=0.02,
            weight_decay=0.3,
            warmup=0.05,
            average=0.99,
            evaluate_every=115,
            save_every=115,
        ),
    ),
    "pairs": RunConfig(
        transform=TransformConfig(crop_scale=(0.4, 1.0), flip=True),
        data=TableConfig(path=""),
        train=TrainConfig(epochs=30),
    ),
}
"""shapes: the built-in world, five minutes on two cores. flickr8k: Flickr8k from random weights, with
`--data.root DIR`. pairs: any CSV, TSV or JSONL of images and captions, with `--data.path FILE`."""
