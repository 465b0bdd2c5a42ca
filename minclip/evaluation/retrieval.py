"""Retrieval among N images and their M captions: ranks, recalls, and the recalls of a random order.

Every answer of the query's group is right: all captions of one image, or all images and captions of one class. A wrong
answer that ties with the best right one ranks before it, so a collapsed model with equal embeddings scores worst.
"""

import math
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from minclip.evaluation.embed import exact_pair

MOST_SCORES = 2**23  # per block: 64 MiB of float64


def retrieval_ranks(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    image_of_text: Tensor,
    groups: Tensor | None = None,
    most_scores: int = MOST_SCORES,
) -> tuple[Tensor, Tensor]:
    """Compute the rank, from 1, of the best right answer to each image (N,) and to each text (M,).

    Embeddings (N, E) and (M, E). image_of_text: (M,), row of each text's image. groups: (N,), group of each image;
    None = each image has its own. The rank is one more than the number of wrong answers with at least the score of the
    best right one. Scores are computed in blocks of at most most_scores, or of one row.
    Raises ValueError as `exact_pair`, for positions or groups of a wrong shape or range, or an image without a text.
    """
    images, texts = exact_pair(image_embeddings, text_embeddings, "text")
    check_positions(image_of_text, len(texts), len(images), "image_of_text")
    bare = (torch.bincount(image_of_text, minlength=len(images)) == 0).nonzero().flatten().tolist()
    if bare:
        raise ValueError(f"image {bare[0]} and {len(bare) - 1} more of {len(images)} have no text: drop them")
    image_groups, text_groups = groups_of_both(len(images), image_of_text, groups)
    chunk = max(1, most_scores // len(texts))  # images per block
    parts = list(zip(images.split(chunk), image_groups.split(chunk), strict=True))

    best_of_text = torch.full((len(texts),), -math.inf, dtype=images.dtype)  # (M,)
    for some, some_groups in parts:
        right = some_groups[:, None] == text_groups  # (chunk, M)
        scores = torch.where(right, some @ texts.T, -math.inf)  # (chunk, M)
        best_of_text = torch.maximum(best_of_text, scores.amax(dim=0))  # (M,)
    image_ranks, text_ranks = [], torch.ones(len(texts), dtype=torch.int64)
    for some, some_groups in parts:
        right, scores = some_groups[:, None] == text_groups, some @ texts.T  # (chunk, M) each
        best_of_image = torch.where(right, scores, -math.inf).amax(dim=1, keepdim=True)  # (chunk, 1)
        image_ranks.append(1 + ((scores >= best_of_image) & ~right).sum(dim=1))  # (chunk,)
        text_ranks += ((scores >= best_of_text) & ~right).sum(dim=0)
    return torch.cat(image_ranks), text_ranks  # (N,), (M,)


def groups_of_both(n_images: int, image_of_text: Tensor, groups: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the groups of images (N,) and of texts (M,)."""
    groups = torch.arange(n_images) if groups is None else groups
    if groups.shape != (n_images,):
        raise ValueError(f"groups must have shape ({n_images},), one per image: got {tuple(groups.shape)}")
    return groups, groups[image_of_text]  # (N,), (M,)


def check_positions(positions: Tensor, count: int, limit: int, name: str) -> None:
    """Raise ValueError unless positions have shape (count,) and lie in [0, limit)."""
    if positions.shape != (count,):
        raise ValueError(f"{name} must have shape ({count},), one per row: got {tuple(positions.shape)}")
    if positions.min() < 0 or positions.max() >= limit:
        raise ValueError(f"{name} must lie in 0 to {limit - 1}: got {positions.min()} to {positions.max()}")


def retrieval(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    image_of_text: Tensor,
    groups: Tensor | None = None,
    ks: Sequence[int] = (1, 5, 10),
    most_scores: int = MOST_SCORES,
) -> dict[str, dict]:
    """Compute retrieval metrics in both directions; arguments and errors as `retrieval_ranks`.

    Returns {"image_to_text": {"recall@1": fraction, ..., "median_rank"}, "text_to_image": the same,
    "chance": {"image_to_text": {"recall@1", ...}, "text_to_image": {...}}}. Recall@k is the share of queries with a
    right answer among the first k (Karpathy and Fei-Fei 2015, section 4.2).
    """
    image_ranks, text_ranks = retrieval_ranks(
        image_embeddings, text_embeddings, image_of_text, groups, most_scores
    )
    n_images, n_texts = len(image_ranks), len(text_ranks)
    image_groups, _ = groups_of_both(n_images, image_of_text, groups)
    _, numbers = image_groups.unique(return_inverse=True)  # (N,), groups numbered from 0
    of_texts = numbers[image_of_text]  # (M,)
    right_texts = torch.bincount(of_texts)[numbers].tolist()  # every image has a text
    right_images = torch.bincount(numbers)[of_texts].tolist()
    return {
        "image_to_text": recalls(image_ranks, ks),
        "text_to_image": recalls(text_ranks, ks),
        "chance": {
            "image_to_text": chance_recalls(right_texts, n_texts, ks),
            "text_to_image": chance_recalls(right_images, n_images, ks),
        },
    }


def recalls(ranks: Tensor, ks: Sequence[int]) -> dict[str, float]:
    """Compute recall@k for each k, and the median rank."""
    shares = {f"recall@{k}": int((ranks <= k).sum()) / len(ranks) for k in ks}
    return shares | {"median_rank": float(statistics.median(ranks.tolist()))}


def chance_recalls(right: Sequence[int], n_answers: int, ks: Sequence[int]) -> dict[str, float]:
    """Compute the expected recalls of a random order of the answers; right[i] of them are right for query i.

    A query with c right answers among M has none in the first k with probability C(M - c, k) / C(M, k).
    """
    chances = {}
    for k in ks:
        drawn = min(k, n_answers)
        orders = math.comb(n_answers, drawn)
        hits = sum(orders - math.comb(n_answers - count, drawn) for count in right)
        chances[f"recall@{k}"] = hits / (orders * len(right))  # integers up to here: no rounding
    return chances
