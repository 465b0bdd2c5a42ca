"""One JSON line per step in metrics.jsonl, and a progress bar on stderr."""

import json
import sys
import textwrap
from itertools import count
from math import isfinite
from pathlib import Path
from typing import Any

from tqdm import tqdm

from minlm.training.distributed import rank
from minlm.training.files import read_text, replace_text


class Log:
    """The record of a run: `metrics.jsonl` for programs, a progress bar on stderr for people.

    The times come first in the bar: a terminal of 80 columns shows them all, and tqdm cuts what is too long.
    """

    def __init__(self, path: Path, progress: float):
        self.file = path.open("a", encoding="utf-8")
        self.bar = tqdm(
            total=100,
            initial=round(100 * progress, 2),
            bar_format="{percentage:3.0f}% {elapsed}<{remaining}|{bar}| {postfix[0]}",
            postfix=["starting"],  # pyright: ignore[reportArgumentType]
            mininterval=1.0,
            file=sys.stderr if rank() == 0 else self.file,
        )

    def write(self, row: dict[str, Any]) -> None:
        """Append one line and flush it. Floats have six digits; NaN and infinity, which JSON lacks, become null."""
        floats = {key: float(f"{v:.6g}") for key, v in row.items() if isinstance(v, float)}
        values = row | {key: v if isfinite(v) else None for key, v in floats.items()}
        self.file.write(json.dumps(values) + "\n")
        self.file.flush()

    def step(self, row: dict[str, Any], progress: float) -> None:
        """Log a training step. The rate's key names its unit: `tokens_per_second` is shown as tokens/s."""
        self.write(row)
        rate = next(key for key in row if key.endswith("_per_second"))
        unit = rate.removesuffix("_per_second")
        chance = f" (chance {row['chance']:.2f})" if "chance" in row else ""
        self.bar.postfix[0] = f"step {row['step']} loss {row['loss']:.3f}{chance} {row[rate]:.0f} {unit}/s"
        self.bar.update(min(100, round(100 * progress, 2)) - self.bar.n)

    def evaluation(self, row: dict[str, Any]) -> None:
        """Log an evaluation and print it; a name and its value stay on one line of the terminal."""
        self.write(row)
        shown = " ".join(f"{key}={v:.3f}" for key, v in row.items() if isinstance(v, float))
        text = f"step {row['step']}: {shown}"
        width = self.bar.ncols or len(text)  # None where stderr is a file
        self.bar.write(textwrap.fill(text, width, subsequent_indent="  "), file=sys.stderr)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.close()
        self.file.close()


def read_metrics(run: str | Path) -> list[dict[str, Any]]:
    """Read a run's metrics.jsonl (the file, or its folder) -> one dictionary per line, in order of steps.

    An unfinished last line, which the run is still writing, is left out. Raises ValueError if there is no file or no
    complete line, or if a line is not a JSON object with a step.
    """
    path = Path(run) / "metrics.jsonl" if Path(run).is_dir() else Path(run)
    if not path.is_file():
        raise ValueError(f"no metrics at {str(path)!r}: give a run's folder or its metrics.jsonl")
    rows = []
    for number, line in enumerate(read_text(path).split("\n")[:-1], start=1):
        try:
            row = json.loads(line)
        except Exception as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error}): {line[:60]!r}") from None
        if not isinstance(row, dict) or "step" not in row:
            raise ValueError(f'{path}, line {number}: not an object with a "step": {line[:60]!r}')
        rows.append(row)
    if not rows:
        raise ValueError(f"{str(path)!r} holds no complete line: the run has not logged a step yet")
    return sorted(rows, key=lambda row: row["step"])


def truncate_metrics(path: Path, step: int) -> None:
    """Drop the lines logged after the checkpoint of `step`, and lines torn by a kill or a full disk.

    At step 0, where there is no checkpoint, the whole log is kept under another name.
    """
    if not path.exists():
        return
    if step == 0:
        kept_as = next(p for n in count(1) if not (p := path.with_name(f"metrics-{n}.jsonl")).exists())
        path.rename(kept_as)
        print(
            f"{path.parent} has no checkpoint: training starts at step 1; the old log is kept as {kept_as.name}"
        )
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except Exception:
            continue  # blank or torn
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise ValueError(
                f"{path} has a line without a step, {line[:40]!r}: it is not this run's; move it away"
            )
        if row["step"] <= step:
            kept.append(line + "\n")
    replace_text(path, "".join(kept))
