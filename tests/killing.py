"""Checks, for both training scripts, of runs that are killed, run out of disk space or are started twice."""

import json
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STEPS = 200
LIMITS = ["--minutes", "0", "--epochs", "0", "--steps", str(STEPS), "--train.save_minutes", "0.001"]


def start(script: str, *arguments: object, cwd: Path = ROOT) -> subprocess.Popen:
    """Start a training script in its own process, with its output in pipes."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=cwd)


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    """Wait for a process -> (exit status, stdout, last line of stderr)."""
    said, errors = process.communicate(timeout=600)
    return process.returncode, said, (errors.strip().splitlines() or [""])[-1]


def newest_step(run: Path) -> int:
    """Return the step of the newest checkpoint; 0 if there is none."""
    return max((int(path.name[5:]) for path in run.glob("step-*")), default=0)


def wait_for_a_checkpoint(process: subprocess.Popen, run: Path) -> None:
    """Return as soon as the run has a checkpoint."""
    while not newest_step(run) and process.poll() is None:
        time.sleep(0.01)
    assert process.poll() is None, f"the run ended early: {finish(process)}"


def logged(run: Path) -> list[str]:
    """Return the complete lines of a run's log that are training steps."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [line for line in lines if line.endswith("}") and '"lr"' in line]


def check_continued(script: str, run: Path) -> None:
    """Resume a killed run: it repeats only the steps since its last checkpoint."""
    saved, before = newest_step(run), logged(run)
    assert 0 < saved <= len(before)
    status, said, error = finish(start(script, "--resume", run))
    assert status == 0, error
    after = logged(run)
    assert [json.loads(line)["step"] for line in after] == list(range(1, STEPS + 1))
    assert after[:saved] == before[:saved]  # with their times: they were not taken again
    assert all((run / name).exists() for name in ("result.json", "report.html"))
    assert newest_step(run) == STEPS
    assert "s in all" in said


def check_killed(script: str, run: Path, options: list) -> None:
    """After SIGKILL at a random moment past the first checkpoint, only the steps since the newest one are lost."""
    process = start(script, "--out", run, *options, *LIMITS)
    wait_for_a_checkpoint(process, run)
    time.sleep(random.Random(time.time_ns()).random() * 0.5)
    process.send_signal(signal.SIGKILL)
    finish(process)
    assert newest_step(run) < STEPS, "the run ended before it could be killed"
    check_continued(script, run)


def check_full_disk(script: str, run: Path, options: list) -> None:
    """Check that a run on a full disk ends with a one-line error and can be continued later."""
    process = start(script, "--out", run, *options, *LIMITS)
    wait_for_a_checkpoint(process, run)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (2**10, 2**10))
    status, _, error = finish(process)
    assert status == 2, error
    assert f"{script}: error: " in error
    assert not list(run.glob(".writing-*"))
    check_continued(script, run)


def check_two_at_once(script: str, folder: Path, options: list) -> None:
    """Two processes cannot train in one folder; without --out each gets its own."""
    run, short = folder / "one", [*options, *LIMITS, "--steps", 20]
    for command in (["--out", run, *short], ["--resume", run, "--steps", 40]):
        ended = [finish(process) for process in [start(script, *command) for _ in range(2)]]
        assert sorted(status for status, _, _ in ended) == [0, 2], ended
        refused = next(error for status, _, error in ended if status == 2)
        assert "another process is training in" in refused or "is not empty" in refused
    assert [json.loads(line)["step"] for line in logged(run)] == list(range(1, 41))
    both = [finish(process) for process in [start(script, *short, cwd=folder) for _ in range(2)]]
    assert [status for status, _, _ in both] == [0, 0], both
    runs = list((folder / "runs").iterdir())
    assert len(runs) == 2
    assert all([json.loads(line)["step"] for line in logged(run)] == list(range(1, 21)) for run in runs)
