"""python -m minclip: each command on a trained run, compared with the same metrics computed here."""

import json
import shutil
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import minlm.presets
from minclip import load
from minclip.__main__ import COMMANDS, main
from minclip.data.shapes import ShapesConfig
from minclip.evaluation.evaluate import embed_images, embed_texts
from minlm.training.checkpoint import last_checkpoint
from minlm.training.config import save_config


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of three images."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "deeper").mkdir()
    records = ShapesConfig(train_size=3, dev_size=3).read()["train"]
    for record, name in zip(records, ("a.png", "b.jpg", "deeper/c.png"), strict=True):
        record.open().save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    return folder


def output_of(capsys, command, *arguments):
    COMMANDS[command]([str(argument) for argument in arguments])
    return capsys.readouterr().out.splitlines()


def cosines(run, records, texts):
    model, tokenizer, transform = load(run)
    return embed_images(model, records, transform) @ embed_texts(
        model, tokenizer, texts
    ).T, model.logit_scale.exp()


def images_in(files):
    from minclip.__main__ import images

    return images([files / "a.png", files / "b.jpg", files / "deeper/c.png"])


def test_classify_prints_the_softmax_over_the_labels(tiny_run, files, capsys):
    lines = output_of(
        capsys,
        "classify",
        "--checkpoint",
        tiny_run,
        "--image",
        files / "a.png",
        "--labels",
        "red circle, blue star",
        "--templates",
        "a {}",
    )
    scores, scale = cosines(tiny_run, images_in(files)[:1], ["a red circle", "a blue star"])
    expected = (scale * scores[0]).softmax(dim=0)
    assert lines[0] == "probability that the label is the right one of these; they sum to 1"
    assert lines[1] == str(files / "a.png")
    shown = {line.split(None, 1)[1]: float(line.split("%")[0]) / 100 for line in lines[2:]}
    assert shown["red circle"] == pytest.approx(expected[0].item(), abs=1e-4)
    assert shown["blue star"] == pytest.approx(expected[1].item(), abs=1e-4)
    percent = [float(line.split("%")[0]) for line in lines[2:]]
    assert percent == sorted(percent, reverse=True)


@pytest.fixture(scope="module")
def sigmoid_checkpoint(tiny_run, tmp_path_factory):
    """The tiny run's checkpoint as if it had been trained with the sigmoid loss."""
    folder = shutil.copytree(last_checkpoint(tiny_run), tmp_path_factory.mktemp("sigmoid") / "step")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model": config["model"] | {"loss": "sigmoid"}}))
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"logit_bias": torch.tensor(-1.5)}, folder / "model.safetensors")
    return folder


def test_classify_prints_independent_probabilities_for_a_sigmoid_model(sigmoid_checkpoint, files, capsys):
    asked = ["--image", files / "a.png", "--labels", "red circle,blue star", "--templates", "a {}"]
    lines = output_of(capsys, "classify", "--checkpoint", sigmoid_checkpoint, *asked)
    scores, scale = cosines(sigmoid_checkpoint, images_in(files)[:1], ["a red circle", "a blue star"])
    expected = (scale * scores[0] - 1.5).sigmoid()
    assert lines[0] == "probability that the label fits the image, independently for each label"
    shown = {line.split(None, 1)[1]: float(line.split("%")[0]) / 100 for line in lines[2:]}
    assert shown["red circle"] == pytest.approx(expected[0].item(), abs=1e-4)
    assert shown["blue star"] == pytest.approx(expected[1].item(), abs=1e-4)


@pytest.mark.parametrize("command", ["classify", "search", "caption"])
def test_words_without_a_token_of_their_own_are_named(command, tiny_run, files, capsys, recwarn, tmp_path):
    def ask(text):
        (tmp_path / "captions.txt").write_text(text)
        options = {
            "classify": ["--image", files / "a.png", "--labels", text, "--templates", "a {}"],
            "search": ["--folder", files / "deeper", "--text", text],
            "caption": ["--image", files / "a.png", "--captions", tmp_path / "captions.txt"],
        }
        output_of(capsys, command, "--checkpoint", tiny_run, *options[command])
        return [str(warning.message) for warning in recwarn]

    assert ask("red circle") == []
    (line,) = ask("red cat")
    assert line.startswith("'cat': rare or absent in the captions that this model was trained with")


