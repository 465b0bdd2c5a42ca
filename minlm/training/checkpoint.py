"""Checkpoints that are either whole or absent.

A run folder holds `step-00000500/` folders; the run continues from the newest. A checkpoint is written under another
name, flushed to disk and renamed (os.replace): a run killed at any moment has the old checkpoint or the new one, never
a part. `best/` holds the weights with the best score so far, ready to use.

    model.safetensors   the weights to use (with ema_decay, the averaged ones), beside config and tokenizer files
    training.pt         the rest of the training state: own weights, optimizer, scaler, average, random states
"""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minlm.training.files import flush_to_disk

InferenceFiles = Callable[[Path], None]  # writes the files that weights need to be used: config, tokenizer


def save_checkpoint(
    run: Path,
    step: int,
    weights: dict[str, Tensor],
    training: dict[str, Any],
    inference_files: InferenceFiles,
    keep: int = 2,
) -> Path:
    """Write the folder run/step-XXXXXXXX and remove all but the `keep` newest.

    Raises OSError if it cannot be written, for example on a full disk, and ValueError if a weight is NaN or infinite;
    earlier checkpoints then stay as they are.
    """
    folder, temporary = run / f"step-{step:08d}", run / f".writing-{step:08d}"
    require_finite(weights, step)
    for torn in run.glob(".writing-*"):
        shutil.rmtree(torn)
    try:
        temporary.mkdir(parents=True)
        save_file(contiguous(weights), temporary / "model.safetensors")
        torch.save(training, temporary / "training.pt")
        inference_files(temporary)
        for path in [*temporary.iterdir(), temporary]:
            flush_to_disk(path)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise cannot_write(folder, error) from None
    if folder.exists():  # saved twice at one step
        shutil.rmtree(folder)
    os.replace(temporary, folder)
    flush_to_disk(run)
    for old in sorted(run.glob("step-*"))[:-keep]:
        shutil.rmtree(old)
    return folder


def require_finite(weights: dict[str, Tensor], step: int) -> None:
    """Raise ValueError if a weight to be saved is NaN or infinite, before it overwrites a finite one."""
    if names := not_finite(weights):
        raise ValueError(f"{names[0]} has NaN or infinite values after step {step}: lower --train.lr")


def cannot_write(path: Path, error: Exception) -> OSError:
    """Return the error for weights that cannot be written."""
    free = shutil.disk_usage(path.parent).free / 2**20
    reason = str(error).splitlines()[0]
    return OSError(
        f"{path} cannot be written ({reason}; {free:,.0f} MiB are free): earlier checkpoints are whole; make "
        f"room, then continue with --resume {path.parent}"
    )


