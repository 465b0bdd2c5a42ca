"""Weights and JSON files, read and written. Files are recognised by their content; no code in them is ever run.

safetensors; PyTorch's zip and older pickle files through the unpickler that builds tensors only; TorchScript archives
(minlm/pretrained/archive.py); shards with their index.
"""

import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from minlm.pretrained.archive import check_nesting, check_zip, is_torchscript, read_torchscript
from minlm.training.files import read_object

# Names of a folder's weights, Hugging Face's and open_clip's; the first that exists is read.
FILE_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)
ENDINGS = (".safetensors", ".bin", ".pt", ".pth")
WRAPPERS = ("state_dict", "model_state_dict", "model")
MAX_DEPTH = 4  # of wrappers in wrappers
MAX_MESSAGE = 300  # characters of another library's error
MAX_REUSE = 2  # tensors that share memory, as tied heads do, have at most this many times the file's bytes


@dataclass(frozen=True)
class WeightFile:
    """A file's tensors under their plain names, and the folder where its config may be."""

    path: Path
    tensors: dict[str, Tensor]

    @property
    def folder(self) -> Path:
        """The folder of the file."""
        return self.path.parent

    def shape(self, name: str, n_axes: int) -> torch.Size:
        """Return a tensor's shape. Raises ValueError if it is missing or has another number of axes."""
        if name not in self.tensors:
            raise ValueError(f"{self.path} has no {name}: it is incomplete, or of another layout")
        if self.tensors[name].dim() != n_axes:
            raise ValueError(
                f"{self.path}: {name} is {tuple(self.tensors[name].shape)}, not of {n_axes} axes"
            )
        return self.tensors[name].shape

    def read_json(self, name: str) -> dict[str, Any]:
        """Read the JSON object in the file `name` beside the weights; {} if there is none."""
        return read_object(self.folder / name, missing_ok=True)


def read_weights(path: str | Path) -> WeightFile:
    """Read the weights in a file, or in a folder with one such file or one of a known name.

    Wrappers such as {"state_dict": ...} and the prefixes that torch.compile (_orig_mod.) and
    DistributedDataParallel (module.) leave are removed. Raises ValueError in one line for files that are missing,
    damaged, not weights, or would run code.
    """
    path = find_file(Path(path))
    sharded = path.name.endswith(".index.json")
    tensors = read_shards(path) if sharded else unwrap(read_file(path), path)
    return WeightFile(path, plain_names(tensors, path))


