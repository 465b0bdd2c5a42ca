"""Pictures of a training run and of attention, drawn from a run's files and saved as PNG; nothing here trains.

Figures are made as objects (no pyplot, no global state). Each function returns the figure that it saved.
"""

import json
import math
import os
import re
import warnings
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, fontManager, get_font
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike
from torch import Tensor

# Okabe and Ito (2008): told apart with every kind of colour vision.
ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#767676"
PLAIN = ("normal", 400)  # style and weight of a font
MOST_TOKENS = 64  # what an attention map can show with a label each
MOST_HEADS = 16  # maps in one image


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, laid out when it is drawn."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # inches
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | Path) -> Figure:
    """Write the PNG under a temporary name, then move it into place: a reader never sees half a picture."""
    path = Path(path)
    if path.suffix != ".png":
        raise ValueError(f"pictures are PNG files: {str(path)!r} must end in .png")
    path.parent.mkdir(parents=True, exist_ok=True)
    add_fallback_fonts(figure)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from")  # said once, in one line
            figure.savefig(temporary, format="png")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return figure


def characters_of(path: str) -> set[str]:
    """The characters that a font file has glyphs for; none where it is not a font of outlines."""
    try:
        return set(map(chr, get_font(path).get_charmap()))
    except RuntimeError:
        return set()


def add_fallback_fonts(figure: Figure) -> None:
    """Let each text fall back to installed fonts that have the characters its own font lacks, Chinese for example.

    Warn in one line of the characters that no installed font has: they are drawn as boxes.
    """
    lacking = {}
    for text in figure.findobj(Text):
        drawn = {c for c in text.get_text() if c.isprintable() and not c.isascii()}
        if drawn and (lacked := drawn - characters_of(findfont(text.get_fontproperties()))):
            lacking[text] = lacked
    missing, fallback = set().union(*lacking.values()), []
    fonts = {font.name: font.fname for font in fontManager.ttflist if (font.style, font.weight) == PLAIN}
    for name in sorted(fonts):
        if missing and not name.startswith("Last Resort"):  # whose glyphs are boxes
            covered = missing & characters_of(fonts[name])
            fallback += [name] if covered else []
            missing -= covered
    for text in lacking:  # in the weight that was looked at: a font's bold may lack what its plain form has
        text.set(fontfamily=[*text.get_fontfamily(), *fallback], fontweight="normal")
    if missing:
        warnings.warn(
            f"no installed font has {''.join(sorted(missing)[:20])!r} ({len(missing)} characters): they are drawn as "
            "boxes; install a font of that script",
            stacklevel=3,
        )


def read_metrics(run: str | Path) -> list[dict]:
    """The lines of a run's metrics.jsonl (the file, or its folder), one dictionary a line, in order of steps.

    A last line without a line end is one that the run was writing: it is left out.
    ValueError: no such file, a line that is not a JSON object with a step, no line.
    """
    path = Path(run) / "metrics.jsonl" if Path(run).is_dir() else Path(run)
    if not path.is_file():
        raise ValueError(f"no metrics at {str(path)!r}: give a run's folder or its metrics.jsonl")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error.msg}): {line[:60]!r}") from error
        if not isinstance(row, dict) or "step" not in row:
            raise ValueError(f'{path}, line {number}: not an object with a "step": {line[:60]!r}')
        rows.append(row)
    if not rows:
        raise ValueError(f"{str(path)!r} holds no complete line: the run has not logged a step yet")
    return sorted(rows, key=lambda row: row["step"])


