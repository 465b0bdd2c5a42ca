"""nanoGPT's own game, side by side: tiny Shakespeare in characters, its 90/10 split, its estimator, this machine.

    python benchmarks/nanogpt.py --peer NANOGPT --text input.txt --rounds 3

NANOGPT is a checkout of github.com/karpathy/nanoGPT; it is copied, and nothing in it is changed. Both sides run
as whole processes, one after the other in each round: the peer's documented CPU run (its README, "I only have a
macbook"), then `train_lm.py --preset shakespeare-char`. Afterwards both models are scored by the peer's
estimator: the mean loss of 200 random batches of 12 windows of 64 characters of the validation text, in nats.
"""

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minlm.evaluate import random_batches_loss
from minlm.runs import load
from minlm.training.errors import run_main
from minlm.training.options import OneLineParser

ROOT = Path(__file__).resolve().parents[1]
BATCH_SIZE, CONTEXT, N_BATCHES = 12, 64, 200
CPU_RUN = [
    *("config/train_shakespeare_char.py", "--device=cpu", "--compile=False", "--eval_iters=20"),
    *(
        "--log_interval=1",
        f"--block_size={CONTEXT}",
        f"--batch_size={BATCH_SIZE}",
        "--n_layer=4",
        "--n_head=4",
    ),
    *("--n_embd=128", "--max_iters=2000", "--lr_decay_iters=2000", "--dropout=0.0"),
]
ESTIMATE = ["--init_from=resume", "--eval_only=True", f"--eval_iters={N_BATCHES}"]


def timed(command: list[str], folder: Path) -> tuple[float, str]:
    """Seconds of a whole process, and what it printed. ValueError with the end of it where it failed."""
    started = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{' '.join(command)} failed: {(done.stderr.splitlines() or ['no word'])[-1]}")
    return time.perf_counter() - started, done.stdout


def peer_round(peer: Path) -> tuple[float, float]:
    """(seconds, nats) of the peer's CPU run and its best checkpoint."""
    seconds, _ = timed([sys.executable, "train.py", *CPU_RUN], peer)
    _, said = timed([sys.executable, "train.py", *CPU_RUN, *ESTIMATE], peer)
    losses = re.findall(r"val loss ([\d.]+)", said)
    if not losses:
        raise ValueError("the peer's train.py printed no `val loss`: give an unchanged checkout with --peer")
    return seconds, float(losses[-1])


def own_round(text: Path, run: Path, options: list[str]) -> tuple[float, float]:
    """(seconds, nats) of this project's run."""
    command = [sys.executable, str(ROOT / "train_lm.py"), "--preset", "shakespeare-char"]
    seconds, _ = timed([*command, "--data.path", str(text), "--out", str(run), *options], ROOT)
    model, tokenizer, config = load(run)
    ids = np.array(tokenizer.encode(config.data.read()["validation"]))
    return seconds, random_batches_loss(model, ids, BATCH_SIZE, 1337, N_BATCHES, CONTEXT)


def main() -> None:
    parser = OneLineParser(description=__doc__)
    parser.add_argument("--peer", type=Path, required=True, help="a checkout of nanoGPT")
    parser.add_argument("--text", type=Path, required=True, help="tiny Shakespeare, input.txt")
    parser.add_argument("--rounds", type=int, default=3)
    given, options = parser.parse_known_args()  # further options go to train_lm.py
    if given.rounds < 1:
        raise ValueError(f"--rounds {given.rounds} must be at least 1")
    prepare = given.peer / "data" / "shakespeare_char" / "prepare.py"
    if not all(path.is_file() for path in (given.peer / "train.py", prepare, given.text)):
        raise ValueError(f"--peer {given.peer} must be a checkout of nanoGPT and --text {given.text} a file")
    with tempfile.TemporaryDirectory() as folder:
        peer = Path(folder) / "peer"
        shutil.copytree(given.peer, peer, ignore=shutil.ignore_patterns(".git"))
        shutil.copy(given.text, peer / "data" / "shakespeare_char" / "input.txt")  # it would download it
        timed([sys.executable, "data/shakespeare_char/prepare.py"], peer)
        print(f"{os.cpu_count()} cores; whole processes; nats a character by the peer's estimator")
        print(f"{'round':>6} {'nanoGPT':>18} {'this project':>18} {'ratio of seconds':>17}")
        rows = []
        for i in range(given.rounds):
            run, seed = Path(folder) / f"run{i}", ["--seed", str(i)]
            rows.append((*peer_round(peer), *own_round(given.text.resolve(), run, [*options, *seed])))
            show(str(i), rows[-1], rows[-1][2] / rows[-1][0])
        medians = tuple(statistics.median(column) for column in zip(*rows, strict=True))
        show("median", medians, statistics.median(row[2] / row[0] for row in rows))


def show(name: str, row: tuple[float, float, float, float], ratio: float) -> None:
    peer_seconds, peer_nats, seconds, nats = row
    sides = f"{peer_seconds:>8.1f} s  {peer_nats:.4f}  {seconds:>8.1f} s  {nats:.4f}"
    print(f"{name:>6} {sides} {ratio:>17.3f}", flush=True)


if __name__ == "__main__":
    run_main(main)
