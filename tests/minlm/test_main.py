"""python -m minlm: each command on a trained folder, against the same figures and texts computed here."""

import json
import shutil
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch

import minclip.presets
import train_lm
from minlm.__main__ import COMMANDS, main
from minlm.data import ReplyDataset
from minlm.evaluate import evaluate_replies, evaluate_text, random_batches_loss
from minlm.generate import SamplingConfig
from minlm.presets import PRESETS
from minlm.pretrained import load_gpt2
from minlm.runs import load
from minlm.screenplay.script import parse_script, reply_pairs
from minlm.training.command import command_line
from minlm.training.config import save_config
from minlm.training.errors import run_main
from minlm.writing import write, write_best

PROMPTS = ["INT. ROOM", "Ada"]
ASKED = ["--max_new_tokens", "12", "--seed", "3", "--temperature", "0.7"]
SAMPLING = SamplingConfig(max_new_tokens=12, seed=3, temperature=0.7)


@pytest.fixture(params=["lm_run", "reply_run"])
def run(request):
    """Each of the two trained folders."""
    return request.getfixturevalue(request.param)


def said_by(capsys, command, run, *arguments):
    COMMANDS[command](["--checkpoint", str(run), *map(str, arguments)])
    return capsys.readouterr().out


def shown(run, texts):
    """Format of printed texts: behind their prompts, where these are continued."""
    begun = PROMPTS if run.name == "lm" else ["", ""]
    return "".join(f"{prompt}{text}\n" for prompt, text in zip(begun, texts, strict=True))


@pytest.mark.parametrize("stops", [[], ["e", "a "]])
def test_generate_writes_what_write_does_streamed_or_not(run, stops, capsys):
    model, tokenizer, _ = load(run)
    expected = shown(run, write(model, tokenizer, PROMPTS, SAMPLING, stops))
    options = [*ASKED, *(["--stop", *stops] if stops else [])]
    assert said_by(capsys, "generate", run, "--prompt", *PROMPTS, *options) == expected
    assert said_by(capsys, "generate", run, "--prompt", *PROMPTS, *options, "--stream") == expected


def test_generate_takes_the_best_of_a_beam(run, capsys):
    model, tokenizer, _ = load(run)
    options = ["--beam", 3, "--max_new_tokens", 5]
    said = said_by(capsys, "generate", run, "--prompt", *PROMPTS, *options)
    assert said == shown(run, write_best(model, tokenizer, PROMPTS, 5, 3))


class Moved(Exception):
    """A model was sent to a device that this machine lacks."""


@pytest.mark.parametrize("command", ["generate", "evaluate"])
@pytest.mark.parametrize("device, gpu", [("auto", True), ("cuda", True), ("auto", False), ("cpu", True)])
def test_the_model_runs_on_the_device_asked_for(command, device, gpu, lm_run, monkeypatch):
    """With the calls replaced that a GPU would answer: auto takes one where there is one."""
    moved, to = [], torch.nn.Module.to
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

    def record(model, device):
        moved.append(device.type)
        if device.type == "cuda":
            raise Moved
        return to(model, device)

    monkeypatch.setattr(torch.nn.Module, "to", record)
    options = ["--prompt", "Ada", "--max_new_tokens", "2"] if command == "generate" else ["--stride", "32"]
    expected = "cuda" if gpu and device != "cpu" else "cpu"
    with pytest.raises(Moved) if expected == "cuda" else nullcontext():
        COMMANDS[command](["--checkpoint", str(lm_run), "--device", device, *options])
    assert moved == [expected]


def test_the_run_of_a_clip_is_sent_to_its_own_programs(tmp_path):
    save_config(minclip.presets.PRESETS["shapes"], tmp_path / "config.json")
    (tmp_path / "model.safetensors").write_bytes(b"")
    for command in (["generate", "--prompt", "a"], ["evaluate"], ["export", "--to", "hf-gpt2", "--out", "x"]):
        with pytest.raises(
            ValueError, match=r"config.json is of a CLIP's run: use train_clip.py or python -m"
        ):
            COMMANDS[command[0]](["--checkpoint", str(tmp_path), *command[1:]])
    with pytest.raises(ValueError, match=r"config.json is of a CLIP's run: use train_clip.py or python -m"):
        command_line(PRESETS, "", ["--config", str(tmp_path / "config.json")])


