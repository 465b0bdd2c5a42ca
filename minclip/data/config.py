"""Base class of the data configs."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch.utils.data import Dataset

from minclip.data.records import Question, Record
from minlm.training.batches import Batches
from minlm.training.bounds import Bounded
from minlm.training.distributed import rank, world_size
from minlm.training.state import TrainConfig

TEMPLATES = ("a photo of a {}",)


@dataclass(frozen=True, kw_only=True)
class DataConfig(Bounded):
    """Images with captions, read from files of one format or generated."""

    @abstractmethod
    def read(self) -> Mapping[str, Sequence[Record]]:
        """Read the records of each split: "train" and "dev" at least. ValueError for missing or damaged files."""

    def classes(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return (class names, templates); the names are empty unless a record's group is its class."""
        return (), TEMPLATES

    def batches(self, dataset: Dataset, train: TrainConfig) -> Batches:
        """Return the batches of a dataset of the training records."""
        sizes = train.batch_size, train.seed, train.workers, train.neighbours
        return Batches(dataset, *sizes, rank(), world_size())

    def questions(self) -> dict[str, list[Question]]:
        """Return multiple-choice questions about the images of dev, by name; none for most data."""
        return {}
