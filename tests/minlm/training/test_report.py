"""The page has every metric and image of the runs, whole and escaped, and loads nothing."""

import base64
import json
from dataclasses import dataclass
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file

from minlm.plots import compare_losses, loss_curve
from minlm.training.config import save_config
from minlm.training.record import begin_files, finished_result
from minlm.training.report import report_runs, rows_of, write_page, write_report
from minlm.training.state import TrainConfig

VOID = {"meta", "img"}


class Page(HTMLParser):
    """The parsed page: text by tag, the exact numbers of <data>, the cells of tables, images."""

    def __init__(self, path):
        super().__init__()
        self.open, self.numbers, self.rows, self.images, self.text, self.heads = [], [], [], [], "", []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert self.open == []  # every tag is closed

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "data":
            self.numbers.append(attributes["value"])
        if tag == "img":
            self.images.append((attributes["alt"], attributes["src"]))
        if tag in ("h2", "h3"):
            self.heads.append("")

    def handle_endtag(self, tag):
        assert tag in VOID or self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
        if "tr" in self.open and self.rows[-1]:
            self.rows[-1][-1] += data
        if "h2" in self.open or "h3" in self.open:
            self.heads[-1] += data


def png(seed, description=None):
    """Return the bytes of a small PNG of noise, with or without a description."""
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    info, file = PngInfo(), BytesIO()
    if description:
        info.add_text("Description", description)
    Image.fromarray(pixels).save(file, "png", pnginfo=info)
    return file.getvalue()


def make_run(folder, result=None, config=None, images=(), metrics=None):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or {"embed_dim": 128}))
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
    for name, content in images:
        (folder / name).write_bytes(content)
    if metrics is not None:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    return folder


def page_of(run):
    path = write_report(run)
    assert path == run / "report.html"
    return Page(path)


RESULT = {
    "data": "shapes",
    "images": 500,
    "image_to_text": {"recall@1": 0.98, "median_rank": 1.0},
    "text_to_image": {"recall@1": 0.9875, "median_rank": 2.0},
    "chance": {"image_to_text": {"recall@1": 0.00201}, "text_to_image": {"recall@1": 0.002}},
    "zero_shot": {
        "colour": {"accuracy": 0.75, "chance": 0.125, "n": 112},
        "place": {"accuracy": 0.25, "chance": 0.1111, "n": 99},
    },
    "linear_probe": {
        "top1": 0.5,
        "top5": 0.875,
        "chance": {"top1": 0.1, "top5": 0.51},
        "per_class": {"cat": 0.3, "dog": 0.7},
        "confusion": [[3, 7], [1, 12345]],
    },
    "seconds": 1210.4321,
}


def test_metrics_have_their_chance_below(tmp_path):
    page = page_of(make_run(tmp_path / "run", RESULT))
    for row in (
        ["images", "500"],
        ["data", "shapes"],
        ["seconds", "1,210.4"],
        ["recall@1", "0.98chance 0.00201"],
        ["median rank", "1"],
        ["recall@1", "0.9875chance 0.002"],
        ["accuracy", "0.75"],
        ["chance", "0.125"],
        ["top1", "0.5chance 0.1"],
        ["top5", "0.875chance 0.51"],
        ["cat", "0.3"],
    ):
        assert row in page.rows
    parts = ["image to text", "text to image", "zero shot.colour", "zero shot.place", "linear probe"]
    assert [head for head in page.heads if head in parts] == parts


names = st.text("abc_<&\"'>é ", min_size=1, max_size=6)
values = (
    st.integers(-(10**9), 10**9) | st.floats(allow_infinity=False, allow_nan=False) | st.booleans() | names
)
trees = st.recursive(
    values | st.lists(values, max_size=3),
    lambda inner: st.dictionaries(names, inner, max_size=4),
    max_leaves=20,
)


def leaves(value):
    if isinstance(value, dict):
        value = list(value.values())
    return [leaf for item in value for leaf in leaves(item)] if isinstance(value, list) else [value]


@given(st.dictionaries(names, trees, max_size=5))
def test_every_metric_of_any_result_is_on_the_page(tmp_path_factory, result):
    run = make_run(tmp_path_factory.mktemp("run"), result, {"option": 1234567})
    page = page_of(run)
    found = [*leaves(result), 1234567]
    numbers = [repr(x) for x in found if isinstance(x, int | float) and not isinstance(x, bool)]
    assert sorted(page.numbers) == sorted(numbers)
    for leaf in found:
        if isinstance(leaf, str | bool):
            assert str(leaf) in page.text


def with_chance(node, level):
    """Return a nested dictionary with each number replaced by its chance level."""
    if not isinstance(node, dict):
        return level(node)
    return {key: with_chance(value, level) for key, value in node.items()}


