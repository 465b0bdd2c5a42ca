"""train_lm.py from the outside: what a run leaves behind, for each kind of model and text."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import train_lm
from minlm.presets import PRESETS
from minlm.runs import load
from minlm.screenplay.script import parse_script
from minlm.screenplay.source import ScreenplayConfig, entropy_rate, floor_of
from minlm.tokenizer import CharTokenizer
from minlm.training.checkpoint import last_checkpoint, load_weights
from minlm.training.command import command_line
from minlm.training.errors import run_main
from tests.killing import check_full_disk, check_killed, check_two_at_once

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    *(
        "--model.d_model",
        "16",
        "--model.n_heads",
        "2",
        "--model.n_layers",
        "1",
        "--model.context_length",
        "32",
    ),
    *("--minutes", "0", "--steps", "8", "--train.batch_size", "8", "--train.evaluate_every", "4"),
]
FILM = ["--data.n_scenes", "30", "--data.validation_scenes", "3", "--model.vocab_size", "400"]


def train(monkeypatch, *arguments):
    """The script in this process -> what stands in result.json."""
    monkeypatch.setattr(sys, "argv", ["train_lm.py", *map(str, arguments)])
    command = command_line(PRESETS, "", list(map(str, arguments)))
    return train_lm.train(command.config, command.run, command.resume)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "film"
    command = [sys.executable, str(ROOT / "train_lm.py"), "--out", str(folder), *SMALL, *FILM]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_a_run_leaves_everything_behind(run):
    folder, said = run
    result = json.loads((folder / "result.json").read_text())
    texts = ScreenplayConfig(n_scenes=30, validation_scenes=3).read()
    validation = texts["validation"]
    assert result["source_entropy_nats_per_character"] == entropy_rate()
    assert result["validation_floor_nats_per_character"] == floor_of(validation)
    chance = result["chance"]["nats_per_character"]
    assert chance == pytest.approx(math.log(400) * result["tokens"] / result["characters"])
    assert result["validation_floor_nats_per_character"] < result["bigram"] < result["unigram"] < chance
    assert result["nats_per_character"] > result["validation_floor_nats_per_character"]
    nats = result["nats_per_character"] * result["characters"]
    assert result["bits_per_byte"] == pytest.approx(nats / math.log(2) / result["bytes"])
    assert result["perplexity"] == pytest.approx(math.exp(nats / result["tokens"]))
    assert (result["seed"], result["split"]) == (0, "validation")
    assert 0 < result["seconds"] < 600
    assert f"{result['nats_per_character']:.4f} nats per character" in said
    sample = (folder / "sample.txt").read_text()
    assert sample.startswith(validation.partition("\n")[0])
    assert sample in said
    for photo in ("loss", "attention"):
        with Image.open(folder / f"{photo}.png") as image:
            assert min(image.size) > 300
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 9))
    assert [row["step"] for row in rows if "validation_loss" in row] == [4, 8]
    assert rows[0]["chance"] == pytest.approx(math.log(400), rel=1e-5)
    assert rows[0]["loss"] == pytest.approx(math.log(400), rel=0.03)
    assert last_checkpoint(folder).name == "step-00000008"


def test_the_saved_model_costs_what_the_result_says(run):
    folder, _ = run
    model, tokenizer, config = load(folder)
    ids = tokenizer.encode(config.data.read()["validation"])
    with torch.inference_mode():  # the first window is scored whole, as a plain loop would
        window = torch.tensor([ids[: config.model.context_length + 1]])
        nats = -model(window[:, :-1]).log_softmax(-1).gather(-1, window[:, 1:, None]).mean().item()
    result = json.loads((folder / "result.json").read_text())
    assert nats == pytest.approx(math.log(result["perplexity"]), rel=0.1)


def test_resumed_the_weights_are_the_undisturbed_ones(run, tmp_path, monkeypatch):
    """A run killed after step 6 and resumed."""
    folder = tmp_path / "again"
    train(monkeypatch, "--out", folder, *SMALL, *FILM, "--train.save_every", 3, "--train.schedule", "linear")
    whole = load_weights(last_checkpoint(folder))
    shutil.rmtree(folder / "step-00000008")
    (folder / "report.html").unlink()
    train(monkeypatch, "--resume", folder)
    resumed = load_weights(last_checkpoint(folder))
    assert last_checkpoint(folder).name == "step-00000008"
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_run_is_not_continued_with_another_vocabulary(run, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(run[0], folder)
    CharTokenizer("abc").save(folder)
    (folder / "report.html").unlink()  # the run is not finished
    with pytest.raises(ValueError, match="put the run's own vocabulary back"):
        train(monkeypatch, "--resume", folder)


def test_a_run_is_not_continued_with_layers_that_its_weights_lack(run, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(run[0], folder)
    (folder / "report.html").unlink()  # the run is not finished
    config = json.loads((folder / "config.json").read_text())
    config["model"]["n_layers"] = 10**9
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config.json asks for 1,000,000,000 layers"):
        train(monkeypatch, "--resume", folder)


def test_a_run_is_not_continued_with_another_text(tmp_path, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, " * 90)
    train(monkeypatch, "--preset", "shakespeare-char", "--data.path", text, "--out", tmp_path / "run", *SMALL)
    text.write_text("or not to be, to be " * 90)
    (tmp_path / "run" / "report.html").unlink()  # the run is not finished
    with pytest.raises(ValueError, match=r"the data is not what .*run began with"):
        train(monkeypatch, "--resume", tmp_path / "run")


def test_what_cannot_be_computed_here_leaves_no_folder(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"--train.precision fp16 needs a GPU"):
        train(monkeypatch, "--train.precision", "fp16", "--train.device", "cpu", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


SCRIPT = "\n\n".join(
    f"INT. ROOM {i} - DAY\n\nADA waits.\n\nADA\nHow many doors are there, {i}?\n\nBEN\nThere are {i} of them, Ada."
    for i in range(40)
)


def test_replies_to_lines_of_a_script(tmp_path, monkeypatch):
    (tmp_path / "script.txt").write_text(SCRIPT)
    options = ["--preset", "script-seq2seq", "--data.path", tmp_path / "script.txt", "--epochs", 4]
    sizes = ["--model.d_model", 32, "--model.n_layers", 1, "--model.vocab_size", 300, "--train.batch_size", 6]
    result = train(monkeypatch, *options, *sizes, "--out", tmp_path / "run")
    assert "source_entropy_nats_per_character" not in result
    assert result["nats_per_character"] < math.log(300)
    sample = (tmp_path / "run" / "sample.txt").read_text()
    lines = [line for line in sample.splitlines() if line.startswith("line:")]
    assert lines
    assert all("How many doors" in line or "There are" in line for line in lines)
    turns = len(parse_script(SCRIPT).turns)
    assert turns == 80


def test_a_context_longer_than_the_text_is_shortened_with_a_message(tmp_path, monkeypatch, capsys):
    (tmp_path / "short.txt").write_text("to be or not to be, " * 30)
    options = [
        "--preset",
        "shakespeare-char",
        "--data.path",
        tmp_path / "short.txt",
        "--out",
        tmp_path / "run",
    ]
    train(monkeypatch, *options, *SMALL, "--model.context_length", 500, "--train.batch_size", 1)
    assert "context_length=500 is shortened to 59, which the shortest split fills" in capsys.readouterr().out
    assert load(tmp_path / "run")[2].model.context_length == 59


def test_the_real_screenplay_as_characters_and_tokens(data_root, tmp_path, monkeypatch):
    for tokens in ("characters", "byte-pairs"):
        options = ["--preset", "script-lm", "--data.path", data_root / "scripts" / "Charade.txt", *SMALL]
        result = train(
            monkeypatch, *options, "--tokens", tokens, "--model.vocab_size", 600, "--out", tmp_path / tokens
        )
        assert result["bytes"] >= result["characters"] > 30_000
    assert (tmp_path / "characters" / "train.ids").stat().st_size > 1_000_000


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--preset", "script-lm"], "no text to learn from"),
        (["--preset", "script-lm", "--data.path", "nowhere.txt"], "nowhere.txt"),
        (["--data.n_scenes", "0"], "--data.n_scenes=0"),
        (["--model.n_heads", "5"], "--model.n_heads=5 does not divide --model.d_model=192"),
        (["--train.warmup", "1.5"], "--train.warmup=1.5"),
        (["--train.schedule", "inverse_sqrt", "--train.warmup", "0"], "--train.schedule=inverse_sqrt"),
        (["--tokens", "words"], "--tokens='words'"),
        (["--vocabulary", "nowhere"], "nowhere"),
        (["--resume", "nowhere"], "no config at nowhere"),
        (["--model.layers", "3"], "unknown option --model.layers"),
    ],
)
def test_bad_input_is_one_line_and_status_two(tmp_path, monkeypatch, capsys, arguments, message):
    out = [] if "--resume" in arguments else ["--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["train_lm.py", *arguments, *out])
    with pytest.raises(SystemExit) as exit:
        run_main(train_lm.main)
    assert exit.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("preset", PRESETS)
def test_help_shows_the_presets_options_with_their_values(preset, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_lm.py", "--preset", preset, "--help"])
    with pytest.raises(SystemExit) as exit:
        train_lm.main()
    assert exit.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "python train_lm.py --resume runs/NAME" in said
    assert f"(at least 1; default: {PRESETS[preset].model.context_length})" in said


def small_run(preset, root):
    """The options of a preset at tiny size, with a text written into `root` where it is not built in."""
    if preset == "screenplay":
        return [*SMALL, *FILM]
    root.mkdir()
    (root / "script.txt").write_text(ScreenplayConfig(n_scenes=60, validation_scenes=3).read()["train"])
    words = ["--model.vocab_size", "400"] if preset == "script-lm" else []
    return ["--preset", preset, "--data.path", root / "script.txt", *SMALL, *words]


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_a_killed_run_repeats_the_steps_since_its_last_checkpoint(preset, tmp_path):
    check_killed("train_lm.py", tmp_path / "run", small_run(preset, tmp_path / "data"))


@pytest.mark.slow
def test_a_full_disk_costs_the_steps_since_the_last_checkpoint(tmp_path):
    check_full_disk("train_lm.py", tmp_path / "run", small_run("screenplay", tmp_path / "data"))


@pytest.mark.slow
def test_two_runs_at_once_do_not_meet(tmp_path):
    check_two_at_once("train_lm.py", tmp_path, small_run("screenplay", tmp_path / "data"))
