"""Records -> training pairs: one caption and one view of each image, a function of (seed, epoch, index)."""

import random
import warnings
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    """Decode every picture once; ValueError where one is damaged: what a run is judged on is never replaced."""
    for _ in tqdm(in_threads(_decoded, records), "decoding dev", len(records), unit="image", leave=False):
        pass


def _decoded(record: Record) -> None:
    record.open()


def in_threads(function: Callable, items: Iterable, workers: int = 2) -> Iterator:
    """Yield function(item) for each item in order; threads compute the next few ahead, never all of them.

    Threads, not processes: Pillow decodes and resizes outside of Python's lock, and nothing is copied.
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
    """Pairs of one image and one of its captions; the key is (epoch, index).

    A view is drawn from the image as `transform.shrink` reduces it. `fill_cache` keeps such images in memory, up to
    `cache_bytes` of them: the same key gives the same view, kept or not.

    An image that cannot be decoded is replaced by the next one that can, never by zeros, and is listed in
    `corrupt`. Loader workers mark what they find in memory shared with the process that made the dataset, so
    the list is complete there too. Past a share `max_corrupt` of the records a ValueError stops the run.
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
        # The first images, one after the other. One tensor: torch shares it with loader workers, however they start.
        self.pixels = torch.empty(0, dtype=torch.uint8)
        self.places = torch.empty(0, 3, dtype=torch.int64)  # of each: start in `pixels`, height, width
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
        captions = [item["caption"] for item in items]
        tokens, token_mask, _ = encode_batch(self.tokenizer, captions, self.context_length)
        images = torch.stack([item["image"] for item in items])  # (B, C, h, w)
        groups = torch.tensor([item["group"] for item in items])  # (B,)
        return {"images": images, "tokens": tokens, "token_mask": token_mask, "groups": groups}

    def decodable(self, index: int) -> tuple[Record, Image.Image]:
        """The record at `index`, or the next one after it (round and round) whose image can be decoded; the image,
        shrunk.
        """
        while True:  # ends: each round marks a record, and marking too many raises
            if not self.damaged[index]:
                record = self.records[index]  # outside: what cannot be looked up is no damaged image
                if index < len(self.places):
                    return record, self.kept(index)
                try:
                    return record, self.transform.shrink(record.open())
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

    def fill_cache(self, workers: int, progress: bool) -> None:
        """Decode images in their order and keep them, shrunk, until `cache_bytes` are full.

        Warns where that is before the last one. No image is decoded in vain: the first epoch does not decode what is
        kept. Call it before a loader starts its workers, which then share the images.
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

    def kept(self, index: int) -> Image.Image:
        """The image at `index`, from memory."""
        start, height, width = self.places[index].tolist()
        return Image.frombytes(
            "RGB", (width, height), self.pixels[start : start + 3 * height * width].numpy()
        )

    def shrunk(self, index: int) -> Image.Image | ValueError:
        """The image at `index` as it is kept in memory, or why it cannot be decoded."""
        record = self.records[index]
        try:
            return self.transform.shrink(record.open())
        except ValueError as error:
            return error
