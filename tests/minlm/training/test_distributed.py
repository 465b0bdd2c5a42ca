"""Two processes that share a batch give the single process's gradient, weights, log and resumed run.

The processes are real, joined by torch's own process group; each waits for tasks and does them with the other.
"""

import itertools
import subprocess
import sys
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from minlm.training.batches import Batches
from minlm.training.checkpoint import last_checkpoint, load_weights
from minlm.training.command import Command, agreed_command
from minlm.training.distributed import (
    first_process_first,
    from_every_process,
    from_first_process,
    gather,
    mean_over_processes,
    processes,
    rank,
    world_size,
)
from minlm.training.loop import fit
from minlm.training.state import TrainConfig
from tests.drawing import FLOAT32, LOSSES, backward, batch_of, clip_configs, model_of, pair_of, seeds
from tests.laws import close, same_run
from tests.minlm.training.points import Points, PointsTask, Stop, model_with_dropout, rows, squared_error

ROOT = Path(__file__).resolve().parents[3]
WORLD = 2


def serve(number, meeting, connection):
    """Run in one process the tasks that arrive, together with the other processes, until None arrives."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=number, world_size=WORLD)
    while task := connection.recv():
        function, arguments = task
        try:
            connection.send(function(*arguments))
        except Exception as error:  # the test's to raise
            connection.send(error)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """A function that calls function(*arguments) in every process -> the results in order."""
    context, meeting = mp.get_context("spawn"), tmp_path_factory.mktemp("meeting") / "file"
    ends = [context.Pipe() for _ in range(WORLD)]
    workers = [
        context.Process(target=serve, args=(number, meeting, end[1]), daemon=True)
        for number, end in enumerate(ends)
    ]
    for worker in workers:
        worker.start()

    def call(function, *arguments):
        given = {}
        for here, _ in ends:
            here.send((function, arguments))
        while len(given) < WORLD:
            ready = wait([here for number, (here, _) in enumerate(ends) if number not in given], timeout=120)
            assert ready, "a process waits for another in vain"
            for number, (here, _) in enumerate(ends):
                if here in ready:
                    given[number] = here.recv()
                    if isinstance(given[number], Exception):  # the other processes wait for this one forever
                        raise given[number]
        return [given[number] for number in range(WORLD)]

    yield call
    for here, _ in ends:
        here.send(None)
    for worker in workers:
        worker.join(timeout=10)
        worker.kill()


def gathered(seed):
    """Rows through `gather`, and their gradient when each process has a different loss."""
    x = rows_of(seed)[rank()].requires_grad_()
    whole = gather(x)
    (whole * weights_of(seed)[rank()]).sum().backward()
    return whole.detach(), x.grad


def rows_of(seed):
    return torch.randn(WORLD, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights_of(seed):
    return torch.randn(WORLD, 3 * WORLD, 4, generator=torch.Generator().manual_seed(seed + 1)).double()


@given(seeds)
def test_gather_and_its_gradient(together, seed):
    """Forward: the rows in order. Backward: the sum of the gradients in all processes."""
    found, asked = together(gathered, seed), weights_of(seed).sum(dim=0)
    for number, (whole, gradient) in enumerate(found):
        assert torch.equal(whole, rows_of(seed).flatten(0, 1)), "every process must have all rows, in order"
        law = "a row's gradient must be the sum of what all processes ask of it"
        close(gradient, asked[3 * number : 3 * number + 3], law)


def clip_step(config, seed, n, n_parts):
    """A CLIP's backward over this process's part of a batch of n -> (mean, count, metrics, gradients)."""
    model, batch = model_of(config, seed), batch_of(config, n, seed)
    share = n // world_size()
    own = slice(rank() * share, (rank() + 1) * share)
    batch = {name: value[own] for name, value in batch.items()}
    value, count, metrics = backward(model, batch, n_parts)
    return value, count, metrics, {name: p.grad for name, p in model.named_parameters()}


@given(clip_configs, st.integers(1, 4), st.integers(1, 3), seeds, st.sampled_from(LOSSES))
def test_every_gradient_equals_that_of_one_process(together, config, share, n_parts, seed, loss):
    """For towers, logit_scale and logit_bias; with groups across processes, in one part or several."""
    config = replace(config, loss=loss, temperature=max(config.temperature, 0.05))
    n = WORLD * share
    expected = clip_step(config, seed, n, 1)
    dtype = pair_of(model_of(config, seed), batch_of(config, n, seed))[0].dtype
    for found in together(clip_step, config, seed, n, n_parts):
        same_run(found, expected, dtype)


def token_step(seed, n_parts):
    """Return the gradients of a sum over masked items; the two processes have different counts."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    batch = {"x": torch.randn(6, 4).double(), "targets": torch.randn(6, 2).double()}
    batch["token_mask"] = torch.rand(6) < 0.5
    batch["token_mask"][0] = True
    share = 6 // world_size()
    batch = {name: value[rank() * share : (rank() + 1) * share] for name, value in batch.items()}
    task = PointsTask(TrainConfig(steps=1, batch_size=6, micro_batches=n_parts))
    value, count, _ = task.backward(model, batch, FLOAT32)
    return value, count, [p.grad for p in model.parameters()]


