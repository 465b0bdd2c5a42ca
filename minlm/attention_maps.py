"""Plots of attention weights, one map per head."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from torch import Tensor

from minlm.plots import new_figure, save_figure

MOST_TOKENS = 64  # with readable labels
MOST_HEADS = 16  # maps in one plot


def visible(token: str) -> str:
    """Return a token as a label, with signs for white space; a long run has one sign and its length."""
    signs = token.replace("\n", "↵").replace("\t", "⇥").replace(" ", "␣") or "∅"
    return re.sub(r"([↵⇥␣])\1{3,}", lambda run: f"{run[1]}×{len(run[0])}", signs)


def attention_maps(
    weights: Tensor | ArrayLike,
    tokens: Sequence[str],
    path: str | Path,
    memory_tokens: Sequence[str] | None = None,
) -> Figure:
    """Plot the last layer's attention weights (H, T, S), one map per head, for at most MOST_HEADS heads.

    tokens: the T queries (rows); memory_tokens: the S keys (columns), by default the queries; path: of the PNG.
    ValueError for weights of another shape, weights that are not finite, and too many tokens for labels.
    """
    weights = np.asarray(weights.detach().float().cpu() if isinstance(weights, Tensor) else weights)
    keys = tokens if memory_tokens is None else memory_tokens
    if weights.ndim != 3 or weights.shape[1:] != (len(tokens), len(keys)):
        raise ValueError(
            f"attention weights must be (heads, {len(tokens)}, {len(keys)}) for these labels: got {weights.shape}"
        )
    if not np.isfinite(weights).all():
        raise ValueError(
            f"attention weights: {np.count_nonzero(~np.isfinite(weights))} of {weights.size} not finite"
        )
    n_heads = len(weights)
    if not n_heads or max(weights.shape[1:]) > MOST_TOKENS:
        raise ValueError(
            f"attention weights {weights.shape}: no heads, or more than {MOST_TOKENS} tokens to read"
        )
    weights = weights[:MOST_HEADS]
    shown = f"{n_heads}" if n_heads <= MOST_HEADS else f"the first {MOST_HEADS} of {n_heads}"
    n_rows = math.ceil(len(weights) / 4)
    n_columns = math.ceil(len(weights) / n_rows)
    width, height = (max(2.2, 0.8 + 0.14 * count) for count in (len(keys), len(tokens)))
    figure = new_figure(max(5, n_columns * width + 1.4), n_rows * height + 1.2)
    panels = figure.subplots(n_rows, n_columns, squeeze=False)
    for axes in panels.flat[len(weights) :]:
        axes.set_visible(False)
    images = []
    for head, axes in zip(range(len(weights)), panels.flat, strict=False):
        images.append(axes.imshow(weights[head], cmap="cividis", vmin=0, vmax=weights.max(), aspect="auto"))
        axes.set_title(f"head {head}", fontsize=9)
        labels = {"fontsize": 7, "family": "monospace", "parse_math": False}
        axes.set_xticks(range(len(keys)), [visible(token) for token in keys], rotation=90, **labels)
        axes.set_yticks(range(len(tokens)), [visible(token) for token in tokens], **labels)
    figure.colorbar(images[0], ax=panels, label="attention weight", shrink=0.8)
    kind = "Attention" if memory_tokens is None else "Cross-attention"
    figure.suptitle(f"{kind} weights of the last layer by head ({shown}); each row sums to 1")
    figure.supxlabel("key (attended to)")
    figure.supylabel("query (attending)")
    return save_figure(figure, path, f"{kind} of the last layer, a map per head: rows attend to columns.")