def series(rows: Sequence[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of the rows that have `key`."""
    pairs = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    steps, values = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(steps, dtype=float), np.array(values, dtype=float)


def running_mean(values: np.ndarray, reach: int) -> np.ndarray:
    """Mean of each value and its `reach` neighbours on either side, (n,) -> (n,); leaves out what is not finite."""
    finite = np.isfinite(values)
    sums = np.concatenate(([0.0], np.cumsum(np.where(finite, values, 0.0))))
    counts = np.concatenate(([0], np.cumsum(finite)))
    positions = np.arange(len(values))
    first, end = np.maximum(positions - reach, 0), np.minimum(positions + reach + 1, len(values))
    count = counts[end] - counts[first]
    return np.where(count > 0, (sums[end] - sums[first]) / np.maximum(count, 1), np.nan)


def loss_curve(run: str | Path, path: str | Path) -> Figure:
    """A run's losses against its steps, with the chance level, and its learning rate below -> PNG at `path`.

    Drawn: "loss" of the training lines, thin, and its running mean over a thirtieth of them; every "..._loss"
    of the evaluation lines; "chance", dashed; "lr". ValueError: those of `read_metrics`; no loss in the file.
    """
    rows = read_metrics(run)
    steps, losses = series(rows, "loss")
    if not len(steps):
        raise ValueError(f'no "loss" in the metrics of {str(run)!r}: found only {sorted(set().union(*rows))}')
    reach = len(losses) // 60
    smooth = running_mean(losses, reach)
    dot = "o" if len(losses) < 20 else None  # a line through one point cannot be seen
    figure = new_figure(8, 5.5)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    top.plot(steps, losses, color=SKY, linewidth=0.7, alpha=0.7, label="training", marker=dot, markersize=4)
    label = f"training, running mean of {2 * reach + 1}"
    top.plot(steps, smooth, color=BLUE, linewidth=1.8, label=label)
    names = sorted({key for row in rows for key in row if key.endswith("_loss")})
    for name, color, marker in zip(
        names, cycle((VERMILION, PURPLE, GREEN, ORANGE)), cycle("osD^"), strict=False
    ):
        label = name.replace("_", " ")
        top.plot(*series(rows, name), color=color, marker=marker, markersize=5, label=label)
    chance_steps, chances = series(rows, "chance")
    if len(chances):
        label = f"chance level ({chances[-1]:.2f})"
        style = {"linestyle": "--", "linewidth": 1.2, "marker": dot, "markersize": 3}
        top.plot(chance_steps, chances, color="black", label=label, **style)
    top.set_ylabel("loss (nats)")
    top.set_title(f"Loss up to step {steps[-1]:,.0f}: training ends at {smooth[-1]:.3f}")
    top.legend(frameon=False)
    bottom.plot(*series(rows, "lr"), color=GREY, linewidth=1.5, marker=dot, markersize=4)
    bottom.set_ylabel("learning rate")
    bottom.set_ylim(bottom=0)
    bottom.set_xlabel("optimizer step")
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    bottom.xaxis.set_major_formatter("{x:,.0f}")
    for axes in (top, bottom):
        plain_axes(axes)
    return save_figure(figure, path)


def plain_axes(axes: Axes) -> None:
    """Axes with a light grid and no frame above and on the right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)


def metric_curves(run: str | Path, path: str | Path) -> Figure:
    """Every figure of a run's metrics but those of `loss_curve` against its steps, a panel each -> PNG at `path`.

    Logged at each step: thin, with its running mean over a thirtieth of the steps; at evaluations: points joined.
    ValueError: those of `read_metrics`; no other figure in the file.
    """
    rows = read_metrics(run)
    kept = {"step", "epoch", "seconds", "loss", "chance", "lr"}
    names = list(dict.fromkeys(key for row in rows for key in row if key not in kept and key[-5:] != "_loss"))
    if not names:
        raise ValueError(f"no figure beside the loss in the metrics of {str(run)!r}")
    n_rows = math.ceil(len(names) / 3)
    figure = new_figure(9, 2.2 * n_rows + 0.4)
    panels = figure.subplots(n_rows, 3, squeeze=False, sharex=True)
    for axes in panels.flat[len(names) :]:
        axes.axis("off")
    for name, axes in zip(names, panels.flat, strict=False):
        steps, values = series(rows, name)
        if len(steps) > len(rows) / 2:  # of every step
            axes.plot(steps, values, color=SKY, linewidth=0.6, alpha=0.7)
            axes.plot(steps, running_mean(values, len(values) // 60), color=BLUE, linewidth=1.5)
        else:
            axes.plot(steps, values, color=VERMILION, marker="o", markersize=3, linewidth=1.2)
        axes.set_title(f"{name.replace('_', ' ')}: {values[-1]:.4g}", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        plain_axes(axes)
    figure.supxlabel("optimizer step", fontsize=9)
    return save_figure(figure, path)


def visible(token: str) -> str:
    """A token as a label: white space that would not be seen gets a sign, and a long run of one its length."""
    signs = token.replace("\n", "↵").replace("\t", "⇥").replace(" ", "␣") or "∅"
    return re.sub(r"([↵⇥␣])\1{3,}", lambda run: f"{run[1]}×{len(run[0])}", signs)


def attention_maps(
    weights: Tensor | ArrayLike,
    tokens: Sequence[str],
    path: str | Path,
    memory_tokens: Sequence[str] | None = None,
) -> Figure:
    """One layer's attention weights (H, T, S) as H maps, in one colour scale from 0 to the largest -> PNG at `path`.

    Of more than MOST_HEADS heads the first ones are drawn, and the title says so.
    tokens are the T queries, the rows; memory_tokens the S keys, the columns (None: the queries themselves).
    ValueError: labels that do not fit, weights that are not finite, too many tokens to read.
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
    for head, axes in enumerate(panels.flat):
        if head >= len(weights):
            axes.set_visible(False)
            continue
        drawn = axes.imshow(weights[head], cmap="cividis", vmin=0, vmax=weights.max(), aspect="auto")
        axes.set_title(f"head {head}", fontsize=9)
        labels = {"fontsize": 7, "family": "monospace", "parse_math": False}
        axes.set_xticks(range(len(keys)), [visible(token) for token in keys], rotation=90, **labels)
        axes.set_yticks(range(len(tokens)), [visible(token) for token in tokens], **labels)
    figure.colorbar(drawn, ax=panels, label="attention weight", shrink=0.8)
    figure.suptitle(f"Attention weights by head ({shown}); each row sums to 1")
    figure.supxlabel("key (looked at)")
    figure.supylabel("query (looking)")
    return save_figure(figure, path)