@pytest.mark.parametrize("templates, named", [([], []), (["--templates", "a photo of a {}"], ["'photo'"])])
def test_only_templates_of_the_command_line_are_checked_for_such_words(
    templates, named, tiny_run, files, capsys, recwarn
):
    labels = ["--image", files / "a.png", "--labels", "red circle"]
    output_of(capsys, "classify", "--checkpoint", tiny_run, *labels, *templates)
    assert [str(warning.message).split(":")[0] for warning in recwarn] == named


@pytest.mark.parametrize("command", ["classify", "evaluate"])
def test_texts_that_are_cut_are_named(command, tiny_run, files, capsys, recwarn, tmp_path):
    long = "red circle " * 30
    options = {
        "classify": ["--image", files / "a.png", "--labels", f"{long},red circle", "--templates", "a {}"],
        "evaluate": ["--data.image_size", 32],
    }
    checkpoint = tiny_run
    if command == "evaluate":  # captions of the dev split are longer than this context
        checkpoint = shutil.copytree(last_checkpoint(tiny_run), tmp_path / "step")
        config = json.loads((checkpoint / "config.json").read_text())
        config["model"]["text"]["context_length"] = 4
        (checkpoint / "config.json").write_text(json.dumps(config))
        weights = load_file(checkpoint / "model.safetensors")
        name = "text_tower.embedding.positions.weight"
        save_file(weights | {name: weights[name][:4].clone()}, checkpoint / "model.safetensors")
    output_of(capsys, command, "--checkpoint", checkpoint, *options[command])
    lines = [
        str(warning.message) for warning in recwarn if "are cut to context_length=" in str(warning.message)
    ]
    assert len(lines) == 1
    assert lines[0].startswith("1 of 2 texts" if command == "classify" else "")


class Moved(Exception):
    """A model was sent to a device that this machine lacks."""


@pytest.mark.parametrize("command", ["classify", "search", "caption", "evaluate"])
@pytest.mark.parametrize("device, gpu", [("auto", True), ("cuda", True), ("auto", False), ("cpu", True)])
def test_the_model_runs_on_the_given_device(command, device, gpu, tiny_run, files, monkeypatch, tmp_path):
    """With the GPU calls replaced: auto uses a GPU if there is one."""
    moved = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    to = torch.nn.Module.to

    def record(model, device):
        moved.append(str(device))
        if device.type != "cpu":
            raise Moved
        return to(model, device)

    monkeypatch.setattr(torch.nn.Module, "to", record)
    (tmp_path / "captions.txt").write_text("a red circle")
    options = {
        "classify": ["--image", files / "a.png", "--labels", "red circle"],
        "search": ["--folder", files, "--text", "red circle"],
        "caption": ["--image", files / "a.png", "--captions", tmp_path / "captions.txt"],
        "evaluate": [],
    }
    asked = ["--checkpoint", tiny_run, "--device", device, *options[command]]
    expected = "cuda" if gpu and device != "cpu" else "cpu"
    with pytest.raises(Moved) if expected == "cuda" else nullcontext():
        COMMANDS[command]([str(argument) for argument in asked])
    assert moved == [expected]


@given(st.lists(st.sampled_from(["", " ", "cat", "red circle"]), min_size=1).map(",".join))
def test_a_label_is_never_empty(labels):
    message = "no checkpoint in nowhere" if all(map(str.strip, labels.split(","))) else "has an empty label"
    with pytest.raises(ValueError, match=message):
        COMMANDS["classify"](["--checkpoint", "nowhere", "--image", "x", f"--labels={labels}"])


def test_search_ranks_the_images_of_a_folder(tiny_run, files, capsys, tmp_path):
    image = tmp_path / "found.png"
    lines = output_of(
        capsys,
        "search",
        "--checkpoint",
        tiny_run,
        "--folder",
        files,
        "--text",
        "a red circle",
        "--top",
        2,
        "--plot",
        image,
    )
    scores, _ = cosines(tiny_run, images_in(files), ["a red circle"])
    names = [str(files / "a.png"), str(files / "b.jpg"), str(files / "deeper/c.png")]
    best = scores[:, 0].argsort(descending=True)[:2].tolist()
    assert lines[:2] == [f"{scores[i, 0]:.4f}  {names[i]}" for i in best]
    assert image.stat().st_size > 5000


