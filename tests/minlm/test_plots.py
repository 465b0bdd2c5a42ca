"""Plots show what the run's files say: read back from the figure's lines, cells and labels."""

import json
import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot
from matplotlib.text import Text
from PIL import Image

import minlm.plots
from minlm.plots import (
    add_fallback_fonts,
    compare_losses,
    loss_curve,
    metric_curves,
    new_figure,
    read_metrics,
    running_mean,
    save_figure,
)


def write(path, rows, ending="\n"):
    path.write_text("\n".join(json.dumps(row) for row in rows) + ending, encoding="utf-8")
    return path


def training_row(step, loss, chance=4.85):
    return {"step": step, "loss": loss, "chance": chance, "lr": 0.001 * step}


def lines_of(axes):
    return {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}


def labelled(words):
    """A figure with the words beside an axis, in its title and as a free text of another family."""
    figure = new_figure(3, 2)
    axes = figure.add_subplot()
    axes.set_yticks([0], [words], parse_math=False)
    axes.set_title(words)
    axes.text(0, 0, words, family="monospace", fontweight="bold")
    return figure


def test_characters_that_a_font_lacks_are_drawn_in_an_installed_one(tmp_path, recwarn):
    """U+210A and U+214A are in STIXGeneral, which comes with matplotlib, and not in DejaVu Sans."""
    with pytest.warns(UserWarning, match="Glyph 8458 .* missing from"):
        labelled("a word and \u210a").canvas.draw()
    figure = labelled("a word and \u214a")
    save_figure(figure, tmp_path / "a.png")
    assert {len(text.get_fontfamily()) for text in figure.axes[0].texts} == {2}
    figure = labelled("one more, \u214a")
    add_fallback_fonts(figure)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.canvas.draw()
    assert not recwarn


def test_texts_whose_fonts_lack_nothing_keep_them(tmp_path):
    figure = labelled("naïve ✓")
    save_figure(figure, tmp_path / "a.png")
    assert {len(text.get_fontfamily()) for text in figure.findobj(Text)} == {1}


def test_characters_of_no_font_are_named_in_one_line(tmp_path, recwarn, monkeypatch):
    original = minlm.plots.characters_of
    monkeypatch.setattr(minlm.plots, "characters_of", lambda path: original(path) - set("犬猫"))
    save_figure(labelled("犬 and 猫 and 犬"), tmp_path / "a.png")
    (warning,) = recwarn
    told = "no installed font has '犬猫' (2 characters): they are drawn as boxes"
    assert str(warning.message).startswith(told)


def test_the_curves_are_the_runs_numbers(tmp_path):
    rows = [training_row(step, 5 / step) for step in range(1, 121)]
    evaluations = [
        {"step": 60, "dev_loss": 0.5, "recall": 0.1},
        {"step": 120, "dev_loss": 0.3, "test_loss": 0.4},
    ]
    write(tmp_path / "metrics.jsonl", rows[:60] + evaluations[:1] + rows[60:] + evaluations[1:])
    figure = loss_curve(tmp_path, tmp_path / "loss.png")
    top, bottom = figure.axes
    drawn = lines_of(top)
    assert drawn["training"] == [[row["step"], row["loss"]] for row in rows]
    assert drawn["dev loss"] == [[60, 0.5], [120, 0.3]]
    assert drawn["test loss"] == [[120, 0.4]]
    assert drawn["chance level (4.85)"] == [[row["step"], 4.85] for row in rows]
    middle = drawn["training, running mean of 5"][49]
    assert middle == [50, pytest.approx(sum(5 / step for step in range(48, 53)) / 5)]
    assert [line.get_xydata().tolist() for line in bottom.get_lines()] == [
        [[r["step"], r["lr"]] for r in rows]
    ]
    styles = {line.get_label(): line.get_linestyle() for line in top.get_lines()}
    assert [label for label, style in styles.items() if style == "--"] == ["chance level (4.85)"]
    assert {text.get_text() for text in top.get_legend().get_texts()} == set(drawn)
    assert top.get_ylabel() == "loss (nats)"
    assert (bottom.get_xlabel(), bottom.get_ylabel()) == ("optimizer step", "learning rate")
    assert "step 120" in top.get_title()


