"""Which pictures a run gets: those that its figures, its data and its towers have something to show for."""

import json
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from minclip.data.records import Record
from minclip.evaluate import Evaluation
from minclip.report import draw_classes, draw_pictures, draw_where_it_looks, spread
from minclip.resnet import ResNet, ResNetConfig
from minclip.runs import load
from minclip.zero_shot import zero_shot


def plain(index):
    return Image.new("RGB", (8, 8), (20 * index, 100, 200))


NAMES = ("cat", "dog", "cow")
RECORDS = [Record(str(i), partial(plain, i), (f"a {NAMES[i % 3]}",), i % 3) for i in range(9)]
IMAGES = F.normalize(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
LABELS = torch.arange(9) % 3


def class_figures(class_names=NAMES, labels=LABELS):
    classes = F.normalize(
        torch.randn(len(class_names), 4, generator=torch.Generator().manual_seed(1)), dim=-1
    )
    return zero_shot(IMAGES, labels, classes, class_names)


@pytest.mark.parametrize(
    "figures, more",
    [
        ({}, set()),
        ({"class_zero_shot": class_figures()}, {"class_zero_shot_confusion", "accuracy_by_class"}),
        (
            {"class_zero_shot": class_figures(), "linear_probe": class_figures()},
            {"class_zero_shot_confusion", "linear_probe_confusion", "accuracy_by_class"},
        ),
    ],
)
def test_a_run_gets_the_pictures_of_its_figures(tmp_path, figures, more):
    rows = [{"step": step, "loss": 1.0, "top1": 0.5} for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluation = Evaluation(figures, 1.0, IMAGES, IMAGES, torch.arange(9))
    draw_pictures(tmp_path, RECORDS, evaluation)
    drawn = {path.stem for path in tmp_path.glob("*.png")}
    assert drawn == {"loss", "metrics", "similarity", "retrieval"} | more


def test_too_many_classes_or_one_without_images_are_not_drawn(tmp_path):
    many = class_figures(tuple(map(str, range(41))), torch.arange(9))
    absent = class_figures((*NAMES, "bee"))
    for figures in (many, absent):
        draw_classes(tmp_path, {"linear_probe": figures})
    assert list(tmp_path.iterdir()) == []


def test_attention_is_drawn_where_the_tower_has_it(tiny_run, tmp_path):
    model, tokenizer, transform = load(tiny_run)
    draw_where_it_looks(tmp_path, model, RECORDS[:3], transform, tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["attention.png"]
    (tmp_path / "attention.png").unlink()
    model.image_tower = ResNet(ResNetConfig(image_size=(32, 32), depths=(1,), d_model=4))
    draw_where_it_looks(tmp_path, model, RECORDS[:3], transform, tokenizer)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "count, wanted, places", [(3, 5, [0, 1, 2]), (10, 5, [0, 2, 4, 6, 8]), (4, 3, [0, 1, 2])]
)
def test_places_are_spread_evenly(count, wanted, places):
    assert spread(count, wanted) == places
