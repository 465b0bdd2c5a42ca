"""Training pairs: one caption and one view of each image, a function of (seed, epoch, index)."""

import random
import warnings
from array import array
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from minclip.data.records import Record
from minclip.data.tokenizer import Tokenizer, encode_batch
from minclip.data.transforms import ImageTransform


def check_images(records: Sequence[Record]) -> None:
    """Decode every image once; ValueError if one is damaged, since evaluation never replaces an image."""
    for _ in tqdm(in_threads(_decode, records), "decoding dev", len(records), unit="image", leave=False):
        pass


def _decode(record: Record) -> None:
    record.open()


def in_threads(function: Callable, items: Iterable, workers: int = 2) -> Generator:
    """Yield function(item) for each item in order, while threads compute the next few.

    Threads suffice: Pillow decodes and resizes without holding Python's lock.
    """
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque = deque()
        try:
            for item in items:
                ahead.append(pool.submit(function, item))
                if len(ahead) > 4 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


class PairDataset(Dataset):
    """Pairs of an image and one of its captions, indexed by (epoch, index).

    Views are drawn from images as `transform.shrink` reduces them. `fill_cache` keeps the first of these in memory,
    up to `cache_bytes`; a key gives the same view with and without it.

    A damaged image is replaced by the next good one and listed in `corrupt`, also if a loader's worker finds it.
    If more than a share `max_corrupt` of the images is damaged, a ValueError stops the run.
    """

    image_features: Tensor | None = None  # a FeatureDataset may have them

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
        # Cached images in one tensor, which torch shares with loader workers however they are started.
        self.pixels = torch.empty(0, dtype=torch.uint8)
        self.places = torch.empty(0, 3, dtype=torch.int64)  # per image: start in `pixels`, height, width
        self.damaged = torch.zeros(len(self.records), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        """(epoch, index) -> {"image": (C, h, w) float32, "caption": str, "group": int}."""
        epoch, index = key
        rng = random.Random(f"{self.seed}/{epoch}/{index}")
        record, image = self.decodable(index)
        caption = rng.choice(record.captions)
        return {"image": self.transform(image, rng), "caption": caption, "group": record.group}

    def collate(self, items: list[dict]) -> dict[str, Tensor]:
        """Items -> images (B, C, h, w), tokens and token_mask (B, T), groups (B,)."""
        tokens, token_mask, _ = encode_batch(
            self.tokenizer, [item["caption"] for item in items], self.context_length
        )
        images = torch.stack([item["image"] for item in items])  # (B, C, h, w)
        groups = torch.tensor([item["group"] for item in items])  # (B,)
        return {"images": images, "tokens": tokens, "token_mask": token_mask, "groups": groups}

    def decodable(self, index: int) -> tuple[Record, Image.Image]:
        """Return the next record, from `index` on and wrapping around, that can be decoded, and its shrunk image."""
        while True:  # ends: `mark` raises when too many images are damaged
            if not self.damaged[index]:
                image = self.shrunk(index)
                if isinstance(image, Image.Image):
                    return self.records[index], image
                self.mark(index, image)
            index = (index + 1) % len(self)

    def shrunk(self, index: int) -> Image.Image | ValueError:
        """Return the shrunk image at `index`, cached or decoded now, or the error if it is damaged."""
        if index < len(self.places):
            start, height, width = self.places[index].tolist()
            pixels = self.pixels[start : start + 3 * height * width]
            return Image.frombytes("RGB", (width, height), pixels.numpy())
        record = self.records[index]  # outside of try: a record that cannot be read is not a damaged image
        try:
            return self.transform.shrink(record.open())
        except ValueError as error:
            return error

    def mark(self, index: int, error: ValueError) -> None:
        """Note a damaged image; ValueError if all are damaged, or a larger share than `max_corrupt`."""
        self.damaged[index] = True
        count, total = int(self.damaged.sum()), len(self)
        if count > self.max_corrupt * total or count == total:
            raise ValueError(
                f"{count} of the {total} images cannot be decoded, at most {self.max_corrupt:.0%} may be: "
                f"repair or remove them. The last one: {error}"
            ) from error

    @property
    def corrupt(self) -> list[tuple[str, str]]:
        """List (image_id, message) of every damaged image found so far, here or in a loader's workers."""
        found = []
        for index in self.damaged.nonzero().flatten().tolist():
            try:
                self.records[index].open()
                message = "was unreadable once and is readable now: is the disk or network reliable?"
            except ValueError as error:
                message = str(error)
            found.append((self.records[index].image_id, message))
        return found

    def fill_cache(self, workers: int, progress: bool) -> None:
        """Decode images in order and keep them, shrunk, until `cache_bytes` are full; warn if some do not fit.

        Call it before a loader starts its workers, which then share the images.
        """
        if not self.cache_bytes:
            return
        pixels, places = bytearray(), array("q")
        images = in_threads(self.shrunk, range(len(self)), max(workers, 1))
        bar = tqdm(images, "decoding images", len(self), unit="image", disable=not progress, leave=False)
        for index, image in enumerate(bar):
            if isinstance(image, ValueError):
                self.mark(index, image)
                places.extend((len(pixels), 0, 0))
                continue
            if len(pixels) + 3 * image.width * image.height > self.cache_bytes:
                warnings.warn(
                    f"{index:,} of {len(self):,} training images fit into {self.cache_bytes / 2**30:.3g} GiB, "
                    "the others are decoded each time they are drawn: raise cache_gib to keep more",
                    stacklevel=2,
                )
                break
            places.extend((len(pixels), image.height, image.width))
            pixels += image.tobytes()
        images.close()
        if pixels:
            self.pixels = torch.frombuffer(pixels, dtype=torch.uint8)
            self.places = torch.tensor(places).view(-1, 3)
