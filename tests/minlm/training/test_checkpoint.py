"""Checkpoints are whole or absent, and nothing hostile is executed on the way in."""

import math
import os
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import save_file

from minlm.training import checkpoint
from minlm.training.checkpoint import (
    best_score,
    has_checkpoint,
    last_checkpoint,
    load_into,
    load_training_state,
    load_weights,
    random_states,
    restore_random_states,
    save_best,
    save_checkpoint,
)


def write_note(folder: Path) -> None:
    (folder / "note.txt").write_text("beside the weights")


def save(run: Path, step: int) -> Path:
    return save_checkpoint(run, step, {"w": torch.full((2, 3), float(step))}, {"step": step}, write_note)


def test_saved_and_loaded_again(tmp_path):
    folder = save(tmp_path, 7)
    assert last_checkpoint(tmp_path) == folder == last_checkpoint(folder)
    assert torch.equal(load_weights(folder)["w"], torch.full((2, 3), 7.0))
    assert load_training_state(folder) == {"step": 7}
    assert (folder / "note.txt").read_text() == "beside the weights"


def test_the_newest_checkpoints_stay(tmp_path):
    for step in (5, 10, 15, 20):
        save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000015", "step-00000020"]


def test_the_newest_checkpoint_is_used(tmp_path):
    assert not has_checkpoint(tmp_path)
    for step in (5, 10):
        save(tmp_path, step)
    (tmp_path / ".writing-00000020").mkdir()  # torn by a kill
    assert has_checkpoint(tmp_path)
    assert last_checkpoint(tmp_path).name == "step-00000010"


def test_the_best_weights_stay_beside_the_newest(tmp_path):
    """They are whole after each replacement, usable by themselves, and have their score beside them."""
    assert best_score(tmp_path) == -math.inf
    for step, score in ((3, 0.1), (9, 0.25)):
        save_best(tmp_path, step, score, {"w": torch.full((2,), float(step))}, write_note)
        assert best_score(tmp_path) == score
        assert torch.equal(
            load_weights(last_checkpoint(tmp_path / "best"))["w"], torch.full((2,), float(step))
        )
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == ["model.safetensors", "note.txt"]
    assert not has_checkpoint(tmp_path)  # best/ cannot be resumed


@pytest.mark.parametrize("content", [b"", b"torn"])
def test_a_damaged_best_file_names_the_way_out(tmp_path, content):
    save_best(tmp_path, 1, 0.5, {"w": torch.ones(1)}, write_note)
    (tmp_path / "best" / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot be read \(.*\): delete the folder .*best"):
        best_score(tmp_path)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_overwrite_nothing(tmp_path, value):
    save(tmp_path, 1)
    save_best(tmp_path, 1, 0.5, {"w": torch.ones(1)}, write_note)
    broken = {"v": torch.ones(2), "w": torch.tensor([0.0, value])}
    with pytest.raises(ValueError, match=r"w has NaN or infinite values after step 2: lower --train.lr"):
        save_checkpoint(tmp_path, 2, broken, {}, write_note)
    with pytest.raises(ValueError, match=r"w has NaN or infinite values after step 2"):
        save_best(tmp_path, 2, 0.7, broken, write_note)
    assert [path.name for path in tmp_path.glob("*-*")] == ["step-00000001"]
    assert best_score(tmp_path) == 0.5


FULL_DISK = [
    ("save_file", SafetensorError("I/O error: No space left on device")),
    ("torch.save", RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")),
    ("note", OSError(28, "No space left on device")),
]


@pytest.mark.parametrize("where, error", FULL_DISK, ids=[where for where, _ in FULL_DISK])
def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, monkeypatch, where, error):
    save(tmp_path, 1)
    save_best(tmp_path, 1, 0.5, {"w": torch.ones(1)}, write_note)

    def fail(*given):
        raise error

    owner, name = (torch, "save") if where == "torch.save" else (checkpoint, "save_file")
    if where != "note":
        monkeypatch.setattr(owner, name, fail)
    note = fail if where == "note" else write_note
    message = r"step-00000002 cannot be written \(.*; [\d,]+ MiB are free\): .* continue with --resume"
    with pytest.raises(OSError, match=message) as caught:
        save_checkpoint(tmp_path, 2, {"w": torch.ones(1)}, {}, note)
    assert "\n" not in str(caught.value)
    if where != "torch.save":
        with pytest.raises(OSError, match=r"model.safetensors cannot be written"):
            save_best(tmp_path, 2, 0.7, {"w": torch.ones(1)}, note)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "step-00000001"]
    assert best_score(tmp_path) == 0.5
    assert load_training_state(last_checkpoint(tmp_path)) == {"step": 1}


