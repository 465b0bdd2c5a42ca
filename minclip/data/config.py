"""What the config of every data format offers to a training run."""

from abc import abstractmethod
from collections.abc import Sequence
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
    """Images with captions, from one format of files or from code."""

    @abstractmethod
    def read(self) -> dict[str, Sequence[Record]]:
        """Find the records of each split: {"train", "dev"} at least. Raises ValueError for missing or damaged files."""

    def classes(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(class names, templates) if the records' groups are classes, positions in the names; else ((), templates)."""
        return (), TEMPLATES

    def batches(self, dataset: Dataset, train: TrainConfig) -> Batches:
        """The order in which a dataset of the training records is drawn."""
        sizes = train.batch_size, train.seed, train.workers, train.neighbours
        return Batches(dataset, *sizes, rank(), world_size())

    def questions(self) -> dict[str, list[Question]]:
        """Choices between sentences about the images of dev, by name; none for most data."""
        return {}
