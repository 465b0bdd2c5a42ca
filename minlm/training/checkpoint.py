"""Checkpoints that are either whole or absent.

A run folder holds `step-00000500/` folders and a text file `last` that names the newest. A checkpoint is
written under another name, flushed to disk and renamed (os.replace), then `last` is replaced in the same way:
killed at any moment, the run has the old checkpoint or the new one, never half of one.

    model.safetensors   the weights to use (the average, where one is kept); plus config and tokenizer files
    training.pt         what resuming needs besides: own weights, optimizer, scaler, average, random states
"""

import json
import math
import os
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def replace_text(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old or the new one, whole."""
    temporary = path.with_name(path.name + ".new")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def json_text(values: dict[str, Any], indent: int | None = None) -> str:
    """An object as JSON, in which NaN and infinity, for which JSON has no form, are null."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [finite(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(values), indent=indent, allow_nan=False) + "\n"


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write an object as `json_text`, whole or not at all."""
    replace_text(path, json_text(values, indent=2))


def save_checkpoint(
    run: Path,
    step: int,
    weights: dict[str, Tensor],
    training: dict[str, Any],
    inference_files: Any,
    keep: int = 2,
) -> Path:
    """Write run/step-XXXXXXXX and point `last` at it; of those up to this step the `keep` newest stay.

    inference_files: a function that writes what makes the weights usable (config, tokenizer) into a folder.
    """
    folder = run / f"step-{step:08d}"
    temporary = run / f".writing-{step:08d}"
    for torn in run.glob(".writing-*"):
        shutil.rmtree(torn)
    temporary.mkdir(parents=True)
    contiguous = {name: value.detach().contiguous() for name, value in weights.items()}
    save_file(contiguous, temporary / "model.safetensors")
    torch.save(training, temporary / "training.pt")
    inference_files(temporary)
    for path in [*temporary.iterdir(), temporary]:
        flush_to_disk(path)
    if folder.exists():  # written before a kill that came ahead of `last`, or saved twice at one step
        shutil.rmtree(folder)
    os.replace(temporary, folder)
    replace_text(run / "last", folder.name + "\n")
    # Later ones, which are there when somebody has put `last` back to an earlier step, are left alone.
    for old in sorted(path for path in run.glob("step-*") if path.name <= folder.name)[:-keep]:
        shutil.rmtree(old)
    return folder


def flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def last_checkpoint(path: Path) -> Path:
    """The checkpoint folder meant by a run folder, or by a checkpoint folder itself. ValueError if none.

    Without `last`, as a kill just before it is first written leaves a run, it is the newest step-* folder.
    """
    path = Path(path)
    if (path / "model.safetensors").is_file():
        return path
    try:
        name = (path / "last").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        names = [folder.name for folder in sorted(path.glob("step-*"))]
        if not names:
            raise ValueError(f"no checkpoint in {path}: a run folder has step-* folders") from None
        name = names[-1]
    if not (path / name / "model.safetensors").is_file():
        raise ValueError(
            f"{path / 'last'} names {name!r}, which is not there: give one of the step-* folders"
        )
    return path / name


def has_checkpoint(run: Path) -> bool:
    """Whether there is something to continue from."""
    return (run / "last").exists() or any(run.glob("step-*"))


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of folder/model.safetensors; ValueError where it is truncated."""
    path = Path(folder) / "model.safetensors"
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}): it is damaged; use another checkpoint") from None


def load_into(model: nn.Module, folder: Path) -> nn.Module:
    """The model, which may be on the meta device, with the weights of a checkpoint, in eval mode.

    Raises ValueError where names, shapes or types of tensors are not the model's, or a number is not finite.
    """
    weights, expected = load_weights(folder), model.state_dict()
    if weights.keys() != expected.keys():
        raise ValueError(f"{folder}: tensors {sorted(weights.keys() ^ expected.keys())} are on one side only")
    for name, value in expected.items():
        if weights[name].shape != value.shape:
            raise ValueError(
                f"{folder}: {name} is {tuple(weights[name].shape)}, config.json makes it {tuple(value.shape)}"
            )
    require_numbers(weights, expected, folder)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    model.load_state_dict(weights, assign=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(
            name in trained
        )  # what was assigned has no gradient, and a frozen tower keeps none
    return model.eval()


def require_numbers(weights: dict[str, Tensor], expected: dict[str, Tensor], where: Any) -> None:
    """ValueError where a tensor is of another type than is needed, or has numbers that are NaN or infinite."""
    for name, wanted in expected.items():
        value = weights.get(name, wanted)
        if value.dtype != wanted.dtype:
            raise ValueError(
                f"{where}: {name} is of {value.dtype}, {wanted.dtype} is needed: take another file"
            )
        if name in weights and not value.isfinite().all():
            raise ValueError(f"{where}: {name} has numbers that are NaN or infinite: take another file")


def check_digest(digest: str, trained_with: str, folder: Path) -> None:
    """ValueError where a vocabulary is another than the one the weights beside it were trained with."""
    if digest != trained_with:
        raise ValueError(
            f"the vocabulary in {folder} has digest {digest[:12]}, the model was trained with "
            f"{trained_with[:12]}: put the run's own vocabulary back"
        )


def check_same_data(run: Path, digest: str) -> None:
    """Note which data a run learns from, the first time; ValueError where it is continued with other data."""
    path = run / "data.sha256"
    if not path.exists():
        replace_text(path, digest + "\n")
    elif path.read_text(encoding="utf-8").strip() != digest:
        raise ValueError(f"the data is not what {run} began with: put it back, or start a new run")


def load_training_state(folder: Path) -> dict[str, Any]:
    path = Path(folder) / "training.pt"
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or ["it is empty"])[0]
        raise ValueError(f"{path} cannot be read ({reason}): resume from another checkpoint") from None


def random_states() -> dict[str, Any]:
    states = {"torch": torch.get_rng_state(), "python": random.getstate()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def restore_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    random.setstate(states["python"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


def truncate_metrics(path: Path, step: int) -> None:
    """Drop the lines a killed run wrote after the checkpoint of `step`, the torn last one too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            break  # torn by the kill
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise ValueError(
                f"{path} has a line without a step, {line[:40]!r}: it is not this run's; move it away"
            )
        if row["step"] <= step:
            kept.append(line + "\n")
    replace_text(path, "".join(kept))