def test_caption_ranks_the_given_captions(tiny_run, files, capsys, tmp_path):
    captions = ["a red circle", "a blue star", "a green ring"]
    (tmp_path / "captions.txt").write_text("\n\n".join(captions) + "\n\n", encoding="utf-8-sig")
    lines = output_of(
        capsys,
        "caption",
        "--checkpoint",
        tiny_run,
        "--image",
        files / "b.jpg",
        "--captions",
        tmp_path / "captions.txt",
        "--top",
        3,
    )
    scores, _ = cosines(tiny_run, images_in(files)[1:2], captions)
    assert lines == [
        f"{scores[0, i]:.4f}  {captions[i]}" for i in scores[0].argsort(descending=True).tolist()
    ]


def test_evaluate_gives_the_metrics_of_the_run(tiny_run, capsys, tmp_path):
    lines = output_of(capsys, "evaluate", "--checkpoint", tiny_run, "--json", tmp_path / "metrics.json")
    metrics, result = (
        json.loads(path.read_text()) for path in (tmp_path / "metrics.json", tiny_run / "result.json")
    )
    for key in ("images", "captions", "image_to_text", "text_to_image", "chance"):
        assert metrics[key] == result[key]
    assert lines[0].startswith("image to text: recall@1")
    assert "chance" in lines[0]
    assert "90 images, 450 captions" in lines[0]


def test_evaluate_takes_other_data_of_the_same_kind(tiny_run, capsys, tmp_path):
    output_of(
        capsys,
        "evaluate",
        "--checkpoint",
        tiny_run,
        "--data.dev_size",
        6,
        "--json",
        tmp_path / "metrics.json",
    )
    assert json.loads((tmp_path / "metrics.json").read_text())["images"] == 6
    with pytest.raises(ValueError, match="no split 'test' in this data: choose one of train, dev, seen"):
        output_of(capsys, "evaluate", "--checkpoint", tiny_run, "--split", "test")


def test_an_exported_model_names_no_data_to_evaluate_on(tiny_run, capsys, tmp_path):
    output_of(capsys, "export", "--checkpoint", tiny_run, "--to", "safetensors", "--out", tmp_path / "out")
    with pytest.raises(ValueError, match=r"out is not a run .* names no data: give --preset"):
        output_of(capsys, "evaluate", "--checkpoint", tmp_path / "out")


def test_an_exported_model_classifies_and_evaluates_like_the_run(tiny_run, files, capsys, tmp_path):
    out = tmp_path / "published"
    lines = output_of(capsys, "export", "--checkpoint", tiny_run, "--to", "open_clip", "--out", out)
    assert lines == [str(out)]
    assert (out / "open_clip_config.json").is_file()
    asked = ["--image", files / "a.png", "--labels", "red circle,blue star,ring", "--templates", "a {}"]
    metrics = []
    for checkpoint in (tiny_run, out):
        classified = output_of(capsys, "classify", "--checkpoint", checkpoint, *asked)
        sizes = ["--data.train_size", 64, "--data.dev_size", 90, "--data.image_size", 32]
        output_of(
            capsys,
            "evaluate",
            "--checkpoint",
            checkpoint,
            "--preset",
            "shapes",
            *sizes,
            "--json",
            tmp_path / "f",
        )
        found = json.loads((tmp_path / "f").read_text())
        metrics.append((classified, found["text_to_image"], found["image_to_text"]))
    assert metrics[0] == metrics[1]


