"""Choosing among classes and among captions by cosine: top-k, per-class figures, confusion, k-choice tests.

A tied rival ranks before the right answer: a model that cannot tell answers apart answers wrong.
"""

import random
import statistics
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from minclip.data.records import Question, Record
from minclip.evaluation.embed import exact_pair
from minclip.evaluation.retrieval import check_positions


def zero_shot(
    image_embeddings: Tensor, labels: Tensor, class_embeddings: Tensor, class_names: Sequence[str]
) -> dict:
    """N images told apart by their nearest class: (N, E), (N,), (classes, E) -> `class_figures`.

    ValueError: those of `exact_pair` and of `class_figures`.
    """
    images, classes = exact_pair(image_embeddings, class_embeddings, "class")
    return class_metrics(images @ classes.T, labels, class_names)


def class_metrics(scores: Tensor, labels: Tensor, class_names: Sequence[str]) -> dict:
    """What scores of classes (N, classes) are worth for images with labels (N,) -> figures as fractions.

    {"top1", "top5", "chance": {"top1", "top5"}, "per_class": {name: top-1}, "n", "confusion"}; a class without
    images is not in per_class. confusion[i][j] counts the images of class i that were taken for class j; a wrong
    class that ties with the right one is the one taken. ValueError: labels or names that do not fit.
    """
    n_classes = scores.shape[1]
    check_positions(labels, len(scores), n_classes, "labels")
    if len(class_names) != n_classes:
        raise ValueError(f"{len(class_names)} class names for {n_classes} classes: one name each")
    own = torch.nn.functional.one_hot(labels, n_classes).bool()  # (N, classes)
    ranks = (scores >= scores.gather(1, labels[:, None])).sum(dim=1)  # (N,)
    right = ranks == 1  # (N,)
    taken = torch.where(right, labels, scores.masked_fill(own, -torch.inf).argmax(dim=1))  # (N,)
    pairs = torch.bincount(labels * n_classes + taken, minlength=n_classes**2)
    return {
        "top1": float(right.double().mean()),
        "top5": float((ranks <= 5).double().mean()),
        "chance": {"top1": 1 / n_classes, "top5": min(5, n_classes) / n_classes},
        "per_class": {
            class_names[label]: float(right[labels == label].double().mean()) for label in labels.unique()
        },
        "n": len(scores),
        "confusion": pairs.reshape(n_classes, n_classes).tolist(),
    }


def choice_metrics(
    image_embeddings: Tensor, text_embeddings: Tensor, questions: Sequence[Question]
) -> dict[str, float]:
    """Share of questions whose right caption scores above every other -> {"accuracy", "chance", "n"}.

    image_embeddings (questions, E); text_embeddings (all their choices, E), question after question. A tie is a
    wrong answer. Chance is the mean of 1 / choices.
    """
    images, texts = exact_pair(image_embeddings, text_embeddings, "text")
    counts = [len(question.choices) for question in questions]
    right = 0
    for question, image, some in zip(questions, images, texts.split(counts), strict=True):
        scores = some @ image  # (choices,)
        right += int((scores >= scores[question.answer]).sum()) == 1
    chance = statistics.fmean(1 / count for count in counts)
    return {"accuracy": right / len(questions), "chance": chance, "n": len(questions)}


def caption_questions(
    records: Sequence[Record], n_choices: int = 3, most: int = 2000, seed: int = 0
) -> list[Question]:
    """k-choice caption tests: each image's caption among `n_choices`, the wrong ones from other groups' images.

    At most one question a record and `most` in all, evenly spaced; drawn from (seed, record's position) only.
    Wrong captions come from different groups, and none is a text that the image has too; a record for which too
    few others differ gets no question. ValueError: fewer groups than choices.
    """
    members: dict[int, list[Record]] = {}
    for record in records:
        members.setdefault(record.group, []).append(record)
    if not 2 <= n_choices <= len(members):
        raise ValueError(
            f"n_choices={n_choices} must lie in 2 to {len(members)}, the number of groups of images here"
        )
    asked, groups = min(most, len(records)), list(members.values())
    places = (number * len(records) // asked for number in range(asked))
    drawn = (_question(records[i], groups, n_choices, random.Random(f"{seed}/choices/{i}")) for i in places)
    return [question for question in drawn if question]


def _question(
    record: Record, groups: Sequence[Sequence[Record]], n_choices: int, rng: random.Random
) -> Question | None:
    right, wrong = rng.choice(record.captions), []
    for members in _shuffled(groups, rng):
        taken, other = {*record.captions, *wrong}, rng.choice(members)
        captions = [some for some in other.captions if some not in taken]
        if captions and other.group != record.group:
            wrong.append(rng.choice(captions))
        if len(wrong) == n_choices - 1:
            answer = rng.randrange(n_choices)
            return Question(record, (*wrong[:answer], right, *wrong[answer:]), answer)
    return None


def _shuffled(items: Sequence, rng: random.Random) -> Iterator:
    """The items in random order; only those that are asked for are drawn (Fisher and Yates)."""
    moved: dict[int, int] = {}  # place -> the item that lies there now, where it is not its own
    for last in reversed(range(len(items))):
        place = rng.randint(0, last)
        yield items[moved.get(place, place)]
        moved[place] = moved.get(last, last)
