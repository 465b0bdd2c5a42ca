"""The README's programs and commands run, on tiny data and budgets, in a folder that has the files it names.

Commands in the text of README.md, CONTRIBUTING.md and docs/*.md are parsed, and the files they name exist.
"""

import csv
import gzip
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import minclip.__main__
import minclip.data.clip_bpe
import minlm.__main__
import train_clip
import train_lm
from minclip.data.clip_bpe import ClipBPE
from minclip.data.transforms import TransformConfig
from minclip.presets import PRESETS
from minclip.pretrained import save_image_tower, save_text_tower
from minclip.towers.vit import VisionTransformerConfig
from minlm.screenplay.source import ScreenplayConfig
from minlm.training.command import command_line
from tests.minclip.pretrained import published

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = README + "".join(
    page.read_text(encoding="utf-8") for page in [ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
)
PROGRAMS = re.findall(r"```python\n(.*?)```(?:\n\n```\n(.*?)```)?", README, re.DOTALL)  # (source, output)
LINES = [
    line
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line
]
SMALL = {  # what makes a training command of the README one of seconds
    "shapes": "--steps 2 --image.n_layers 1 --data.train_size 64 --data.dev_size 90 --train.batch_size 16",
    "flickr8k": "--minutes 0 --steps 2 --image.d_model 8 --train.batch_size 4",
    "vit-distilbert-ndlinear-flickr8k": "--epochs 0 --steps 2 --train.batch_size 4 --text.context_length 9",
    "pairs": "--epochs 0 --steps 2 --image.n_layers 1 --train.batch_size 4",
    "bert.json": "--epochs 0 --steps 2 --image.n_layers 1 --train.batch_size 4 --text.context_length 9",
    "screenplay": "--minutes 0 --steps 2 --data.n_scenes 20 --data.validation_scenes 2 --model.vocab_size 400",
    "shakespeare-char": "--steps 2 --model.n_layers 1 --train.batch_size 2",
    "script-lm": "--minutes 0 --steps 2 --model.n_layers 1 --model.vocab_size 300 --train.batch_size 2",
    "script-seq2seq": "--epochs 0 --steps 2 --model.n_layers 1 --model.vocab_size 300 --train.batch_size 2",
}
PACKAGES = {"minclip": minclip.__main__, "minlm": minlm.__main__}
SCRIPTS = {"train_clip.py": (train_clip, "shapes"), "train_lm.py": (train_lm, "screenplay")}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the files that the README's commands name."""
    folder = tmp_path_factory.mktemp("readme")
    rng = np.random.default_rng(0)

    def photo(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(path)

    photo(folder / "cat.jpg")
    rows = []
    for i in range(20):
        for root in ("pictures", "flickr8k/Images"):
            photo(folder / root / f"{i}.jpg")
        rows += [(f"{i}.jpg", f"picture {i}, caption {k} .") for k in range(2)]
    for name, prefix in (("flickr8k/captions.txt", ""), ("captions.csv", "pictures/")):
        with (folder / name).open("w", newline="") as file:
            csv.writer(file).writerows(
                [("image", "caption"), *((prefix + image, text) for image, text in rows)]
            )
    (folder / "captions.txt").write_text("a cat\na dog\n")
    words = ["".join(rng.choice(list("abcdefghijklmnop"), 6)) for _ in range(1500)]
    scenes = [
        f"INT. ROOM {i} - DAY\n\nADA\nDoor {words[i]} {words[-i]}?\n\nBEN\nYes, {words[i]}.\n"
        for i in range(1500)
    ]
    for name in ("script.txt", "input.txt"):
        (folder / name).write_text("\n".join(scenes))
    return folder


def write_published(folder):
    """Small files in the published layouts, under the names that the README gives them."""
    bpe = ClipBPE([("a", "b"), ("ab", "c</w>")])
    _, tensors = published.openai_file(folder / "openai", tokenizer=bpe)
    published.archive(tensors, folder / "ViT-B-32.pt")
    with gzip.open(folder / "bpe_simple_vocab_16e6.txt.gz", "wt") as file:
        file.write((folder / "openai" / "merges.txt").read_text())
    published.hf_folder(folder / "clip-vit-base-patch32")
    image, text = (
        VisionTransformerConfig(**published.VIT),
        published.TEXT_CONFIGS[0],
    )
    drawn = published.drawn_tower
    save_image_tower(drawn(image), TransformConfig(), folder / "vit-base-patch16-224")
    words = published.WORDS
    save_text_tower(drawn(text), words, folder / "distilbert-base-uncased")
    save_text_tower(drawn(published.TEXT_CONFIGS[1]), words, folder / "all-MiniLM-L6-v2")


def call(function, words, monkeypatch):
    """Run a command line in this process; its exit status."""
    monkeypatch.setattr(sys, "argv", words)
    try:
        function()
    except SystemExit as exit:
        return exit.code
    return 0


def train(words, monkeypatch):
    options = words[2:]
    script, preset = SCRIPTS[words[1]]
    if "--resume" in options:
        assert options[2:] == ["--epochs", "60"]
        options[2:] = ["--steps", "3"]
    else:
        preset = "bert.json" if "--config" in options else preset
        preset = options[options.index("--preset") + 1] if "--preset" in options else preset
        options = [*options, *SMALL[preset].split()]
    return call(script.main, [words[1], *options], monkeypatch)


def test_the_commands_run(place, monkeypatch, capsys):
    """In the README's order, in one folder; the first run of CLIP stands for runs/NAME."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(minclip.data.clip_bpe, "N_MERGES", 2)
    write_published(place)
    [config] = re.findall(r"```json\n(.*?)```", README, re.DOTALL)
    Path("bert.json").write_text(config)
    ran = []
    for line in LINES:
        words = shlex.split(line.removeprefix("pip install -r requirements.txt && "))
        if words[0] == "torchrun":  # tests/minlm/training/test_distributed.py runs it
            assert words[1:4] == ["--nproc-per-node", "2", "train_clip.py"]
            assert words[5] in PRESETS
            continue
        if words[0] == "python" and words[1] in SCRIPTS:
            assert train(words, monkeypatch) == 0, line
            if not Path("runs/NAME").exists() and words[1] == "train_clip.py":
                shutil.copytree(next(Path("runs").glob("shapes-*")), "runs/NAME")
        elif words[:2] == ["python", "-m"]:
            status = call(PACKAGES[words[2]].main, words[2:], monkeypatch)
            assert status == 0 or (status == 1 and words[3] == "doctor"), line  # the doctor may find fault
        else:
            benchmark = words[0] == "python" and (ROOT / words[1]).is_file()
            assert words == ["pytest"] or benchmark, f"nothing here runs: {line}"
        ran.append(" ".join(words[:4]))
    for name, package in PACKAGES.items():
        for command in package.COMMANDS:
            shown = any(f"{name} {command}" in line for line in ran)
            assert shown, f"the README does not show {name} {command}"
    assert Path("found.png").is_file()
    assert Path("metrics.json").is_file()
    assert Path("runs/mine/result.json").is_file()
    assert (
        json.loads(Path("runs/tuned/config.json").read_text())["model"]["image"]["d_model"] == 8
    )  # the file's

    assert json.loads(Path("runs/mine/config.json").read_text())["train"]["steps"] == 3  # resumed, for longer
    assert (
        json.loads(Path("runs/bert/config.json").read_text())["model"]["text"]["activation"] == "relu"
    )  # the file's

    for source, output in PROGRAMS:
        if not output:  # those that use a run
            exec(source, {})
    assert "tensor([[" in capsys.readouterr().out  # cosines of an image with two texts


def run_program(beginning):
    """(what a program of the README prints, what the README shows); the program in a process of its own."""
    [(source, shown)] = [(source, shown) for source, shown in PROGRAMS if shown.startswith(beginning)]
    ran = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not ran.stderr
    return ran.stdout, shown


def test_clip_in_one_screen_learns():
    printed, shown = run_program("step 0")
    number = r"-?\d+\.\d+"
    assert re.sub(number, "x", printed) == re.sub(number, "x", shown)  # the digits depend on the machine
    first, chance, last, _, own, other = map(float, re.findall(number, printed))
    assert last < chance / 2 < chance < first + 0.5
    assert own > other + 0.2


def test_a_language_model_in_one_screen_writes():
    printed, shown = run_program("ADA")
    prompt = "ADA holds the"
    assert printed.startswith(prompt)
    assert shown.startswith(prompt)
    words = re.findall(r"[a-z]{3,}", printed.removeprefix(prompt))
    text = ScreenplayConfig(n_scenes=200).read()["train"]
    known = [word for word in words if re.search(rf"\b{word}\b", text)]
    assert len(words) > 10
    assert len(known) > len(words) / 2  # whole words of the script, made of its pieces


def test_the_idea_comes_first_and_the_readme_is_short():
    source, _ = PROGRAMS[0]
    assert len([line for line in source.splitlines() if line and "import" not in line]) <= 35
    assert README.count("\n") < 330
    assert README.index(source) < README.index("```bash")


@pytest.mark.parametrize("line", sorted(set(re.findall(r"`(python [^`]+)`", PAGES))))
def test_the_commands_in_its_text_are_understood(line):
    """Those of the tables, whose presets tests/test_train_clip.py and test_train_lm.py train, and the benchmarks'."""
    _, *words = shlex.split(line)
    options = [word.removeprefix("--") for word in words if word.startswith("--")]
    if words[0] in SCRIPTS:
        module, _ = SCRIPTS[words[0]]
        command = command_line(module.PRESETS, "", words[1:], module.FULL)
        for name, value in zip(options, words[2::2], strict=True):
            part, _, field = {"minutes": "train.minutes"}.get(name, name).partition(".")
            if field:
                assert str(getattr(getattr(command.config, part), field)) in (value, f"{value}.0")
        return
    path = ROOT / (f"{words[1]}/__main__.py" if words[0] == "-m" else words[0])
    source = path.read_text(encoding="utf-8")
    assert words[0] != "-m" or words[2] in PACKAGES[words[1]].COMMANDS
    assert all(f'"--{option}"' in source or option == "checkpoint" for option in options)


def test_ci_runs_the_readmes_test_command():
    assert "pip install -r requirements.txt && pytest" in LINES
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.search(r"^pip install .*-r requirements.txt\npytest$", ci, re.MULTILINE)


def test_the_files_they_name_are_there():
    for path in re.findall(r"`((?:minlm|minclip|tests|benchmarks)/[\w/.]+)`", PAGES):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"\]\((?!https)([^)]+)\)", README):
        assert (ROOT / path).is_file(), path
        assert not path.endswith(".png") or (ROOT / path).stat().st_size < 150_000, path


def test_an_installed_project_needs_what_the_readme_installs():
    """But for the tests' own packages; its commands are there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    assert project["dependencies"] == [
        line for line in listed if not line.startswith(("pytest", "hypothesis"))
    ]
    for name, package in PACKAGES.items():
        assert project["scripts"][name] == f"{package.__name__}:run"


@pytest.mark.parametrize("name", PACKAGES)
def test_an_installed_command_answers_in_one_line(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"/somewhere/bin/{name}", "nonsense"])
    with pytest.raises(SystemExit, match="2"):
        PACKAGES[name].run()
    assert capsys.readouterr().err.startswith(f"{name}: error: unknown command 'nonsense'")


def test_the_citation_has_the_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"\nversion: {project['version']}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
