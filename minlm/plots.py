"""Plots of a training run, from its files, saved as PNG.

Figures are objects, without pyplot and its global state. Each function returns the figure that it saved.
"""

import math
import os
import warnings
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, fontManager, get_font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from minlm.training.files import read_object
from minlm.training.log import read_metrics

# Okabe and Ito (2008): distinct with every kind of colour vision.
ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#767676"
PLAIN = ("normal", 400)  # style and weight of a font
MARKED = (VERMILION, "o"), (PURPLE, "s"), (GREEN, "D"), (ORANGE, "^")  # evaluation losses


def new_figure(width: float, height: float) -> Figure:
    """Create an empty figure, width and height in inches."""
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)  # inches
    figure = Figure(figsize=(width, height), dpi=120, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | Path, caption: str = "") -> Figure:
    """Write a PNG under a temporary name, then rename it, so that no incomplete file is ever read.

    caption: description of the plot, kept in the file as its "Description"; the report prints it below the plot.
    ValueError for a path that does not end in .png.
    """
    path = Path(path)
    if path.suffix != ".png":
        raise ValueError(f"{str(path)!r} must end in .png: plots are PNG files")
    path.parent.mkdir(parents=True, exist_ok=True)
    add_fallback_fonts(figure)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "Glyph .* missing from"
            )  # reported in one line by add_fallback_fonts
            figure.savefig(temporary, format="png", metadata={"Description": caption})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return figure


def characters_of(path: str) -> set[str]:
    """Return the characters that a font file has glyphs for, none if it is not an outline font."""
    try:
        return set(map(chr, get_font(path).get_charmap()))
    except RuntimeError:
        return set()


def add_fallback_fonts(figure: Figure) -> None:
    """Give each text fallback fonts for the characters that its own font lacks, Chinese for example.

    Warn of the characters that no installed font has: they are drawn as boxes.
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
    for text in lacking:  # in normal weight: a font's bold form may have fewer characters
        text.set(fontfamily=[*text.get_fontfamily(), *fallback], fontweight="normal")
    if missing:
        warnings.warn(
            f"no installed font has {''.join(sorted(missing)[:20])!r} ({len(missing)} characters): they are drawn as "
            "boxes; install a font of that script",
            stacklevel=3,
        )


def series(rows: Sequence[dict], key: str, against: str = "step") -> tuple[np.ndarray, np.ndarray]:
    """Return (values of `against`, values of `key`) of the rows that have both."""
    pairs = [(row[against], row[key]) for row in rows if row.get(key) is not None and against in row]
    steps, values = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(steps, dtype=float), np.array(values, dtype=float)


def with_minutes(rows: Sequence[dict]) -> list[dict]:
    """Add "minutes" since the run began to each row; an evaluation has those of its training step."""
    at = {row["step"]: row["seconds"] / 60 for row in rows if "seconds" in row}
    return [row | {"minutes": at[row["step"]]} if row["step"] in at else row for row in rows]


def evaluation_differs(run: str | Path) -> str:
    """Return, in brackets, why a run's evaluation losses can lie below its training losses; "" if they cannot."""
    train = read_object(Path(run) / "config.json", missing_ok=True).get("train", {})
    reasons = ["averaged weights"] if train.get("ema_decay") else []
    reasons += ["no hard negatives"] if train.get("neighbours", 1) > 1 else []
    return f" ({', '.join(reasons)})" if reasons else ""


def running_mean(values: np.ndarray, reach: int) -> np.ndarray:
    """Compute the mean of each value (n) and its `reach` neighbours on either side, without NaN and infinity."""
    finite = np.isfinite(values)
    sums = np.concatenate(([0.0], np.cumsum(np.where(finite, values, 0.0))))
    counts = np.concatenate(([0], np.cumsum(finite)))
    positions = np.arange(len(values))
    first, end = np.maximum(positions - reach, 0), np.minimum(positions + reach + 1, len(values))
    count = counts[end] - counts[first]
    return np.where(count > 0, (sums[end] - sums[first]) / np.maximum(count, 1), np.nan)


def loss_curve(run: str | Path, path: str | Path) -> Figure:
    """Plot a run's losses, chance level and learning rate by step, and by minutes if they are logged.

    The training loss is thin; its running mean is over a thirtieth of the steps. Language models also have a scale in
    nats per character, and the entropy of the validation text if run.json or result.json has it.
    path: of the PNG. ValueError as in `read_metrics`, and for metrics without a loss.
    """
    rows = with_minutes(read_metrics(run))
    steps, losses = series(rows, "loss")
    if not len(steps):
        raise ValueError(
            f'no "loss" in the metrics of {str(run)!r}: give a run that logs it; found {sorted(set().union(*rows))}'
        )
    columns = ["step", "minutes"] if any("minutes" in row for row in rows) else ["step"]
    reach = len(losses) // 60
    smooth = running_mean(losses, reach)
    dot = "o" if len(losses) < 20 else None  # a line through one point is invisible
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
    """Plot the losses of several runs, one colour per run, by step and by minutes.

    Above: running mean of the training loss, over a thirtieth of the steps. Below: losses of the evaluations.
    path: of the PNG. ValueError as in `read_metrics`.
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
    """Return the names of the evaluation losses."""
    return sorted({key for row in rows for key in row if key.endswith("_loss")})


def label_axis(axes: Axes, against: str) -> None:
    """Label the x axis and format its ticks."""
    axes.set_xlabel({"step": "optimizer step", "minutes": "minutes of training"}[against])
    if against == "step":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.xaxis.set_major_formatter("{x:,.0f}")


def plain_axes(axes: Axes) -> None:
    """Draw a light grid, and no frame at the top and on the right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)


def metric_curves(run: str | Path, path: str | Path) -> Figure:
    """Plot every metric of a run that `loss_curve` leaves out by step, one panel per metric.

    Metrics of each step are thin, with their running mean over a thirtieth of the steps; metrics of evaluations are
    connected points. path: of the PNG. ValueError as in `read_metrics`, and for metrics with nothing else.
    """
    rows = read_metrics(run)
    kept = {"step", "epoch", "seconds", "loss", "chance", "lr"}
    names = list(dict.fromkeys(key for row in rows for key in row if key not in kept and key[-5:] != "_loss"))
    if not names:
        raise ValueError(f"no metric beside the loss in {str(run)!r}: give a run that logs one")
    n_rows = math.ceil(len(names) / 3)
    figure = new_figure(9, 2.2 * n_rows + 0.4)
    panels = figure.subplots(n_rows, 3, squeeze=False, sharex=True)
    for axes in panels.flat[len(names) :]:
        axes.axis("off")
    for name, axes in zip(names, panels.flat, strict=False):
        steps, values = series(rows, name)
        if len(steps) > len(rows) / 2:  # logged at every step
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
        figure, path, "Every other logged metric by optimizer step, with its last value above."
    )