def test_the_picture_is_written_whole_and_pyplot_is_left_alone(tmp_path):
    run = write(tmp_path / "metrics.jsonl", [training_row(step, 5 / step) for step in range(1, 40)])
    figure = loss_curve(run, tmp_path / "new" / "loss.png")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["loss.png"]
    with Image.open(tmp_path / "new" / "loss.png") as image:
        assert image.format == "PNG"
        assert image.size == tuple((figure.get_size_inches() * figure.dpi).astype(int))
        assert len(image.convert("RGB").getcolors(1 << 20)) > 50
    assert pyplot.get_fignums() == []


def test_a_failed_write_leaves_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "old.png"
    path.write_bytes(b"old picture")
    figure = new_figure(2, 2)

    def half_written(temporary, **_):
        temporary.write_bytes(b"half a pic")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", half_written)
    with pytest.raises(OSError, match="disk full"):
        save_figure(figure, path)
    assert [(some.name, some.read_bytes()) for some in tmp_path.iterdir()] == [("old.png", b"old picture")]


def test_a_run_of_one_step_shows_its_points(tmp_path):
    figure = loss_curve(write(tmp_path / "m.jsonl", [{"step": 1, "loss": 2.5}]), tmp_path / "loss.png")
    (training, smooth) = figure.axes[0].get_lines()
    assert training.get_marker() == "o"
    assert smooth.get_xydata().tolist() == [[1, 2.5]]


@given(st.lists(st.floats(-100, 100) | st.just(math.nan), min_size=1, max_size=40), st.integers(0, 9))
def test_running_mean_is_brute_force(values, reach):
    wanted = []
    for place in range(len(values)):
        some = [value for value in values[max(0, place - reach) : place + reach + 1] if not math.isnan(value)]
        wanted.append(sum(some) / len(some) if some else math.nan)
    np.testing.assert_allclose(running_mean(np.array(values), reach), wanted, atol=1e-9)


def test_metrics_are_in_order_and_without_the_line_being_written(tmp_path):
    path = write(tmp_path / "metrics.jsonl", [{"step": 2}, {"step": 1}], ending='\n{"step": 3, "lo')
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "holds no complete line"),
        ('{"step": 1}', "holds no complete line"),
        ('{"step": 1}\n{"st\n', r"line 2: not JSON .*: '\{\"st'"),
        ('{"loss": 1}\n', 'line 1: not an object with a "step"'),
        ("3\n", 'line 1: not an object with a "step"'),
        (
            '{"step": 1, "lr": 2}\n',
            r'no "loss" in the metrics of .* that logs it; found \[\'lr\', \'step\'\]',
        ),
    ],
)
def test_loss_curve_refuses(tmp_path, text, message):
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        loss_curve(tmp_path, tmp_path / "loss.png")


def test_no_metrics_and_no_png(tmp_path):
    with pytest.raises(ValueError, match=r"no metrics at .*: give a run's folder"):
        loss_curve(tmp_path, tmp_path / "loss.png")
    run = write(tmp_path / "metrics.jsonl", [{"step": 1, "loss": 1.0}])
    with pytest.raises(ValueError, match=r"must end in \.png"):
        loss_curve(run, tmp_path / "loss.pdf")