@given(seeds, st.integers(1, 3))
def test_unequal_counts_weigh_as_in_one_process(together, seed, n_parts):
    expected = token_step(seed, 1)
    for found in together(token_step, seed, n_parts):
        law = "shares of unequal counts must weigh as they do in one process"
        close(found, expected, law, atol=1e-12, rtol=1e-12)


def plain_model():
    """Return a model without dropout and batch statistics, which depend on the share of a process."""
    torch.manual_seed(1)
    blocks = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    return nn.Sequential(OrderedDict(stem=nn.Linear(4, 8), blocks=blocks, head=nn.Linear(8, 2)))


def trained(folder, config, make, dtype, stop_after=None):
    """Run this process's share of fit() on Points -> the weights at its end, or at the kill."""
    folder.mkdir(exist_ok=True)
    model, calls = make().to(dtype), itertools.count(1)

    def loss(model, batch):
        if next(calls) == stop_after:
            raise Stop
        return squared_error(model, batch)

    with suppress(Stop):
        fit(model, PointsTask(config, loss, rank(), world_size(), evaluate=dev_metrics), config, folder)
    return model.state_dict()


def dev_metrics(model):
    return {"dev_loss": model(torch.ones(1, 4, dtype=model.head.weight.dtype)).sum().item()}


RUN = TrainConfig(steps=9, batch_size=6, precision="float32", evaluate_every=4, save_every=3)


@settings(max_examples=4)
@given(st.sampled_from([0.0, 0.02]), st.sampled_from([0.0, 0.8]), st.integers(1, 3))
def test_a_run_of_two_processes_equals_a_run_of_one(
    together, tmp_path_factory, muon_lr, average, micro_batches
):
    """Weights and log are equal; both processes end with the same weights, and only one writes."""
    folder = tmp_path_factory.mktemp("runs")
    config = replace(RUN, muon_lr=muon_lr, ema_decay=average, micro_batches=micro_batches)
    alone = trained(folder / "one", config, plain_model, torch.float64)
    first, second = together(trained, folder / "two", config, plain_model, torch.float64)
    for name, value in alone.items():
        close(first[name], value, f"{name}: two processes must train as one", atol=1e-9, rtol=1e-9)
        assert torch.equal(first[name], second[name]), f"{name} must be the same in both processes"
    hidden = ("seconds", "tokens_per_second")
    for found, expected in zip(rows(folder / "two", *hidden), rows(folder / "one", *hidden), strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    assert [path.name for path in sorted((folder / "two").glob("step-*"))] == [
        "step-00000006",
        "step-00000009",
    ]


@pytest.mark.parametrize("stop_after", [2, 5])
def test_a_run_of_two_resumed_is_uninterrupted(together, tmp_path, stop_after):
    """Bit for bit, although each process draws its own dropout masks."""
    whole = together(trained, tmp_path / "whole", RUN, model_with_dropout, torch.float32)
    together(trained, tmp_path / "killed", RUN, model_with_dropout, torch.float32, stop_after)
    resumed = together(trained, tmp_path / "killed", RUN, model_with_dropout, torch.float32)
    for name, value in whole[0].items():
        assert torch.equal(resumed[0][name], value), f"{name}: a resumed run must be the uninterrupted one"
    hidden = ("seconds", "tokens_per_second")
    assert rows(tmp_path / "killed", *hidden) == rows(tmp_path / "whole", *hidden)
    with pytest.raises(ValueError, match="trained by 2 processes, now there are 1: start as many again"):
        trained(tmp_path / "whole", RUN, model_with_dropout, torch.float32)


def first_mask(folder):
    """Return the dropout mask of the first step of a run."""
    model, seen = nn.Sequential(OrderedDict(drop=nn.Dropout(0.5), head=nn.Linear(64, 1))), []

    def loss(model, batch):
        seen.append(model.drop(torch.ones(64)))
        return model(torch.ones(1, 64)).sum(), 1

    folder.mkdir(exist_ok=True)
    config = replace(RUN, steps=1)
    fit(model, PointsTask(config, loss, rank(), world_size()), config, folder)
    return seen[0].detach()


def test_each_process_draws_its_own_dropout(together, tmp_path):
    first, second = together(first_mask, tmp_path / "run")
    assert not torch.equal(first, second), "each process must draw its own dropout masks"
    assert torch.equal(first, first_mask(tmp_path / "alone")), "the first must draw those of a run of one"


def steps_in_time(folder):
    """Count this process's steps in a run limited by time; the clock of process 1 runs ten times as fast."""
    folder.mkdir(exist_ok=True)
    steps = []

    def loss(model, batch):
        steps.append(1)
        return squared_error(model, batch)

    with pytest.MonkeyPatch.context() as patch:
        clock, speed = time.monotonic, 10.0 if rank() else 1.0
        patch.setattr(time, "monotonic", lambda: speed * clock())
        config = replace(RUN, steps=0, minutes=0.005, save_every=0, evaluate_every=0)
        fit(plain_model(), PointsTask(config, loss, rank(), world_size()), config, folder)
    return len(steps)


def test_one_clock_ends_the_run_for_all(together, tmp_path):
    first, second = together(steps_in_time, tmp_path / "run")
    assert first == second > 0, "all processes must stop at the same step, by one clock"


def collected():
    """Return the results of mean_over_processes, from_every_process and from_first_process."""
    return (
        mean_over_processes(torch.tensor([rank() + 1.0])).item(),
        from_every_process({"rank": rank()}),
        from_first_process(lambda: f"made by {rank()}"),
    )


def test_values_of_all_processes_and_of_the_first(together):
    everyone = [{"rank": number} for number in range(WORLD)]
    assert together(collected) == [((WORLD + 1) / 2, everyone, "made by 0")] * WORLD
    assert collected() == (1.0, [{"rank": 0}], "made by 0")


def end_of(failure):
    """Return how a process ends if the first one's command line fails: (type, status or message)."""

    def read():
        raise failure

    try:
        agreed_command(read)
    except BaseException as error:
        return type(error), getattr(error, "code", str(error))


@pytest.mark.parametrize(
    "failure, first, status",
    [
        (SystemExit(0), 0, 0),  # --help
        (SystemExit(2), 2, 2),  # an unknown option
        (ValueError("lr=0"), "lr=0", 2),
        (TypeError("a fault"), "a fault", 1),
    ],
)
def test_if_the_command_line_ends_the_first_process_all_end(together, failure, first, status):
    assert together(end_of, failure) == [(type(failure), first), (SystemExit, status)]


def agreed():
    return agreed_command(lambda: Command(f"of {rank()}", {}, Path("run"), False))


def test_all_have_the_firsts_command(together):
    assert together(agreed) == [Command("of 0", {}, Path("run"), False)] * WORLD


@pytest.mark.parametrize("gpus, backend", [(True, "cpu:gloo,cuda:nccl"), (False, "gloo")])
def test_each_device_has_its_backend(monkeypatch, gpus, backend):
    """With GPUs, CPU tensors can be sent too, so --train.device cpu works. The timeout is above an hour."""
    begun, used, ended = [], [], []
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    monkeypatch.setattr(dist, "init_process_group", lambda name, timeout: begun.append((name, timeout)))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: ended.append(1))
    with processes():
        assert not ended
    [(name, timeout)] = begun
    assert (name, used, ended) == (backend, [3] if gpus else [], [1])
    assert timeout.total_seconds() > 3600


