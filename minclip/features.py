"""Training pairs with precomputed features of frozen towers in place of images or captions.

The output of a frozen tower never changes, so it is computed once before the first step, in full precision. An epoch
then runs only the heads. B batch, D width of the features.
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
    """Replace the inputs of frozen towers by precomputed features; return `pairs` itself if there are none.

    Captions: if the text tower is frozen. Images: if the image tower is frozen, the transform is not random, and the
    images are not streamed from shards, which may be more than memory holds. Features take part of
    `pairs.cache_bytes`; with a warning, those that do not fit are not computed. The model must hold its initial
    weights. Raises ValueError as `pairs` for damaged images.
    """
    transform = pairs.transform
    random_views = transform.crops or transform.flips or transform.color_jitters
    keep_images = (
        model.image_tower.frozen and not random_views and not isinstance(pairs.records, ShardRecords)
    )
    records, image_features, texts = pairs.records, None, None
    if keep_images and fits(pairs, len(pairs), model.image_tower.width, "training images"):
        records, image_features = features_of_images(pairs, model, batch_size)
    if model.text_tower.frozen:
        texts = features_of_texts(pairs, model, batch_size)
    if image_features is None and texts is None:
        return pairs
    return FeatureDataset(pairs, records, image_features, texts)


def fits(pairs: PairDataset, count: int, width: int, what: str) -> bool:
    """Reserve memory for features (count, width) in `pairs.cache_bytes`; if they do not fit, warn and return False."""
    size = 4 * count * width
    if size <= pairs.cache_bytes:
        pairs.cache_bytes -= size
        return True
    warnings.warn(
        f"features of {count:,} {what} need at least {size / 2**30:.3g} GiB, {pairs.cache_bytes / 2**30:.3g} are left "
        "of cache_gib: raise cache_gib to run the frozen tower once instead of in every step",
        stacklevel=3,
    )
    return False


@torch.no_grad()
def features_of_images(pairs: PairDataset, model: CLIP, batch_size: int) -> tuple[list[Record], Tensor]:
    """Compute the record of each index, a replacement if its image is damaged, and the image features (N, D)."""
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
    """Compute {caption: row} and the text features (M, D), or return None if they do not fit.

    Captions are sorted by length, so that a batch has little padding.
    """
    device, width, captions = model.logit_scale.device, model.text_tower.width, set()
    for record in pairs.records:
        captions.update(record.captions)
        if 4 * width * len(captions) > pairs.cache_bytes:  # stop early for sets larger than memory
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
    """Split the items into batches under a progress bar."""
    batches = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    return tqdm(batches, name, unit="batch", leave=False, disable=None)


class FeatureDataset(Dataset):
    """A PairDataset with precomputed features, made by `with_features`; keys (epoch, index) give the same pairs.

    A batch has "image_features" (B, D) in place of "images", or "text_features" (B, D) in place of "tokens" and
    "token_mask", or both.
    """

    def __init__(
        self,
        pairs: PairDataset,
        records: Sequence[Record],
        image_features: Tensor | None,
        texts: tuple[dict[str, int], Tensor] | None,
    ):
        self.pairs, self.records = pairs, records
        self.image_features, self.texts = image_features, texts

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def corrupt(self) -> list[tuple[str, str]]:
        """Name and reason of each image that was replaced so far."""
        return self.pairs.corrupt

    def __getitem__(self, key: tuple[int, int]) -> dict:
        """Return {"image": (C, h, w) or features (D,), "caption": str, "group": int} for a key (epoch, index)."""
        if self.image_features is None:
            return self.pairs[key]
        epoch, index = key
        rng, record = random.Random(f"{self.pairs.seed}/{epoch}/{index}"), self.records[index]
        caption = rng.choice(record.captions)
        return {"image": self.image_features[index], "caption": caption, "group": record.group}

    def collate(self, items: list[dict]) -> dict[str, Tensor]:
        """Stack items into a batch for minclip/clip.py's `embed_batch`, with groups (B,)."""
        side = "images" if self.image_features is None else "image_features"
        batch = {"groups": torch.tensor([item["group"] for item in items])}
        batch[side] = torch.stack([item["image"] for item in items])  # (B, C, h, w) or (B, D)
        captions = [item["caption"] for item in items]
        if self.texts is not None:
            row_of, features = self.texts
            return batch | {"text_features": features[[row_of[text] for text in captions]]}  # (B, D)
        tokens, token_mask, _ = encode_batch(self.pairs.tokenizer, captions, self.pairs.context_length)
        return batch | {"tokens": tokens, "token_mask": token_mask}
