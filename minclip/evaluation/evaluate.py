"""Evaluation of a trained model on a list of records: all metrics that fit the data, each with its chance level."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minclip.clip import CLIP
from minclip.data.config import TEMPLATES
from minclip.data.records import Question, Record, warn_of_missing
from minclip.data.tokenizer import Tokenizer
from minclip.data.transforms import ImageTransform
from minclip.evaluation.embed import embed_classes, embed_images, embed_texts, image_features
from minclip.evaluation.linear_probe import linear_probe
from minclip.evaluation.retrieval import retrieval
from minclip.evaluation.zero_shot import caption_questions, choice_metrics, zero_shot

CHOICES = 3
PROBE_IMAGES = 10_000  # most training images that the linear probe is fitted on


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a model on a list of records, and the embeddings that plots are drawn from."""

    metrics: dict  # "images", "captions", the three entries of `retrieval`, and those of `evaluate_all`
    seconds: float
    image_embeddings: Tensor  # (N, E)
    text_embeddings: Tensor  # (M, E)
    image_of_text: Tensor  # (M,)

    @property
    def first_text(self) -> Tensor:
        """Row of the first text of each image, (N,)."""
        rows = torch.arange(len(self.image_of_text))  # (M,)
        none = torch.full((len(self.image_embeddings),), len(rows))  # (N,)
        return none.scatter_reduce(0, self.image_of_text, rows, "amin")  # (N,)


def evaluate_records(
    model: CLIP,
    records: Sequence[Record],
    transform: ImageTransform,
    tokenizer: Tokenizer,
    batch_size: int = 128,
) -> Evaluation:
    """Compute retrieval metrics in both directions among all images and captions of the records.

    Every caption and image of the query's group is a right answer. Raises ValueError as `retrieval_ranks`.
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
    model: CLIP,
    records: Sequence[Record],
    transform: ImageTransform,
    tokenizer: Tokenizer,
    class_names: Sequence[str] = (),
    templates: Sequence[str] = TEMPLATES,
    train_records: Sequence[Record] = (),
    batch_size: int = 128,
) -> Evaluation:
    """Compute retrieval metrics, and all others that fit the data.

    "caption_choice": accuracy in choosing an image's caption among three, if there are three groups. With class_names,
    whose positions are the records' groups: "class_zero_shot", with prompts from the templates, and "linear_probe" on
    the image tower's features, if train_records show every class and one class three times. Training images that
    cannot be decoded are left out with a warning. Raises ValueError as those functions.
    """
    start = time.perf_counter()
    found = evaluate_records(model, records, transform, tokenizer, batch_size)
    metrics = dict(found.metrics)
    if len({record.group for record in records}) >= CHOICES and (
        questions := caption_questions(records, CHOICES)
    ):
        metrics["caption_choice"] = caption_choice(found, records, questions)
    if class_names:
        labels = torch.tensor([record.group for record in records])
        classes = embed_classes(model, tokenizer, class_names, templates)  # (classes, E)
        metrics["class_zero_shot"] = zero_shot(found.image_embeddings, labels, classes, class_names)
        step = -(-len(train_records) // PROBE_IMAGES) or 1
        fitted, damaged = train_records[::step], {}
        if can_be_probed(fitted, class_names):
            train_features = image_features(model, fitted, transform, batch_size, damaged)
            warn_of_missing(damaged, "training images of the linear probe", "which cannot be decoded")
            fitted = [record for record in fitted if record.image_id not in damaged]
            if can_be_probed(fitted, class_names):
                train_labels = torch.tensor([record.group for record in fitted])
                features = image_features(model, records, transform, batch_size)
                metrics["linear_probe"] = linear_probe(
                    train_features, train_labels, features, labels, class_names
                )
    return replace(found, metrics=metrics, seconds=time.perf_counter() - start)


def can_be_probed(records: Sequence[Record], class_names: Sequence[str]) -> bool:
    """Return True if the records show every class, and one class three times, so that one image can be held out."""
    shown = Counter(record.group for record in records)
    return len(shown) == len(class_names) and max(shown.values()) >= 3


def caption_choice(
    found: Evaluation, records: Sequence[Record], questions: Sequence[Question]
) -> dict[str, float]:
    """Compute `choice_metrics` from an evaluation's embeddings."""
    captions = (caption for record in records for caption in record.captions)
    row_of_text = {caption: row for row, caption in enumerate(captions)}
    row_of_image = {record.image_id: row for row, record in enumerate(records)}
    images = [row_of_image[question.record.image_id] for question in questions]
    texts = [row_of_text[choice] for question in questions for choice in question.choices]
    metrics = choice_metrics(found.image_embeddings[images], found.text_embeddings[texts], questions)
    return metrics | {"choices": CHOICES}


def choice_accuracy(
    model: CLIP,
    tokenizer: Tokenizer,
    transform: ImageTransform,
    questions: Sequence[Question],
    batch_size: int = 128,
) -> dict[str, float]:
    """Compute `choice_metrics` of a model on any questions; ValueError if there is none."""
    choices = [choice for question in questions for choice in question.choices]
    images = embed_images(model, [question.record for question in questions], transform, batch_size)
    return choice_metrics(images, embed_texts(model, tokenizer, choices, batch_size), questions)


def format_retrieval(metrics: dict, seconds: float) -> str:
    """Format the metrics of `evaluate_records`: one line per direction, with chance, counts and seconds."""
    lines = []
    for direction, answers in (("image_to_text", "captions"), ("text_to_image", "images")):
        chance = metrics["chance"][direction]
        recalls = [f"{k} {metrics[direction][k]:.1%} (chance {chance[k]:.2%})" for k in chance]
        lines.append(
            f"{direction.replace('_', ' ')}: {', '.join(recalls)}, "
            f"median rank {metrics[direction]['median_rank']:g} of {metrics[answers]:,}; "
            f"{metrics['images']:,} images, {metrics['captions']:,} captions, {seconds:.1f} s"
        )
    return "\n".join(lines)


def format_metrics(metrics: dict, seconds: float) -> str:
    """Format the metrics of `evaluate_all`: those of `format_retrieval`, then one line per other metric."""
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
