"""Contrastive losses as pure functions of embeddings, scale and groups. B pairs, E embed_dim.

u_i and v_i are the unit embeddings of image and text i, s is logit_scale, and

    N(i) = { j : j = i  or  group_j != group_i }

is the set that pair i is compared with. Pairs of one group (captions of one image, or equal captions) are neither
negatives nor positives of each other. With unique groups, or none, N(i) is the batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """Convert 16-bit values to float32; leave float32 and float64 unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def clip_logits(images: Tensor, texts: Tensor, logit_scale: Tensor) -> Tensor:
    """Compute logits_per_image (N, M), exp(s) <u_i, v_j>, from unit embeddings (N, E) and (M, E)."""
    # Outside autocast: in bfloat16 a logit near 50 has a resolution of 0.25, and close cosines would tie.
    with torch.autocast(images.device.type, enabled=False):
        return logit_scale.exp() * images @ texts.T  # (N, M)


def compared_pairs(groups: Tensor) -> Tensor:
    """Compute the mask (B, B) from groups (B,): True where j is in N(i)."""
    own = torch.eye(len(groups), dtype=torch.bool, device=groups.device)  # (B, B)
    return own | (groups[:, None] != groups)  # (B, B)


def clip_loss(
    images: Tensor, texts: Tensor, logit_scale: Tensor, groups: Tensor | None = None
) -> tuple[Tensor, int]:
    """Symmetric InfoNCE on embeddings (B, E) with groups (B,) -> (sum over pairs, number of pairs).

        l_ij = exp(s) <u_i, v_j>
        loss_i = 1/2 [ -log e^{l_ii} / sum_{j in N(i)} e^{l_ij}  -  log e^{l_ii} / sum_{j in N(i)} e^{l_ji} ]

    Radford et al. 2021, figure 3; van den Oord et al. 2018, equation 4. At chance it is ln B.
    """
    logits = clip_logits(images, texts, logit_scale)  # (B, B)
    if groups is not None:
        logits = torch.where(compared_pairs(groups), logits, float("-inf"))
    target = torch.arange(len(logits), device=logits.device)  # (B)
    image_to_text = F.cross_entropy(logits, target, reduction="sum")
    text_to_image = F.cross_entropy(logits.T, target, reduction="sum")
    return (image_to_text + text_to_image) / 2, len(logits)


def sigmoid_loss(
    images: Tensor, texts: Tensor, logit_scale: Tensor, logit_bias: Tensor, groups: Tensor | None = None
) -> tuple[Tensor, int]:
    """Binary loss of SigLIP: classify each image-text pair alone -> (sum over pairs, number of pairs).

        loss_i = sum_{j in N(i)} - log sigmoid( z_ij (exp(s) <u_i, v_j> + b) ),   z_ij = 1 if j = i else -1

    Embeddings (B, E), groups (B,). Zhai et al. 2023, section 3.2; b is learned. At chance it is about ln B + 1: see
    `sigmoid_chance`.
    """
    logits = clip_logits(images, texts, logit_scale) + logit_bias  # (B, B)
    sign = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1  # (B, B)
    losses = -F.logsigmoid(sign * logits)
    if groups is not None:
        losses = torch.where(compared_pairs(groups), losses, 0.0)
    return losses.sum(), len(logits)


def sigmoid_chance(compared: Tensor) -> Tensor:
    """Compute the lowest sigmoid_loss per pair of a model that gives all compared pairs one probability p.

    compared: (B, B). B of the pairs are positive, so p = B / pairs; the loss is (- p ln p - (1 - p) ln(1 - p)) / p.
    """
    p = len(compared) / compared.sum()
    return (torch.special.entr(p) + torch.special.entr(1 - p)) / p


def soft_target_loss(
    images: Tensor, texts: Tensor, logit_scale: Tensor, groups: Tensor | None = None
) -> tuple[Tensor, int]:
    """Cross-entropy with the batch's own similarities as soft targets -> (sum over pairs, number of pairs).

        Z_ij = exp(s) <u_i, v_j>,   S_ij = exp(s) (<u_i, u_j> + <v_i, v_j>) / 2,   Y_i = softmax_{j in N(i)} S_ij
        loss_i = - 1/2 sum_{j in N(i)} Y_ij [ log softmax_{j in N(i)} Z_ij + log softmax_{j in N(i)} Z_ji ]

    Embeddings (B, E), groups (B,). No gradient flows through Y. S is symmetric, so Y serves both directions. Each
    loss_i is at least the entropy of Y_i; at chance it is ln B. Towers whose embeddings are all equal have a uniform Y
    and learn nothing: the loss suits pretrained towers, not random ones. tests/minclip/test_soft_targets.py shows
    the faults of the published formula.
    """
    logits = clip_logits(images, texts, logit_scale)  # (B, B)
    with torch.no_grad():
        image_similarity = clip_logits(images, images, logit_scale)  # (B, B)
        text_similarity = clip_logits(texts, texts, logit_scale)  # (B, B)
        similarity = (image_similarity + text_similarity) / 2  # (B, B)
    if groups is not None:
        # The lowest finite number, not -inf: its target is zero, and zero times infinity would be NaN.
        lowest = torch.finfo(logits.dtype).min
        logits, similarity = (torch.where(compared_pairs(groups), x, lowest) for x in (logits, similarity))
    target = similarity.softmax(dim=1)
    image_to_text = F.cross_entropy(logits, target, reduction="sum")
    text_to_image = F.cross_entropy(logits.T, target, reduction="sum")
    return (image_to_text + text_to_image) / 2, len(logits)


@torch.no_grad()
def contrastive_metrics(
    images: Tensor, texts: Tensor, logit_scale: Tensor, groups: Tensor, logit_bias: Tensor | None = None
) -> dict[str, Tensor | float]:
    """Compute training metrics of embeddings (B, E) with groups (B,), and the loss at chance.

    chance: mean of ln |N(i)|, or `sigmoid_chance` if there is a logit_bias. top1: share of images whose own text
    scores strictly highest in N(i). scale: exp(logit_scale). positive_cosine, negative_cosine: means over pairs and
    over pairs of different groups. bias: logit_bias, if any.
    """
    cosine = clip_logits(images, texts, torch.zeros_like(logit_scale))  # (B, B)
    negative = groups[:, None] != groups  # (B, B)
    own = cosine.diagonal()  # (B)
    metrics: dict[str, Tensor | float] = {
        "chance": (1 + negative.sum(dim=1)).float().log().mean(),
        "top1": (own > torch.where(negative, cosine, -2.0).amax(dim=1)).float().mean(),
        "scale": logit_scale.exp(),
        "positive_cosine": own.mean(),
        "negative_cosine": cosine[negative].mean() if negative.any() else torch.zeros(()),
    }
    if logit_bias is not None:
        metrics |= {"chance": sigmoid_chance(compared_pairs(groups)), "bias": logit_bias.clone()}
    return metrics
