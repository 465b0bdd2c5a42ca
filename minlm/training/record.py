"""Records of a run: its start, its data, its end: run.json and data.sha256 in its folder."""

import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch

from minlm.training.config import files_beside_weights, load_config, save_config
from minlm.training.distributed import rank, world_size
from minlm.training.files import read_object, replace_text, write_json
from minlm.training.loop import choose_device


def read_record(run: Path) -> dict[str, Any]:
    """Return the object in run.json: `starts`, `known` and, at the end, `finished`; {} without the file."""
    return read_object(run / "run.json", "remove it", missing_ok=True)


def begin_files(
    run: Path, config: Any, tokenizer: Any, resume: bool, known: dict[str, float] | None = None
) -> None:
    """Write config, vocabulary and run.json of a new run; of a continued one, only its limits can have changed.

    known: metrics known before training, which a report shows of a run that has not finished.
    """
    if resume:
        save_config(config, run / "config.json")
    else:
        files_beside_weights(config, tokenizer)(run)
    (run / "report.html").unlink(missing_ok=True)  # written last: a finished run has it
    starts = read_record(run).get("starts", []) if resume else []
    write_json(run / "run.json", {"starts": [*starts, this_start(config)], "known": known or {}})


def this_start(config: Any) -> dict[str, Any]:
    """Return the command line, date, device and versions of this process."""
    device = choose_device(config.train.device)
    name = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"threads: {torch.get_num_threads()}"
    )
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "device": f"{device.type}, {name}",
        "processes": world_size(),
        "torch": torch.__version__,
        "python": sys.version.split()[0],
    }


def check_same_data(run: Path, digest: str) -> None:
    """Record the digest of a new run's data; raise ValueError if a run is continued with other data."""
    path = run / "data.sha256"
    if not path.exists():
        replace_text(path, digest + "\n")
    elif path.read_text(encoding="utf-8").strip() != digest:
        raise ValueError(f"the data is not what {run} began with: put it back, or start a new run")


def mark_finished(run: Path) -> None:
    """Record in run.json that a run has finished."""
    write_json(run / "run.json", read_record(run) | {"finished": time.strftime("%Y-%m-%d %H:%M:%S")})


def is_finished(run: Path) -> bool:
    """Return True if a run has finished since it was last started."""
    return "finished" in read_record(run)


def finished_result(run: Path, config: Any) -> dict[str, Any]:
    """Return the result of a run that has finished with this very config, and print so; else {}."""
    written = all((run / name).exists() for name in ("result.json", "report.html")) and is_finished(run)
    if not written or load_config(type(config), run / "config.json") != config:
        return {}
    if rank() == 0:
        print(f"{run} is already finished: to train it longer, add --steps, --epochs or --minutes")
    return read_object(run / "result.json", "remove it")
