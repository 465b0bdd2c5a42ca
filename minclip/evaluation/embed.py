"""Embeddings of images, texts and classes, and exact scores of them.

Unit vectors rounded to multiples of 2^-24 (float32's resolution near one) have products that are multiples of 2^-48
and sums of at most about one, which float64 holds without rounding. So chunk size, order and kernel do not change a
score, and equal embeddings tie exactly.

Shapes: N images, M texts, E embed_dim, D width of the image tower.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from minclip.clip import CLIP
from minclip.data.records import Record, class_captions
from minclip.data.tokenizer import Tokenizer, encode_batch
from minclip.data.transforms import ImageTransform

GRID = 2.0**24


@contextmanager
def evaluating(model: CLIP) -> Iterator[None]:
    """Switch to evaluation mode and disable gradients inside, then restore each module's mode.

    Modules are restored one by one: a frozen tower is in evaluation mode while the rest of the model trains.
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
    model: CLIP, records: Sequence[Record], transform: ImageTransform, batch_size: int = 128
) -> Tensor:
    """Compute the image embeddings (N, E) of N records: unit length, float32, on the CPU.

    Raises ValueError if there is no record or an image cannot be decoded.
    """
    return encode_images(model, model.encode_image, records, transform, batch_size)


def image_features(
    model: CLIP,
    records: Sequence[Record],
    transform: ImageTransform,
    batch_size: int = 128,
    damaged: dict[str, str] | None = None,
) -> Tensor:
    """Compute the image tower's features (N, D) of N records, before the projection.

    damaged: if given, images that cannot be decoded have no row and are added here as {image_id: reason}.
    Raises ValueError as `embed_images` otherwise.
    """
    return encode_images(model, model.image_tower, records, transform, batch_size, damaged)


def encode_images(
    model: CLIP,
    encode: Callable[[Tensor], Tensor],
    records: Sequence[Record],
    transform: ImageTransform,
    batch_size: int,
    damaged: dict[str, str] | None = None,
) -> Tensor:
    """Apply `encode` to the transformed images of the records, in batches; see `image_features`."""

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
            return torch.empty(0)  # skipped by torch.cat
        return encode(torch.stack(images).to(model.logit_scale.device))  # (B, E or D)

    return in_batches(model, embed, records, batch_size, "images")


def embed_texts(model: CLIP, tokenizer: Tokenizer, texts: Sequence[str], batch_size: int = 256) -> Tensor:
    """Compute the embeddings (M, E) of M texts: unit length, float32, on the CPU.

    Equal texts are embedded once, so that they tie exactly. Warns if texts are cut to the context length.
    Raises ValueError if there is no text.
    """
    device, length, n_cut = model.logit_scale.device, model.config.text.context_length, 0

    def embed(batch: Sequence[str]) -> Tensor:
        nonlocal n_cut
        tokens, token_mask, n_truncated = encode_batch(tokenizer, batch, length)
        n_cut += n_truncated
        return model.encode_text(tokens.to(device), token_mask.to(device))  # (B, E)

    row_of = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    embeddings = in_batches(model, embed, list(row_of), batch_size, "texts")
    if n_cut:
        first = next(text for text in row_of if encode_batch(tokenizer, [text], length)[2])
        warnings.warn(
            f"{n_cut:,} of {len(row_of):,} texts are cut to context_length={length} tokens, {first[:60]!r} among them",
            stacklevel=2,
        )
    return embeddings[[row_of[text] for text in texts]]  # (M, E)


def in_batches(
    model: CLIP, embed: Callable[[Sequence], Tensor], items: Sequence, batch_size: int, name: str
) -> Tensor:
    """Apply `embed` to batches of the items in evaluation mode and concatenate the rows: float32, on the CPU."""
    if not items:
        raise ValueError(f"no {name} to evaluate, at least 1 is needed: check the split and its records")
    starts = range(0, len(items), batch_size)
    with evaluating(model):
        bar = tqdm(starts, desc=f"embedding {name}", unit="batch", leave=False, disable=None)
        embeddings = [embed(items[start : start + batch_size]).float().cpu() for start in bar]
    return torch.cat(embeddings)  # (items, E or D)


def embed_classes(
    model: CLIP,
    tokenizer: Tokenizer,
    class_names: Sequence[str],
    templates: Sequence[str],
) -> Tensor:
    """Compute class embeddings (classes, E): the normalised mean of each class's prompt embeddings.

    Each "{}" of a template is replaced by the class name (Radford et al. 2021, section 3.1.4); "a {}" becomes "an" if
    needed. Raises ValueError for no class name, a repeated name, no template, or a template without "{}".
    """
    if not class_names:
        raise ValueError("no class names: give at least 1")
    repeated = [name for name, count in Counter(class_names).items() if count > 1]
    if repeated:
        raise ValueError(f"class name {repeated[0]!r} is given more than once: class names must differ")
    prompts = [prompt for name in class_names for prompt in class_captions(name, templates)]
    embeddings = embed_texts(model, tokenizer, prompts)
    embeddings = embeddings.unflatten(0, (len(class_names), len(templates)))  # (classes, templates, E)
    return F.normalize(embeddings.mean(dim=1), dim=-1)  # (classes, E)


def exact_pair(images: Tensor, others: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Round unit embeddings (N, E) of images and (M, E) of texts or classes so that float64 products are exact.

    Raises ValueError for embeddings that are empty, not two-dimensional, of unequal width, not finite or not of unit
    length.
    """
    pair = round_to_grid(images, "image"), round_to_grid(others, name)  # (N, E), (M, E)
    if images.shape[1] != others.shape[1]:
        raise ValueError(
            f"image embeddings have width {images.shape[1]}, {name} embeddings {others.shape[1]}"
        )
    return pair


def round_to_grid(embeddings: Tensor, name: str) -> Tensor:
    """Round unit embeddings to multiples of 2^-24 in float64; see `exact_pair`."""
    if embeddings.ndim != 2 or embeddings.numel() == 0:
        raise ValueError(f"{name} embeddings must be (rows, width), not empty: got {tuple(embeddings.shape)}")
    embeddings = embeddings.detach().double()
    bad = (~embeddings.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"{name} embeddings: row {bad[0]} and {len(bad) - 1} more of {len(embeddings)} are not finite: "
            "check the weights for NaN or infinity"
        )
    lengths = embeddings.norm(dim=1)  # (rows,)
    row = int((lengths - 1).abs().argmax())
    if abs(lengths[row] - 1) > 0.02:  # bfloat16 rounds a length by up to 0.004
        raise ValueError(f"{name} embeddings: row {row} has length {lengths[row]:.4g}, not 1: normalise it")
    return (embeddings * GRID).round() / GRID