def find_file(path: Path) -> Path:
    """Find the weights file of a path. Raises ValueError if there is none, or more than one."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise ValueError(f"no weights at {path}: there is no such file or folder")
    named = [path / name for name in FILE_NAMES if (path / name).is_file()]
    others = sorted(file for file in path.iterdir() if file.suffix in ENDINGS)
    if not named and not others:
        raise ValueError(
            f"no checkpoint at {path}: it has neither a run's step-* folders nor a file of weights, "
            f"such as {FILE_NAMES[0]}"
        )
    if not named and len(others) > 1:
        raise ValueError(f"{path} holds {len(others)} files of weights: name one of them")
    return named[0] if named else others[0]


def read_file(path: Path) -> Any:
    """Read a weights file: for safetensors and TorchScript, a dictionary of tensors."""
    with path.open("rb") as file:
        head = file.read(64)
    try:
        # safetensors: the header's length in eight bytes, of which the first may be anything, then the header
        if head[4:9] == b"\0\0\0\0{":
            return load_file(path)
        if head.startswith(b"PK\x03\x04"):
            check_zip(path)
            return read_torchscript(path) if is_torchscript(path) else read_pickle(path)
        if head.startswith(b"\x80"):
            check_pickles(path)
            return read_pickle(path)
    except Exception as error:  # a damaged or hostile file can raise anything
        raise ValueError(f"{path} cannot be read: {reason(error)}") from None
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a Git LFS pointer of {path.stat().st_size} bytes: fetch the file itself")
    raise ValueError(f"{path} is neither safetensors nor a file of PyTorch: it begins with {head[:12]!r}")


def check_pickles(path: Path) -> None:
    """Check the nesting of the five pickles at the beginning of a file of PyTorch before 1.6."""
    with path.open("rb") as file:
        for _ in range(5):
            if file.peek(1):  # a bare pickle ends after one
                check_nesting(file)


def read_pickle(path: Path) -> Any:
    """Load a pickle with torch.load, which here builds tensors and containers only."""
    # Given a path, torch.load would go by its ending; it warns of protocols that torch.save does not write.
    with path.open("rb") as file, warnings.catch_warnings(action="ignore"):
        return torch.load(file, map_location="cpu", weights_only=True)


def reason(error: Exception) -> str:
    """Say in one line why a weights file cannot be read."""
    asked = re.search(r"GLOBAL ([\w.]+\w)", str(error))
    if asked:  # by torch.load
        return f"it asks to run {asked[1]}, which tensors do not need: refused"
    if "Unsupported operand" in str(error):
        return "it is not a pickle of tensors: refused"
    if isinstance(error, pickle.UnpicklingError) and "Weights only load failed" not in str(error):
        return first_line(error)
    return f"it is cut short or damaged ({type(error).__name__}: {first_line(error)}): fetch it again"


def read_shards(index: Path) -> dict[str, Tensor]:
    """Read the files that an index names. Raises ValueError if one is of another folder or lacks a tensor."""
    places = read_object(index).get("weight_map", {})
    names = list(places.values()) if isinstance(places, dict) else []
    if not names or any(not isinstance(name, str) or Path(name).name != name or not name for name in names):
        raise ValueError(f"{index} has no weight_map from tensors to files of its own folder")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(names)):
        shard = index.parent / name
        if not shard.is_file():
            raise ValueError(f"{index} names {name}, which is not there: fetch all shards")
        tensors |= unwrap(read_file(shard), shard)
    if tensors.keys() != places.keys():
        raise ValueError(f"{index} and its shards differ in {sorted(tensors.keys() ^ places.keys())}")
    return tensors


def unwrap(loaded: Any, path: Path) -> dict[str, Tensor]:
    """Return the state dict inside wrappers. Raises ValueError for several, or for values that are not tensors."""
    for _ in range(MAX_DEPTH):
        if not isinstance(loaded, Mapping):
            raise ValueError(f"{path} holds a {type(loaded).__name__}, not tensors by name")
        inner = [name for name in WRAPPERS if isinstance(loaded.get(name), Mapping)]
        if not inner:
            break
        if len(inner) > 1:
            raise ValueError(f"{path} holds several state dicts ({', '.join(inner)}): save one of them alone")
        loaded = loaded[inner[0]]
    strangers = [
        str(name)
        for name, value in loaded.items()
        if not (isinstance(name, str) and name.isprintable() and is_plain(value))
    ]
    if strangers or not loaded:
        raise ValueError(
            f"{path} is not a state dict: not tensors by name are {strangers or 'all 0 entries'}"
        )
    size, limit = sum(value.numel() * value.itemsize for value in loaded.values()), path.stat().st_size
    if size > MAX_REUSE * limit:
        raise ValueError(f"{path} has {limit} bytes for tensors of {size} in all: refused")
    return dict(loaded)


def is_plain(value: Any) -> bool:
    """Return whether this is a dense tensor in memory: not sparse, quantised, complex or on the meta device."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not (value.is_quantized or value.is_complex())
    )


def plain_names(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Remove torch.compile's _orig_mod. anywhere, and a module. with which every name begins."""
    names = [re.sub(r"(?:^|(?<=\.))(?:_orig_mod\.)+", "", name) for name in tensors]
    while all(name.startswith("module.") for name in names):
        names = [name.removeprefix("module.") for name in names]
    if len(set(names)) < len(names):
        raise ValueError(
            f"{path} holds some tensors twice, with and without a wrapper's prefix: save it anew"
        )
    return dict(zip(names, tensors.values(), strict=True))


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file and the folder around it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {"format": "pt"})


def first_line(error: Exception) -> str:
    """Return an error's first line; of torch.load's many lines, the one about the file."""
    lines = str(error).splitlines() or [type(error).__name__]
    return next((line.strip() for line in lines if "Unpickler error" in line), lines[0])[:MAX_MESSAGE]
