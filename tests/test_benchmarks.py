"""The benchmarks on little data and for a few steps: their files and counts are checked, their timings are not."""

import importlib
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize, one_hot

from minclip.clip import CLIPConfig
from minclip.data.flickr8k import Flickr8kConfig
from minclip.data.flickr30k import Flickr30kConfig
from minclip.data.parquet import ParquetConfig
from minclip.data.shapes import ShapesConfig
from minclip.data.shards import ShardsConfig
from minclip.presets import PRESETS
from minclip.towers.projection import make_projection
from minlm.presets import PRESETS as LM_PRESETS
from tests.minclip.data.layouts import PARTS, flickr8k
from tests.minclip.tiny_clip import record

ROOT = Path(__file__).resolve().parents[1]


def benchmark(name):
    return importlib.import_module(f"benchmarks.{name}")


def run(module, monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, options)])
    module.main()


def contents(records):
    return {(r.open().tobytes(), r.captions) for r in records}


@pytest.mark.parametrize("folder", ["Images", "Flicker8k_Dataset"])
def test_the_layouts_have_the_same_images_captions_and_splits(tmp_path, monkeypatch, folder):
    pytest.importorskip("pyarrow")
    root = tmp_path / "flickr8k"
    root.mkdir()
    flickr8k(root)
    for k, path in enumerate(sorted((root / "Images").glob("*.jpg"))):
        Image.new("RGB", (8, 8), (10 * k, 0, 0)).save(
            path
        )  # the Parquet reader recognises equal images by their bytes
    (root / "Images").rename(root / folder)
    run(benchmark("layouts"), monkeypatch, "--root", root, "--out", tmp_path / "layouts")
    with pytest.raises(ValueError, match="layouts is not empty: choose another folder"):
        run(benchmark("layouts"), monkeypatch, "--root", root, "--out", tmp_path / "layouts")
    source = Flickr8kConfig(root=str(root)).read()
    other = Flickr30kConfig(root=str(tmp_path / "layouts/flickr30k")).read()
    for split in PARTS:
        assert contents(other[split]) == contents(source[split])
    shards = ShardsConfig(path=str(tmp_path / "layouts/shards")).read()
    assert {split: contents(records) for split, records in shards.items()} == {
        split: contents(records) for split, records in source.items()
    }
    parquet = ParquetConfig(path=str(tmp_path / "layouts/captions.parquet"), dev_fraction=0.5).read()
    assert contents([*parquet["train"], *parquet["dev"]]) == contents([*source["train"], *source["dev"]])


SMALL = replace(
    PRESETS["shapes"],
    model=replace(
        PRESETS["shapes"].model,
        image=replace(PRESETS["shapes"].model.image, d_model=16, n_heads=2, n_layers=1),
        text=replace(PRESETS["shapes"].model.text, d_model=16, n_heads=2, n_layers=1),
        embed_dim=16,
    ),
    data=ShapesConfig(train_size=64, dev_size=90),
    train=replace(PRESETS["shapes"].train, steps=2, minutes=0.0, batch_size=16),
)


def test_heads_are_counted_evaluated_and_plotted(tmp_path, monkeypatch, capsys):
    heads = benchmark("heads")
    monkeypatch.setattr(heads, "STEPS", 3)
    monkeypatch.setattr(heads, "BATCH", 32)
    for name in ("draw_plots", "draw_image_attention", "draw_zero_shot"):
        monkeypatch.setattr(heads.train_clip, name, lambda *given, **named: None)
    heads.train_clip.train(SMALL, tmp_path / "run")
    capsys.readouterr()
    photo = tmp_path / "heads.png"
    run(heads, monkeypatch, "--run", tmp_path / "run", "--plot", photo)
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    rows = {name.strip(): int(size.replace(",", "")) for _, name, size, *_ in lines[1:]}
    for kind, name in (("linear", "dense"), ("linear_norm", "dense, LayerNorm"), ("residual", "residual")):
        assert rows[name] == 2 * sum(p.numel() for p in make_projection(kind, 16, 16).parameters())
    for rank in (1, 2, 4, 8):
        assert rows[f"low rank {rank}"] == 2 * rank * (16 + 16)
    for first in (1, 2, 4):
        second = 16 // first
        assert rows[f"NdLinear, axes of {first} and {second}"] == 2 * (
            first * (first + 1) + second * (second + 1)
        )
    assert len(rows) == 3 + 4 + 3
    with Image.open(photo) as image:
        assert min(image.size) > 300