@pytest.mark.parametrize("option", [["--stream"], ["--temperature", "0"], ["--stop", "a"]])
def test_a_beam_takes_no_sampling_options(lm_run, option, capsys):
    with pytest.raises(ValueError, match="takes no option of sampling but --max_new_tokens"):
        said_by(capsys, "generate", lm_run, "--prompt", "Ada", "--beam", "2", *option)


def metrics_of(capsys, path, run, *arguments):
    """(what is written, what is printed)."""
    said = said_by(capsys, "evaluate", run, "--json", path, *arguments)
    return json.loads(path.read_text()), dict(line.split() for line in said.splitlines())


def test_evaluate_gives_the_figures_of_the_run(run, capsys, tmp_path):
    metrics, said = metrics_of(capsys, tmp_path / "metrics.json", run)
    result = json.loads((run / "result.json").read_text())
    for name in ("nats_per_character", "bits_per_byte", "perplexity", "tokens", "characters", "bytes"):
        assert metrics[name] == pytest.approx(result[name])
        assert float(said[name].replace(",", "")) == pytest.approx(metrics[name], abs=1e-4)
    assert metrics["seconds"] > 0


def test_evaluate_offers_other_strides_and_the_peers_estimate(lm_run, capsys, tmp_path):
    model, tokenizer, config = load(lm_run)
    ids = np.array(tokenizer.encode(config.data.read()["validation"]))
    options = ["--stride", 32, "--random_batches", 3]
    metrics, _ = metrics_of(capsys, tmp_path / "metrics.json", lm_run, *options)
    assert (
        metrics["nats_per_character"]
        == evaluate_text(model, tokenizer, ids, 32).metrics()["nats_per_character"]
    )
    expected = random_batches_loss(model, ids, config.train.batch_size, config.train.seed, 3)
    assert metrics["random_batches_nats_per_token"] == expected
    with pytest.raises(ValueError, match=r"stride=0 must be in \[1, context_length=32\]"):
        said_by(capsys, "evaluate", lm_run, "--stride", 0)


def test_evaluate_takes_another_file_even_a_short_one(lm_run, capsys, tmp_path):
    """Of its validation text nothing but that is read: the training part would not fill one window."""
    text = "A naïve text.\nShort!\n"
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    model, tokenizer, _ = load(lm_run)
    options = ["--data.path", tmp_path / "text.txt", "--data.validation_fraction", "0.6"]
    metrics, _ = metrics_of(capsys, tmp_path / "metrics.json", lm_run, *options)
    ids = np.array(tokenizer.encode(text[int(0.4 * len(text)) :]))
    expected = evaluate_text(model, tokenizer, ids).metrics()
    assert {name: metrics[name] for name in expected} == expected
    with pytest.raises(ValueError, match="tokens do not fill a window of 32: give a longer text"):
        said_by(capsys, "evaluate", lm_run, *options, "--random_batches", 2)


def test_evaluate_takes_another_script_for_replies(reply_run, capsys, tmp_path):
    model, tokenizer, _ = load(reply_run)
    speeches = [f"INT. BAR - DAY\n\nADA\nI owe you {i}.\n\nBEN\nMore, Ada.\n" for i in "abcdef"]
    (tmp_path / "script.txt").write_text("\n".join(speeches))
    options = ["--data.path", tmp_path / "script.txt", "--data.validation_fraction", "0.9"]
    try:
        metrics, _ = metrics_of(capsys, tmp_path / "metrics.json", reply_run, *options)
    except ValueError as error:
        assert "is not among the" in str(error)  # noqa: PT017 - the run may not know each letter
        return
    text = "\n".join(speeches)
    pairs = reply_pairs(parse_script(text[int((1 - 0.9) * len(text)) :]))
    expected = evaluate_replies(model, ReplyDataset(pairs, tokenizer, 80)).metrics()
    assert {name: metrics[name] for name in expected} == expected


def test_export_writes_what_load_gpt2_reads(tmp_path, capsys, monkeypatch):
    sizes = ["--model.d_model", 8, "--model.n_heads", 2, "--model.n_layers", 1, "--model.context_length", 16]
    film = [
        "--data.n_scenes",
        5,
        "--data.validation_scenes",
        1,
        "--minutes",
        0,
        "--steps",
        1,
        "--train.batch_size",
        2,
    ]
    options = [
        *sizes,
        *film,
        "--model.vocab_size",
        300,
        "--model.positions",
        "learned",
        "--out",
        tmp_path / "run",
    ]
    command = command_line(PRESETS, "", list(map(str, options)))
    train_lm.train(command.config, command.run)
    capsys.readouterr()
    assert said_by(capsys, "export", tmp_path / "run", "--to", "hf-gpt2").strip() == str(
        tmp_path / "run-hf-gpt2"
    )
    ours, theirs = load(tmp_path / "run")[0], load_gpt2(tmp_path / "run-hf-gpt2")
    assert ours.config.context_length == theirs.config.context_length
    tokens = torch.arange(12)[None]
    assert torch.equal(ours(tokens), theirs(tokens))