def test_doctor_exits_with_status_one_if_there_is_a_problem(capsys):
    small = ["--data.train_size", "300", "--data.dev_size", "6"]
    with pytest.raises(SystemExit) as good:
        output_of(capsys, "doctor", *small)
    assert "     ok: " in capsys.readouterr().out
    with pytest.raises(SystemExit) as bad:
        output_of(capsys, "doctor", *small, "--steps", "4")
    assert (good.value.code, bad.value.code) == (0, 1)
    assert "problem: at most 4 steps, " in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["classify", "--checkpoint", "nowhere", "--image", "x", "--labels", "a"],
            "no checkpoint in nowhere",
        ),
        (["search", "--checkpoint", "RUN", "--folder", "nowhere", "--text", "a"], "no folder nowhere"),
        (["search", "--checkpoint", "RUN", "--folder", "EMPTY", "--text", "a"], "no image in"),
        (["search", "--checkpoint", "nowhere", "--folder", "EMPTY", "--text", " "], "--text ' ' is empty"),
        (
            ["search", "--checkpoint", "nowhere", "--folder", "x", "--text", "a", "--plot", "cat.jpg"],
            "--plot cat.jpg must end in .png: the plot is a PNG file",
        ),
        (
            ["evaluate", "--checkpoint", "BLANK"],
            "is not a run .* names no data: give --preset, one of shapes",
        ),
        (
            ["evaluate", "--checkpoint", "LANGUAGE"],
            "config.json is of a language model's run: use train_lm.py",
        ),
        (
            ["classify", "--checkpoint", "LANGUAGE", "--image", "x", "--labels", "a"],
            "config.json is of a language model's run: use train_lm.py or python -m minlm",
        ),
        (
            ["search", "--checkpoint", "nowhere", "--folder", "EMPTY", "--text", "a", "--top", "0"],
            "--top 0 must be at least 1",
        ),
        (
            ["search", "--checkpoint", "nowhere", "--folder", "EMPTY", "--text", "a", "--plot", "EMPTY"],
            "--plot .* cannot be written: name a file",
        ),
        (
            ["caption", "--checkpoint", "RUN", "--image", "x.png", "--captions", "nowhere"],
            "cannot read 'nowhere'",
        ),
        (
            ["caption", "--checkpoint", "nowhere", "--image", "x.png", "--captions", "BLANK"],
            "no caption in .*blank.txt: write one per line",
        ),
        (
            ["caption", "--checkpoint", "nowhere", "--image", "x.png", "--captions", "BLANK", "--top", "-1"],
            "--top -1 must be at least 1",
        ),
        (["evaluate", "--checkpoint", "nowhere", "--json", "EMPTY"], "--json .* cannot be written"),
        (
            ["export", "--checkpoint", "nowhere", "--to", "hf-clip", "--out", "RUN"],
            "--out .*tiny is not empty: choose another folder",
        ),
        (
            ["export", "--checkpoint", "nowhere", "--to", "hf-clip", "--out", "BLANK"],
            "--out .*blank.txt is a file: name a folder",
        ),
        (
            ["classify", "--checkpoint", "RUN", "--image", "x.png", "--labels", "a"],
            "cannot decode image 'x.png'",
        ),
        (
            ["classify", "--checkpoint", "RUN", "--image", "x.png", "--labels", "a", "--templates", "b"],
            r"\{\}",
        ),
        (["doctor", "--preset", "flickr8k", "--data.root", "nowhere"], "nowhere"),
        (["paint"], "unknown command 'paint': there are classify, search, caption, evaluate, export, doctor"),
    ],
)
def test_bad_input_is_reported_in_one_line(tiny_run, tmp_path, monkeypatch, arguments, message):
    (tmp_path / "blank.txt").write_text(" \n\n")
    places = {"RUN": str(tiny_run), "EMPTY": str(tmp_path), "BLANK": str(tmp_path / "blank.txt")}
    if "LANGUAGE" in arguments:
        places["LANGUAGE"] = str(tmp_path / "language")
        (tmp_path / "language").mkdir()
        save_config(minlm.presets.PRESETS["script-lm"], tmp_path / "language" / "config.json")
        save_file({"a": torch.zeros(1)}, tmp_path / "language" / "model.safetensors")
    monkeypatch.setattr(sys, "argv", ["minclip", *(places.get(word, word) for word in arguments)])
    with pytest.raises(ValueError, match=message) as error:
        main()
    assert "\n" not in str(error.value)


def test_the_module_runs_and_exits_with_two_on_bad_input(tmp_path):
    command = [
        sys.executable,
        "-m",
        "minclip",
        "search",
        "--checkpoint",
        "nowhere",
        "--folder",
        str(tmp_path),
        "--text",
        "a",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("python -m minclip: error: ")


def test_help_names_every_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["minclip"])
    main()
    lines = capsys.readouterr().out
    assert all(f"minclip {command} " in lines for command in COMMANDS)


def test_inference_needs_no_gradients(tiny_run):
    model, tokenizer, _ = load(tiny_run)
    assert not embed_texts(model, tokenizer, ["a red circle"]).requires_grad
    assert torch.is_grad_enabled()


def test_report_writes_a_page_on_a_stopped_run_and_one_on_several(tiny_run, tmp_path, capsys):
    stopped, page = tmp_path / "stopped", tmp_path / "both.html"
    shutil.copytree(tiny_run, stopped)
    for path in [stopped / "result.json", *stopped.glob("*.png"), *stopped.glob("*.html")]:
        path.unlink()
    COMMANDS["report"]([str(stopped)])
    COMMANDS["report"]([str(stopped), str(tiny_run), "--out", str(page)])
    assert capsys.readouterr().out.splitlines() == [str(stopped / "report.html"), str(page)]
    assert (stopped / "loss.png").is_file()
    assert "has not finished" in (stopped / "report.html").read_text(encoding="utf-8")
