"""Plots of a run: its curves, and the trained model on some records of the dev split."""

from collections.abc import Sequence
from pathlib import Path

import torch

from minclip.clip import CLIP
from minclip.data.records import Question, Record
from minclip.data.tokenizer import Tokenizer
from minclip.data.transforms import ImageTransform
from minclip.evaluation.attention import draw_attention
from minclip.evaluation.embed import embed_images, embed_texts
from minclip.evaluation.evaluate import Evaluation
from minclip.evaluation.plots import (
    MOST_CLASSES,
    accuracy_by_class,
    confusion_matrix,
    retrieval_grid,
    similarity_matrix,
    zero_shot_examples,
)
from minclip.evaluation.retrieval import retrieval_ranks
from minclip.towers.vit import VisionTransformer
from minlm.plots import loss_curve, metric_curves

SHOWN_PAIRS, SHOWN_QUERIES, SHOWN_QUESTIONS = 8, 4, 6
CLASSIFIERS = ("linear_probe", "class_zero_shot")


def draw_curves(run: Path) -> None:
    """Plot loss.png and metrics.png from the run's metrics.jsonl."""
    loss_curve(run, run / "loss.png")
    metric_curves(run, run / "metrics.png")


def draw_plots(run: Path, records: Sequence[Record], evaluation: Evaluation) -> None:
    """Plot the run's curves and its model's results on `records` as PNG files in the run's folder.

    loss, metrics, similarity, retrieval; failures, unless every right answer ranks first; with classes also
    NAME_confusion per classifier and accuracy_by_class.
    """
    draw_curves(run)
    pairs = spread(len(records), SHOWN_PAIRS)
    similarity_matrix(
        [records[i].open() for i in pairs],
        [records[i].captions[0] for i in pairs],
        evaluation.image_embeddings[pairs],
        evaluation.text_embeddings[evaluation.first_text[pairs]],
        run / "similarity.png",
    )
    embeddings = evaluation.image_embeddings, evaluation.text_embeddings
    if worst := worst_queries(records, evaluation):
        retrieval_grid(records, *embeddings, worst, run / "failures.png", "worst ranks")
    queries = spread(len(records), SHOWN_QUERIES)
    retrieval_grid(records, *embeddings, queries, run / "retrieval.png", "queries spread over the split")
    draw_classes(run, evaluation.metrics)


def worst_queries(records: Sequence[Record], evaluation: Evaluation) -> list[int]:
    """Return the records whose image or first caption ranks its best right answer lowest, without rank 1."""
    groups = torch.tensor([record.group for record in records])
    image_ranks, text_ranks = retrieval_ranks(
        evaluation.image_embeddings, evaluation.text_embeddings, evaluation.image_of_text, groups
    )
    ranks = torch.maximum(image_ranks, text_ranks[evaluation.first_text])  # (N,)
    worst = ranks.argsort(descending=True, stable=True)[:SHOWN_QUERIES]
    return worst[ranks[worst] > 1].tolist()


def draw_classes(run: Path, metrics: dict) -> None:
    """Plot NAME_confusion.png for each classifier in the metrics, and accuracy_by_class.png.

    Nothing is drawn if a class has no images or there are too many class names to read.
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


def draw_image_attention(
    run: Path,
    model: CLIP,
    records: Sequence[Record],
    transform: ImageTransform,
    tokenizer: Tokenizer,
) -> None:
    """Plot attention.png, the image tower's attention on some records, if the tower is a VisionTransformer."""
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
    """Plot zero_shot.png, some of the questions with the probabilities of their choices."""
    shown = [questions[i] for i in spread(len(questions), SHOWN_QUESTIONS)]
    images = embed_images(model, [question.record for question in shown], transform)  # (N, E)
    probabilities = []
    for question, image in zip(shown, images, strict=True):
        cosines = embed_texts(model, tokenizer, question.choices) @ image  # (choices)
        probabilities.append((model.logit_scale.exp().item() * cosines).softmax(dim=0).tolist())
    zero_shot_examples(
        [question.record.open() for question in shown],
        [question.choices for question in shown],
        probabilities,
        [question.answer for question in shown],
        run / "zero_shot.png",
    )


def spread(count: int, wanted: int) -> list[int]:
    """Return up to `wanted` of the numbers 0 to count - 1, evenly spaced."""
    wanted = min(count, wanted)
    return [i * count // wanted for i in range(wanted)]
