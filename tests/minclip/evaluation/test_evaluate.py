"""The metrics of a model on records are those of the functions that compute them."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minclip.data.records import Question, decode_image
from minclip.evaluation import evaluate
from minclip.evaluation.embed import embed_classes, embed_images, embed_texts, image_features
from minclip.evaluation.evaluate import (
    choice_accuracy,
    evaluate_all,
    evaluate_records,
    format_metrics,
    format_retrieval,
)
from minclip.evaluation.linear_probe import linear_probe
from minclip.evaluation.retrieval import retrieval
from minclip.evaluation.zero_shot import caption_questions, zero_shot
from tests.minclip.tiny_clip import TOKENIZER, WORDS, TinyCLIP, phrases, record, spied, transform


@given(st.lists(st.lists(phrases, min_size=1, max_size=3), min_size=1, max_size=6), st.integers(1, 4))
def test_evaluation_of_records(captions, batch_size):
    model = TinyCLIP()
    records = [record(index, tuple(some)) for index, some in enumerate(captions)]
    got = evaluate_records(model, records, transform, TOKENIZER, batch_size)
    owners = [index for index, some in enumerate(captions) for _ in some]
    assert got.image_of_text.tolist() == owners
    assert torch.equal(got.image_embeddings, embed_images(model, records, transform, batch_size))
    texts = [caption for some in captions for caption in some]
    assert torch.equal(got.text_embeddings, embed_texts(model, TOKENIZER, texts, batch_size))
    assert got.metrics == {
        "images": len(records),
        "captions": len(texts),
        **retrieval(got.image_embeddings, got.text_embeddings, torch.tensor(owners)),
    }
    assert got.seconds > 0


def test_metrics_are_formatted_as_one_line_per_direction():
    images = torch.eye(4)
    metrics = {"images": 4, "captions": 8, **retrieval(images, images[[0, 1, 2, 3] * 2], torch.arange(8) % 4)}
    first, second = format_retrieval(metrics, 12.34).split("\n")
    assert first == (
        "image to text: recall@1 100.0% (chance 25.00%), recall@5 100.0% (chance 89.29%), "
        "recall@10 100.0% (chance 100.00%), median rank 1 of 8; 4 images, 8 captions, 12.3 s"
    )
    assert second == (
        "text to image: recall@1 100.0% (chance 25.00%), recall@5 100.0% (chance 100.00%), "
        "recall@10 100.0% (chance 100.00%), median rank 1 of 4; 4 images, 8 captions, 12.3 s"
    )


def test_accuracy_on_any_questions():
    model, question = TinyCLIP(), Question(record(0, ("a",)), ("red circle", "star", "blue square"), 1)
    texts = embed_texts(model, TOKENIZER, question.choices)
    image = embed_images(model, [question.record], transform)
    right = int((texts @ image[0]).argmax()) == 1
    got = choice_accuracy(model, TOKENIZER, transform, [question])
    assert got == {"accuracy": float(right), "chance": pytest.approx(1 / 3), "n": 1}
    tied = Question(record(0, ("a",)), ("red circle", "red circle"), 0)
    assert choice_accuracy(model, TOKENIZER, transform, [tied])["accuracy"] == 0.0


def class_records(count):
    names = ("red star", "circle", "apple")
    return names, [record(i, (f"a photo of {names[i % 3]}", "the photo"), i % 3) for i in range(count)]


def test_class_data_has_every_metric():
    model = TinyCLIP()
    names, records = class_records(24)
    train, dev = records[:15], records[15:]
    templates = ("a photo of a {}", "the {}")
    found = evaluate_all(model, dev, transform, TOKENIZER, names, templates, train, batch_size=4)
    labels = torch.tensor([some.group for some in dev])
    images, texts = found.image_embeddings, found.text_embeddings
    classes = embed_classes(model, TOKENIZER, names, templates)
    train_labels = torch.tensor([some.group for some in train])
    train_features, features = (image_features(model, some, transform) for some in (train, dev))
    choice = found.metrics.pop("caption_choice")
    assert (choice["chance"], choice["n"], choice["choices"]) == (pytest.approx(1 / 3), 9, 3)
    assert found.metrics == {
        "images": 9,
        "captions": 18,
        **retrieval(images, texts, found.image_of_text, labels),
        "class_zero_shot": zero_shot(images, labels, classes, names),
        "linear_probe": linear_probe(train_features, train_labels, features, labels, names),
    }
    for way in ("image_to_text", "text_to_image"):  # a third of all answers are of the query's class
        assert found.metrics["chance"][way]["recall@1"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("n_train, every", [(10, 1), (16, 2), (20, 2), (21, 3)])
def test_the_probe_is_fitted_on_evenly_spaced_images(monkeypatch, n_train, every):
    """No more than PROBE_IMAGES, and of every class, also if the records are sorted by class."""
    monkeypatch.setattr(evaluate, "PROBE_IMAGES", 10)
    calls = spied(monkeypatch, evaluate, "linear_probe")
    model, (names, dev) = TinyCLIP(), class_records(9)
    train = sorted(class_records(n_train)[1], key=lambda some: some.group)
    found = evaluate_all(model, dev, transform, TOKENIZER, names, train_records=train)
    ((features, labels, *_),) = calls
    torch.testing.assert_close(features, image_features(model, train[::every], transform))
    assert labels.tolist() == [some.group for some in train[::every]]
    assert found.metrics["linear_probe"]["n_train"] == len(train[::every])


def test_the_probe_leaves_out_damaged_training_images():
    """As training does; in dev a damaged image is an error."""
    model, (names, records) = TinyCLIP(), class_records(24)
    broken = [replace(some, open=partial(decode_image, b"no image", some.image_id)) for some in records]
    train, dev = [*records[:5], *broken[5:8], *records[8:15]], records[15:]
    with pytest.warns(
        UserWarning, match="left out 3 training images .* cannot be decoded: image 5, image 6, im"
    ):
        found = evaluate_all(model, dev, transform, TOKENIZER, names, train_records=train, batch_size=3)
    readable = [*records[:5], *records[8:15]]
    expected = evaluate_all(model, dev, transform, TOKENIZER, names, train_records=readable, batch_size=3)
    assert found.metrics == expected.metrics
    assert found.metrics["linear_probe"]["n_train"] == 12
    with pytest.raises(ValueError, match="cannot decode image 'image 5'"):
        evaluate_all(model, train, transform, TOKENIZER, names)


@pytest.mark.parametrize("left", [0, 2])
def test_there_is_no_probe_if_a_class_has_only_damaged_images(left):
    model, (names, records) = TinyCLIP(), class_records(24)
    broken = [replace(some, open=partial(decode_image, b"no image", some.image_id)) for some in records]
    with pytest.warns(UserWarning, match=f"left out {15 - left} training images"):
        found = evaluate_all(
            model, records, transform, TOKENIZER, names, train_records=[*records[:left], *broken[left:15]]
        )
    assert "linear_probe" not in found.metrics


def test_prompts_and_choices_are_embedded_as_they_are(monkeypatch):
    """Metrics of so few images may be right by chance, so their inputs are compared too."""
    model, (names, dev), templates = TinyCLIP(), class_records(9), ("a photo of a {}", "the {}")
    zero_shots, choices = (spied(monkeypatch, evaluate, name) for name in ("zero_shot", "choice_metrics"))
    evaluate_all(model, dev, transform, TOKENIZER, names, templates)
    assert torch.equal(zero_shots[0][2], embed_classes(model, TOKENIZER, names, templates))
    images, texts, questions = choices[0]
    asked = [text for question in questions for text in question.choices]
    torch.testing.assert_close(texts, embed_texts(model, TOKENIZER, asked))
    torch.testing.assert_close(images, embed_images(model, [q.record for q in questions], transform))


def test_captions_are_chosen_as_by_the_model_itself():
    model = TinyCLIP()
    texts = [f"{first} {second}" for first in ("red", "green", "blue", "the") for second in WORDS[6:9]]
    records = [record(i, (texts[i], f"a photo of {texts[i]}")) for i in range(12)]
    metrics = evaluate_all(model, records, transform, TOKENIZER).metrics
    assert metrics.keys() == {
        "images",
        "captions",
        "image_to_text",
        "text_to_image",
        "chance",
        "caption_choice",
    }
    choice = choice_accuracy(model, TOKENIZER, transform, caption_questions(records, 3))
    assert metrics["caption_choice"] == {**choice, "choices": 3}
    assert 0 < choice["accuracy"] < 1  # so that an error in the rows would show


def test_two_images_give_no_choice_of_three():
    records = [record(i, ("a",)) for i in range(2)]
    assert "caption_choice" not in evaluate_all(TinyCLIP(), records, transform, TOKENIZER).metrics


def test_every_metric_is_printed_beside_its_chance():
    names, records = class_records(12)
    found = evaluate_all(TinyCLIP(), records, transform, TOKENIZER, names, train_records=records)
    metrics = found.metrics
    *first, choice, classes, probe = format_metrics(metrics, 1.5).split("\n")
    assert "\n".join(first) == format_retrieval(metrics, 1.5)
    assert (
        choice
        == f"3-choice captions: {metrics['caption_choice']['accuracy']:.1%} (chance 33.3%), 12 questions"
    )
    top1 = metrics["class_zero_shot"]["top1"]
    assert (
        classes == f"class zero shot: top1 {top1:.1%} (chance 33.3%), top5 100.0% (chance 100.0%); 12 images"
    )
    top1, l2 = metrics["linear_probe"]["top1"], metrics["linear_probe"]["l2"]
    assert probe == (
        f"linear probe: top1 {top1:.1%} (chance 33.3%), top5 100.0% (chance 100.0%); 12 images, "
        f"12 to fit, l2 {l2:.2g}"
    )


def test_each_number_is_printed_in_its_own_place():
    top = {"top1": 0.11, "top5": 0.22, "chance": {"top1": 0.33, "top5": 0.44}, "n": 55}
    metrics = {
        **{"images": 4, "captions": 4, **retrieval(torch.eye(4), torch.eye(4), torch.arange(4))},
        "caption_choice": {"accuracy": 0.66, "chance": 0.25, "n": 77, "choices": 4},
        "class_zero_shot": top | {"n": 66},
        "linear_probe": top | {"n_train": 88, "l2": 0.5},
    }
    assert format_metrics(metrics, 1.0).split("\n")[2:] == [
        "4-choice captions: 66.0% (chance 25.0%), 77 questions",
        "class zero shot: top1 11.0% (chance 33.0%), top5 22.0% (chance 44.0%); 66 images",
        "linear probe: top1 11.0% (chance 33.0%), top5 22.0% (chance 44.0%); 55 images, 88 to fit, l2 0.5",
    ]


def test_no_records_are_refused():
    model = TinyCLIP()
    with pytest.raises(ValueError, match="no images to evaluate, at least 1 is needed"):
        evaluate_records(model, [], transform, TOKENIZER)
    with pytest.raises(ValueError, match="no images to evaluate"):
        choice_accuracy(model, TOKENIZER, transform, [])


@pytest.mark.parametrize(
    "groups, probed", [((0, 1, 2, 0, 0), True), ((0, 1, 2, 0, 1, 2), False), ((0, 1, 0, 1, 0, 1), False)]
)
def test_a_probe_needs_every_class_and_one_class_three_times(groups, probed):
    names, dev = class_records(9)
    train = [class_records(3)[1][group] for group in groups]
    found = evaluate_all(TinyCLIP(), dev, transform, TOKENIZER, names, train_records=train)
    assert ("linear_probe" in found.metrics) == probed
    assert found.metrics["class_zero_shot"]["n"] == 9


def test_without_classes_no_training_record_is_read():
    """They may lie in shards, each of which would be read for it."""

    class Unread(list):
        def __getitem__(self, index):
            raise AssertionError("a training record was looked up")

    _, dev = class_records(9)
    found = evaluate_all(TinyCLIP(), dev, transform, TOKENIZER, train_records=Unread([None] * 5))
    assert found.metrics["images"] == 9