@pytest.mark.parametrize(
    "weight, message",
    [
        (torch.ones(1, 2).half(), "weight is of torch.float16, torch.float32 is needed"),
        (torch.ones(1, 2).double(), "weight is of torch.float64"),
        (torch.ones(1, 2).int(), "weight is of torch.int32"),
        (torch.tensor([[1.0, float("nan")]]), "weight has NaN or infinite"),
        (torch.tensor([[1.0, float("-inf")]]), "weight has NaN or infinite"),
        (torch.ones(2, 2), r"weight is \(2, 2\), config.json makes it \(1, 2\)"),
    ],
)
def test_weights_of_another_kind_are_refused(tmp_path, weight, message):
    folder = save_checkpoint(tmp_path, 1, {"w": torch.zeros(1)}, {}, write_note)
    save_file({"weight": weight, "bias": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        load_into(torch.nn.Linear(2, 1), folder)


@pytest.mark.parametrize("killed_at", range(12))
def test_killed_at_any_call_the_run_has_a_whole_checkpoint(tmp_path, monkeypatch, killed_at):
    """Whichever file operation of a save is the last to happen, the run can be continued."""
    save(tmp_path, 1)
    calls = 0

    def mortal(function):
        def run(*arguments, **named):
            nonlocal calls
            calls += 1
            if calls > killed_at:
                raise KeyboardInterrupt
            return function(*arguments, **named)

        return run

    for module, name in [(os, "replace"), (os, "fsync"), (checkpoint, "save_file"), (torch, "save")]:
        monkeypatch.setattr(module, name, mortal(getattr(module, name)))
    try:
        save(tmp_path, 2)
        finished = True
    except KeyboardInterrupt:
        finished = False
    monkeypatch.undo()
    folder = last_checkpoint(tmp_path)
    step = load_training_state(folder)["step"]
    assert step == 2 if finished else step in (1, 2)
    assert torch.equal(load_weights(folder)["w"], torch.full((2, 3), float(step)))
    save(tmp_path, 2)  # the resumed run writes it again
    assert load_training_state(last_checkpoint(tmp_path)) == {"step": 2}
    assert not list(tmp_path.glob(".writing-*"))


def test_a_folder_without_checkpoint_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"no checkpoint in .*: a run folder has step-"):
        last_checkpoint(tmp_path)


@given(st.floats(0, 0.99))
def test_truncated_files_are_refused(tmp_path_factory, share):
    run = tmp_path_factory.mktemp("run")
    save(run, 2)
    folder = save(run, 3)
    for name, load in (("model.safetensors", load_weights), ("training.pt", load_training_state)):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match=rf"{name} cannot be read .*; step-00000002 is then the newest"):
            load(folder)


def test_without_another_checkpoint_the_error_names_the_best_weights(tmp_path):
    folder = save(tmp_path, 3)
    (folder / "training.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"there is no other checkpoint: --resume then starts at step 1$"):
        load_training_state(folder)
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "model.safetensors").write_bytes(b"")
    with pytest.raises(
        ValueError, match=f"there is no other checkpoint, but {tmp_path / 'best'} has weights to use"
    ):
        load_training_state(folder)


def test_only_the_first_sentence_of_a_long_reason_is_shown(tmp_path):
    folder = save(tmp_path, 3)
    whole = (folder / "training.pt").read_bytes()
    (folder / "training.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"training.pt cannot be read \([^.()]*\): delete"):
        load_training_state(folder)


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    folder = save(tmp_path, 3)
    write(Hostile(), folder / "training.pt")
    with pytest.raises(ValueError, match=r"training.pt cannot be read"):
        load_training_state(folder)
    assert not (tmp_path / "executed").exists()


def test_random_states_are_restored():
    states = random_states()
    first = torch.rand(3)
    restore_random_states(states)
    assert torch.equal(torch.rand(3), first)


@pytest.mark.parametrize("here", [{"cuda": False, "mps": False}, {"cuda": True, "mps": True}], ids=str)
def test_random_states_of_a_gpu_that_is_gone_are_left_out(monkeypatch, here):
    """Only the GPU a process computes on is kept, so a machine with fewer GPUs can continue a run."""
    given_back = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: here["cuda"])
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: here["mps"])
    for name, gpu in (("cuda", torch.cuda), ("mps", torch.mps)):
        monkeypatch.setattr(gpu, "get_rng_state", lambda name=name: name)
        monkeypatch.setattr(gpu, "set_rng_state", given_back.append)
    assert {"cuda", "mps"} & random_states().keys() == {name for name, there in here.items() if there}
    restore_random_states(random_states() | {"cuda": "cuda", "mps": "mps"})
    assert given_back == [name for name, there in here.items() if there]
