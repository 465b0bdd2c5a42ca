"""train_clip.py from the command line: the files of a run, and runs that are killed and resumed."""

import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

import minclip.task
import train_clip
from minclip.data.shapes import ShapesConfig
from minclip.data.transforms import TransformConfig
from minclip.presets import FULL, PRESETS, SYSTEMS
from minclip.pretrained import save_image_tower, save_text_tower
from minclip.towers.resnet import ResNetConfig
from minclip.towers.text import GPTTextConfig
from minclip.towers.vit import VisionTransformerConfig
from minlm.tokenizer import train_bpe
from minlm.training.checkpoint import last_checkpoint, load_weights
from minlm.training.command import command_line
from minlm.training.errors import run_main
from tests.killing import check_full_disk, check_killed, check_two_at_once
from tests.minclip.data.layouts import LAYOUTS
from tests.minclip.pretrained import published

ROOT = Path(__file__).resolve().parents[1]
TINY = [
    *("--image.d_model", "16", "--image.n_heads", "2", "--image.n_layers", "1", "--image.image_size", "32"),
    *("--text.d_model", "16", "--text.n_heads", "2", "--text.n_layers", "1", "--text.dropout", "0.1"),
    *(
        "--data.train_size",
        "200",
        "--data.dev_size",
        "240",
        "--data.image_size",
        "32",
        "--train.batch_size",
        "16",
    ),
]


def train(*arguments, **options):
    command = [sys.executable, str(ROOT / "train_clip.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600, **options)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    done = train("--out", folder, "--steps", 8, "--train.evaluate_every", 4, *TINY)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_a_run_leaves_everything_behind(run):
    folder, said = run
    result = json.loads((folder / "result.json").read_text())
    assert (result["data"], result["split"], result["images"], result["captions"]) == (
        "shapes",
        "dev",
        240,
        1200,
    )
    for way in ("image_to_text", "text_to_image"):
        assert result[way].keys() == {"recall@1", "recall@5", "recall@10", "median_rank"}
        assert 0 <= result[way]["recall@1"] <= result[way]["recall@5"] <= result[way]["recall@10"] <= 1
        assert f"recall@1 {result[way]['recall@1']:.1%}" in said
    assert result["chance"]["text_to_image"]["recall@1"] == pytest.approx(1 / 240)
    assert {"colour", "shape", "relation"} <= result["zero_shot"].keys()
    assert result["zero_shot"]["colour"]["chance"] == pytest.approx(1 / 8)
    assert (result["seed"], result["corrupt_images"]) == (0, 0)
    assert result["seconds"] > 0
    for photo in ("loss", "similarity", "retrieval", "zero_shot"):
        with Image.open(folder / f"{photo}.png") as image:
            assert min(image.size) > 300
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 9))
    assert [row["step"] for row in rows if "dev_loss" in row] == [4, 8]
    assert {"chance", "top1", "scale", "positive_cosine", "negative_cosine", "lr"} <= rows[0].keys()
    assert rows[0]["chance"] == pytest.approx(torch.tensor(16.0).log().item(), abs=0.1)
    assert last_checkpoint(folder).name == "step-00000008"
    assert json.loads((folder / "config.json").read_text())["data"]["type"] == "ShapesConfig"


def test_the_same_command_gives_the_same_weights(run, tmp_path):
    done = train("--out", tmp_path / "again", "--steps", 8, "--train.evaluate_every", 4, *TINY)
    assert done.returncode == 0, done.stderr
    assert equal_weights(run[0], tmp_path / "again")


def equal_weights(first: Path, second: Path) -> bool:
    ours, theirs = (load_weights(last_checkpoint(folder)) for folder in (first, second))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("preset", PRESETS)
