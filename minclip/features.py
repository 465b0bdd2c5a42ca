"""Frozen towers run once: training pairs that hold their features in place of pictures or captions.

What a frozen tower makes of an item never changes, so it is computed before the first step, in full precision;
an epoch then runs the heads alone and takes seconds. B batch, D width of the features.
"""

import random
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from minclip.clip import CLIP
from minclip.data.dataset import PairDataset
from minclip.data.records import Record
from minclip.data.shards import ShardRecords
from minclip.data.tokenizer import encode_batch


def with_features(pairs: PairDataset, model: CLIP, batch_size: int = 64) -> "PairDataset | FeatureDataset":
    """The same pairs, with features for what a frozen tower would see; `pairs` itself where none can be kept.

    Captions: where the text tower is frozen. Pictures: where the image tower is frozen and the transform draws
    nothing, for a frozen tower sees other pictures in each epoch where they are cropped at random. Not those of
    shards, which are streamed: the features of all their images may be more than memory holds. Features take part of
    `pairs.cache_bytes`; those that do not fit are not kept, with a warning. The model must hold the weights it will be
    trained with. ValueError as from `pairs` for damaged images.
    """
    view = pairs.transform
    drawn, streamed = view.crops or view.flips or view.color_jitters, isinstance(pairs.records, ShardRecords)
    keep_images = model.image_tower.frozen and not drawn and not streamed
    records, image_features, texts = pairs.records, None, None
    if keep_images and fits(pairs, len(pairs), model.image_tower.width, "training images"):
        records, image_features = features_of_images(pairs, model, batch_size)
    if model.text_tower.frozen:
        texts = features_of_texts(pairs, model, batch_size)
    if image_features is None and texts is None:
        return pairs
    return FeatureDataset(pairs, records, image_features, texts)


def fits(pairs: PairDataset, count: int, width: int, what: str) -> bool:
    """True, and that much less of `pairs.cache_bytes` is left, where features (count, width) fit; else warn."""
    size = 4 * count * width
    if size <= pairs.cache_bytes:
        pairs.cache_bytes -= size
        return True
    warnings.warn(
        f"features of {count:,} {what} need at least {size / 2**30:.3g} GiB, {pairs.cache_bytes / 2**30:.3g} are left "
        "of cache_gib: the frozen tower runs in every step; raise cache_gib to run it once",
        stacklevel=3,
    )
    return False


@torch.no_grad()
def features_of_images(pairs: PairDataset, model: CLIP, batch_size: int) -> tuple[list[Record], Tensor]:
    """Each index's record, another one's for a damaged image, and the features (N, D) of its picture."""
    device = model.logit_scale.device
    records, features = [], []
    with ThreadPoolExecutor() as pool:  # Pillow decodes and resizes outside of Python's lock
        for some in in_batches(range(len(pairs)), batch_size, "features of images"):
            found, decoded = zip(*pool.map(pairs.decodable, some), strict=True)
            images = torch.stack([pairs.transform(image) for image in decoded])  # (B, C, h, w)
            features.append(model.image_tower(images.to(device)).float().cpu())
            records += found
    return records, torch.cat(features)  # (N, D)


@torch.no_grad()
def features_of_texts(
    pairs: PairDataset, model: CLIP, batch_size: int
) -> tuple[dict[str, int], Tensor] | None:
    """Each caption's row and the features (M, D), or None where they do not fit.

    Captions of about equal length go through the tower together.
    """
    device, width, captions = model.logit_scale.device, model.text_tower.width, set()
    for record in pairs.records:
        captions.update(record.captions)
        if 4 * width * len(captions) > pairs.cache_bytes:  # soon known of sets that are larger than memory
            break
    if not fits(pairs, len(captions), width, "captions"):
        return None
    ordered = sorted(captions, key=lambda caption: (len(caption), caption))
    features, start = torch.empty(len(ordered), width), 0
    for some in in_batches(ordered, batch_size, "features of texts"):
        tokens, token_mask, _ = encode_batch(pairs.tokenizer, some, pairs.context_length)
        features[start : start + len(some)] = model.text_tower(
            tokens.to(device), token_mask.to(device)
        )  # (B, D)
        start += len(some)
    return {caption: row for row, caption in enumerate(ordered)}, features


def in_batches(items: Sequence, batch_size: int, name: str) -> tqdm:
    batches = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    return tqdm(batches, name, unit="batch", leave=False, disable=None)


class FeatureDataset(Dataset):
    """The pairs of a PairDataset at the same keys (epoch, index), made by `with_features`.

    A batch has "image_features" (B, D) in place of "images" where those are kept, and "text_features" (B, D) of
    the captions drawn in place of "tokens" and "token_mask" where those are.
    """

    def __init__(
        self,
        pairs: PairDataset,
        records: list[Record],
        image_features: Tensor | None,
        texts: tuple[dict[str, int], Tensor] | None,
    ):
        self.pairs, self.records = pairs, records
        self.image_features, self.texts = image_features, texts

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def corrupt(self) -> list[tuple[str, str]]:
        return self.pairs.corrupt

    def __getitem__(self, key: tuple[int, int]) -> dict:
        """(epoch, index) -> {"image": (C, h, w) or its features (D,), "caption": str, "group": int}."""
        if self.image_features is None:
            return self.pairs[key]
        epoch, index = key
        rng, record = random.Random(f"{self.pairs.seed}/{epoch}/{index}"), self.records[index]
        caption = rng.choice(record.captions)
        return {"image": self.image_features[index], "caption": caption, "group": record.group}

    def collate(self, items: list[dict]) -> dict[str, Tensor]:
        """Items -> a batch for minclip/clip.py's `embed_batch`, with groups (B,)."""
        side = "images" if self.image_features is None else "image_features"
        batch = {"groups": torch.tensor([item["group"] for item in items])}
        batch[side] = torch.stack([item["image"] for item in items])  # (B, C, h, w) or (B, D)
        captions = [item["caption"] for item in items]
        if self.texts is not None:
            row_of, features = self.texts
            return batch | {"text_features": features[[row_of[text] for text in captions]]}  # (B, D)
        tokens, token_mask, _ = encode_batch(self.pairs.tokenizer, captions, self.pairs.context_length)
        return batch | {"tokens": tokens, "token_mask": token_mask}