def test_a_trained_head_beats_an_untrained_one(monkeypatch):
    """A dense head finds, in 120 steps, the rotation between image and text features, for every caption of an image.

    The first, second and third caption of an image have different features, so that a caption that is never drawn, or
    drawn for another image, lowers the accuracy.
    """
    heads = benchmark("heads")
    monkeypatch.setattr(heads, "STEPS", 120)
    images, rotation = torch.randn(64, 8), torch.linalg.qr(torch.randn(8, 8))[0]
    counts = 1 + torch.arange(64) % 3
    first, image_of_text = counts.cumsum(0) - counts, torch.arange(64).repeat_interleave(counts)
    place = torch.arange(len(image_of_text)) - first[image_of_text]
    texts = one_hot(place, 3)[:, :, None] * (images @ rotation)[image_of_text][:, None]  # (texts, 3, 8)
    texts = texts.flatten(1) + 0.01 * torch.randn(len(place), 24)
    image_head, text_head, loss = heads.train_heads(
        lambda width: make_projection("linear", width, 8), images, texts, first, counts, 0.03
    )
    u, v = (normalize(x, dim=-1) for x in (image_head(images), text_head(texts)))
    assert ((u @ v.T).argmax(dim=0) == image_of_text).float().mean() > 0.95
    assert loss < 1.0 < torch.tensor(64.0).log()  # the mean of the last 50 steps


def test_the_learning_rate_of_the_lowest_training_loss_is_evaluated(monkeypatch, capsys):
    heads = benchmark("heads")
    losses = dict(zip(heads.RATES, (2.0, 0.5, 1.0), strict=True))
    trained = {lr: (torch.nn.Linear(4, 3), torch.nn.Linear(5, 3)) for lr in losses}
    features, judged = {4: torch.randn(3, 4), 5: torch.randn(6, 5)}, []

    def retrieval(*given):
        judged.append(given)
        return {"image_to_text": {"recall@1": 0.2}, "text_to_image": {"recall@1": 0.6}}

    monkeypatch.setattr(heads, "heads", lambda embed_dim, widths: [("dense", f"{embed_dim} {widths}", None)])
    monkeypatch.setattr(heads, "image_features", lambda model, some, transform: features[4][: len(some)])
    monkeypatch.setattr(heads, "text_features", lambda model, tokenizer, some: features[5][: len(some)])
    monkeypatch.setattr(heads, "train_heads", lambda *given: (*trained[given[-1]], losses[given[-1]]))
    monkeypatch.setattr(heads, "retrieval", retrieval)
    records = [record(i, tuple("abc"[: i + 1])) for i in range(3)]
    config = SimpleNamespace(data=SimpleNamespace(read=lambda: {"train": records[:2], "dev": records}))
    config.model = SimpleNamespace(embed_dim=3)
    rows = heads.measure(config, None, None, None)
    size = sum(p.numel() for head in trained[heads.RATES[1]] for p in head.parameters())
    row = {"family": "dense", "name": "3 (4, 5)", "parameters": size, "recall": 0.4, "loss": 0.5}
    assert rows == [row]
    *_, line = capsys.readouterr().out.splitlines()
    assert "|  20.0% |  60.0% |  0.500 | 1e-02 |" in line
    ((images, texts, image_of_text),) = judged
    for found, head, width in zip((images, texts), trained[heads.RATES[1]], (4, 5), strict=True):
        torch.testing.assert_close(found, normalize(head(features[width]), dim=-1))
    assert image_of_text.tolist() == [0, 1, 1, 2, 2, 2]


def test_the_plot_of_heads_has_a_line_per_family(tmp_path, monkeypatch):
    heads, saved = benchmark("heads"), []
    monkeypatch.setattr(heads, "save_figure", lambda *given: saved.append(given))
    sizes = {family: [40 * k + 20, 40 * k] for k, family in enumerate(heads.STYLES, start=1)}
    rows = [
        {"family": family, "parameters": size, "recall": size / 1000}
        for family, some in sizes.items()
        for size in some
    ]
    heads.draw(rows, "Heads", tmp_path / "heads.png")
    ((figure, path),) = saved
    assert path == tmp_path / "heads.png"
    for line, (family, some) in zip(figure.axes[0].get_lines(), sizes.items(), strict=True):
        assert line.get_label() == family
        assert list(line.get_xdata()) == sorted(some)
        assert list(line.get_ydata()) == pytest.approx([size / 10 for size in sorted(some)])  # percent


