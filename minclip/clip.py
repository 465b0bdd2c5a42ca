"""CLIP: an image tower and a text tower with one embedding space (Radford et al. 2021, figure 3).

B batch, C colour channels, h w pixels, T tokens, D width of a tower, E embed_dim.
"""

from dataclasses import dataclass, field
from math import log
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minclip.losses import clip_logits, clip_loss, full_precision, sigmoid_loss, soft_target_loss
from minclip.towers.freezing import Tower
from minclip.towers.modified_resnet import ModifiedResNet, ModifiedResNetConfig
from minclip.towers.projection import Projection, make_projection
from minclip.towers.resnet import ResNet, ResNetConfig
from minclip.towers.text import BertTextConfig, BertTextEncoder, GPTTextConfig, GPTTextEncoder
from minclip.towers.vit import VisionTransformer, VisionTransformerConfig
from minlm.training.batches import Batch
from minlm.training.bounds import Bounded, at_least, within

MAX_LOGIT_SCALE = log(100)  # Radford et al. 2021, section 2.5: cosines are scaled by at most 100
TOWERS: dict[type, type[Tower]] = {
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
        layers and LayerNorm), or, with about 1% of the parameters, NdLinear and low rank
    loss: InfoNCE, the sigmoid loss of SigLIP, or soft targets (similarities within the batch)
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
    """Image and text towers whose embeddings have unit length.

    logits_per_image = exp(logit_scale) * cosine, plus logit_bias with the sigmoid loss. The bias is 0 until
    `init_logit_bias` or loaded weights set it.
    """

    def __init__(self, config: CLIPConfig):
        super().__init__()
        self.config = config
        self.image_tower = TOWERS[type(config.image)](config.image)
        self.text_tower = TOWERS[type(config.text)](config.text)
        # The output projection of the attention pooling in CLIP's ResNets has a bias; it is the head here.
        bias = isinstance(config.image, ModifiedResNetConfig)
        self.image_projection = make_projection(
            config.projection, self.image_tower.width, config.embed_dim, bias
        )
        self.text_projection = make_projection(config.projection, self.text_tower.width, config.embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor(log(1 / config.temperature)))
        self.logit_bias = nn.Parameter(torch.zeros(())) if config.loss == "sigmoid" else None

    def encode_image(self, images: Tensor) -> Tensor:
        """Compute embeddings (B, E) of unit length from images (B, C, h, w)."""
        return self.project_image(self.image_tower(images))  # (B, E)

    def encode_text(self, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """Compute embeddings (B, E) of unit length from tokens (B, T); token_mask (B, T) is True at real tokens."""
        return self.project_text(self.text_tower(tokens, token_mask))  # (B, E)

    def project_image(self, features: Tensor) -> Tensor:
        """Project the image tower's features (B, D) to embeddings (B, E) of unit length."""
        return F.normalize(full_precision(self.image_projection(features)), dim=-1)  # (B, E)

    def project_text(self, features: Tensor) -> Tensor:
        """Project the text tower's features (B, D) to embeddings (B, E) of unit length."""
        return F.normalize(full_precision(self.text_projection(features)), dim=-1)  # (B, E)

    def forward(self, images: Tensor, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """Compute logits_per_image (images, texts), logit_bias included."""
        return self.logits(self.encode_image(images), self.encode_text(tokens, token_mask))  # (B, B)

    def logits(self, image_embeddings: Tensor, text_embeddings: Tensor) -> Tensor:
        """Compute logits_per_image (N, M) from embeddings (N, E) and (M, E)."""
        logits = clip_logits(image_embeddings, text_embeddings, self.logit_scale)  # (N, M)
        return logits if self.logit_bias is None else logits + self.logit_bias

    @torch.no_grad()
    def init_logit_bias(self, batch_size: int) -> None:
        """Set the sigmoid loss's bias to -ln(B - 1), its optimum for batches of B pairs with cosines of zero.

        One pair in B is positive, and sigmoid(-ln(B - 1)) = 1/B. Zhai et al. 2023 (SigLIP), section 3.2, start
        at -10; for their batches of 32,768 the optimum is -10.4.
        """
        if self.logit_bias is not None:
            self.logit_bias.fill_(-log(max(1, batch_size - 1)))

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Clamp logit_scale to [0, ln 100]; called after each optimizer step."""
        self.logit_scale.clamp_(0, MAX_LOGIT_SCALE)


def embed_batch(model: CLIP, batch: Batch) -> tuple[Tensor, Tensor]:
    """Compute image and text embeddings (B, E) of a batch, starting from cached tower features if it has them."""
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
    """Compute the config's loss on embeddings (B, E) -> (sum over pairs, number of pairs). groups: (B,)."""
    if model.logit_bias is not None:
        return sigmoid_loss(images, texts, model.logit_scale, model.logit_bias, groups)
    loss = soft_target_loss if model.config.loss == "soft_targets" else clip_loss
    return loss(images, texts, model.logit_scale, groups)
