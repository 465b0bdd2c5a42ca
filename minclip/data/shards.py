"""Sets of tar shards too large for an index in memory: only each shard's number of samples is kept.

A shard is read when one of its samples is needed. `ShardBatches` reads one shard after the other, in a new order
each epoch, and shuffles samples within a buffer.
"""

import bisect
import itertools
import json
import random
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, overload

from torch.utils.data import Dataset
from tqdm import tqdm

from minclip.data.config import TEMPLATES, DataConfig
from minclip.data.records import Record, class_captions, warn_of_missing
from minclip.data.sources import SPLITS, distinct_names, given_path
from minclip.data.tarfiles import CLASSES, SIZES, check_end, read_shard
from minlm.training.batches import Batches
from minlm.training.bounds import at_least
from minlm.training.distributed import from_first_process, rank, world_size
from minlm.training.files import read_json, read_text, replace_text
from minlm.training.state import TrainConfig

TEMPLATE_FILE = "zeroshot_classification_templates.txt"


@dataclass(frozen=True, kw_only=True)
class ShardsConfig(DataConfig):
    """Images and captions in tar shards; captions are from .txt (one per line), else .json, else the class in .cls.

    Samples of one class (.cls) are one group, and so never each other's negatives; others are their own group.

    path: shard-{000000..000099}.tar, or a folder of .tar files, or a folder with such folders train, dev, test
    dev_shards: number of last shards held out for `dev` if there are no such folders
    templates: captions made of the class, {} for its name; empty: the folder's own, or a photo of a {}
    buffer: number of consecutive samples, from shards in random order, that training shuffles together
    """

    path: str = "data/shards"
    dev_shards: Annotated[int, at_least(0)] = 1
    templates: tuple[str, ...] = ()
    buffer: Annotated[int, at_least(1)] = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        class_captions("class", self.templates or TEMPLATES)  # ValueError if one has no {}

    def read(self) -> dict[str, "ShardRecords"]:
        """Return the records of each split; shards are read when their records are needed.

        Their number is read from sizes.json beside the shards ({"00000.tar": 1000}). The first process counts
        shards that are not listed and adds them to the file, with a warning. Samples without image or caption are
        left out, with a warning. Raises ValueError if shards are missing or damaged, or classes and classnames.txt
        do not match.
        """
        found = self.find()
        captions = [class_captions(name, self.class_templates()) for name in self.class_names()]
        every = list(itertools.chain(*found.values()))
        sizes = from_first_process(partial(count_samples, every, captions))
        splits = {
            split: ShardRecords(shards, [sizes[shard] for shard in shards], captions, 2 * self.buffer)
            for split, shards in found.items()
        }
        for split, records in splits.items():
            if not len(records):
                raise ValueError(
                    f"no sample of split {split} at {self.path!r} has an image and a caption: fetch it again"
                )
            if captions:  # find samples without class now, even if sizes.json spares the count
                records.shard(0)
        return splits

    def find(self) -> dict[str, list[Path]]:
        """Find the shards of each split; ValueError if one is missing or incomplete."""
        path = given_path(self.path, "folder of tar shards", "--data.path PATH")
        folders = {split: [path / word for word in words] for split, words in SPLITS.items()}
        found = {split: [s for folder in folders[split] for s in in_order(folder)] for split in folders}
        splits = {split: shards for split, shards in found.items() if shards}
        if not splits:
            shards = in_order(path) if path.is_dir() else [Path(name) for name in expand(self.path)]
            if len(shards) <= self.dev_shards:
                raise ValueError(
                    f"{len(shards)} shards at {self.path!r}, dev_shards={self.dev_shards} of them held out: "
                    "none is left to train on"
                )
            end = len(shards) - self.dev_shards
            splits = {"train": shards[:end]} | ({"dev": shards[end:]} if self.dev_shards else {})
        for shard in itertools.chain(*splits.values()):
            check_end(shard)
        return splits

    def classes(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return self.class_names(), self.class_templates()

    def batches(self, dataset: Dataset, train: TrainConfig) -> "ShardBatches":
        sizes = train.batch_size, train.seed, self.buffer, train.workers
        return ShardBatches(dataset, *sizes, rank(), world_size())

    def class_names(self) -> tuple[str, ...]:
        """Read the class names from classnames.txt, () without it; a record's group is a position in them."""
        return distinct_names(self.lines(CLASSES), self.beside(CLASSES))

    def class_templates(self) -> tuple[str, ...]:
        """Return the templates of the config, else those in the folder, with {c} for {}, else TEMPLATES."""
        own = tuple(line.replace("{c}", "{}") for line in self.lines(TEMPLATE_FILE))
        return self.templates or own or TEMPLATES

    def lines(self, name: str) -> tuple[str, ...]:
        path = self.beside(name)
        return tuple(read_text(path).splitlines()) if path.is_file() else ()

    def beside(self, name: str) -> Path:
        """Return the path of a file in the folder of the shards."""
        return Path(self.path, name) if Path(self.path).is_dir() else Path(self.path).with_name(name)


def in_order(folder: Path) -> list[Path]:
    """List the folder's .tar files by number, with or without leading zeros: 2.tar before 10.tar."""
    return sorted(folder.glob("*.tar"), key=lambda path: (len(path.name), path.name))


def expand(pattern: str) -> list[str]:
    """Expand brace ranges as a shell does: "a-{08..10}.tar" -> a-08.tar, a-09.tar, a-10.tar."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not found:
        return [pattern]
    first, last = found.groups()
    numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    return [name for n in numbers for name in expand(pattern[: found.start()] + n + pattern[found.end() :])]


def count_samples(shards: Sequence[Path], captions_of_class: Sequence[tuple[str, ...]]) -> dict[Path, int]:
    """Return each shard's number of records, from sizes.json; shards not listed there are counted and added."""
    sizes, counted, left_out = {}, {}, []
    for folder in {shard.parent for shard in shards}:
        sizes |= {folder / name: size for name, size in read_sizes(folder / SIZES).items()}
    unknown = [shard for shard in shards if shard not in sizes]
    for shard in tqdm(unknown, "counting samples", unit="shard", leave=False, disable=not unknown):
        records, incomplete = read_shard(shard, captions_of_class)
        counted[shard] = len(records)
        left_out += incomplete
    warn_of_missing(left_out, "samples", "without image or caption")
    sizes |= counted
    for folder in {shard.parent for shard in unknown}:
        keep_sizes(folder, sizes, [size for shard, size in counted.items() if shard.parent == folder])
    return sizes


def keep_sizes(folder: Path, sizes: Mapping[Path, int], counted: Sequence[int]) -> None:
    """Write the folder's sizes.json; warn that it was written, or why it cannot be."""
    message, path = f"counted {sum(counted)} samples in {len(counted)} shards", folder / SIZES
    try:
        replace_text(
            path, json.dumps({shard.name: n for shard, n in sizes.items() if shard.parent == folder})
        )
        warnings.warn(f"{message}, kept in {str(path)!r}: remove it when the shards change", stacklevel=5)
    except OSError as error:
        warnings.warn(f"{message}, not kept: {error}", stacklevel=5)


def read_sizes(path: Path) -> dict[str, int]:
    """Read {shard: number of samples} from a sizes.json; {} if there is none. ValueError for other content."""
    sizes = read_json(path, "fetch it again") if path.is_file() else {}
    if not isinstance(sizes, dict) or not all(type(size) is int and size >= 0 for size in sizes.values()):
        raise ValueError(f"{str(path)!r} is not a table of shards and numbers of samples: remove it")
    return sizes


class ShardRecords(Sequence[Record]):
    """Sequence of the records of several shards; a shard is read when one of its records is needed.

    held: number of records, of the shards read last, that stay in memory; two whole shards more may.
    """

    def __init__(
        self,
        shards: Sequence[Path],
        sizes: Sequence[int],
        captions_of_class: Sequence[tuple[str, ...]],
        held: int,
    ):
        self.shards, self.sizes, self.captions_of_class = list(shards), list(sizes), captions_of_class
        self.starts = [0, *itertools.accumulate(sizes)]
        self.limit = held + 2 * max(sizes, default=0)
        self.held: dict[int, list[Record]] = {}

    def __len__(self) -> int:
        return self.starts[-1]

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        number = bisect.bisect_right(self.starts, index) - 1
        return self.shard(number)[index - self.starts[number]]

    def shard(self, number: int) -> list[Record]:
        """Return the records of one shard; ValueError if their number is not that of sizes.json."""
        records = self.held.get(number)
        if records is None:
            path = self.shards[number]
            records, _ = read_shard(path, self.captions_of_class, self.starts[number])
            if len(records) != self.sizes[number]:
                raise ValueError(
                    f"shard {str(path)!r} gives {len(records)} records, {SIZES} or the first count says "
                    f"{self.sizes[number]}: remove {SIZES}, and start again"
                )
            self.held[number] = records
            while sum(self.sizes[n] for n in list(self.held)) > self.limit:
                self.held.pop(next(iter(list(self.held))), None)
        return records


class ShardBatches(Batches):
    """Batches that read shard after shard, for a dataset of ShardRecords.

    Each process, and each of its workers, reads one stretch of the epoch's order, and so has shards of its own,
    except at the ends. Together the processes see every sample once per epoch, except the last ones that do not
    fill a batch. The batch is a function of (seed, step, rank, world_size, workers).

    batch_size: items per step, over all processes. buffer: see `shard_order`.
    """

    dataset: Any  # a PairDataset or a FeatureDataset

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        buffer: int = 10_000,
        workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        super().__init__(dataset, batch_size, seed, workers, rank=rank, world_size=world_size)
        self.buffer = buffer
        self._shuffled: tuple[int, list[int]] = (-1, [])  # epoch and its order

    def _start(self, place: int) -> int:
        """Return where this process's share of batch `place` begins in the epoch's order.

        The shares of a process are consecutive, and within them those of each of its workers.
        """
        workers = max(1, self.workers)
        turn, worker = divmod(place, workers)  # a DataLoader asks its workers in turn
        least, more = divmod(self.steps_per_epoch, workers)  # the first `more` workers draw one batch more
        before = worker * least + min(worker, more)  # batches of the workers before this one
        return self.rank * (len(self.dataset) // self.world_size) + (before + turn) * self.share

    def _order(self, epoch: int) -> list[int]:
        if self._shuffled[0] != epoch:
            self._shuffled = (epoch, shard_order(self.dataset.records.sizes, self.seed, epoch, self.buffer))
        return self._shuffled[1]


def shard_order(sizes: Sequence[int], seed: int, epoch: int, buffer: int) -> list[int]:
    """Return a permutation of the samples that visits shards in random order.

    The samples of the ordered shards are cut into pieces of `buffer`, and each piece is shuffled. Samples read
    together are close together, and each epoch combines other shards.
    """
    rng = random.Random(f"{seed}/{epoch}/shards")
    starts = [0, *itertools.accumulate(sizes)]
    shards = list(range(len(sizes)))
    rng.shuffle(shards)
    row = [index for shard in shards for index in range(starts[shard], starts[shard + 1])]
    for start in range(0, len(row), buffer):
        piece = row[start : start + buffer]
        rng.shuffle(piece)
        row[start : start + buffer] = piece
    return row
