"""What a trained model is worth: retrieval, choice and zero-shot figures, each beside its chance level.

Scores are exact. Unit vectors rounded to multiples of 2^-24 (float32's own resolution near one) have products
that are multiples of 2^-48 and sums of at most about one, which float64 holds without rounding: neither chunk
nor order nor kernel changes a score, and equal embeddings tie exactly. A tied rival ranks before the right
answer: a collapsed model, all of whose embeddings are equal, comes out worst, not best.
"""

import math
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from minclip.data.records import Question, Record
from minclip.tokenizer import encode_batch

GRID = 2.0**24


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradient inside; afterwards every module has the mode it had.

    Module by module: a frozen tower is in evaluation mode while the rest of the model trains.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def embed_images(model: nn.Module, records: Sequence[Record], transform, batch_size: int = 128) -> Tensor:
    """The pictures of N records through the image tower -> (N, E), unit length, float32, on the CPU.

    ValueError: no record; a picture that cannot be decoded (the record's own message).
    """

    def embed(batch: Sequence[Record]) -> Tensor:
        images = torch.stack([transform(record.open()) for record in batch])  # (B, C, h, w)
        return model.encode_image(images.to(model.logit_scale.device))

    return _in_batches(model, embed, records, batch_size, "images")


def embed_texts(model: nn.Module, tokenizer, texts: Sequence[str], batch_size: int = 256) -> Tensor:
    """M texts through the text tower -> (M, E), unit length, float32, on the CPU.

    A text that occurs twice is embedded once: the two tie exactly, whatever they are batched with.
    ValueError: no text.
    """

    def embed(batch: Sequence[str]) -> Tensor:
        tokens, token_mask, _ = encode_batch(tokenizer, batch, model.config.text.context_length)
        return model.encode_text(tokens.to(model.logit_scale.device), token_mask.to(model.logit_scale.device))

    row_of = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    return _in_batches(model, embed, list(row_of), batch_size, "texts")[[row_of[text] for text in texts]]


def _in_batches(model: nn.Module, embed, items: Sequence, batch_size: int, name: str) -> Tensor:
    if not items:
        raise ValueError(
            f"no {name} to evaluate: 0 given, at least 1 needed; check the split and its records"
        )
    starts = range(0, len(items), batch_size)
    with evaluating(model):
        bar = tqdm(starts, desc=f"embedding {name}", unit="batch", leave=False, disable=None)
        embeddings = [embed(items[start : start + batch_size]).float().cpu() for start in bar]
    return torch.cat(embeddings)  # (items, E)