def test_ablations_are_compared_with_the_preset(tmp_path, monkeypatch, capsys):
    ablations = benchmark("ablations")
    text = "".join(f"{k} times {k + 1} is {k * (k + 1)}.\n" for k in range(300))
    (tmp_path / "input.txt").write_text(text)
    small = LM_PRESETS["shakespeare-char"]
    small = ablations.changed(small, model={"d_model": 16, "d_ff": 16}, train={"steps": 3, "batch_size": 2})
    named = (
        "the preset",
        "4 layers",
        "512 byte pairs",
        "QK-norm",
        "outputs start at zero",
        "logits capped at 15",
    )
    few = {name: ablations.variants(small)[name] for name in named}
    few["512 byte pairs"] = (
        replace(few["512 byte pairs"][0], model=replace(small.model, vocab_size=300)),
        None,
    )
    monkeypatch.setattr(ablations, "variants", lambda preset: few)
    monkeypatch.setitem(ablations.PRESETS, "shakespeare-char", small)
    run(ablations, monkeypatch, "--text", tmp_path / "input.txt", "--seeds", 1)
    rows = [re.split(r"\s{2,}", line.strip()) for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[0] for row in rows] == list(named)
    nats = {row[0]: float(row[1]) for row in rows}
    assert rows[0][2:] == ["+0.0%", "1.00"]
    for name, _, share, _ in rows:
        assert abs(float(share[:-1]) - 100 * (nats[name] / nats["the preset"] - 1)) < 0.1
    assert len(set(nats.values())) == len(nats)  # each change changes something


def test_every_ablation_is_a_config_and_changes_outside_configs_are_exact():
    ablations = benchmark("ablations")
    preset = LM_PRESETS["shakespeare-char"]
    given = ablations.variants(preset)
    assert [name for name, (config, change) in given.items() if config == preset and not change] == [
        "the preset"
    ]
    model = ablations.TransformerLM(replace(preset.model, vocab_size=11))
    x = torch.randint(0, 11, (2, 5))
    plain = model(x)
    ablations.soft_cap(model)
    torch.testing.assert_close(model(x), 15 * torch.tanh(plain / 15))
    ablations.zero_outputs(model)
    embedded = model.transformer.norm(model.embedding(x, torch.arange(5)))
    torch.testing.assert_close(model.features(x), embedded)  # Blocks that write nothing
    ablations.qk_norm(model)
    projected = model.transformer.blocks[0].attention.in_proj(torch.randn(3, 4, preset.model.d_model))
    heads = projected.chunk(3, dim=-1)[1].unflatten(-1, (preset.model.n_heads, -1))
    torch.testing.assert_close(heads.square().mean(dim=-1), torch.ones_like(heads[..., 0]), atol=1e-3, rtol=0)


PEER = """
import sys, time
time.sleep(1)
print("step 3: train loss 1.1, val loss 1.25" if "--eval_only=True" in sys.argv else "trained")
"""


@pytest.mark.slow
def test_the_peers_metrics_are_printed_beside_ours(tmp_path, monkeypatch, capsys):
    """The peer is a script that prints 1.25 and reads the given text; ours is a run of three steps."""
    nanogpt = benchmark("nanogpt")
    peer = tmp_path / "peer"
    (peer / "data" / "shakespeare_char").mkdir(parents=True)
    (peer / "train.py").write_text(PEER)
    (peer / "data" / "shakespeare_char" / "prepare.py").write_text(
        "assert open('data/shakespeare_char/input.txt').read().startswith('0 times 1')\n"
    )
    text = "".join(f"{k} times {k + 1} is {k * (k + 1)}.\n" for k in range(300))
    (tmp_path / "input.txt").write_text(text)
    options = (
        "--rounds",
        1,
        "--steps",
        3,
        "--model.d_model",
        16,
        "--model.n_layers",
        1,
        "--train.batch_size",
        2,
    )
    run(nanogpt, monkeypatch, "--peer", peer, "--text", tmp_path / "input.txt", *options)
    *_, row, median = capsys.readouterr().out.splitlines()
    found = re.match(r"\s+0\s+([\d.]+) s  1\.2500\s+([\d.]+) s  (\d\.\d{4})\s+([\d.]+)$", row)
    theirs, ours, nats, ratio = map(float, found.groups())
    assert abs(ratio - ours / theirs) < 0.1 * ratio  # the seconds are rounded
    assert 1 < nats < 5
    assert median.split()[1:] == row.split()[1:]
    assert not (peer / "data" / "shakespeare_char" / "input.txt").exists()  # a copy was worked in


