"""The page has every figure and picture of the run, whole, escaped, and asks nothing of the world."""

import base64
import json
import random
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minlm.training.report import write_report

PNG = bytes.fromhex("89504e470d0a1a0a")
VOID = {"meta", "img", "polyline"}


class Page(HTMLParser):
    """What a reader sees: text by tag, the whole numbers of <data>, the cells of tables, pictures."""

    def __init__(self, path):
        super().__init__()
        self.open, self.numbers, self.rows, self.images, self.text, self.heads = [], [], [], [], "", []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert self.open == []  # every tag is closed

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
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
        if tag == "h3":
            self.heads.append("")

    def handle_endtag(self, tag):
        assert tag in VOID or self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
        if "tr" in self.open and self.rows[-1]:
            self.rows[-1][-1] += data
        if "h3" in self.open:
            self.heads[-1] += data


def make_run(folder, result=None, config=None, pictures=(), metrics=None):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or {"embed_dim": 128}))
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
    for name, content in pictures:
        (folder / name).write_bytes(content)
    if metrics is not None:
        (folder / "metrics.jsonl").write_text(metrics)
    return folder


def page_of(run):
    path = write_report(run)
    assert path == run / "report.html"
    return Page(path)


def leaves(value):
    if isinstance(value, dict):
        value = list(value.values())
    return [leaf for item in value for leaf in leaves(item)] if isinstance(value, list) else [value]


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


def test_figures_stand_beside_their_chance(tmp_path):
    page = page_of(make_run(tmp_path / "run", RESULT))
    rows = page.rows
    assert ["images", "500"] in rows
    assert ["data", "shapes"] in rows
    assert ["seconds", "1,210.4"] in rows
    assert ["", "recall@1", "median rank"] in rows
    assert ["image to text", "0.98chance 0.00201", "1"] in rows
    assert ["text to image", "0.9875chance 0.002", "2"] in rows
    assert ["", "accuracy", "chance", "n"] in rows
    assert ["colour", "0.75", "0.125", "112"] in rows
    assert ["top1", "0.5chance 0.1"] in rows
    assert ["top5", "0.875chance 0.51"] in rows
    assert ["cat", "0.3"] in rows
    assert ["3", "7"] in rows
    assert ["1", "12,345"] in rows
    assert page.heads == ["zero shot", "linear probe", "linear probe: confusion", "linear probe: per class"]
    assert sorted(page.numbers) == sorted([*(repr(x) for x in leaves(RESULT) if x != "shapes"), "128"])