def test_help_shows_the_options_of_the_preset_with_their_values(preset, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_clip.py", "--preset", preset, "--help"])
    with pytest.raises(SystemExit) as exit:
        train_clip.main()
    assert exit.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "python train_clip.py --resume runs/NAME" in said
    assert f"peak learning rate of AdamW (above 0; default: {PRESETS[preset].train.lr})" in said
    assert f"default: {','.join(map(str, PRESETS[preset].model.image.image_size))})" in said


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--preset", "flickr8k", "--data.root", "nowhere"], "nowhere"),
        (["--preset", "pairs", "--data.path", "nowhere.csv"], "nowhere.csv"),
        (["--image.n_heads", "3"], "--image.n_heads=3 does not divide --image.d_model=128"),
        (
            ["--image.patch_size", "7"],
            "--image.patch_size height 7 does not divide --image.image_size height 64",
        ),
        (["--train.lr", "fast"], "--train.lr='fast' is not a float"),
        (["--resume", "nowhere"], "no config at nowhere"),
        (["--vocabulary", "nowhere.txt"], "nowhere.txt"),
        (["--layers", "3"], "unknown option --layers"),
    ],
)
def test_bad_input_is_one_line_and_status_two(tmp_path, monkeypatch, capsys, arguments, message):
    out = [] if "--resume" in arguments else ["--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["train_clip.py", *arguments, *out])
    with pytest.raises(SystemExit) as exit:
        run_main(train_clip.main)
    assert exit.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_failing_command_exits_with_status_two(tmp_path):
    done = train("--out", tmp_path / "run", "--image.n_heads", "3")
    assert done.returncode == 2
    assert (
        done.stderr
        == "train_clip.py: error: --image.n_heads=3 does not divide --image.d_model=128: choose heads that do\n"
    )


@pytest.mark.slow
def test_killed_three_times_at_random_the_weights_are_the_undisturbed_ones(tmp_path):
    options = [
        "--steps",
        150,
        "--train.save_every",
        5,
        "--train.ema_decay",
        0.9,
        "--train.muon_lr",
        0.02,
        *TINY,
    ]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert train("--out", whole, *options).returncode == 0
    rng = random.Random(time.time_ns())
    command = [sys.executable, str(ROOT / "train_clip.py"), "--out", str(killed), *map(str, options)]
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
        wanted = steps_of(killed) + rng.randint(1, 18)
        while steps_of(killed) < wanted and process.poll() is None:
            time.sleep(0.02)
        time.sleep(rng.random() * 0.2)
        assert process.poll() is None, "the run ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        command = [sys.executable, str(ROOT / "train_clip.py"), "--resume", str(killed)]
    done = train("--resume", killed)
    assert done.returncode == 0, done.stderr
    assert equal_weights(whole, killed)
    clock = {"seconds", "pairs_per_second"}
    rows = []
    for folder in (whole, killed):
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        rows.append([{k: v for k, v in line.items() if k not in clock} for line in lines])
    assert rows[0] == rows[1]


SMALL_TOWERS = {
    VisionTransformerConfig: "--image.d_model 16 --image.n_heads 2 --image.n_layers 1",
    ResNetConfig: "--image.d_model 8",
}
SMALL_TEXT = "--text.d_model 16 --text.n_heads 2 --text.n_layers 1 --minutes 0 --steps 3 --train.batch_size 4"


def run_here(command, monkeypatch, photos=False):
    """The training script in this process; its plots take longer than such a run, and are tested elsewhere."""
    if not photos:
        for name in ("draw_plots", "draw_image_attention"):
            monkeypatch.setattr(train_clip, name, lambda *given, **named: None)
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    train_clip.main()


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "shapes"])
def test_every_preset_trains_on_its_published_layout(preset, tmp_path, monkeypatch):
    """From a small folder as it is published to the metrics: as many images and captions as were written."""
    (tmp_path / "data").mkdir()
    data = LAYOUTS[preset](tmp_path / "data")
    small = f"{SMALL_TOWERS[type(PRESETS[preset].model.image)]} {SMALL_TEXT}".split()
    out = tmp_path / "run"
    command = ["train_clip.py", "--preset", preset, "--out", out, *small, *data]
    run_here(command, monkeypatch, photos="cifar10" in preset)
    result = json.loads((out / "result.json").read_text())
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3]
    assert (out / "report.html").is_file()
    followed = rows[-1].keys() - {"step", "dev_loss"}
    if "cifar10" in preset:
        assert followed == {"dev_zero_shot_top1"}
        assert result["class_zero_shot"]["n"] == result["images"]
        assert rows[-1]["dev_zero_shot_top1"] == pytest.approx(result["class_zero_shot"]["top1"])
        assert result["linear_probe"]["n_train"] + result["images"] == 25
    else:
        assert followed == {
            f"dev_{way}_recall@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 10)
        }
        assert "class_zero_shot" not in result
        captions = 1 if preset == "shards" else 2
        assert (result["images"], result["captions"]) == (8, 8 * captions)


def small_run(preset, root):
    """The options of a preset at tiny size, with data written into `root` where it is not built in."""
    if preset == "shapes":
        return TINY
    root.mkdir()
    towers = SMALL_TOWERS[type(PRESETS[preset].model.image)].split()
    return [*towers, *SMALL_TEXT.split(), "--preset", preset, *LAYOUTS[preset](root)]


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_a_killed_run_repeats_the_steps_since_its_last_checkpoint(preset, tmp_path):
    check_killed("train_clip.py", tmp_path / "run", small_run(preset, tmp_path / "data"))


@pytest.mark.slow
def test_a_full_disk_costs_the_steps_since_the_last_checkpoint(tmp_path):
    check_full_disk("train_clip.py", tmp_path / "run", small_run("pairs", tmp_path / "data"))


@pytest.mark.slow
def test_two_runs_at_once_do_not_meet(tmp_path):
    check_two_at_once("train_clip.py", tmp_path, small_run("pairs", tmp_path / "data"))


def pairs_run(root, monkeypatch):
    """The options of a run on a small table of images, which is in `root` afterwards."""
    root.mkdir()
    small = f"{SMALL_TOWERS[VisionTransformerConfig]} {SMALL_TEXT}".split()
    return ["train_clip.py", "--preset", "pairs", *small, *LAYOUTS["pairs"](root)]