def test_a_peer_that_fails_or_prints_no_loss_is_named(tmp_path, monkeypatch):
    nanogpt = benchmark("nanogpt")
    folder = tmp_path / "data" / "shakespeare_char"
    folder.mkdir(parents=True)
    (tmp_path / "train.py").write_text("print('trained')")
    (folder / "prepare.py").write_text("")
    (tmp_path / "input.txt").write_text("a")
    options = ("--peer", tmp_path, "--text", tmp_path / "input.txt")
    monkeypatch.setattr(
        nanogpt.shutil, "copytree", lambda source, target, **rest: Path(target).symlink_to(source)
    )
    monkeypatch.setattr(nanogpt.shutil, "copy", lambda source, target: None)
    with pytest.raises(
        ValueError, match=r"the peer's train.py printed no `val loss`: give an unchanged checkout"
    ):
        run(nanogpt, monkeypatch, *options)
    for program, last in (
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "no word"),
    ):
        (folder / "prepare.py").write_text(program)
        with pytest.raises(ValueError, match=f"prepare.py failed: {last}$") as caught:
            run(nanogpt, monkeypatch, *options)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("ablations", ["--text", "nowhere"], "no such script: nowhere"),
        ("ablations", ["--text", "EMPTY"], "split train has 0 characters: give a longer text"),
        ("ablations", ["--text", "EMPTY", "--seeds", "0"], "--seeds 0 must be at least 1"),
        ("heads", ["--run", "nowhere"], "no checkpoint in nowhere"),
        ("heads", ["--run", "PUBLISHED"], "a run folder has step-* folders"),
        (
            "heads",
            ["--run", "nowhere", "--plot", "nowhere/a.png"],
            "--plot nowhere/a.png cannot be written",
        ),
        ("layouts", ["--root", "bad", "--out", "new"], "no folder 'bad': give Flickr8k's folder as root"),
        ("layouts", ["--root", "bad", "--out", "EMPTY"], "is a file: name a folder"),
        ("nanogpt", ["--peer", "nowhere", "--text", "EMPTY"], "--peer nowhere must be a checkout of nanoGPT"),
        (
            "nanogpt",
            ["--peer", "nowhere", "--text", "EMPTY", "--rounds", "0"],
            "--rounds 0 must be at least 1",
        ),
        ("attention", ["--rounds"], "unknown option --rounds"),
        ("heads", ["--rounds"], "unknown option --rounds"),
        ("ablations", [], "required: --text"),
        ("layouts", [], "required: --root, --out"),
        ("nanogpt", [], "required: --peer, --text"),
    ],
)
def test_bad_options_of_a_benchmark_are_one_line(tmp_path, monkeypatch, capsys, name, options, message):
    (tmp_path / "empty.txt").write_text("")
    module = benchmark(name)
    if "PUBLISHED" in options:
        monkeypatch.setattr(module, "load", lambda run: (module.CLIP(CLIPConfig(embed_dim=8)), None, None))
    places = {"EMPTY": str(tmp_path / "empty.txt")}
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *(places.get(option, option) for option in options)])
    with pytest.raises(SystemExit) as exit:
        module.run_main(module.main)
    said = capsys.readouterr()
    assert (exit.value.code, said.out) == (2, "")
    assert message in said.err
    assert said.err.count("\n") == 1


def test_attention_is_timed_both_ways(monkeypatch, capsys):
    attention = benchmark("attention")
    monkeypatch.setattr(attention, "CASES", {"small": (1, 2, 5, 4)})
    monkeypatch.setattr(attention, "ROUNDS", 2)
    run(attention, monkeypatch)
    lines = capsys.readouterr().out.splitlines()[1:]
    kinds = [f"{dtype}, {masked}" for dtype in ("float32", "bfloat16") for masked in ("no mask", "masked")]
    assert [line[33:53].strip() for line in lines] == kinds
    for line in lines:
        written, fused, ratio = map(float, re.findall(r"[\d.]+(?= ms| *$)", line))
        assert abs(ratio - written / fused) < 0.02 + 0.3 * ratio


def test_tiles_prints_one_row_each_for_the_step_and_retrieval(monkeypatch):
    """In this process: 4 pairs in 2 parts, 10 images, 20 captions."""
    tiles = benchmark("tiles")
    monkeypatch.setattr(tiles, "PART", 2)
    monkeypatch.setattr(tiles, "alone", lambda function, *arguments: function(*arguments))
    step, retrieval = tiles.rows(4, 10, 20)
    assert re.match(r"step of 4 pairs against 2: memory .* GiB / .* GiB = 1\.\d\d; pairs/s \d+% \(loss", step)
    assert re.match(
        r"retrieval of 10 images x 20 captions: 0\.00 GiB above the embeddings; .* = \d+\.", retrieval
    )