@given(st.dictionaries(names, st.dictionaries(names, st.floats(0, 1), min_size=1), min_size=1, max_size=4))
def test_each_metric_has_its_own_chance_wherever_the_levels_are(result):
    levels = with_chance(result, lambda value: value / 2)
    outside = {**result, "chance": levels}
    inside = {key: {**part, "chance": levels[key]} for key, part in result.items()}
    expected = [(f"{key}.{name}", v, v / 2) for key, part in result.items() for name, v in part.items()]
    assert list(rows_of(outside)) == list(rows_of(inside)) == expected


def test_failures_come_first_then_the_loss_and_images_are_whole(tmp_path):
    stems = ("attention", "class_confusion", "failures", "loss", "zero_shot")
    images = [(f"{stem}.png", png(i)) for i, stem in enumerate(stems)]
    page = page_of(make_run(tmp_path / "run", RESULT, images=images))
    assert [alt for alt, _ in page.images] == [
        "Class confusion",
        "Failures",
        "Loss",
        "Attention",
        "Zero shot",
    ]
    contents = {name[:-4].replace("_", " ").capitalize(): content for name, content in images}
    for alt, source in page.images:
        assert base64.b64decode(source.removeprefix("data:image/png;base64,"), validate=True) == contents[alt]


def test_a_caption_is_the_description_in_the_file(tmp_path):
    run = make_run(tmp_path / "run", RESULT, images=[("loss.png", png(0, "Loss ≥ <0> by step."))])
    assert "Loss. Loss ≥ <0> by step." in page_of(run).text


def test_columns_are_runs_and_only_options_that_differ_are_listed(tmp_path):
    runs = [
        make_run(
            tmp_path / name,
            {"top1": top1},
            {"seed": 0, "train": {"lr": lr, "steps": 9}},
            [("loss.png", png(0)), ("attention.png", png(1))],
        )
        for name, top1, lr in (("first", 0.25, 0.1), ("second", 0.5, 0.2))
    ]
    (tmp_path / "all.png").write_bytes(png(2))
    page = Page(write_page(runs, tmp_path / "all.html", tmp_path / "all.png"))
    assert ["", "first", "second"] in page.rows
    assert ["top1", "0.25", "0.5"] in page.rows
    assert ["lr", "0.1", "0.2"] in page.rows
    assert not [row for row in page.rows if row[0] in ("seed", "steps")]
    assert [alt for alt, _ in page.images] == ["All", "Attention of first", "Attention of second"]
    assert not (tmp_path / "first" / "report.html").exists()


@dataclass(frozen=True)
class Config:
    train: TrainConfig


class Tokenizer:
    def save(self, folder):
        (folder / "vocab.txt").write_text("a")


CONFIG = Config(TrainConfig(steps=9, device="cpu"))
STEPS = [
    {"step": step, "loss": 5.0 - step, "chance": 4.0, "lr": 0.1, "seconds": 60.0 * step} for step in (1, 2)
]


def test_the_page_says_how_the_run_was_started(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/some/where/train.py", "--data.path", "a b.txt"])
    begin_files(tmp_path, CONFIG, Tokenizer(), resume=False)
    begin_files(tmp_path, CONFIG, Tokenizer(), resume=True)
    (tmp_path / "step-00000002").mkdir()
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5)}, tmp_path / "step-00000002/model.safetensors")
    rows = {row[0]: row[1] for row in page_of(make_run(tmp_path, RESULT, metrics=STEPS)).rows}
    assert rows["command"] == "train.py --data.path 'a b.txt'"
    assert rows["device"].startswith("cpu")
    assert rows["torch"] == torch.__version__
    assert rows["parameters"] == "17"
    assert len(json.loads((tmp_path / "run.json").read_text())["starts"]) == 2
    for key in ("started", "finished", "continued"):
        assert rows[key].startswith("20")


def test_the_page_of_a_stopped_run_does_not_mark_it_finished(tmp_path):
    begin_files(tmp_path, CONFIG, Tokenizer(), resume=False)
    make_run(tmp_path, RESULT, {}, metrics=STEPS)
    save_config(CONFIG, tmp_path / "config.json")
    page = Page(write_page([tmp_path], tmp_path / "report.html"))
    assert ["finished", "not yet"] in page.rows
    assert "was continued after these metrics, or stopped early" in page.text
    assert finished_result(tmp_path, CONFIG) == {}
    write_report(tmp_path)
    assert finished_result(tmp_path, CONFIG) == RESULT
    begin_files(tmp_path, CONFIG, Tokenizer(), resume=True)
    assert finished_result(tmp_path, CONFIG) == {}


