"""CLIP: an image tower and a text tower that meet in one space (Radford et al. 2021, figure 3).

B batch, C colour channels, h w pixels, T tokens, E embed_dim.
"""

from dataclasses import dataclass, field
from math import log
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minclip.losses import (
    clip_logits,
    clip_loss,
    full_precision,
    sigmoid_loss,
    soft_target_loss,
)
from minclip.towers.modified_resnet import ModifiedResNet, ModifiedResNetConfig
from minclip.towers.projection import Projection, make_projection
from minclip.towers.resnet import ResNet, ResNetConfig
from minclip.towers.text import BertTextConfig, BertTextEncoder, GPTTextConfig, GPTTextEncoder
from minclip.towers.vit import VisionTransformer, VisionTransformerConfig
from minlm.training.batches import Batch
from minlm.training.bounds import Bounded, at_least, within

MAX_LOGIT_SCALE = log(100)  # Radford et al. 2021, section 2.5: logits are never scaled by more than 100
TOWERS = {
    VisionTransformerConfig: VisionTransformer,
    ResNetConfig: ResNet,
    ModifiedResNetConfig: ModifiedResNet,
    GPTTextConfig: GPTTextEncoder,
    BertTextConfig: BertTextEncoder,
}


@dataclass(frozen=True, kw_only=True)
class CLIPConfig(Bounded):
    """Two towers and the space they share.

    image: the image tower
    text: the text tower
    embed_dim: width of the joint image-text space
    temperature: initial temperature; the logits are cosines divided by it
    projection: heads from the towers' features to the joint space: linear, linear with LayerNorm, residual (two
        layers and LayerNorm), or, of a hundredth of the parameters, NdLinear and low rank
    loss: InfoNCE, the sigmoid loss of SigLIP, or soft targets (as far as images and texts of a batch are alike)
    """

    image: VisionTransformerConfig | ResNetConfig | ModifiedResNetConfig = field(
        default_factory=VisionTransformerConfig
    )
    text: GPTTextConfig | BertTextConfig = field(default_factory=GPTTextConfig)
    embed_dim: Annotated[int, at_least(1)] = 128
    temperature: Annotated[float, within("[0.01, 1]")] = 0.07
    projection: Projection = "linear"
    loss: Literal["infonce", "sigmoid", "soft_targets"] = "infonce"


class CLIP(nn.Module):
    """Two towers whose embeddings have unit length; their cosines, times exp(logit_scale), are the logits.

    With the sigmoid loss logit_bias is added to the logits. It is 0 until `init_logit_bias` or weights set it.
    """

    def __init__(self, config: CLIPConfig):
        super().__init__()
        self.config = config
        self.image_tower = TOWERS[type(config.image)](config.image)
        self.text_tower = TOWERS[type(config.text)](config.text)
        # What ends the attention pooling of CLIP's ResNets, a linear map with bias, is their projection.
        bias = isinstance(config.image, ModifiedResNetConfig)
        self.image_projection = make_projection(
            config.projection, self.image_tower.width, config.embed_dim, bias
        )
        self.text_projection = make_projection(config.projection, self.text_tower.width, config.embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor(log(1 / config.temperature)))
        self.logit_bias = nn.Parameter(torch.zeros(())) if config.loss == "sigmoid" else None

    def encode_image(self, images: Tensor) -> Tensor:
        """images (B, C, h, w) -> embeddings (B, E) of unit length."""
        return self.project_image(self.image_tower(images))  # (B, E)

    def encode_text(self, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """tokens (B, T), token_mask (B, T) True = real -> embeddings (B, E) of unit length."""
        return self.project_text(self.text_tower(tokens, token_mask))  # (B, E)

    def project_image(self, features: Tensor) -> Tensor:
        """features (B, D) of the image tower -> embeddings (B, E) of unit length."""
        return F.normalize(full_precision(self.image_projection(features)), dim=-1)  # (B, E)

    def project_text(self, features: Tensor) -> Tensor:
        """features (B, D) of the text tower -> embeddings (B, E) of unit length."""
        return F.normalize(full_precision(self.text_projection(features)), dim=-1)  # (B, E)

    def forward(self, images: Tensor, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """Compute logits_per_image (images, texts)."""
        return self.logits(self.encode_image(images), self.encode_text(tokens, token_mask))  # (B, B)

    def logits(self, image_embeddings: Tensor, text_embeddings: Tensor) -> Tensor:
        """Compute logits_per_image (N, M) of embeddings (N, E) and (M, E), with logit_bias where there is one."""
        logits = clip_logits(image_embeddings, text_embeddings, self.logit_scale)  # (N, M)
        return logits if self.logit_bias is None else logits + self.logit_bias

    @torch.no_grad()
    def init_logit_bias(self, batch_size: int) -> None:
        """Set the sigmoid loss's bias to its best value for cosines of zero: -ln(B - 1) in batches of B.

        One pair in B is a positive, and sigmoid(-ln(B - 1)) = 1/B. Zhai et al. 2023 (SigLIP), section 3.2, start
        at -10, which is right for their batches of 32,768: -ln(32,767) = -10.4.
        """
        if self.logit_bias is not None:
            self.logit_bias.fill_(-log(max(1, batch_size - 1)))

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Back into [0, ln 100]; called after each optimizer step."""
        self.logit_scale.clamp_(0, MAX_LOGIT_SCALE)


def embed_batch(model: CLIP, batch: Batch) -> tuple[Tensor, Tensor]:
    """Embeddings (B, E) of a batch's images and texts, or of the features it has in their place."""
    features = batch["image_features"] if "image_features" in batch else model.image_tower(batch["images"])
    images = model.project_image(features)  # (B, E)
    if "text_features" in batch:
        features = batch["text_features"]  # (B, D)
    else:
        features = model.text_tower(batch["tokens"], batch["token_mask"])  # (B, D)
    return images, model.project_text(features)  # (B, E) each


def contrastive_loss(
    model: CLIP, images: Tensor, texts: Tensor, groups: Tensor | None = None
) -> tuple[Tensor, int]:
    """The loss of the model's config -> (sum over pairs, pairs). images, texts: embeddings (B, E); groups (B)."""
    match model.config.loss:
        case "infonce":
            return clip_loss(images, texts, model.logit_scale, groups)
        case "sigmoid":
            return sigmoid_loss(images, texts, model.logit_scale, model.logit_bias, groups)
        case "soft_targets":
            return soft_target_loss(images, texts, model.logit_scale, groups)
