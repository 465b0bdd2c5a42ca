"""TorchScript archives read as data: the form in which OpenAI published CLIP.

Such a .pt file is a zip of code, a pickle of the module's attributes (data.pkl) and the tensors' bytes (data/0, ...).
torch.jit.load runs it. Here only data.pkl is read, by an unpickler that knows tensors, containers and empty objects;
the code is never read.

Zip files, and the pickles in any file, are checked before they are unpickled: a small file must not unfold into a
large one, and a pickle must not be nested so deeply that the interpreter crashes.
"""

import io
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from math import prod
from pathlib import Path
from typing import IO, Any

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
MAX_NESTING = 200  # of a pickle's containers; hashing a tuple 100,000 deep overflows the interpreter's stack
# Opcodes that put objects into the container below them, which stays the same object.
FILLING = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}


class ScriptObject:
    """Placeholder for every class of the archive, with its attributes only."""


def script_roots(archive: zipfile.ZipFile) -> list[str]:
    """List the archive's folders with a table of constants, which only TorchScript modules have."""
    return [name.split("/")[0] for name in archive.namelist() if name.split("/")[1:] == ["constants.pkl"]]


def check_zip(path: Path) -> None:
    """Refuse a zip file that unfolds into more than its own size, or whose data.pkl is nested too deeply.

    PyTorch compresses code only, which is not read here. Raises pickle.UnpicklingError.
    """
    with zipfile.ZipFile(path) as archive:
        records = [record for record in archive.infolist() if record.filename.split("/")[1:2] != ["code"]]
        compressed = [record.filename for record in records if record.compress_type != zipfile.ZIP_STORED]
        if compressed:
            raise pickle.UnpicklingError(f"{compressed[0]!r} in it is compressed: save the weights anew")
        size, limit = sum(record.file_size for record in records), path.stat().st_size
        if size > limit:
            raise pickle.UnpicklingError(f"it unfolds from {limit} bytes to {size}: refused")
        for record in records:
            if record.filename.endswith("data.pkl"):
                check_nesting(io.BytesIO(archive.read(record)))


def check_nesting(file: IO[bytes]) -> None:
    """Refuse the next pickle in `file` where its containers are nested more than MAX_NESTING deep.

    Follows the unpickler's stack with the depth of each object in the object's place; nothing is built.
    """
    stack: list[int] = []
    marks: list[int] = []  # lengths of the stack
    memo: dict[Any, int] = {}
    for opcode, argument, _ in pickletools.genops(file):
        match opcode.name:
            case "MARK":
                marks.append(len(stack))
                continue
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
                continue
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
                continue
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
                continue
        needed = opcode.stack_before
        start = len(stack) - len(needed)
        if pickletools.markobject in needed:
            start = marks.pop() - needed.index(pickletools.markobject)
        if start < 0:
            raise IndexError("its stack is empty")
        taken = stack[start:]
        del stack[start:]
        depth = 1 + max(taken[1:] if opcode.name in FILLING else taken, default=-1)
        if opcode.name in FILLING:
            depth = max(depth, taken[0])
        if opcode.stack_after and depth > MAX_NESTING:
            raise pickle.UnpicklingError(f"it is nested more than {MAX_NESTING} deep: refused")
        stack += [depth] * len(opcode.stack_after)


def is_torchscript(path: Path) -> bool:
    """Return whether a zip file holds a TorchScript module. Raises zipfile.BadZipFile if it is damaged."""
    with zipfile.ZipFile(path) as archive:
        return bool(script_roots(archive))


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Read {name: tensor}: all parameters and buffers, non-persistent ones too.

    The archive has passed check_zip. Raises pickle.UnpicklingError if it asks for anything but tensors, and any
    exception if it is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        module = TensorUnpickler(archive, script_roots(archive)[0]).load()
        return dict(named_tensors(module, "", set()))


class TensorUnpickler(pickle.Unpickler):
    """Unpickler of root/data.pkl in an archive; it refuses everything but the names below."""

    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(io.BytesIO(archive.read(f"{root}/data.pkl")), encoding="utf-8")
        self.archive, self.root = archive, root
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module_name: str, name: str) -> Any:
        """Map a name in the pickle to a class or function. Raises UnpicklingError for any other name."""
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
        """Read the storage ("storage", dtype, key, device, count) from data/key."""
        kind, dtype, key, _, count = reference
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"it refers to a {kind!r}, not to a tensor's numbers: refused")
        if key not in self.storages:
            record = self.archive.getinfo(f"{self.root}/data/{key}")
            size = count * dtype.itemsize
            if record.file_size != size:
                raise pickle.UnpicklingError(f"data/{key} has {record.file_size} bytes, not {size}: damaged")
            data = bytearray(self.archive.read(record))
            self.storages[key] = torch.frombuffer(data, dtype=dtype) if size else torch.empty(0, dtype=dtype)
        return self.storages[key]


def rebuild_tensor(storage: Tensor, offset: int, size: tuple, stride: tuple, *unused: Any) -> Tensor:
    """Rebuild a tensor as torch._utils._rebuild_tensor_v2 does; as_strided checks the storage's bounds."""
    if prod(size) > len(storage):
        raise pickle.UnpicklingError(f"a tensor of {tuple(size)} with {len(storage)} numbers: refused")
    return torch.as_strided(storage, size, stride, offset)


def named_tensors(value: Any, prefix: str, seen: set[int]) -> list[tuple[str, Tensor]]:
    """Collect the tensors among the attributes of script objects under dotted names; each object once."""
    if isinstance(value, Tensor):
        return [(prefix, value)]
    if not isinstance(value, ScriptObject) or id(value) in seen:
        return []
    seen.add(id(value))
    dot = f"{prefix}." if prefix else ""
    return [
        pair for name, child in vars(value).items() for pair in named_tensors(child, f"{dot}{name}", seen)
    ]
