"""Records -> training pairs: one caption and one view of each image, a function of (seed, epoch, index)."""

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from minclip.data.records import Record
from minclip.tokenizer import Tokenizer, encode_batch
from minclip.transforms import ImageTransform


def check_pictures(records: Sequence[Record]) -> None:
    """Decode every picture once; ValueError where one is damaged: what a run is judged on is never replaced."""
    with ThreadPoolExecutor(2) as pool:
        for _ in tqdm(pool.map(_decoded, records), "decoding dev", len(records), unit="image", leave=False):
            pass


def _decoded(record: Record) -> None:
    record.open()


class PairDataset(Dataset):
    """Pairs of one image and one of its captions; the key is (epoch, index).

    An image that cannot be decoded is replaced by the next one that can, never by zeros, and is listed in
    `corrupt`. Loader workers mark what they find in memory shared with the process that made the dataset, so
    the list is complete there too. Past a share `max_corrupt` of the records a ValueError stops the run.
    """

    def __init__(
        self,
        records: Sequence[Record],
        transform: ImageTransform,
        tokenizer: Tokenizer,
        context_length: int,
        seed: int,
        cache_bytes: int = 0,
        max_corrupt: float = 0.05,
    ):
        if not records:
            raise ValueError(
                "a dataset needs at least one record, got 0: check the split's name and the data"
            )
        self.records, self.transform, self.tokenizer = records, transform, tokenizer
        self.context_length, self.seed = context_length, seed
        self.cache_bytes, self.max_corrupt = cache_bytes, max_corrupt
        self.cache: list[np.ndarray | None] = []  # (h, w, C) uint8 a record, or empty
        self.damaged = torch.zeros(len(self.records), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        """(epoch, index) -> {"image": (C, h, w) float32, "caption": str, "group": int}."""
        epoch, index = key
        rng = random.Random(f"{self.seed}/{epoch}/{index}")
        record, picture = self.decodable(index)
        caption = rng.choice(record.captions)
        return {"image": self.transform(picture, rng), "caption": caption, "group": record.group}

    def collate(self, items: list[dict]) -> dict[str, Tensor]:
        """Items -> images (B, C, h, w), tokens and token_mask (B, T), groups (B,)."""
        captions = [item["caption"] for item in items]
        tokens, token_mask, _ = encode_batch(self.tokenizer, captions, self.context_length)
        images = torch.stack([item["image"] for item in items])  # (B, C, h, w)
        groups = torch.tensor([item["group"] for item in items])  # (B,)
        return {"images": images, "tokens": tokens, "token_mask": token_mask, "groups": groups}

    def decodable(self, index: int) -> tuple[Record, Image.Image]:
        """The record at `index`, or the next one after it (round and round) whose image can be decoded."""
        while True:  # ends: each round marks a record, and marking too many raises
            if not self.damaged[index]:
                record = self.records[index]  # outside: what cannot be looked up is no damaged image
                try:
                    return record, Image.fromarray(self.cache[index]) if self.cache else record.open()
                except ValueError as error:
                    self.mark(index, error)
            index = (index + 1) % len(self.records)

    def mark(self, index: int, error: ValueError) -> None:
        """Note a damaged image; ValueError when all are, or a larger share than `max_corrupt`."""
        self.damaged[index] = True
        count, total = int(self.damaged.sum()), len(self.records)
        if count > self.max_corrupt * total or count == total:
            raise ValueError(
                f"{count} of the {total} images cannot be decoded, at most {self.max_corrupt:.0%} may be: "
                f"repair or remove them. The last one: {error}"
            ) from error

    @property
    def corrupt(self) -> list[tuple[str, str]]:
        """(image_id, message) of every damaged image found so far, here or in a loader's workers."""
        found = []
        for index in self.damaged.nonzero().flatten().tolist():
            try:
                self.records[index].open()
                message = "was unreadable once and is readable now: is the disk or network reliable?"
            except ValueError as error:
                message = str(error)
            found.append((self.records[index].image_id, message))
        return found

    def fill_cache(self, workers: int, progress: bool) -> bool:
        """Decode every image once and keep it, shrunk, as uint8; False, keeping none, past `cache_bytes`.

        Threads, not processes: Pillow decodes and resizes outside of Python's lock, and nothing is copied.
        Call it before a loader starts its workers, which then share the pictures.
        """
        cache, size = [], 0
        pool = ThreadPoolExecutor(max(workers, 1))
        try:
            pictures = pool.map(self.shrunk, range(len(self)))
            bar = tqdm(
                pictures, "decoding images", len(self), unit="image", disable=not progress, leave=False
            )
            for index, picture in enumerate(bar):
                if isinstance(picture, ValueError):
                    self.mark(index, picture)
                    cache.append(None)
                    continue
                cache.append(picture)
                size += picture.nbytes
                if size > self.cache_bytes:
                    return False
        finally:
            pool.shutdown(cancel_futures=True)
        self.cache = cache
        return True

    def shrunk(self, index: int) -> np.ndarray | ValueError:
        """(h, w, C) uint8 of one image as the cache keeps it, or why it cannot be decoded."""
        record = self.records[index]
        try:
            return np.asarray(self.transform.shrink(record.open()))
        except ValueError as error:
            return error
