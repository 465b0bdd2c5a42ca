"""The pictures of a run: its loss, and what the trained model makes of the dev split."""

from collections.abc import Sequence
from pathlib import Path

import torch

from minclip.clip import CLIP
from minclip.data.records import Question, Record
from minclip.data.tokenizer import Tokenizer
from minclip.data.transforms import ImageTransform
from minclip.evaluation.attention import draw_attention
from minclip.evaluation.class_plots import MOST_CLASSES, accuracy_by_class, confusion_matrix
from minclip.evaluation.embed import embed_images, embed_texts
from minclip.evaluation.evaluate import Evaluation
from minclip.evaluation.plots import retrieval_grid, similarity_matrix, zero_shot_examples
from minclip.evaluation.retrieval import retrieval_ranks
from minclip.towers.vit import VisionTransformer
from minlm.plots import loss_curve, metric_curves

SHOWN_PAIRS, SHOWN_QUERIES, SHOWN_QUESTIONS = 8, 4, 6
CLASSIFIERS = ("linear_probe", "class_zero_shot")


def draw_curves(run: Path) -> None:
    """loss.png and metrics.png from the run's metrics.jsonl."""
    loss_curve(run, run / "loss.png")
    metric_curves(run, run / "metrics.png")


def draw_plots(run: Path, records: Sequence[Record], evaluation: Evaluation) -> None:
    """The run's curves, and what its model makes of `records`, as PNG files in the run's folder.

    loss, metrics, similarity, retrieval; failures, where a right answer ranks below the first; with figures of
    classes also NAME_confusion of each, accuracy_by_class.
    """
    draw_curves(run)
    first_text = [int((evaluation.image_of_text == i).nonzero()[0]) for i in range(len(records))]
    pairs = spread(len(records), SHOWN_PAIRS)
    similarity_matrix(
        [records[i].open() for i in pairs],
        [records[i].captions[0] for i in pairs],
        evaluation.image_embeddings[pairs],
        evaluation.text_embeddings[[first_text[i] for i in pairs]],
        run / "similarity.png",
    )
    embeddings = evaluation.image_embeddings, evaluation.text_embeddings
    if worst := worst_queries(records, evaluation, first_text):
        retrieval_grid(records, *embeddings, worst, run / "failures.png", "worst ranks")
    queries = spread(len(records), SHOWN_QUERIES)
    retrieval_grid(records, *embeddings, queries, run / "retrieval.png", "queries spread over the split")
    draw_classes(run, evaluation.metrics)


def worst_queries(records: Sequence[Record], evaluation: Evaluation, first_text: Sequence[int]) -> list[int]:
    """The records whose image, or first caption, ranks its best right answer lowest; none of rank 1."""
    groups = torch.tensor([record.group for record in records])
    image_ranks, text_ranks = retrieval_ranks(
        evaluation.image_embeddings, evaluation.text_embeddings, evaluation.image_of_text, groups
    )
    ranks = torch.maximum(image_ranks, text_ranks[first_text])  # (N,)
    worst = ranks.argsort(descending=True, stable=True)[:SHOWN_QUERIES]
    return worst[ranks[worst] > 1].tolist()


def draw_classes(run: Path, metrics: dict) -> None:
    """NAME_confusion.png of each classifier in the figures, and accuracy_by_class.png of all of them.

    Drawn where each class has images and there is room for the classes' names.
    """
    found = {name: metrics[name] for name in CLASSIFIERS if name in metrics}
    for name, of_classes in found.items():
        class_names = list(of_classes["per_class"])
        if len(class_names) != len(of_classes["confusion"]) or len(class_names) > MOST_CLASSES:
            return
        title = name.replace("_", " ").capitalize()
        confusion_matrix(of_classes["confusion"], class_names, run / f"{name}_confusion.png", title)
    if found:
        accuracies = {name.replace("_", " "): some["per_class"] for name, some in found.items()}
        chance = next(iter(found.values()))["chance"]["top1"]
        accuracy_by_class(accuracies, chance, run / "accuracy_by_class.png")


def draw_where_it_looks(
    run: Path,
    model: CLIP,
    records: Sequence[Record],
    transform: ImageTransform,
    tokenizer: Tokenizer,
) -> None:
    """attention.png: the image tower's attention on some of the records, where it is a tower with attention."""
    if isinstance(model.image_tower, VisionTransformer):
        shown = [records[i] for i in spread(len(records), SHOWN_QUERIES)]
        draw_attention(model, shown, transform, tokenizer, run / "attention.png")


def draw_zero_shot(
    run: Path,
    model: CLIP,
    questions: Sequence[Question],
    transform: ImageTransform,
    tokenizer: Tokenizer,
) -> None:
    """zero_shot.png: some of the questions with the probabilities of their choices."""
    asked = [questions[i] for i in spread(len(questions), SHOWN_QUESTIONS)]
    images = embed_images(model, [question.record for question in asked], transform)  # (N, E)
    probabilities = []
    for question, image in zip(asked, images, strict=True):
        cosines = embed_texts(model, tokenizer, question.choices) @ image  # (choices)
        probabilities.append((model.logit_scale.exp().item() * cosines).softmax(dim=0).tolist())
    zero_shot_examples(
        [question.record.open() for question in asked],
        [question.choices for question in asked],
        probabilities,
        [question.answer for question in asked],
        run / "zero_shot.png",
    )


def spread(count: int, wanted: int) -> list[int]:
    """Up to `wanted` of the numbers 0 to count - 1, evenly spaced."""
    wanted = min(count, wanted)
    return [i * count // wanted for i in range(wanted)]
