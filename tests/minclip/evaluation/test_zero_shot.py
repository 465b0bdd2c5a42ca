"""Choices among classes and captions equal plain Python loops, ties included; wrong captions are truly wrong."""

import random
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minclip.data.records import Question
from minclip.evaluation.zero_shot import caption_questions, choice_metrics, zero_shot
from tests.minclip.tiny_clip import SEEDS, dot, phrases, record, units_with_ties


@st.composite
def question_lists(draw):
    questions = []
    for index in range(draw(st.integers(1, 5))):
        choices = tuple(draw(st.lists(phrases, min_size=2, max_size=5)))
        questions.append(Question(record(index, ("a",)), choices, draw(st.integers(0, len(choices) - 1))))
    return questions


@given(question_lists(), SEEDS)
def test_choice_metrics_equal_brute_force(questions, seed):
    n_choices = sum(len(question.choices) for question in questions)
    images, texts = units_with_ties(len(questions), seed), units_with_ties(n_choices, seed + 1)
    right, rows = 0, iter(texts.tolist())
    for question, image in zip(questions, images.tolist(), strict=True):
        scores = [dot(image, next(rows)) for _ in question.choices]
        rivals = [score for place, score in enumerate(scores) if place != question.answer]
        right += scores[question.answer] > max(rivals)
    chance = statistics.fmean(1 / len(question.choices) for question in questions)
    wanted = {"accuracy": right / len(questions), "chance": pytest.approx(chance), "n": len(questions)}
    assert choice_metrics(images, texts, questions) == wanted


@given(
    st.lists(st.tuples(st.integers(0, 4), st.lists(phrases, min_size=1, max_size=3)), min_size=1, max_size=9),
    st.integers(2, 4),
    st.integers(1, 12),
    SEEDS,
)
def test_wrong_captions_come_from_other_groups_and_are_no_text_of_the_image(rows, n_choices, most, seed):
    records = [record(index, tuple(texts), group) for index, (group, texts) in enumerate(rows)]
    if len({group for group, _ in rows}) < n_choices:
        with pytest.raises(ValueError, match=f"n_choices={n_choices} must lie in 2 to "):
            caption_questions(records, n_choices, most, seed)
        return
    questions = caption_questions(records, n_choices, most, seed)
    assert questions == caption_questions(records, n_choices, most, seed)
    asked = [records.index(question.record) for question in questions]
    assert asked == sorted(set(asked))
    assert len(asked) <= min(most, len(records))
    for question in questions:
        choices, own = question.choices, question.record
        assert len(choices) == len(set(choices)) == n_choices
        assert choices[question.answer] in own.captions
        groups = []
        for place, choice in enumerate(choices):
            if place != question.answer:
                assert choice not in own.captions
                groups.append({some.group for some in records if choice in some.captions} - {own.group})
        assert all(groups)
        assert len(set().union(*groups)) >= n_choices - 1


def test_questions_cover_all_positions_captions_and_images():
    records = [record(index, tuple(f"{index} {word}" for word in "abc")) for index in range(40)]
    questions = caption_questions(records, n_choices=3)
    assert [question.record for question in questions] == records
    assert [question.record for question in caption_questions(records, 3, most=4)] == records[::10]
    assert {question.answer for question in questions} == {0, 1, 2}
    right = [question.choices[question.answer] for question in questions]
    assert {caption.split()[1] for caption in right} == {"a", "b", "c"}
    wrong = {choice.split()[0] for question in questions for choice in question.choices} - {"0"}
    assert len(wrong) > 30
    assert questions != caption_questions(records, n_choices=3, seed=1)


def test_a_question_draws_few_of_the_groups(monkeypatch):
    draws = []

    class Counted(random.Random):
        def getrandbits(self, k: int) -> int:
            draws.append(k)
            return super().getrandbits(k)

    monkeypatch.setattr("minclip.evaluation.zero_shot.random.Random", Counted)
    records = [record(index, (f"caption {index}",)) for index in range(4000)]
    assert len(caption_questions(records, 3, most=20)) == 20
    assert len(draws) < 20 * 40


def test_the_only_other_caption_is_found_among_many_groups():
    records = [record(index, ("b" if index == 17 else "a",)) for index in range(40)]
    assert [sorted(question.choices) for question in caption_questions(records, 2)] == [["a", "b"]] * 40


def test_caption_questions_refuse():
    records = [record(index, ("a",), index // 2) for index in range(4)]
    with pytest.raises(ValueError, match="n_choices=3 must lie in 2 to 2, the number of groups"):
        caption_questions(records, 3)
    with pytest.raises(ValueError, match="n_choices=1 must lie in 2 to 2"):
        caption_questions(records, 1)
    assert caption_questions(records, 2) == []  # no caption differs from the image's own


@given(st.integers(1, 12), st.integers(1, 8), SEEDS)
def test_zero_shot_is_brute_force_with_ties(n_images, n_classes, seed):
    images, classes = units_with_ties(n_images, seed), units_with_ties(n_classes, seed + 1)
    labels = torch.randint(n_classes, (n_images,), generator=torch.Generator().manual_seed(seed))
    names = [f"class {number}" for number in range(n_classes)]
    ranks = []
    for image, label in zip(images.tolist(), labels.tolist(), strict=True):
        scores = [dot(image, some) for some in classes.tolist()]
        rivals = scores[:label] + scores[label + 1 :]
        ranks.append(1 + sum(score >= scores[label] for score in rivals))
    of_class = {names[label]: [] for label in sorted(set(labels.tolist()))}
    for label, rank in zip(labels.tolist(), ranks, strict=True):
        of_class[names[label]].append(rank == 1)
    confusion = [[0] * n_classes for _ in range(n_classes)]
    for image, label, rank in zip(images.tolist(), labels.tolist(), ranks, strict=True):
        scores = [dot(image, some) for some in classes.tolist()]
        rivals = [-9.0 if place == label else score for place, score in enumerate(scores)]
        confusion[label][label if rank == 1 else rivals.index(max(rivals))] += 1
    got = zero_shot(images, labels, classes, names)
    assert got == {
        "confusion": confusion,
        "top1": pytest.approx(sum(rank == 1 for rank in ranks) / n_images),
        "top5": pytest.approx(sum(rank <= 5 for rank in ranks) / n_images),
        "chance": {"top1": 1 / n_classes, "top5": min(1, 5 / n_classes)},
        "per_class": {name: pytest.approx(statistics.fmean(some)) for name, some in of_class.items()},
        "n": n_images,
    }


EYE = torch.eye(3)
OWN = torch.arange(3)
BROKEN = torch.eye(3).index_fill(0, torch.tensor([1]), float("nan"))


@pytest.mark.parametrize(
    "labels, classes, names, message",
    [
        (OWN + 1, EYE, "abc", "labels must lie in 0 to 2: got 1 to 3"),
        (OWN[:2], EYE, "abc", r"labels must have shape \(3,\)"),
        (OWN, EYE, "ab", "2 class names for 3 classes"),
        (OWN, EYE, "abcd", "4 class names for 3 classes"),
        (OWN, BROKEN, "abc", "class embeddings: row 1 and 0 more of 3 are not finite"),
        (OWN, torch.eye(4), "abcd", "image embeddings have width 3, class embeddings 4"),
    ],
)
def test_zero_shot_refuses(labels, classes, names, message):
    with pytest.raises(ValueError, match=message):
        zero_shot(EYE, labels, classes, names)