def contiguous(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors detached and contiguous, as safetensors stores them."""
    return {name: value.detach().contiguous() for name, value in weights.items()}


def save_best(
    run: Path, step: int, score: float, weights: dict[str, Tensor], inference_files: InferenceFiles
) -> None:
    """Write weights into run/best, with their step and score in the same file.

    Only this file changes during a run, so replacing it is atomic.
    """
    best = run / "best"
    new, path = best / "model.safetensors.new", best / "model.safetensors"
    require_finite(weights, step)
    try:
        best.mkdir(exist_ok=True)
        inference_files(best)
        save_file(contiguous(weights), new, {"step": str(step), "score": repr(score)})
        flush_to_disk(new)
    except (OSError, RuntimeError, SafetensorError) as error:
        new.unlink(missing_ok=True)
        raise cannot_write(path, error) from None
    os.replace(new, path)


def best_score(run: Path) -> float:
    """Return the score of the weights in run/best; minus infinity if there are none."""
    path = run / "best" / "model.safetensors"
    if not path.is_file():
        return float("-inf")
    try:
        with safe_open(path, "pt") as file:
            return float(file.metadata()["score"])
    except Exception as error:
        raise ValueError(f"{path} cannot be read ({error}): delete the folder {path.parent}") from None


def last_checkpoint(path: Path) -> Path:
    """Return the newest checkpoint of a run folder, or the path if it is a checkpoint; ValueError if there is none."""
    path = Path(path)
    if (path / "model.safetensors").is_file():
        return path
    names = sorted(folder for folder in path.glob("step-*") if (folder / "model.safetensors").is_file())
    if not names:
        raise ValueError(f"no checkpoint in {path}: a run folder has step-* folders")
    return names[-1]


def has_checkpoint(run: Path) -> bool:
    """Return True if a run has a checkpoint to continue from."""
    return any(run.glob("step-*/model.safetensors"))


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Read the tensors in folder/model.safetensors; ValueError if it is damaged."""
    path = Path(folder) / "model.safetensors"
    try:
        return load_file(path)
    except Exception as error:
        raise damaged(path, str(error)) from None


def damaged(path: Path, reason: str) -> ValueError:
    """Return the error for a file of a checkpoint that cannot be read."""
    folder, reason = path.parent, reason.partition(". ")[0]  # torch's reasons are paragraphs
    others = sorted(other.name for other in folder.parent.glob("step-*") if other != folder)
    best = folder.parent / "best"
    if others:
        rest = f"{others[-1]} is then the newest checkpoint"
    elif (best / "model.safetensors").is_file() and best != folder:
        rest = f"there is no other checkpoint, but {best} has weights to use"
    else:
        rest = "there is no other checkpoint: --resume then starts at step 1"
    return ValueError(f"{path} cannot be read ({reason}): delete the folder {folder}; {rest}")


def check_depth(n_layers: int, folder: Path) -> None:
    """Raise ValueError if a config has more layers than a checkpoint has tensors; building them fills the memory."""
    path = Path(folder) / "model.safetensors"
    try:
        with safe_open(path, "pt") as file:
            tensors = len(file.keys())
    except Exception as error:
        raise damaged(path, str(error)) from None
    if n_layers > tensors:
        raise ValueError(
            f"{folder}: config.json asks for {n_layers:,} layers, model.safetensors has {tensors} tensors: put the "
            "run's own config.json back"
        )


def load_into(model: nn.Module, folder: Path) -> nn.Module:
    """Load the weights of a checkpoint into a model, which may be on the meta device, and return it in eval mode.

    Raises ValueError if a name, shape or type of a tensor differs from the model's, or a value is not finite.
    """
    weights, expected = load_weights(folder), model.state_dict()
    if weights.keys() != expected.keys():
        names = sorted(weights.keys() ^ expected.keys())
        raise ValueError(
            f"{folder}: config.json and model.safetensors differ in the tensors {names}: put the run's own files back"
        )
    for name, value in expected.items():
        if weights[name].shape != value.shape:
            raise ValueError(
                f"{folder}: {name} is {tuple(weights[name].shape)}, config.json makes it {tuple(value.shape)}: put "
                "the run's own config.json back"
            )
    require_numbers(weights, expected, folder)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    model.load_state_dict(weights, assign=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)  # assigning cleared it
    return model.eval()


def require_numbers(weights: dict[str, Tensor], expected: dict[str, Tensor], where: Any) -> None:
    """Raise ValueError if a tensor has another type than the expected one, or NaN or infinite values."""
    for name, wanted in expected.items():
        value = weights.get(name, wanted)
        if value.dtype != wanted.dtype:
            raise ValueError(
                f"{where}: {name} is of {value.dtype}, {wanted.dtype} is needed: take another file"
            )
        if name in weights and not_finite({name: value}):
            raise ValueError(f"{where}: {name} has NaN or infinite values: take another file")


def not_finite(weights: dict[str, Tensor]) -> list[str]:
    """Return the names of the tensors that have NaN or infinite values."""
    return [name for name, value in weights.items() if not value.isfinite().all()]


def check_digest(digest: str, trained_with: str, folder: Path) -> None:
    """Raise ValueError if a vocabulary is not the one that the weights beside it were trained with."""
    if digest != trained_with:
        raise ValueError(
            f"the vocabulary in {folder} has digest {digest[:12]}, the model was trained with "
            f"{trained_with[:12]}: put the run's own vocabulary back"
        )


def load_training_state(folder: Path) -> dict[str, Any]:
    """Read folder/training.pt; ValueError if it is damaged, or holds more than tensors and plain values."""
    path = Path(folder) / "training.pt"
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise damaged(path, (str(error).splitlines() or ["it is empty"])[0]) from None


def random_states() -> dict[str, Any]:
    """Return the states of this process's random generators; of GPUs, only that of the current one."""
    states = {"torch": torch.get_rng_state(), "python": random.getstate()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def restore_random_states(states: dict[str, Any]) -> None:
    """Restore the states, except those of a device that this machine lacks."""
    torch.set_rng_state(states["torch"])
    random.setstate(states["python"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    if "mps" in states and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])
