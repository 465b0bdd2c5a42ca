"""A run has the plots that fit its metrics, its data and its towers."""

import json
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from minclip.data.records import Question, Record
from minclip.evaluation import report
from minclip.evaluation.embed import embed_images, embed_texts
from minclip.evaluation.evaluate import Evaluation
from minclip.evaluation.report import (
    draw_classes,
    draw_curves,
    draw_image_attention,
    draw_plots,
    draw_zero_shot,
    spread,
)
from minclip.evaluation.zero_shot import zero_shot
from minclip.runs import load
from minclip.towers.resnet import ResNet, ResNetConfig
from tests.minclip.tiny_clip import TOKENIZER, TinyCLIP, record, transform, units


def plain(index):
    return Image.new("RGB", (8, 8), (20 * index, 100, 200))


NAMES = ("cat", "dog", "cow")
RECORDS = [Record(str(i), partial(plain, i), (f"a {NAMES[i % 3]}",), i % 3) for i in range(9)]
IMAGES = F.normalize(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
LABELS = torch.arange(9) % 3


def class_metrics(class_names=NAMES, labels=LABELS):
    classes = F.normalize(
        torch.randn(len(class_names), 4, generator=torch.Generator().manual_seed(1)), dim=-1
    )
    return zero_shot(IMAGES, labels, classes, class_names)


@pytest.mark.parametrize(
    "metrics, more",
    [
        ({}, set()),
        ({"class_zero_shot": class_metrics()}, {"class_zero_shot_confusion", "accuracy_by_class"}),
        (
            {"class_zero_shot": class_metrics(), "linear_probe": class_metrics()},
            {"class_zero_shot_confusion", "linear_probe_confusion", "accuracy_by_class"},
        ),
    ],
)
def test_a_run_gets_the_plots_of_its_metrics(tmp_path, metrics, more):
    rows = [{"step": step, "loss": 1.0, "top1": 0.5} for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluation = Evaluation(metrics, 1.0, IMAGES, IMAGES, torch.arange(9))
    draw_plots(tmp_path, RECORDS, evaluation)
    drawn = {path.stem for path in tmp_path.glob("*.png")}
    assert drawn == {"loss", "metrics", "similarity", "retrieval"} | more


def drawn_by(monkeypatch, *names):
    """Replace functions of the report by recorders -> {function: its arguments}."""
    given = {}
    for name in names:
        monkeypatch.setattr(report, name, lambda *values, name=name: given.update({name: values}))
    return given


def test_plots_show_the_first_caption_of_each_record(tmp_path, monkeypatch):
    given = drawn_by(monkeypatch, "loss_curve", "metric_curves", "similarity_matrix", "retrieval_grid")
    records = [record(i, tuple(f"{i} {c}" for c in range(1 + i % 3))) for i in range(20)]
    owners = [i for i, some in enumerate(records) for _ in some.captions]
    images, texts = units(20, 6, 0), units(len(owners), 6, 1)
    draw_plots(tmp_path, records, Evaluation({}, 1.0, images, texts, torch.tensor(owners)))
    photos, captions, *rows, _ = given["similarity_matrix"]
    places = spread(20, 8)
    assert photos == [records[i].open() for i in places]
    assert captions == [f"{i} 0" for i in places]
    assert torch.equal(rows[0], images[places])
    assert torch.equal(rows[1], texts[[owners.index(i) for i in places]])
    shown, *embeddings, queries, _, _ = given["retrieval_grid"]
    assert (shown, queries) == (records, spread(20, 4))
    assert torch.equal(embeddings[0], images)
    assert torch.equal(embeddings[1], texts)


def test_accuracies_are_plotted_with_the_chance_of_top1(tmp_path, monkeypatch):
    given = drawn_by(monkeypatch, "confusion_matrix", "accuracy_by_class")
    metrics = class_metrics(tuple("abcdef"), torch.arange(9) % 6)
    draw_classes(tmp_path, {"class_zero_shot": metrics})
    assert given["accuracy_by_class"][:2] == ({"class zero shot": metrics["per_class"]}, 1 / 6)


def test_zero_shot_examples_are_the_models_softmax(tmp_path, monkeypatch):
    given, model = drawn_by(monkeypatch, "zero_shot_examples"), TinyCLIP()
    model.logit_scale.data.fill_(1.5)
    choices = ("red circle", "star", "blue square")
    questions = [Question(record(i, ("a",)), choices[: 2 + i % 2], i % 2) for i in range(9)]
    draw_zero_shot(tmp_path, model, questions, transform, TOKENIZER)
    photos, names, probabilities, answers, _ = given["zero_shot_examples"]
    asked = [questions[i] for i in spread(9, 6)]
    assert photos == [q.record.open() for q in asked]
    assert (names, answers) == ([q.choices for q in asked], [q.answer for q in asked])
    for question, shares in zip(asked, probabilities, strict=True):
        image = embed_images(model, [question.record], transform)[0]
        cosines = (embed_texts(model, TOKENIZER, question.choices) @ image).tolist()
        weights = [math.exp(math.exp(1.5) * cosine) for cosine in cosines]
        assert shares == pytest.approx([weight / sum(weights) for weight in weights], abs=1e-5)


def test_too_many_classes_or_one_without_images_are_not_drawn(tmp_path):
    images = units(41, 4, 0)
    many = zero_shot(images, torch.arange(41), units(41, 4, 1), tuple(map(str, range(41))))
    absent = class_metrics((*NAMES, "bee"))
    for metrics in (many, absent):
        draw_classes(tmp_path, {"linear_probe": metrics})
    assert list(tmp_path.iterdir()) == []


def test_attention_is_drawn_if_the_tower_has_it(tiny_run, tmp_path):
    model, tokenizer, transform = load(tiny_run)
    draw_image_attention(tmp_path, model, RECORDS[:3], transform, tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["attention.png"]
    (tmp_path / "attention.png").unlink()
    model.image_tower = ResNet(ResNetConfig(image_size=(32, 32), depths=(1,), d_model=4))
    draw_image_attention(tmp_path, model, RECORDS[:3], transform, tokenizer)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "count, wanted, places", [(3, 5, [0, 1, 2]), (10, 5, [0, 2, 4, 6, 8]), (4, 3, [0, 1, 2])]
)
def test_places_are_spread_evenly(count, wanted, places):
    assert spread(count, wanted) == places


def test_failures_are_the_worst_ranks_and_none_if_all_are_right(tmp_path, monkeypatch):
    drawn = []
    for name in ("loss_curve", "metric_curves", "similarity_matrix"):
        monkeypatch.setattr(report, name, lambda *_: None)
    monkeypatch.setattr(report, "retrieval_grid", lambda *values: drawn.append(values[-3:]))
    records = [record(i, (f"{i}",)) for i in range(9)]
    owners = torch.arange(9)
    texts = torch.eye(9)
    draw_plots(tmp_path, records, Evaluation({}, 1.0, texts, texts, owners))
    assert [path.name for _, path, _ in drawn] == ["retrieval.png"]
    drawn.clear()
    images = texts.clone()
    images[[2, 7]] = F.normalize(
        texts[[7, 2]] + texts[[2, 7]] / 2, dim=-1
    )  # each more like the other's caption
    images[4] = F.normalize(2 - texts[4], dim=0)  # more like every caption than its own
    draw_plots(tmp_path, records, Evaluation({}, 1.0, images, texts, owners))
    queries, path, which = drawn[0]
    assert (path.name, which) == ("failures.png", "worst ranks")
    assert queries[0] == 4
    assert sorted(queries) == [2, 4, 7]


def test_curves_can_be_drawn_of_a_run_that_was_stopped(tmp_path):
    rows = [{"step": step, "loss": 1.0, "top1": 0.5, "seconds": step} for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    draw_curves(tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {"loss.png", "metrics.png"}