names = st.text("abc_<&\"'>é ", min_size=1, max_size=6)
values = (
    st.integers(-(10**9), 10**9) | st.floats(allow_infinity=False, allow_nan=False) | st.booleans() | names
)
trees = st.recursive(
    values | st.lists(values, max_size=3) | st.lists(st.lists(values, max_size=3), max_size=3),
    lambda inner: st.dictionaries(names | st.just("chance"), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(names | st.just("chance"), trees, max_size=5), trees)
def test_every_figure_of_any_result_is_on_the_page(tmp_path_factory, result, option):
    page = page_of(make_run(tmp_path_factory.mktemp("run"), result, {"option": option}))
    found = leaves([result, option])
    numbers = [repr(x) for x in found if isinstance(x, int | float) and not isinstance(x, bool)]
    assert sorted(page.numbers) == sorted(numbers)
    for leaf in found:
        if isinstance(leaf, str | bool):
            assert str(leaf) in page.text


def test_pictures_are_whole_and_loss_comes_first(tmp_path):
    rng = random.Random(0)
    pictures = [(name, PNG + rng.randbytes(300)) for name in ("attention.png", "loss.png", "zero_shot.png")]
    page = page_of(make_run(tmp_path / "run", RESULT, pictures=pictures))
    prefix = "data:image/png;base64,"
    assert all(source.startswith(prefix) for _, source in page.images)
    drawn = [
        (alt, base64.b64decode(source.removeprefix(prefix), validate=True)) for alt, source in page.images
    ]
    contents = dict(pictures)
    assert drawn == [
        ("Loss", contents["loss.png"]),
        ("Attention", contents["attention.png"]),
        ("Zero shot", contents["zero_shot.png"]),
    ]
    assert "<svg" not in page.source


def test_the_page_asks_nothing_of_the_world(tmp_path):
    page = page_of(make_run(tmp_path / "run", RESULT, pictures=[("loss.png", PNG)]))
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
    assert page.heads[-2:] == ["image", "train.inner"]
    assert ["embed dim", "64"] in page.rows
    assert ["image size", "64, 32"] in page.rows
    assert ["weights", "–"] in page.rows
    assert ["lr", "0.001"] in page.rows


def drawn_points(page):
    points = page.source.split('points="')[1].split('"')[0].split()
    return [tuple(map(float, point.split(","))) for point in points]


def test_the_loss_is_drawn_where_there_is_no_picture_of_it(tmp_path):
    rows = [{"step": step, "loss": 5 - step} for step in (1, 2, 3)] + [{"step": 3, "dev_loss": 9.0}]
    metrics = "\n".join(map(json.dumps, rows)) + '\n{"step": 4, "lo'  # the last line is being written
    page = page_of(make_run(tmp_path / "run", RESULT, metrics=metrics))
    across, down = zip(*drawn_points(page), strict=True)
    assert across[1] - across[0] == pytest.approx(across[2] - across[1])
    assert down[1] - down[0] == pytest.approx(down[2] - down[1])
    assert across[0] < across[1]
    assert down[0] < down[1]  # a falling loss: down the picture
    assert "Training loss (nats) of 3 steps, last 2" in page.text


@given(st.lists(st.floats(-99, 99), min_size=1, max_size=5), st.integers(0, 3))
def test_the_curve_is_drawn_between_its_labels(tmp_path_factory, losses, first):
    """Losses that are no numbers are left out, and a single one or all the same are a curve too."""
    rows = [{"step": first + i, "loss": loss} for i, loss in enumerate(losses)]
    rows += [{"step": 99, "loss": float(kind)} for kind in ("nan", "inf", "-inf")]
    metrics = "".join(json.dumps(row) + "\n" for row in rows)
    page = page_of(make_run(tmp_path_factory.mktemp("run"), RESULT, metrics=metrics))
    last = first + len(losses) - 1
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", page.source)
    assert labels == [f"{max(losses):.3g}", f"{min(losses):.3g}", f"step {first}", f"step {last}"]
    assert f"of {len(losses)} steps" in page.text
    assert repr(losses[-1]) in page.numbers
    points = drawn_points(page)
    assert points[0][0] == 60  # at the axis
    assert min(y for _, y in points) == 12  # the highest at the top


def test_a_run_that_has_not_ended_says_so(tmp_path):
    page = page_of(make_run(tmp_path / "run"))
    for sentence in ("the run has not come to its end", "No loss has been logged", "No pictures in the run"):
        assert sentence in page.text


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("result.json", '{"images": 5', "result.json' is not JSON .*: it is damaged; remove it"),
        ("result.json", "[1]", "result.json' holds a list, not an object of figures"),
        ("config.json", "{", "config.json' is not JSON"),
        ("metrics.jsonl", '{"st\n{}\n', "metrics.jsonl' has a line that is not JSON"),
    ],
)
def test_damaged_files_are_one_line(tmp_path, name, content, message):
    run = make_run(tmp_path / "run", RESULT)
    (run / name).write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        write_report(run)
    assert "\n" not in str(error.value)
    assert not (run / "report.html").exists()


def test_no_run_no_page(tmp_path):
    with pytest.raises(ValueError, match=r"no run at .*: a run's folder has a config\.json"):
        write_report(tmp_path)


def test_an_old_page_is_replaced_whole(tmp_path):
    run = make_run(tmp_path / "run", RESULT)
    first = write_report(run).read_text()
    assert write_report(run).read_text() == first
    assert {path.name for path in run.iterdir()} == {"config.json", "result.json", "report.html"}