def report(*arguments):
    """A page."""
    report_runs(
        [str(x) for x in arguments],
        report,
        "minlm",
        lambda run: loss_curve(run, run / "loss.png"),
        compare_losses,
    )


def test_a_stopped_run_has_its_curves_and_last_values(tmp_path):
    run = make_run(tmp_path / "run", metrics=[*STEPS, {"step": 2, "dev_loss": 9.5}])
    report(run)
    page = Page(run / "report.html")
    assert [alt for alt, _ in page.images] == ["Loss"]
    assert "last logged" in page.heads
    for row in (["loss", "3"], ["dev loss", "9.5"], ["step", "2"]):
        assert row in page.rows


def test_a_stopped_run_has_the_entropy_that_was_known_before_training(tmp_path):
    run, floor = tmp_path / "run", {"validation_floor_nats_per_character": 0.25}
    run.mkdir()
    begin_files(run, CONFIG, Tokenizer(), resume=False, known=floor)
    evaluation = {"step": 2, "validation_loss": 3.0, "nats_per_character": 1.5}
    make_run(run, metrics=[*STEPS, evaluation])
    report(run)
    assert ["validation floor nats per character", "0.25"] in Page(run / "report.html").rows
    labels = loss_curve(run, run / "loss.png").axes[0].get_legend_handles_labels()[1]
    assert "entropy of the validation text (0.250 nats per character)" in labels


def test_several_runs_are_one_page_with_one_image_of_their_curves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [make_run(tmp_path / name, metrics=STEPS) for name in ("one", "two")]
    report(*runs)
    assert [alt for alt, _ in Page(tmp_path / "report.html").images] == ["Report"]
    report(*runs, "--out", tmp_path / "both.html")
    assert (tmp_path / "both.png").is_file()
    with pytest.raises(ValueError, match="no run at"):
        report(runs[0], tmp_path / "none")
    with pytest.raises(ValueError, match=r"--out .* cannot be written"):
        report(*runs, "--out", tmp_path / "none" / "page.html")


def test_the_page_loads_nothing(tmp_path):
    page = page_of(make_run(tmp_path / "run", RESULT, images=[("loss.png", png(0))]))
    for word in ("http:", "https:", "//", "<script", "<link", "@import", "url("):
        assert word not in page.source.replace(page.images[0][1], "")
    assert "default-src 'none'; img-src data:" in page.source


def test_what_is_not_markup_stays_text(tmp_path):
    evil = "<script>alert('x')</script>&amp;"
    run = make_run(tmp_path / "a<b>&c", {evil: 1, "text": evil}, {"part": {evil: evil}})
    (run / "sample.txt").write_text(evil)
    page = page_of(run)
    assert "<script" not in page.source
    assert page.text.count(evil) == 5
    assert "a<b>&c" in page.text


def test_config_by_section(tmp_path):
    config = {
        "embed_dim": 64,
        "image": {"type": "VisionTransformerConfig", "image_size": [64, 32], "weights": None},
    }
    page = page_of(make_run(tmp_path / "run", RESULT, config | {"train": {"inner": {"lr": 0.001}}}))
    assert page.heads[-3:] == ["Options", "image", "train.inner"]
    assert ["embed dim", "64"] in page.rows
    assert ["image size", "64, 32"] in page.rows
    assert ["weights", "–"] in page.rows
    assert ["lr", "0.001"] in page.rows


def test_the_page_says_that_a_run_has_not_finished(tmp_path):
    page = page_of(make_run(tmp_path / "run"))
    for sentence in ("run has not finished", "No images in the run"):
        assert sentence in page.text


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("result.json", '{"images": 5', "result.json' is not JSON: .*; remove it"),
        ("result.json", "[1]", "result.json' holds a list, not an object"),
        ("config.json", "{", "config.json' is not JSON"),
        ("metrics.jsonl", '{"st\n{}\n', "metrics.jsonl, line 1: not JSON"),
        ("run.json", "{", "run.json' is not JSON"),
        ("loss.png", "no image", "loss.png' is not an image"),
    ],
)
def test_damaged_files_are_one_line(tmp_path, name, content, message):
    run = make_run(tmp_path / "run", RESULT)
    (run / name).write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        write_report(run)
    assert "\n" not in str(error.value)
    assert not (run / "report.html").exists()


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no run at .*: a run's folder has a config\.json"):
        write_report(tmp_path)


def test_an_old_page_is_replaced_whole(tmp_path):
    run = make_run(tmp_path / "run", RESULT)
    first = write_report(run).read_text()
    assert write_page([run], run / "report.html").read_text() == first
    assert {path.name for path in run.iterdir()} == {"config.json", "result.json", "run.json", "report.html"}
