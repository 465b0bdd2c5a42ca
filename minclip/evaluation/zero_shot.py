"""Zero-shot choice among classes and among captions by cosine: top-k and per-class accuracy, confusion, k-choice.

A wrong answer that ties with the right one ranks before it.
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
    """Compute `class_metrics` of images (N, E) with labels (N,), scored by cosine with class embeddings (classes, E).

    Raises ValueError as `exact_pair` and `class_metrics`.
    """
    images, classes = exact_pair(image_embeddings, class_embeddings, "class")
    return class_metrics(images @ classes.T, labels, class_names)


def class_metrics(scores: Tensor, labels: Tensor, class_names: Sequence[str]) -> dict:
    """Compute top-1, top-5 and per-class accuracy and the confusion matrix from scores (N, classes), labels (N,).

    Returns {"top1", "top5", "chance": {"top1", "top5"}, "per_class": {name: top-1}, "n", "confusion"} as fractions;
    per_class lacks classes without images. confusion[i][j] counts images of class i predicted as class j; in a tie
    the wrong class is predicted. Raises ValueError for labels or names that do not match.
    """
    n_classes = scores.shape[1]
    check_positions(labels, len(scores), n_classes, "labels")
    if len(class_names) != n_classes:
        raise ValueError(f"{len(class_names)} class names for {n_classes} classes: one name each")
    own = torch.nn.functional.one_hot(labels, n_classes).bool()  # (N, classes)
    ranks = (scores >= scores.gather(1, labels[:, None])).sum(dim=1)  # (N,)
    right = ranks == 1  # (N,)
    predicted = torch.where(right, labels, scores.masked_fill(own, -torch.inf).argmax(dim=1))  # (N,)
    pairs = torch.bincount(labels * n_classes + predicted, minlength=n_classes**2)
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
    """Compute {"accuracy", "chance", "n"}: the share of questions whose right caption scores above every other.

    image_embeddings: (questions, E); text_embeddings: (all their choices, E), in the questions' order. A tie is wrong.
    Chance is the mean of 1 / choices.
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
    """Draw k-choice caption tests: a caption of an image among n_choices, the wrong ones from other groups' images.

    At most one question per record and `most` in all, evenly spaced; each depends on (seed, record's position) only.
    Wrong captions come from different groups and differ from all captions of the image. A record without enough such
    captions has no question. Raises ValueError if there are fewer groups than choices.
    """
    members: dict[int, list[Record]] = {}
    for record in records:
        members.setdefault(record.group, []).append(record)
    if not 2 <= n_choices <= len(members):
        raise ValueError(
            f"n_choices={n_choices} must lie in 2 to {len(members)}, the number of groups of images here"
        )
    count, groups = min(most, len(records)), list(members.values())
    places = (number * len(records) // count for number in range(count))
    drawn = (
        draw_question(records[i], groups, n_choices, random.Random(f"{seed}/choices/{i}")) for i in places
    )
    return [question for question in drawn if question]


def draw_question(
    record: Record, groups: Sequence[Sequence[Record]], n_choices: int, rng: random.Random
) -> Question | None:
    """Draw one question, or None if too few captions of other groups differ."""
    right, wrong = rng.choice(record.captions), []
    for members in shuffled(groups, rng):
        taken, other = {*record.captions, *wrong}, rng.choice(members)
        captions = [some for some in other.captions if some not in taken]
        if captions and other.group != record.group:
            wrong.append(rng.choice(captions))
        if len(wrong) == n_choices - 1:
            answer = rng.randrange(n_choices)
            return Question(record, (*wrong[:answer], right, *wrong[answer:]), answer)
    return None


def shuffled(items: Sequence, rng: random.Random) -> Iterator:
    """Yield the items in random order, drawing lazily (Fisher-Yates)."""
    moved: dict[int, int] = {}  # place -> the item that was moved there
    for last in reversed(range(len(items))):
        place = rng.randint(0, last)
        yield items[moved.get(place, place)]
        moved[place] = moved.get(last, last)
