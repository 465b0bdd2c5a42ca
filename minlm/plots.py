"""Pictures of a training run and of attention, drawn from a run's files and saved as PNG; nothing here trains.

Figures are made as objects (no pyplot, no global state). Each function returns the figure that it saved.
"""

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

from minlm.training.files import read_object
from minlm.training.log import read_metrics

# Okabe and Ito (2008): told apart with every kind of colour vision.
ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#767676"
PLAIN = ("normal", 400)  # style and weight of a font
MARKED = (VERMILION, "o"), (PURPLE, "s"), (GREEN, "D"), (ORANGE, "^")  # evaluation losses
MOST_TOKENS = 64  # what an attention map can show with a label each
MOST_HEADS = 16  # maps in one image


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, laid out when it is drawn."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # inches
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | Path, caption: str = "") -> Figure:
    """Write the PNG under a temporary name, then move it into place: a reader never sees half a picture.

    caption: what the figure shows, kept in the file as its "Description"; the report prints it below the figure.
    """
    path = Path(path)
    if path.suffix != ".png":
        raise ValueError(f"pictures are PNG files: {str(path)!r} must end in .png")
    path.parent.mkdir(parents=True, exist_ok=True)
    add_fallback_fonts(figure)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from")  # said once, in one line
            figure.savefig(temporary, format="png", metadata={"Description": caption})
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


def series(rows: Sequence[dict], key: str, against: str = "step") -> tuple[np.ndarray, np.ndarray]:
    """(places, values) of the rows that have `key`; places are the rows' values of `against`."""
    pairs = [(row[against], row[key]) for row in rows if row.get(key) is not None and against in row]
    steps, values = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(steps, dtype=float), np.array(values, dtype=float)


def with_minutes(rows: Sequence[dict]) -> list[dict]:
    """The rows with the minutes since the run began; those of an evaluation are its training step's."""
    at = {row["step"]: row["seconds"] / 60 for row in rows if "seconds" in row}
    return [row | {"minutes": at[row["step"]]} if row["step"] in at else row for row in rows]


def evaluation_differs(run: str | Path) -> str:
    """What makes a run's evaluation losses easier than its training losses, in brackets; "" if nothing does."""
    train = read_object(Path(run) / "config.json", missing_ok=True).get("train", {})
    reasons = ["averaged weights"] if train.get("ema_decay") else []
    reasons += ["no hard negatives"] if train.get("neighbours", 1) > 1 else []
    return f" ({', '.join(reasons)})" if reasons else ""


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
    """A run's losses with the chance level, and its learning rate below, by step and by minutes -> PNG at `path`.

    Drawn: "loss" of the training lines, thin, and its running mean over a thirtieth of them; every "..._loss"
    of the evaluation lines; "chance", dashed; "lr". Of a language model also the scale in nats per character, and
    the validation text's own entropy where run.json or result.json has it. By minutes only where they are logged.
    ValueError: those of `read_metrics`; no loss in the file.
    """
    rows = with_minutes(read_metrics(run))
    steps, losses = series(rows, "loss")
    if not len(steps):
        raise ValueError(f'no "loss" in the metrics of {str(run)!r}: found only {sorted(set().union(*rows))}')
    columns = ["step", "minutes"] if any("minutes" in row for row in rows) else ["step"]
    reach = len(losses) // 60
    smooth = running_mean(losses, reach)
    dot = "o" if len(losses) < 20 else None  # a line through one point cannot be seen
    figure = new_figure(8 if len(columns) == 1 else 12, 5.5)
    panels = figure.subplots(2, len(columns), sharex="col", sharey="row", height_ratios=(4, 1), squeeze=False)
    note = evaluation_differs(run)
    per_token = next((row for row in reversed(rows) if row.get("nats_per_character")), {})
    known = read_object(Path(run) / "run.json", missing_ok=True).get("known", {})
    result = read_object(Path(run) / "result.json", missing_ok=True)
    floor = (known | result).get("validation_floor_nats_per_character")
    for against, (top, bottom) in zip(columns, panels.T, strict=True):
        places, _ = series(rows, "loss", against)
        top.plot(
            places, losses, color=SKY, linewidth=0.7, alpha=0.7, label="training", marker=dot, markersize=4
        )
        label = f"training, running mean of {2 * reach + 1}"
        top.plot(places, smooth, color=BLUE, linewidth=1.8, label=label)
        for name, (color, marker) in zip(loss_names(rows), cycle(MARKED), strict=False):
            label = name.replace("_", " ") + note
            top.plot(*series(rows, name, against), color=color, marker=marker, markersize=5, label=label)
        chance_places, chances = series(rows, "chance", against)
        if len(chances):
            label = f"chance level ({chances[-1]:.2f})"
            style = {"linestyle": "--", "linewidth": 1.2, "marker": dot, "markersize": 3}
            top.plot(chance_places, chances, color="black", label=label, **style)
        if per_token and floor:
            height = floor * per_token["validation_loss"] / per_token["nats_per_character"]
            label = f"entropy of the validation text ({floor:.3f} nats per character)"
            top.axhline(height, color="black", linestyle=":", linewidth=1.2, label=label)
        bottom.plot(*series(rows, "lr", against), color=GREY, linewidth=1.5, marker=dot, markersize=4)
        bottom.set_ylim(bottom=0)
        for axes in (top, bottom):
            plain_axes(axes)
        label_axis(bottom, against)
    if per_token:
        ratio = per_token["nats_per_character"] / per_token["validation_loss"]
        right = panels[0, -1].secondary_yaxis(
            "right", functions=(lambda nats: nats * ratio, lambda nats: nats / ratio)
        )
        right.set_ylabel("nats per character")
    panels[0, 0].set_ylabel("loss (nats per token)" if per_token else "loss (nats)")
    panels[1, 0].set_ylabel("learning rate")
    panels[0, 0].legend(frameon=False, fontsize=9)
    title = f"Loss up to step {steps[-1]:,.0f}: training ends at {smooth[-1]:.3f}"
    panels[0, 0].set_title(title) if len(columns) == 1 else figure.suptitle(title)
    caption = "Loss and learning rate by optimizer step and by training time."
    if note:
        caption += f" Evaluation losses{note} can lie below the training loss."
    return save_figure(figure, path, caption)


