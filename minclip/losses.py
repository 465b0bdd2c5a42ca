"""The contrastive losses: pure functions of embeddings, scale and groups. B pairs, E embed_dim.

In all of them u_i and v_i are the unit embeddings of image and text i, s is logit_scale, and

    N(i) = { j : j = i  or  group_j != group_i }

is what pair i is compared with: pairs of one group (captions of one image, or equal captions) are never each
other's negatives, nor positives: nothing is said of them. With unique groups, or none, N(i) is the batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """float32 instead of a 16-bit type; float32 and float64 stay."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def clip_logits(image_embeddings: Tensor, text_embeddings: Tensor, logit_scale: Tensor) -> Tensor:
    """logits_per_image (N, M): exp(logit_scale) * cosine of image i and text j, unit vectors (N, E) and (M, E)."""
    # Outside autocast: a logit of 50 in bfloat16 is good to 0.25 only, and near cosines would tie.
    with torch.autocast(image_embeddings.device.type, enabled=False):
        return logit_scale.exp() * image_embeddings @ text_embeddings.T  # (N, M)


def compared_pairs(groups: Tensor) -> Tensor:
    """groups (B) -> (B, B), True where j is in N(i)."""
    own = torch.eye(len(groups), dtype=torch.bool, device=groups.device)  # (B, B)
    return own | (groups[:, None] != groups)  # (B, B)


def clip_loss(
    image_embeddings: Tensor, text_embeddings: Tensor, logit_scale: Tensor, groups: Tensor | None = None
) -> tuple[Tensor, int]:
    """Symmetric InfoNCE with groups -> (sum over pairs, number of pairs).

        l_ij = exp(s) <u_i, v_j>
        loss_i = 1/2 [ -log e^{l_ii} / sum_{j in N(i)} e^{l_ij}  -  log e^{l_ii} / sum_{j in N(i)} e^{l_ji} ]

    image_embeddings, text_embeddings (B, E) of unit length; groups (B). With unique groups, or none, this is
    the loss of Radford et al. 2021, figure 3 (van den Oord et al. 2018, equation 4). At chance it is ln B.
    """
    logits = clip_logits(image_embeddings, text_embeddings, logit_scale)  # (B, B)
    n_pairs = len(logits)
    if groups is not None:
        logits = torch.where(compared_pairs(groups), logits, float("-inf"))
    target = torch.arange(n_pairs, device=logits.device)  # (B)
    image_to_text = F.cross_entropy(logits, target, reduction="sum")
    text_to_image = F.cross_entropy(logits.T, target, reduction="sum")
    return (image_to_text + text_to_image) / 2, n_pairs


def sigmoid_loss(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    groups: Tensor | None = None,
) -> tuple[Tensor, int]:
    """Is this text that image's? asked of every pair by itself -> (sum over pairs, number of pairs).

        loss_i = sum_{j in N(i)} - log sigmoid( z_ij (exp(s) <u_i, v_j> + b) ),   z_ij = 1 if j = i else -1

    Zhai et al. 2023 (SigLIP), section 3.2; b is learned. At chance, see `sigmoid_chance`, about ln B + 1.
    """
    logits = clip_logits(image_embeddings, text_embeddings, logit_scale) + logit_bias  # (B, B)
    n_pairs = len(logits)
    sign = 2 * torch.eye(n_pairs, dtype=logits.dtype, device=logits.device) - 1  # (B, B)
    losses = -F.logsigmoid(sign * logits)
    if groups is not None:
        losses = torch.where(compared_pairs(groups), losses, 0.0)
    return losses.sum(), n_pairs


def sigmoid_chance(compared: Tensor) -> Tensor:
    """sigmoid_loss a pair of the best model that knows nothing: one probability p for all pairs compared.

    compared (B, B), with B positives: p = B / pairs, and the loss is (- p ln p - (1 - p) ln(1 - p)) / p.
    """
    p = len(compared) / compared.sum()
    return (torch.special.entr(p) + torch.special.entr(1 - p)) / p


def soft_target_loss(
    image_embeddings: Tensor, text_embeddings: Tensor, logit_scale: Tensor, groups: Tensor | None = None
) -> tuple[Tensor, int]:
    """Each pair is told from others only as far as images and texts differ -> (sum over pairs, pairs).

        Z_ij = exp(s) <u_i, v_j>,   S_ij = exp(s) (<u_i, u_j> + <v_i, v_j>) / 2,   Y_i = softmax_{j in N(i)} S_ij
        loss_i = - 1/2 sum_{j in N(i)} Y_ij [ log softmax_{j in N(i)} Z_ij + log softmax_{j in N(i)} Z_ji ]

    Y is a target: no gradient flows through it. S is symmetric, so the same Y, whose rows sum to one, serves
    both directions. Each loss_i is at least the entropy of Y_i; at chance it is ln B. Where all images are alike, and
    all texts, Y is uniform, and to say so is the best answer: random towers, which are like that, learn nothing from
    it; pretrained ones do. The formula this mends, and its faults: tests/minclip/test_soft_targets.py.
    """
    logits = clip_logits(image_embeddings, text_embeddings, logit_scale)  # (B, B)
    with torch.no_grad():
        images = clip_logits(image_embeddings, image_embeddings, logit_scale)  # (B, B)
        texts = clip_logits(text_embeddings, text_embeddings, logit_scale)  # (B, B)
        similarity = (images + texts) / 2  # (B, B)
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
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    logit_scale: Tensor,
    groups: Tensor,
    logit_bias: Tensor | None = None,
) -> dict[str, Tensor]:
    """What tells a run that learns from one that sits at chance.

    chance: the loss of a model that knows nothing, the mean of ln |N(i)|, or with the sigmoid loss's logit_bias
    sigmoid_chance; top1: share of images whose own text scores strictly best among those compared; scale:
    exp(logit_scale); mean cosine of pairs and non-pairs; with a logit_bias that too, as bias.
    """
    cosine = clip_logits(image_embeddings, text_embeddings, torch.zeros_like(logit_scale))  # (B, B)
    other = groups[:, None] != groups  # (B, B)
    own = cosine.diagonal()  # (B)
    best_other = torch.where(other, cosine, -2.0).amax(dim=1)  # (B)
    metrics = {
        "chance": (1 + other.sum(dim=1)).float().log().mean(),
        "top1": (own > best_other).float().mean(),
        "scale": logit_scale.exp(),
        "positive_cosine": own.mean(),
        "negative_cosine": cosine[other].mean() if other.any() else torch.zeros(()),
    }
    if logit_bias is not None:
        metrics |= {"chance": sigmoid_chance(compared_pairs(groups)), "bias": logit_bias.clone()}
    return metrics
