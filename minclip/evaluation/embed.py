"""A model's embeddings of pictures, texts and classes, and scores of embeddings without rounding.

Scores are exact. Unit vectors rounded to multiples of 2^-24 (float32's own resolution near one) have products
that are multiples of 2^-48 and sums of at most about one, which float64 holds without rounding: neither chunk
nor order nor kernel changes a score, and equal embeddings tie exactly.

Shapes: N images, M texts, E embed_dim, D width of the image tower.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from minclip.data.records import Record, class_captions
from minclip.data.tokenizer import Tokenizer, encode_batch
from minclip.data.transforms import ImageTransform

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


def embed_images(
    model: nn.Module, records: Sequence[Record], transform: ImageTransform, batch_size: int = 128
) -> Tensor:
    """The pictures of N records through `encode_image` -> (N, E), unit length, float32, on the CPU.

    ValueError: no record; a picture that cannot be decoded (the record's own message).
    """
    return _over_images(model, model.encode_image, records, transform, batch_size)


def image_features(
    model: nn.Module,
    records: Sequence[Record],
    transform: ImageTransform,
    batch_size: int = 128,
    damaged: dict[str, str] | None = None,
) -> Tensor:
    """The pictures of N records through the image tower alone -> (N, D), before any projection.

    damaged: where given, images that cannot be decoded have no row and are noted here: image_id -> reason.
    Without it, errors as `embed_images`.
    """
    return _over_images(model, model.image_tower, records, transform, batch_size, damaged)


def _over_images(
    model: nn.Module,
    encode: Callable[[Tensor], Tensor],
    records: Sequence[Record],
    transform: ImageTransform,
    batch_size: int,
    damaged: dict[str, str] | None = None,
) -> Tensor:
    def embed(batch: Sequence[Record]) -> Tensor:
        images = []
        for record in batch:
            try:
                images.append(transform(record.open()))
            except ValueError as error:
                if damaged is None:
                    raise
                damaged[record.image_id] = str(error)
        if not images:
            return torch.empty(0)  # which torch.cat skips
        return encode(torch.stack(images).to(model.logit_scale.device))  # (B, E or D)

    return _in_batches(model, embed, records, batch_size, "images")


def embed_texts(
    model: nn.Module, tokenizer: Tokenizer, texts: Sequence[str], batch_size: int = 256
) -> Tensor:
    """M texts through the text tower -> (M, E), unit length, float32, on the CPU.

    A text that occurs twice is embedded once: the two tie exactly, whatever they are batched with.
    Warns in one line of texts that are longer than the context and therefore cut. ValueError: no text.
    """
    length, n_cut = model.config.text.context_length, 0

    def embed(batch: Sequence[str]) -> Tensor:
        nonlocal n_cut
        tokens, token_mask, n_truncated = encode_batch(tokenizer, batch, length)
        n_cut += n_truncated
        return model.encode_text(
            tokens.to(model.logit_scale.device), token_mask.to(model.logit_scale.device)
        )  # (B, E)

    row_of = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    embeddings = _in_batches(model, embed, list(row_of), batch_size, "texts")
    if n_cut:
        first = next(text for text in row_of if encode_batch(tokenizer, [text], length)[2])
        warnings.warn(
            f"{n_cut:,} of {len(row_of):,} texts are cut to context_length={length} tokens, {first[:60]!r} among "
            "them: what follows is not read",
            stacklevel=2,
        )
    return embeddings[[row_of[text] for text in texts]]  # (M, E)


def _in_batches(model: nn.Module, embed: Callable, items: Sequence, batch_size: int, name: str) -> Tensor:
    if not items:
        raise ValueError(
            f"no {name} to evaluate: 0 given, at least 1 needed; check the split and its records"
        )
    starts = range(0, len(items), batch_size)
    with evaluating(model):
        bar = tqdm(starts, desc=f"embedding {name}", unit="batch", leave=False, disable=None)
        embeddings = [embed(items[start : start + batch_size]).float().cpu() for start in bar]
    return torch.cat(embeddings)  # (items, E or D)


def embed_classes(
    model: nn.Module,
    tokenizer: Tokenizer,
    class_names: Sequence[str],
    templates: Sequence[str],
) -> Tensor:
    """A prompt ensemble a class -> (classes, E): the mean of its prompts' unit vectors, at unit length again.

    Each "{}" of a template becomes the class's name (Radford et al. 2021, section 3.1.4), "a {}" "an airplane".
    ValueError: no class name, a name twice, no template, or a template without "{}".
    """
    if not class_names:
        raise ValueError("0 class names given, at least 1 needed")
    repeated = [name for name, count in Counter(class_names).items() if count > 1]
    if repeated:
        raise ValueError(f"class names must differ: {repeated[0]!r} is given more than once")
    prompts = [prompt for name in class_names for prompt in class_captions(name, templates)]
    embeddings = embed_texts(model, tokenizer, prompts)
    embeddings = embeddings.unflatten(0, (len(class_names), len(templates)))  # (classes, templates, E)
    return F.normalize(embeddings.mean(dim=1), dim=-1)  # (classes, E)


def exact_pair(images: Tensor, others: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Unit embeddings (N, E) of images and (M, E) of texts or classes, in float64, their products exact.

    ValueError: empty or not two-dimensional, unequal widths, numbers not finite, a row not of unit length.
    """
    pair = _on_grid(images, "image"), _on_grid(others, name)  # (N, E), (M, E)
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
    lengths = embeddings.norm(dim=1)  # (rows,)
    row = int((lengths - 1).abs().argmax())
    if abs(lengths[row] - 1) > 0.02:  # bfloat16 rounds a length by up to 0.004
        raise ValueError(f"{name} embeddings: row {row} has length {lengths[row]:.4g}, must be 1: normalise")
    return (embeddings * GRID).round() / GRID