def test_every_other_figure_has_a_panel(tmp_path):
    rows = [training_row(step, 5 / step) | {"top1": step / 70, "seconds": step} for step in range(1, 61)]
    rows[30:30] = [{"step": 30, "dev_loss": 1.0, "dev_recall@10": 0.25}]
    rows += [{"step": 60, "dev_loss": 0.5, "dev_recall@10": 0.5}]
    run = write(tmp_path / "metrics.jsonl", rows)
    figure = metric_curves(run, tmp_path / "metrics.png")
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert panels.keys() == {"top1: 0.8571", "dev recall@10: 0.5"}
    thin, smooth = panels["top1: 0.8571"].get_lines()
    assert thin.get_xydata().tolist() == [[step, pytest.approx(step / 70)] for step in range(1, 61)]
    assert smooth.get_xydata()[29].tolist() == [30, pytest.approx(30 / 70)]
    (points,) = panels["dev recall@10: 0.5"].get_lines()
    assert points.get_xydata().tolist() == [[30, 0.25], [60, 0.5]]
    assert points.get_marker() == "o"
    assert (tmp_path / "metrics.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="no metric beside the loss"):
        metric_curves(write(tmp_path / "bare.jsonl", [training_row(1, 2.0)]), tmp_path / "metrics.png")


def timed_run(folder, minutes=2.0, evaluations=(), **files):
    """Sixty steps of training, the last of them after so many minutes, with JSON files beside them."""
    folder.mkdir(exist_ok=True)
    rows = [training_row(step, 6 / step) | {"seconds": minutes * step} for step in range(1, 61)]
    write(folder / "metrics.jsonl", [*rows, *evaluations])
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    return folder


def test_the_loss_is_drawn_by_time_as_well(tmp_path):
    run = timed_run(tmp_path / "run", evaluations=[{"step": 30, "dev_loss": 0.5}])
    left, right, *_ = loss_curve(run, tmp_path / "loss.png").axes
    for axes, place in ((left, lambda step: step), (right, lambda step: step / 30)):
        drawn = lines_of(axes)
        assert drawn["training"] == [[pytest.approx(place(step)), 6 / step] for step in range(1, 61)]
        assert drawn["dev loss"] == [[pytest.approx(place(30)), 0.5]]


@pytest.mark.parametrize(
    "train, note",
    [
        ({}, ""),
        ({"ema_decay": 0.0, "neighbours": 1}, ""),
        ({"ema_decay": 0.99, "neighbours": 1}, " (averaged weights)"),
        ({"ema_decay": 0.0, "neighbours": 2}, " (no hard negatives)"),
        ({"ema_decay": 0.99, "neighbours": 2}, " (averaged weights, no hard negatives)"),
    ],
)
def test_the_curve_says_why_a_dev_loss_can_lie_below_the_training_loss(tmp_path, train, note):
    run = timed_run(tmp_path / "run", evaluations=[{"step": 60, "dev_loss": 0.01}], config={"train": train})
    figure = loss_curve(run, tmp_path / "loss.png")
    assert f"dev loss{note}" in lines_of(figure.axes[0])
    with Image.open(tmp_path / "loss.png") as image:
        assert ("can lie below the training loss" in image.info["Description"]) == bool(note)


def test_a_language_models_curve_has_the_scale_and_the_floor_of_its_figures(tmp_path):
    """Two characters per token: half as many nats per character."""
    evaluation = {"step": 60, "validation_loss": 3.0, "nats_per_character": 1.5, "bits_per_byte": 2.0}
    floor = {"validation_floor_nats_per_character": 0.25}
    run = timed_run(tmp_path / "run", evaluations=[evaluation], result=floor)
    figure = loss_curve(run, tmp_path / "loss.png")
    top = figure.axes[0]
    assert top.get_ylabel() == "loss (nats per token)"
    line = lines_of(top)["entropy of the validation text (0.250 nats per character)"]
    assert [height for _, height in line] == [0.5, 0.5]
    (second,) = figure.axes[1].child_axes
    assert second.get_ylabel() == "nats per character"
    figure.canvas.draw()
    np.testing.assert_allclose(second.get_ylim(), np.array(top.get_ylim()) / 2)


def test_runs_are_compared_by_step_and_by_time(tmp_path):
    runs = [
        timed_run(tmp_path / name, minutes, [{"step": 60, "dev_loss": minutes}])
        for name, minutes in (("fast", 1.0), ("slow", 4.0))
    ]
    figure = compare_losses(runs, tmp_path / "both.png")
    (above, above_by_time), (below, below_by_time) = figure.axes[:2], figure.axes[2:]
    for axes, place in ((above, lambda step, _: step), (above_by_time, lambda step, m: step * m / 60)):
        for name, minutes in (("fast", 1.0), ("slow", 4.0)):
            points = lines_of(axes)[name]
            assert [x for x, _ in points] == pytest.approx([place(step, minutes) for step in range(1, 61)])
    assert lines_of(below) == {"fast: dev loss": [[60, 1.0]], "slow: dev loss": [[60, 4.0]]}
    assert lines_of(below_by_time) == {"fast: dev loss": [[1.0, 1.0]], "slow: dev loss": [[4.0, 4.0]]}
    assert len({line.get_color() for line in above.get_lines()}) == 2


def test_a_caption_is_kept_in_the_file(tmp_path):
    save_figure(labelled("a"), tmp_path / "a.png", "Loss – by step ≥ 0.")
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["Description"] == "Loss – by step ≥ 0."
