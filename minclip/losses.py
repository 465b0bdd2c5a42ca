"""The contrastive loss: a pure function of embeddings, scale and groups. B pairs, E embed_dim."""

import torch
import torch.nn.functional as F
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """float32 instead of a 16-bit type; float32 and float64 stay."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def clip_logits(image_embeddings: Tensor, text_embeddings: Tensor, logit_scale: Tensor) -> Tensor:
    """logits_per_image (B, B): exp(logit_scale) * cosine of image i and text j. Embeddings are unit vectors."""
    # Outside autocast: a logit of 50 in bfloat16 is good to 0.25 only, and near cosines would tie.
    with torch.autocast(image_embeddings.device.type, enabled=False):
        return logit_scale.exp() * image_embeddings @ text_embeddings.T


def clip_loss(
    image_embeddings: Tensor, text_embeddings: Tensor, logit_scale: Tensor, groups: Tensor | None = None
) -> tuple[Tensor, int]:
    """Symmetric InfoNCE with groups -> (sum over pairs, number of pairs).

        l_ij = exp(s) <u_i, v_j>,   j in N(i)  iff  j = i  or  group_j != group_i
        loss_i = 1/2 [ -log e^{l_ii} / sum_{j in N(i)} e^{l_ij}  -  log e^{l_ii} / sum_{j in N(i)} e^{l_ji} ]

    image_embeddings, text_embeddings (B, E) of unit length; groups (B): pairs of one group (captions of one
    image, or equal captions) are never each other's negatives. With unique groups, or none, this is the loss
    of Radford et al. 2021, figure 3 (van den Oord et al. 2018, equation 4). At chance it is ln B.
    """
    logits = clip_logits(image_embeddings, text_embeddings, logit_scale)  # (B, B)
    n_pairs = len(logits)
    own = torch.eye(n_pairs, dtype=torch.bool, device=logits.device)
    if groups is not None:
        compared = own | (groups[:, None] != groups)  # (B, B)
        logits = torch.where(compared, logits, float("-inf"))
    target = torch.arange(n_pairs, device=logits.device)
    image_to_text = F.cross_entropy(logits, target, reduction="sum")
    text_to_image = F.cross_entropy(logits.T, target, reduction="sum")
    return (image_to_text + text_to_image) / 2, n_pairs


@torch.no_grad()
def contrastive_figures(
    image_embeddings: Tensor, text_embeddings: Tensor, logit_scale: Tensor, groups: Tensor
) -> dict[str, Tensor]:
    """What tells a run that learns from one that sits at ln B.

    chance: the loss of a model that knows nothing, the mean of ln |N(i)|; top1: share of images whose own text
    scores strictly best among those compared; scale: exp(logit_scale); mean cosine of pairs and non-pairs.
    """
    cosine = clip_logits(image_embeddings, text_embeddings, torch.zeros_like(logit_scale))  # (B, B)
    other = groups[:, None] != groups  # (B, B)
    own = cosine.diagonal()
    best_other = torch.where(other, cosine, -2.0).amax(dim=1)  # (B)
    return {
        "chance": (1 + other.sum(dim=1)).float().log().mean(),
        "top1": (own > best_other).float().mean(),
        "scale": logit_scale.exp(),
        "positive_cosine": own.mean(),
        "negative_cosine": cosine[other].mean() if other.any() else torch.zeros(()),
    }