def test_export_refuses_what_gpt2_cannot_be(run, capsys, tmp_path):
    message = "train one with --model.positions learned" if run.name == "lm" else "is an encoder-decoder"
    with pytest.raises(ValueError, match=message):
        said_by(capsys, "export", run, "--to", "hf-gpt2", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_doctor_ends_with_status_one_where_there_is_a_problem(capsys):
    small = ["--data.n_scenes", "6", "--data.validation_scenes", "2", "--model.vocab_size", "300"]
    statuses = []
    for more in ([], ["--minutes", "0", "--steps", "5"]):
        with pytest.raises(SystemExit) as exit:
            COMMANDS["doctor"]([*small, "--model.context_length", "32", *more])
        statuses.append(exit.value.code)
    assert statuses == [0, 1]
    said = capsys.readouterr().out
    assert "     ok: split train: " in said
    assert "problem: at most 5 steps, " in said


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["generate", "--checkpoint", "nowhere", "--prompt", "a"], "no checkpoint in nowhere"),
        (["generate", "--checkpoint", "RUN", "--prompt", ""], "the prompt is empty"),
        (["generate", "--checkpoint", "RUN", "--prompt", "a", "--stop", ""], "a stop string is empty"),
        (["generate", "--checkpoint", "RUN", "--prompt", "a", "--top_p", "2"], "--top_p=2.0 must be in"),
        (["generate", "--checkpoint", "RUN", "--prompt", "a", "--top_q", "2"], "did you mean --top_p?"),
        (["generate", "--checkpoint", "REPLY", "--prompt", "漢"], "character '漢' (U+6F22) is not among"),
        (["generate", "--checkpoint", "REPLY", "--prompt", "a " * 99], "more than context_length=80"),
        (["generate", "--checkpoint", "RUN"], "--prompt"),
        (["evaluate", "--checkpoint", "RUN", "--data.path", "nowhere"], "nowhere"),
        (["evaluate", "--checkpoint", "RUN", "--data.n_scenes", "0"], "n_scenes=0"),
        (["evaluate", "--checkpoint", "nowhere", "--random_batches", "-1"], "--random_batches -1 must be at"),
        (
            ["evaluate", "--checkpoint", "nowhere", "--json", "/dev/full"],
            "--json /dev/full cannot be written",
        ),
        (["evaluate", "--checkpoint", "REPLY", "--stride", "0"], "are for models that continue a text"),
        (
            ["export", "--checkpoint", "nowhere", "--to", "hf-gpt2", "--out", "REPLY"],
            "reply is not empty: choose",
        ),
        (["doctor", "--preset", "script-lm"], "no text to learn from"),
        (["paint"], "unknown command 'paint': there are generate, evaluate, export, doctor"),
    ],
)
def test_bad_input_is_one_line_and_status_two(lm_run, reply_run, monkeypatch, capsys, arguments, message):
    places = {"RUN": str(lm_run), "REPLY": str(reply_run)}
    monkeypatch.setattr(sys, "argv", ["minlm", *(places.get(word, word) for word in arguments)])
    with pytest.raises(SystemExit) as exit:
        run_main(main)
    said = capsys.readouterr()
    assert (exit.value.code, said.out) == (2, "")
    assert message in said.err
    assert said.err.count("\n") == 1


def test_help_names_every_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["minlm"])
    main()
    said = capsys.readouterr().out
    assert all(f"minlm {command} " in said for command in COMMANDS)


def test_report_writes_a_page_on_a_stopped_run_and_one_on_several(lm_run, tmp_path, capsys):
    stopped, page = tmp_path / "stopped", tmp_path / "both.html"
    shutil.copytree(lm_run, stopped)
    for path in [stopped / "result.json", *stopped.glob("*.png"), *stopped.glob("*.html")]:
        path.unlink()
    COMMANDS["report"]([str(stopped)])
    COMMANDS["report"]([str(stopped), str(lm_run), "--out", str(page)])
    assert capsys.readouterr().out.splitlines() == [str(stopped / "report.html"), str(page)]
    assert (stopped / "loss.png").is_file()
    assert "has not finished" in (stopped / "report.html").read_text(encoding="utf-8")
