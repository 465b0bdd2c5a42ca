"""What a trained model is worth on a list of records: every figure that fits the data, each beside its chance."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minclip.data.config import TEMPLATES
from minclip.data.records import Question, Record, warn_of_missing
from minclip.data.tokenizer import Tokenizer
from minclip.data.transforms import ImageTransform
from minclip.evaluation.embed import embed_classes, embed_images, embed_texts, image_features
from minclip.evaluation.linear_probe import linear_probe
from minclip.evaluation.retrieval import retrieval
from minclip.evaluation.zero_shot import caption_questions, choice_metrics, zero_shot

CHOICES = 3
PROBE_IMAGES = 10_000  # at most so many training images are fitted by the linear probe


@dataclass(frozen=True)
class Evaluation:
    """A model on a list of records: the figures for result.json, and what the pictures are drawn from."""

    metrics: dict  # {"images", "captions"}, the three entries of `retrieval`, and what else was asked
    seconds: float
    image_embeddings: Tensor  # (N, E)
    text_embeddings: Tensor  # (M, E)
    image_of_text: Tensor  # (M,)


def evaluate_records(
    model: nn.Module,
    records: Sequence[Record],
    transform: ImageTransform,
    tokenizer: Tokenizer,
    batch_size: int = 128,
) -> Evaluation:
    """Retrieval both ways among all pictures and all captions of `records`; errors as `retrieval_ranks`.

    Every caption and picture of the query's group is a right answer: for captions made of class names, those of
    its class.
    """
    start = time.perf_counter()
    captions = [caption for record in records for caption in record.captions]
    image_of_text = torch.tensor([row for row, record in enumerate(records) for _ in record.captions])
    image_embeddings = embed_images(model, records, transform, batch_size)
    text_embeddings = embed_texts(model, tokenizer, captions, batch_size)
    groups = torch.tensor([record.group for record in records])
    metrics = {"images": len(records), "captions": len(captions)}
    metrics |= retrieval(image_embeddings, text_embeddings, image_of_text, groups)
    seconds = time.perf_counter() - start
    return Evaluation(metrics, seconds, image_embeddings, text_embeddings, image_of_text)


def evaluate_all(
    model: nn.Module,
    records: Sequence[Record],
    transform: ImageTransform,
    tokenizer: Tokenizer,
    class_names: Sequence[str] = (),
    templates: Sequence[str] = TEMPLATES,
    train_records: Sequence[Record] = (),
    batch_size: int = 128,
) -> Evaluation:
    """`evaluate_records`, and what else fits the data, under further names of its figures.

    "caption_choice": which of three captions is the image's, where there are three groups. With `class_names`,
    positions in which are the records' groups: "class_zero_shot", by prompts made from the templates, and, with
    `train_records` that show every class, one of them three times, "linear_probe" on the image tower's features;
    a warning counts and names training images that cannot be decoded, which the probe leaves out. Errors as those
    functions'.
    """
    start = time.perf_counter()
    look = {"transform": transform, "batch_size": batch_size}
    found = evaluate_records(model, records, tokenizer=tokenizer, **look)
    metrics = dict(found.metrics)
    if len({record.group for record in records}) >= CHOICES and (
        questions := caption_questions(records, CHOICES)
    ):
        metrics["caption_choice"] = _choose_captions(found, records, questions)
    if class_names:
        labels = torch.tensor([record.group for record in records])
        classes = embed_classes(model, tokenizer, class_names, templates)  # (classes, E)
        metrics["class_zero_shot"] = zero_shot(found.image_embeddings, labels, classes, class_names)
    if class_names and train_records:
        step = -(-len(train_records) // PROBE_IMAGES)
        fitted = train_records[::step]
        if _can_be_probed(fitted, class_names):
            damaged: dict[str, str] = {}
            train_features = image_features(model, fitted, **look, damaged=damaged)
            warn_of_missing(damaged, "training images of the linear probe", "which cannot be decoded")
            fitted = [record for record in fitted if record.image_id not in damaged]
        if _can_be_probed(fitted, class_names):
            metrics["linear_probe"] = linear_probe(
                train_features,
                torch.tensor([record.group for record in fitted]),
                image_features(model, records, **look),
                labels,
                class_names,
            )
    seconds = time.perf_counter() - start
    return Evaluation(metrics, seconds, found.image_embeddings, found.text_embeddings, found.image_of_text)


def _can_be_probed(records: Sequence[Record], class_names: Sequence[str]) -> bool:
    """True where the records show every class, and one of them three times: one of three is held out."""
    shown = Counter(record.group for record in records)
    return len(shown) == len(class_names) and max(shown.values()) >= 3


def _choose_captions(
    found: Evaluation, records: Sequence[Record], questions: Sequence[Question]
) -> dict[str, float]:
    """`choice_figures` from embeddings that are there already."""
    captions = (caption for record in records for caption in record.captions)
    row_of_text = {caption: row for row, caption in enumerate(captions)}
    row_of_image = {record.image_id: row for row, record in enumerate(records)}
    images = [row_of_image[question.record.image_id] for question in questions]
    texts = [row_of_text[choice] for question in questions for choice in question.choices]
    metrics = choice_metrics(found.image_embeddings[images], found.text_embeddings[texts], questions)
    return metrics | {"choices": CHOICES}


def choice_accuracy(
    model: nn.Module,
    tokenizer: Tokenizer,
    transform: ImageTransform,
    questions: Sequence[Question],
    batch_size: int = 128,
) -> dict[str, float]:
    """`choice_figures` of a model on any questions. ValueError: no question."""
    choices = [choice for question in questions for choice in question.choices]
    images = embed_images(model, [question.record for question in questions], transform, batch_size)
    return choice_metrics(images, embed_texts(model, tokenizer, choices, batch_size), questions)


def format_retrieval(metrics: dict, seconds: float) -> str:
    """The figures of `evaluate_records` as text: a line a direction, with chance, counts and seconds."""
    lines = []
    for direction, rivals in (("image_to_text", "captions"), ("text_to_image", "images")):
        chance = metrics["chance"][direction]
        recalls = [f"{k} {metrics[direction][k]:.1%} (chance {chance[k]:.2%})" for k in chance]
        lines.append(
            f"{direction.replace('_', ' ')}: {', '.join(recalls)}, "
            f"median rank {metrics[direction]['median_rank']:g} of {metrics[rivals]:,}; "
            f"{metrics['images']:,} images, {metrics['captions']:,} captions, {seconds:.1f} s"
        )
    return "\n".join(lines)


def format_metrics(metrics: dict, seconds: float) -> str:
    """The figures of `evaluate_all` as text: those of `format_retrieval`, then a line each of the others."""
    lines = [format_retrieval(metrics, seconds)]
    if choice := metrics.get("caption_choice"):
        lines.append(
            f"{choice['choices']}-choice captions: {choice['accuracy']:.1%} (chance {choice['chance']:.1%}), "
            f"{choice['n']:,} questions"
        )
    for name in ("class_zero_shot", "linear_probe"):
        if some := metrics.get(name):
            tops = ", ".join(
                f"{top} {some[top]:.1%} (chance {some['chance'][top]:.1%})" for top in some["chance"]
            )
            detail = f", {some['n_train']:,} to fit, l2 {some['l2']:.2g}" if name == "linear_probe" else ""
            lines.append(f"{name.replace('_', ' ')}: {tops}; {some['n']:,} images{detail}")
    return "\n".join(lines)