def written_first(path):
    with first_process_first():
        if rank() == 0:
            time.sleep(0.2)
            path.write_text("there")
        return path.exists()


def test_the_first_process_goes_first(together, tmp_path):
    assert together(written_first, tmp_path / "file") == [True] * WORLD


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 99), st.integers(0, 12))
def test_the_shares_together_are_the_batch(share, world_size, seed, step):
    whole = Batches(Points(), share * world_size, seed)
    shares = [
        Batches(Points(), share * world_size, seed, rank=number, world_size=world_size)
        for number in range(world_size)
    ]
    law = "the processes' shares together must be the batch, in order"
    assert [key for one in shares for key in one.keys(step)] == whole.keys(step), law
    assert {len(one.keys(step)) for one in shares} == {share}


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train_clip.py", "train_lm.py"])
def test_torchrun_starts_the_training_scripts(tmp_path, script):
    """The first loss and the files equal those of one process; an error is one line and ends all processes."""
    tiny = {
        "train_clip.py": ["--data.train_size", "64", "--data.dev_size", "24", "--train.batch_size", "8"],
        "train_lm.py": ["--data.n_scenes", "60", "--train.batch_size", "8", "--train.minutes", "0"],
    }[script]
    options = [*tiny, "--steps", "3", "--train.precision", "float32", "--train.save_every", "1"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, launch in (("one", [sys.executable]), ("two", torchrun)):
        command = [*launch, script, "--out", tmp_path / name, *options]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("s in all; metrics, plots") == 1
    assert {path.name for path in (tmp_path / "two").iterdir()} == {
        path.name for path in (tmp_path / "one").iterdir()
    }
    losses = [[row["loss"] for row in rows(tmp_path / name) if "loss" in row] for name in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    weights = [load_weights(last_checkpoint(tmp_path / name)) for name in ("one", "two")]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=2e-3, rtol=2e-2)
    wrong = subprocess.run(
        [*torchrun, script, "--train.lr", "-1"], capture_output=True, text=True, cwd=ROOT, timeout=600
    )
    assert wrong.returncode != 0
    assert f"{script}: error: --train.lr=-1.0 must be above 0" in wrong.stderr
    assert wrong.stderr.count(f"{script}: error") == 1  # torchrun's own report follows
    helped = subprocess.run(
        [*torchrun, script, "--help"], capture_output=True, text=True, cwd=ROOT, timeout=600
    )
    assert helped.returncode == 0, helped.stderr
    assert helped.stdout.count("usage: ") == 1
    assert "Traceback" not in helped.stderr