def compare_losses(runs: Sequence[str | Path], path: str | Path) -> Figure:
    """The losses of several runs over one another, a colour each, by step and by minutes -> PNG at `path`.

    Above: the training loss, as its running mean over a thirtieth of the steps. Below: every "..._loss" of the
    evaluations. Errors as `read_metrics`.
    """
    figure = new_figure(12, 7.5)
    panels = figure.subplots(2, 2, sharex="col", sharey="row")
    for run, color in zip(runs, cycle((BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)), strict=False):
        rows, name = with_minutes(read_metrics(run)), Path(run).resolve().name
        for against, (top, bottom) in zip(("step", "minutes"), panels.T, strict=True):
            places, losses = series(rows, "loss", against)
            top.plot(places, running_mean(losses, len(losses) // 60), color=color, linewidth=1.5, label=name)
            for key, (_, marker) in zip(loss_names(rows), cycle(MARKED), strict=False):
                label = f"{name}: {key.replace('_', ' ')}{evaluation_differs(run)}"
                bottom.plot(
                    *series(rows, key, against), color=color, marker=marker, markersize=4, label=label
                )
            label_axis(bottom, against)
    for row, words in zip(
        panels, ("training loss (nats), running mean", "evaluation loss (nats)"), strict=True
    ):
        row[0].set_ylabel(words)
        if row[0].get_lines():
            row[0].legend(frameon=False, fontsize=8)
    for axes in panels.flat:
        plain_axes(axes)
    figure.suptitle(f"Losses of {len(runs)} runs")
    return save_figure(figure, path, "Losses of the runs by optimizer step and by training time.")


def loss_names(rows: Sequence[dict]) -> list[str]:
    """The losses of the evaluation lines."""
    return sorted({key for row in rows for key in row if key.endswith("_loss")})


def label_axis(axes: Axes, against: str) -> None:
    axes.set_xlabel({"step": "optimizer step", "minutes": "minutes of training"}[against])
    if against == "step":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.xaxis.set_major_formatter("{x:,.0f}")


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
    return save_figure(
        figure, path, "Every other logged figure by optimizer step; above each, its last value."
    )


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
    """The last layer's attention weights (H, T, S) as H maps, in one colour scale -> PNG at `path`.

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
    kind = "Attention" if memory_tokens is None else "Cross-attention"
    figure.suptitle(f"{kind} weights of the last layer by head ({shown}); each row sums to 1")
    figure.supxlabel("key (attended to)")
    figure.supylabel("query (attending)")
    return save_figure(figure, path, f"{kind} of the last layer, a map per head: rows attend to columns.")
