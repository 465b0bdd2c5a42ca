"""python -m minclip: each command on a trained folder, against the same figures computed here."""

import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minclip import load
from minclip.__main__ import COMMANDS, main
from minclip.data.shapes import ShapesConfig
from minclip.evaluate import embed_images, embed_texts


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of three pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "deeper").mkdir()
    records = ShapesConfig(train_size=3, dev_size=3).read()["train"]
    for record, name in zip(records, ("a.png", "b.jpg", "deeper/c.png"), strict=True):
        record.open().save(folder / name)
    (folder / "notes.txt").write_text("not a picture")
    return folder


def said_by(capsys, command, *arguments):
    COMMANDS[command]([str(argument) for argument in arguments])
    return capsys.readouterr().out.splitlines()


def cosines(run, records, texts):
    model, tokenizer, transform = load(run)
    return embed_images(model, records, transform) @ embed_texts(
        model, tokenizer, texts
    ).T, model.logit_scale.exp()


def pictures_in(files):
    from minclip.__main__ import pictures

    return pictures([files / "a.png", files / "b.jpg", files / "deeper/c.png"])


def test_classify_gives_the_softmax_over_the_labels(tiny_run, files, capsys):
    said = said_by(
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
    scores, scale = cosines(tiny_run, pictures_in(files)[:1], ["a red circle", "a blue star"])
    expected = (scale * scores[0]).softmax(dim=0)
    assert said[0] == str(files / "a.png")
    shown = {line.split(None, 1)[1]: float(line.split("%")[0]) / 100 for line in said[1:]}
    assert shown["red circle"] == pytest.approx(expected[0].item(), abs=1e-4)
    assert shown["blue star"] == pytest.approx(expected[1].item(), abs=1e-4)
    assert [float(line.split("%")[0]) for line in said[1:]] == sorted(shown_percent(said), reverse=True)


def shown_percent(said):
    return [float(line.split("%")[0]) for line in said[1:]]


@given(st.lists(st.sampled_from(["", " ", "cat", "red circle"]), min_size=1).map(",".join))
def test_a_label_is_never_empty(labels):
    message = "no checkpoint in nowhere" if all(map(str.strip, labels.split(","))) else "has an empty label"
    with pytest.raises(ValueError, match=message):
        COMMANDS["classify"](["--checkpoint", "nowhere", "--image", "x", f"--labels={labels}"])


def test_search_ranks_the_folders_pictures(tiny_run, files, capsys, tmp_path):
    picture = tmp_path / "found.png"
    said = said_by(
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
        "--picture",
        picture,
    )
    scores, _ = cosines(tiny_run, pictures_in(files), ["a red circle"])
    names = [str(files / "a.png"), str(files / "b.jpg"), str(files / "deeper/c.png")]
    best = scores[:, 0].argsort(descending=True)[:2].tolist()
    assert said[:2] == [f"{scores[i, 0]:.4f}  {names[i]}" for i in best]
    assert picture.stat().st_size > 5000


def test_caption_ranks_the_given_captions(tiny_run, files, capsys, tmp_path):
    captions = ["a red circle", "a blue star", "a green ring"]
    (tmp_path / "captions.txt").write_text("\n\n".join(captions) + "\n\n", encoding="utf-8-sig")
    said = said_by(
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
    scores, _ = cosines(tiny_run, pictures_in(files)[1:2], captions)
    assert said == [f"{scores[0, i]:.4f}  {captions[i]}" for i in scores[0].argsort(descending=True).tolist()]


def test_evaluate_gives_the_figures_of_the_run(tiny_run, capsys, tmp_path):
    said = said_by(capsys, "evaluate", "--checkpoint", tiny_run, "--json", tmp_path / "figures.json")
    figures, result = (
        json.loads(path.read_text()) for path in (tmp_path / "figures.json", tiny_run / "result.json")
    )
    for key in ("images", "captions", "image_to_text", "text_to_image", "chance"):
        assert figures[key] == result[key]
    assert said[0].startswith("image to text: recall@1")
    assert "chance" in said[0]
    assert "90 images, 450 captions" in said[0]


def test_evaluate_takes_other_data_of_the_same_kind(tiny_run, capsys, tmp_path):
    said_by(
        capsys,
        "evaluate",
        "--checkpoint",
        tiny_run,
        "--data.dev_size",
        6,
        "--json",
        tmp_path / "figures.json",
    )
    assert json.loads((tmp_path / "figures.json").read_text())["images"] == 6
    with pytest.raises(ValueError, match="no split 'test' in this data: there are train, dev, seen"):
        said_by(capsys, "evaluate", "--checkpoint", tiny_run, "--split", "test")


def test_what_export_writes_classifies_and_is_evaluated_as_the_run(tiny_run, files, capsys, tmp_path):
    out = tmp_path / "published"
    said = said_by(capsys, "export", "--checkpoint", tiny_run, "--to", "open_clip", "--out", out)
    assert said == [str(out)]
    assert (out / "open_clip_config.json").is_file()
    asked = ["--image", files / "a.png", "--labels", "red circle,blue star,ring", "--templates", "a {}"]
    figures = []
    for checkpoint in (tiny_run, out):
        classified = said_by(capsys, "classify", "--checkpoint", checkpoint, *asked)
        sizes = ["--data.train_size", 64, "--data.dev_size", 90, "--data.image_size", 32]
        said_by(
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
        figures.append((classified, found["text_to_image"], found["image_to_text"]))
    assert figures[0] == figures[1]


def test_doctor_ends_with_status_one_where_there_is_a_problem(capsys):
    small = ["--data.train_size", "300", "--data.dev_size", "6"]
    with pytest.raises(SystemExit) as good:
        said_by(capsys, "doctor", *small)
    assert "     ok: " in capsys.readouterr().out
    with pytest.raises(SystemExit) as bad:
        said_by(capsys, "doctor", *small, "--steps", "4")
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
            ["search", "--checkpoint", "nowhere", "--folder", "EMPTY", "--text", "a", "--top", "0"],
            "--top 0 must be at least 1",
        ),
        (
            ["search", "--checkpoint", "nowhere", "--folder", "EMPTY", "--text", "a", "--picture", "EMPTY"],
            "--picture .* cannot be written: name a file",
        ),
        (
            ["caption", "--checkpoint", "RUN", "--image", "x.png", "--captions", "nowhere"],
            "cannot read 'nowhere'",
        ),
        (
            ["caption", "--checkpoint", "nowhere", "--image", "x.png", "--captions", "BLANK"],
            "no caption in .*blank.txt: give one a line",
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
            "--out .*blank.txt is not empty",
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
def test_bad_input_is_said_in_one_line(tiny_run, tmp_path, monkeypatch, arguments, message):
    (tmp_path / "blank.txt").write_text(" \n\n")
    places = {"RUN": str(tiny_run), "EMPTY": str(tmp_path), "BLANK": str(tmp_path / "blank.txt")}
    monkeypatch.setattr(sys, "argv", ["minclip", *(places.get(word, word) for word in arguments)])
    with pytest.raises(ValueError, match=message) as error:
        main()
    assert "\n" not in str(error.value)


def test_the_module_runs_and_exits_with_two_on_bad_input():
    command = [
        sys.executable,
        "-m",
        "minclip",
        "search",
        "--checkpoint",
        "nowhere",
        "--folder",
        ".",
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
    said = capsys.readouterr().out
    assert all(f"minclip {command} " in said for command in COMMANDS)


def test_inference_needs_no_gradients(tiny_run):
    model, tokenizer, _ = load(tiny_run)
    assert not embed_texts(model, tokenizer, ["a red circle"]).requires_grad
    assert torch.is_grad_enabled()
