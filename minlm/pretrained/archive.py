"""TorchScript archives read as data: the form in which OpenAI published CLIP.

Such a .pt file is a zip of code, a pickle of the module's attributes (data.pkl) and the tensors' bytes (data/0, ...).
torch.jit.load runs it. Here only data.pkl is read, by an unpickler that knows tensors, containers and empty objects,
and the code is never looked at.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class ScriptObject:
    """Stands for any class of the archive: its attributes and nothing else."""


def script_roots(archive: zipfile.ZipFile) -> list[str]:
    """The archive's folders that hold a table of constants, as TorchScript modules do."""
    return [name.split("/")[0] for name in archive.namelist() if name.split("/")[1:] == ["constants.pkl"]]


def is_torchscript(path: Path) -> bool:
    """Whether a zip file holds a TorchScript module. Raises zipfile.BadZipFile where it is no whole zip file."""
    with zipfile.ZipFile(path) as archive:
        return bool(script_roots(archive))


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """{name: tensor}: parameters and buffers, those that a state dict leaves out too.

    Raises pickle.UnpicklingError where the archive asks for anything but tensors, or is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        try:
            module = TensorUnpickler(archive, script_roots(archive)[0]).load()
            return dict(named_tensors(module, "", set()))
        except pickle.UnpicklingError:
            raise
        except Exception as error:  # a damaged or hostile pickle makes the unpickler raise anything
            raise pickle.UnpicklingError(
                f"the archive is damaged ({type(error).__name__}: {error})"
            ) from None


class TensorUnpickler(pickle.Unpickler):
    """Reads root/data.pkl of an archive. What is not in this class is refused."""

    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(io.BytesIO(archive.read(f"{root}/data.pkl")), encoding="utf-8")
        self.archive, self.root = archive, root
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module_name: str, name: str) -> Any:
        """What a name in the pickle stands for; UnpicklingError for all that an archive of weights does not need."""
        if module_name == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module_name, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module_name, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return rebuild_tensor
        if module_name == "torch.jit._pickle" and name in (
            "build_intlist",
            "build_doublelist",
            "build_boollist",
        ):
            return list
        if module_name.split(".")[0] == "__torch__":
            return ScriptObject
        raise pickle.UnpicklingError(
            f"it asks to run {module_name}.{name}, which tensors do not need: refused"
        )

    def persistent_load(self, reference: Any) -> Tensor:
        """("storage", dtype, key, device, count) -> all its numbers, from data/key."""
        kind, dtype, key, _, count = reference
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"it refers to a {kind!r}, not to a tensor's numbers: refused")
        if key not in self.storages:
            record = self.archive.getinfo(f"{self.root}/data/{key}")
            size = count * dtype.itemsize
            # PyTorch stores numbers uncompressed: a small file cannot unfold into a large one.
            if record.file_size != size or record.compress_type != zipfile.ZIP_STORED:
                raise pickle.UnpicklingError(f"data/{key} has {record.file_size} bytes, not {size}: damaged")
            data = bytearray(self.archive.read(record))
            self.storages[key] = torch.frombuffer(data, dtype=dtype) if size else torch.empty(0, dtype=dtype)
        return self.storages[key]


def rebuild_tensor(storage: Tensor, offset: int, size: tuple, stride: tuple, *unused: Any) -> Tensor:
    """What torch._utils._rebuild_tensor_v2 does, within the storage's bounds (as_strided checks them)."""
    if prod(size) > len(storage):
        raise pickle.UnpicklingError(f"a tensor of {tuple(size)} with {len(storage)} numbers: refused")
    return torch.as_strided(storage, size, stride, offset)


def named_tensors(value: Any, prefix: str, seen: set[int]) -> list[tuple[str, Tensor]]:
    """Tensors among the attributes of script objects, under dotted names; an object met again is passed over."""
    if isinstance(value, Tensor):
        return [(prefix, value)]
    if not isinstance(value, ScriptObject) or id(value) in seen:
        return []
    seen.add(id(value))
    dot = f"{prefix}." if prefix else ""
    return [
        pair for name, child in vars(value).items() for pair in named_tensors(child, f"{dot}{name}", seen)
    ]
