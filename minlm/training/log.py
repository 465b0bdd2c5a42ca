"""One JSON line per step in metrics.jsonl, and a progress bar with what a person wants to see."""

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

from tqdm import tqdm

from minlm.training.checkpoint import json_text
from minlm.training.distributed import rank


class Log:
    """The record of a run: `metrics.jsonl` for programs, a bar on stderr for people.

    The times come first in the bar: a terminal of 80 columns shows them all, and tqdm cuts what is too long.
    """

    def __init__(self, path: Path, progress: float):
        self.file = path.open("a", encoding="utf-8")
        self.bar = tqdm(
            total=100,
            initial=round(100 * progress, 2),
            bar_format="{percentage:3.0f}% {elapsed}<{remaining}|{bar}| {postfix[0]}",
            postfix=["starting"],
            mininterval=1.0,
            file=sys.stderr if rank() == 0 else self.file,
        )

    def write(self, row: dict[str, Any]) -> None:
        """Append one line; flushed, so that a killed run keeps it."""
        rounded = {key: float(f"{v:.6g}") if isinstance(v, float) else v for key, v in row.items()}
        self.file.write(json_text(rounded))
        self.file.flush()

    def step(self, row: dict[str, Any], progress: float) -> None:
        """Log a training step. The row's key of a rate names its unit: `tokens_per_second` is shown as tokens/s."""
        self.write(row)
        rate = next(key for key in row if key.endswith("_per_second"))
        unit = rate.removesuffix("_per_second")
        chance = f" (chance {row['chance']:.2f})" if "chance" in row else ""
        self.bar.postfix[0] = f"step {row['step']} loss {row['loss']:.3f}{chance} {row[rate]:.0f} {unit}/s"
        self.bar.update(min(100, round(100 * progress, 2)) - self.bar.n)

    def evaluation(self, row: dict[str, Any]) -> None:
        """Log an evaluation; a name and its value stay on one line of the terminal."""
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


def read_metrics(run: str | Path) -> list[dict]:
    """The lines of a run's metrics.jsonl (the file, or its folder), one dictionary a line, in order of steps.

    A last line without a line end is one that the run was writing: it is left out.
    ValueError: no such file, a line that is not a JSON object with a step, no line.
    """
    path = Path(run) / "metrics.jsonl" if Path(run).is_dir() else Path(run)
    if not path.is_file():
        raise ValueError(f"no metrics at {str(path)!r}: give a run's folder or its metrics.jsonl")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error.msg}): {line[:60]!r}") from error
        if not isinstance(row, dict) or "step" not in row:
            raise ValueError(f'{path}, line {number}: not an object with a "step": {line[:60]!r}')
        rows.append(row)
    if not rows:
        raise ValueError(f"{str(path)!r} holds no complete line: the run has not logged a step yet")
    return sorted(rows, key=lambda row: row["step"])
