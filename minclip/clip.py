"""CLIP: an image tower and a text tower that meet in one space (Radford et al. 2021, figure 3).

B batch, C colour channels, h w pixels, T tokens, E embed_dim.
"""

from dataclasses import dataclass, field
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minclip.losses import clip_logits, clip_loss, contrastive_figures, full_precision
from minclip.resnet import ResNet, ResNetConfig
from minclip.text import BertTextConfig, BertTextEncoder, GPTTextConfig, GPTTextEncoder
from minclip.vit import VisionTransformer, VisionTransformerConfig

MAX_LOGIT_SCALE = log(100)  # Radford et al. 2021, section 2.5: logits are never scaled by more than 100
TOWERS = {
    VisionTransformerConfig: VisionTransformer,
    ResNetConfig: ResNet,
    GPTTextConfig: GPTTextEncoder,
    BertTextConfig: BertTextEncoder,
}


@dataclass(frozen=True, kw_only=True)
class CLIPConfig:
    """Two towers and the space they share.

    image: the image tower
    text: the text tower
    embed_dim: width of the joint image-text space
    temperature: initial temperature; the logits are cosines divided by it
    """

    image: VisionTransformerConfig | ResNetConfig = field(default_factory=VisionTransformerConfig)
    text: GPTTextConfig | BertTextConfig = field(default_factory=GPTTextConfig)
    embed_dim: int = 128
    temperature: float = 0.07

    def __post_init__(self):
        if self.embed_dim < 1:
            raise ValueError(f"embed_dim={self.embed_dim} must be at least 1")
        if not 0.01 <= self.temperature <= 1:
            raise ValueError(f"temperature={self.temperature} must lie in [0.01, 1]")


class CLIP(nn.Module):
    """encode_image and encode_text give unit vectors; their cosines, times exp(logit_scale), are the logits."""

    def __init__(self, config: CLIPConfig):
        super().__init__()
        self.config = config
        self.image_tower = TOWERS[type(config.image)](config.image)
        self.text_tower = TOWERS[type(config.text)](config.text)
        self.image_projection = nn.Linear(self.image_tower.width, config.embed_dim, bias=False)
        self.text_projection = nn.Linear(self.text_tower.width, config.embed_dim, bias=False)
        for projection in (self.image_projection, self.text_projection):
            nn.init.normal_(projection.weight, std=projection.in_features**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(log(1 / config.temperature)))

    def encode_image(self, images: Tensor) -> Tensor:
        """images (B, C, h, w) -> embeddings (B, E) of unit length."""
        return F.normalize(full_precision(self.image_projection(self.image_tower(images))), dim=-1)  # (B, E)

    def encode_text(self, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """tokens (B, T), token_mask (B, T) True = real -> embeddings (B, E) of unit length."""
        return F.normalize(
            full_precision(self.text_projection(self.text_tower(tokens, token_mask))), dim=-1
        )  # (B, E)

    def forward(self, images: Tensor, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """-> logits_per_image (images, texts)."""
        return clip_logits(self.encode_image(images), self.encode_text(tokens, token_mask), self.logit_scale)

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Back into [0, ln 100]; called after each optimizer step."""
        self.logit_scale.clamp_(0, MAX_LOGIT_SCALE)


def batch_loss(model: CLIP, batch: dict[str, Tensor]) -> tuple[Tensor, int, dict[str, Tensor]]:
    """The loss that `fit` minimises: (sum over pairs, pairs, figures for the log)."""
    pair = model.encode_image(batch["images"]), model.encode_text(batch["tokens"], batch["token_mask"])
    total, n_pairs = clip_loss(*pair, model.logit_scale, batch["groups"])
    return total, n_pairs, contrastive_figures(*pair, model.logit_scale, batch["groups"])