def exact_pair(images: Tensor, others: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Unit embeddings (N, E) of images and (M, E) of texts or classes, in float64, their products exact.

    ValueError: empty or not two-dimensional, unequal widths, numbers not finite, a row not of unit length.
    """
    pair = _on_grid(images, "image"), _on_grid(others, name)
    if images.shape[1] != others.shape[1]:
        raise ValueError(
            f"image embeddings have width {images.shape[1]}, {name} embeddings {others.shape[1]}"
        )
    return pair


def _on_grid(embeddings: Tensor, name: str) -> Tensor:
    if embeddings.ndim != 2 or embeddings.numel() == 0:
        raise ValueError(f"{name} embeddings must be (rows, width), not empty: got {tuple(embeddings.shape)}")
    embeddings = embeddings.detach().double()
    bad = (~embeddings.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"{name} embeddings: row {bad[0]} and {len(bad) - 1} more of {len(embeddings)} are not finite: "
            "look for NaN or infinity in the weights"
        )
    lengths = embeddings.norm(dim=1)
    row = int((lengths - 1).abs().argmax())
    if abs(lengths[row] - 1) > 0.02:  # bfloat16 rounds a length by up to 0.004
        raise ValueError(f"{name} embeddings: row {row} has length {lengths[row]:.4g}, must be 1: normalise")
    return (embeddings * GRID).round() / GRID


def retrieval_ranks(
    image_embeddings: Tensor, text_embeddings: Tensor, image_of_text: Tensor, chunk: int = 256
) -> tuple[Tensor, Tensor]:
    """Ranks, from 1, of the right answers: (N, E), (M, E), (M,) -> each image's (N,), each text's (M,).

    A text's rank is its image's place among the N images; an image's is that of its best caption among the
    captions of the others. Ties count against the model. At most `chunk` x M scores exist at a time.
    ValueError: those of `exact_pair`; an `image_of_text` of a wrong shape or range; an image without a text.
    """
    images, texts = exact_pair(image_embeddings, text_embeddings, "text")
    _check_positions(image_of_text, len(texts), len(images), "image_of_text")
    bare = (torch.bincount(image_of_text, minlength=len(images)) == 0).nonzero().flatten().tolist()
    if bare:
        raise ValueError(f"image {bare[0]} and {len(bare) - 1} more of {len(images)} have no text: drop them")
    image_of_text = image_of_text.to(images.device)

    own = (images[image_of_text] * texts).sum(dim=1)  # (M,)
    best = own.new_full((len(images),), -math.inf).scatter_reduce(0, image_of_text, own, "amax")  # (N,)
    own_at_best = torch.zeros_like(best).index_add(0, image_of_text, (own == best[image_of_text]).double())

    image_ranks, text_ranks = [], torch.zeros_like(own)
    for some, some_best in zip(images.split(chunk), best.split(chunk), strict=True):
        scores = some @ texts.T  # (chunk, M)
        text_ranks += (scores >= own).sum(dim=0)  # its own image is among those counted: a rank from 1
        image_ranks.append((scores >= some_best[:, None]).sum(dim=1))  # (chunk,)
    # Among those counted are the image's own captions that share the best score: no rivals.
    return (torch.cat(image_ranks) - own_at_best + 1).long(), text_ranks.long()


def _check_positions(positions: Tensor, count: int, limit: int, name: str) -> None:
    if positions.shape != (count,):
        raise ValueError(f"{name} must have shape ({count},), one a row: got {tuple(positions.shape)}")
    if positions.min() < 0 or positions.max() >= limit:
        raise ValueError(f"{name} must lie in 0 to {limit - 1}: got {positions.min()} to {positions.max()}")


def retrieval(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    image_of_text: Tensor,
    ks: Sequence[int] = (1, 5, 10),
    chunk: int = 256,
) -> dict[str, dict]:
    """Retrieval among N images and their M captions, both ways; arguments and errors as `retrieval_ranks`.

    -> {"image_to_text": {"recall@1": fraction, ..., "median_rank"}, "text_to_image": the same,
    "chance": {"image_to_text": {"recall@1", ...}, "text_to_image": {...}}}. Recall@k is the share of queries
    with a right answer among the first k (Karpathy and Fei-Fei 2015, section 4.2).
    """
    image_ranks, text_ranks = retrieval_ranks(image_embeddings, text_embeddings, image_of_text, chunk)
    figures = {"image_to_text": _recalls(image_ranks, ks), "text_to_image": _recalls(text_ranks, ks)}
    return figures | {"chance": chance_recalls(torch.bincount(image_of_text).tolist(), ks)}


def _recalls(ranks: Tensor, ks: Sequence[int]) -> dict[str, float]:
    recalls = {f"recall@{k}": int((ranks <= k).sum()) / len(ranks) for k in ks}
    return recalls | {"median_rank": float(statistics.median(ranks.tolist()))}


def chance_recalls(captions_of_image: Sequence[int], ks: Sequence[int]) -> dict[str, dict[str, float]]:
    """Expected recalls of a random order, where image i has `captions_of_image[i]` of the M captions.

    Text to image: k / N. Image to text: an image with c captions misses with C(M - c, k) / C(M, k).
    """
    n_images, n_captions = len(captions_of_image), sum(captions_of_image)
    by_text, by_image = {}, {}
    for k in ks:
        drawn = min(k, n_captions)
        orders = math.comb(n_captions, drawn)
        hits = sum(orders - math.comb(n_captions - count, drawn) for count in captions_of_image)
        by_image[f"recall@{k}"] = hits / (orders * n_images)  # whole numbers up to here: no rounding
        by_text[f"recall@{k}"] = min(k, n_images) / n_images
    return {"image_to_text": by_image, "text_to_image": by_text}


@dataclass(frozen=True)
class Evaluation:
    """A model on a list of records: the figures for result.json, and what the pictures are drawn from."""

    figures: dict  # counts as {"images", "captions"}, and the three entries of `retrieval`
    seconds: float
    image_embeddings: Tensor  # (N, E)
    text_embeddings: Tensor  # (M, E)
    image_of_text: Tensor  # (M,)


def evaluate_records(
    model: nn.Module, records: Sequence[Record], transform, tokenizer, batch_size: int = 128
) -> Evaluation:
    """Retrieval both ways among all pictures and all captions of `records`; errors as `retrieval_ranks`."""
    start = time.perf_counter()
    captions = [caption for record in records for caption in record.captions]
    image_of_text = torch.tensor([row for row, record in enumerate(records) for _ in record.captions])
    image_embeddings = embed_images(model, records, transform, batch_size)
    text_embeddings = embed_texts(model, tokenizer, captions, batch_size)
    figures = {"images": len(records), "captions": len(captions)}
    figures |= retrieval(image_embeddings, text_embeddings, image_of_text)
    seconds = time.perf_counter() - start
    return Evaluation(figures, seconds, image_embeddings, text_embeddings, image_of_text)


def format_retrieval(figures: dict, seconds: float) -> str:
    """The figures of `evaluate_records` as text: a line a direction, with chance, counts and seconds."""
    lines = []
    for direction, rivals in (("image_to_text", "captions"), ("text_to_image", "images")):
        chance = figures["chance"][direction]
        recalls = [f"{k} {figures[direction][k]:.1%} (chance {chance[k]:.2%})" for k in chance]
        lines.append(
            f"{direction.replace('_', ' ')}: {', '.join(recalls)}, "
            f"median rank {figures[direction]['median_rank']:g} of {figures[rivals]:,}; "
            f"{figures['images']:,} images, {figures['captions']:,} captions, {seconds:.1f} s"
        )
    return "\n".join(lines)


def choice_accuracy(
    model: nn.Module, tokenizer, transform, questions: Sequence[Question], batch_size: int = 128
) -> dict[str, float]:
    """Share of questions whose right caption scores above every other -> {"accuracy", "chance", "n"}.

    A tie is a wrong answer. Chance is the mean of 1 / choices. ValueError: no question.
    """
    records = [question.record for question in questions]
    choices = [choice for question in questions for choice in question.choices]
    counts = [len(question.choices) for question in questions]
    images, texts = exact_pair(
        embed_images(model, records, transform, batch_size),
        embed_texts(model, tokenizer, choices, batch_size),
        "text",
    )
    right = 0
    for question, image, some in zip(questions, images, texts.split(counts), strict=True):
        scores = some @ image  # (choices,)
        right += int((scores >= scores[question.answer]).sum()) == 1
    chance = statistics.fmean(1 / count for count in counts)
    return {"accuracy": right / len(questions), "chance": chance, "n": len(questions)}


def embed_classes(
    model: nn.Module, tokenizer, class_names: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """A prompt ensemble a class -> (classes, E): the mean of its prompts' unit vectors, at unit length again.

    Each "{}" of a template becomes the class's name (Radford et al. 2021, section 3.1.4).
    ValueError: no class name, a name twice, no template, or a template without "{}".
    """
    if not class_names or not templates:
        raise ValueError(
            f"{len(class_names)} class names, {len(templates)} templates: at least 1 of each needed"
        )
    repeated = [name for name, count in Counter(class_names).items() if count > 1]
    if repeated:
        raise ValueError(f"class names must differ: {repeated[0]!r} is given more than once")
    for template in templates:
        if "{}" not in template:
            raise ValueError(f'template {template!r} has no "{{}}": put one where the class name goes')
    prompts = [template.replace("{}", name) for name in class_names for template in templates]
    embeddings = embed_texts(model, tokenizer, prompts)
    embeddings = embeddings.unflatten(0, (len(class_names), len(templates)))  # (classes, templates, E)
    return F.normalize(embeddings.mean(dim=1), dim=-1)  # (classes, E)


def zero_shot(
    image_embeddings: Tensor, labels: Tensor, class_embeddings: Tensor, class_names: Sequence[str]
) -> dict:
    """N images told apart by their nearest class: (N, E), (N,), (classes, E) -> figures as fractions.

    {"top1", "top5", "chance": {"top1", "top5"}, "per_class": {name: top-1}, "n"}; a class without images is
    not in per_class. A tied class ranks before the right one.
    ValueError: those of `exact_pair`; labels or names that do not fit.
    """
    images, classes = exact_pair(image_embeddings, class_embeddings, "class")
    _check_positions(labels, len(images), len(classes), "labels")
    if len(class_names) != len(classes):
        raise ValueError(f"{len(class_names)} class names for {len(classes)} class embeddings: one name each")
    scores = images @ classes.T  # (N, classes)
    ranks = (scores >= scores.gather(1, labels[:, None])).sum(dim=1)  # (N,)
    right = (ranks == 1).double()  # (N,)
    return {
        "top1": float(right.mean()),
        "top5": float((ranks <= 5).double().mean()),
        "chance": {"top1": 1 / len(classes), "top5": min(5, len(classes)) / len(classes)},
        "per_class": {class_names[label]: float(right[labels == label].mean()) for label in labels.unique()},
        "n": len(images),
    }