def test_a_damaged_dev_image_is_found_before_anything_is_written(tmp_path, monkeypatch):
    command = pairs_run(tmp_path / "data", monkeypatch)
    config = command_line(PRESETS, "", [*map(str, command[1:]), "--out", str(tmp_path / "run")]).config
    name = config.data.read()["dev"][0].image_id
    damaged = tmp_path / "data" / name
    damaged.write_bytes(damaged.read_bytes()[:50])
    with pytest.raises(ValueError, match=rf"cannot decode image .*{name}"):
        run_here([*command, "--out", tmp_path / "run"], monkeypatch)
    assert not (tmp_path / "run").exists()


def test_a_damaged_training_image_is_named(tmp_path, monkeypatch, capsys):
    command = pairs_run(tmp_path / "data", monkeypatch)
    config = command_line(PRESETS, "", [*map(str, command[1:]), "--out", str(tmp_path / "run")]).config
    monkeypatch.setattr(minclip.task, "PairDataset", partial(minclip.task.PairDataset, max_corrupt=0.5))
    damaged = tmp_path / "data" / config.data.read()["train"][0].image_id
    damaged.write_bytes(b"")
    run_here([*command, "--out", tmp_path / "run"], monkeypatch)
    assert f"replaced in training: {damaged.name}: cannot decode image" in capsys.readouterr().out


def test_a_run_is_not_continued_with_other_captions(tmp_path, monkeypatch):
    command = pairs_run(tmp_path / "data", monkeypatch)
    run_here([*command, "--out", tmp_path / "run"], monkeypatch)
    table = tmp_path / "data" / "pairs.jsonl"
    table.write_text(table.read_text().replace("a dog number", "a cat number"))
    (tmp_path / "run" / "report.html").unlink()  # the run is not finished
    with pytest.raises(ValueError, match=r"the data is not what .*run began with"):
        run_here(["train_clip.py", "--resume", tmp_path / "run"], monkeypatch)


@pytest.mark.parametrize("missing", ["train", "dev"])
def test_data_without_a_split_is_refused(tmp_path, monkeypatch, missing):
    monkeypatch.setattr(
        ShapesConfig, "read", lambda self: {name: [] for name in {"train", "dev"} - {missing}}
    )
    with pytest.raises(ValueError, match=f"this data has no split {missing}, only "):
        run_here(["train_clip.py", "--out", tmp_path / "run"], monkeypatch)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_published_shapes_start_from_files(system, tmp_path, monkeypatch):
    """--size full with pretrained towers: what is frozen stays the file's to the bit, what is trained leaves it."""
    if "parquet" in LAYOUTS[system].__name__:
        pytest.importorskip("pyarrow")
    preset = FULL[system]
    kind = ResNetConfig if isinstance(preset.model.image, ResNetConfig) else VisionTransformerConfig
    image = next(config for config in published.IMAGE_CONFIGS if isinstance(config, kind))
    text = published.TEXT_CONFIGS[0]
    words = published.WORDS
    if isinstance(preset.model.text, GPTTextConfig):
        words = train_bpe("a dog on the beach, the cat " * 3, 270)
        text = replace(published.TEXT_CONFIGS[3], vocab_size=words.vocab_size, end_id=words.end_id)
    towers = published.drawn_tower(image), published.drawn_tower(text)
    save_image_tower(towers[0], TransformConfig(), tmp_path / "image")
    save_text_tower(towers[1], words, tmp_path / "text")
    (tmp_path / "data").mkdir()
    command = ["train_clip.py", "--preset", system, "--size", "full", "--out", tmp_path / "run"]
    command += ["--epochs", 0, "--steps", 2, "--train.batch_size", 4, "--text.context_length", 9]
    command += ["--image.weights", tmp_path / "image", "--text.weights", tmp_path / "text"]
    command += ["--vocabulary", tmp_path / "text", *LAYOUTS[system](tmp_path / "data")]
    if kind is VisionTransformerConfig:
        command += ["--image.pool", "class"]  # as the file has it; one preset pools otherwise
    run_here(command, monkeypatch)
    trained = load_weights(last_checkpoint(tmp_path / "run"))
    for name, tower, config in (
        ("image", towers[0], preset.model.image),
        ("text", towers[1], preset.model.text),
    ):
        for key, value in tower.state_dict().items():
            now = trained[f"{name}_tower.{key}"]
            if key == "positions" and now.shape != value.shape:
                continue  # resized to the run's images
            if config.trained_blocks == 0:
                assert torch.equal(now, value), key
            elif key.endswith(("fc1.weight", "conv1.weight")):
                assert not torch.equal(now, value)
                torch.testing.assert_close(now, value, atol=0.01, rtol=0)


def steps_of(run: Path) -> int:
    """The last step in a run's log."""
    try:
        lines = [line for line in (run / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]
    except OSError:
        return 0
    return json.loads(lines[-1])["step"] if lines else 0
