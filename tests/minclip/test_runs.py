"""A run's checkpoint is the model again, with its own vocabulary and transform; damaged ones are refused."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import minclip
from minclip.clip import CLIP, CLIPConfig
from minclip.data.cifar10 import Cifar10Config
from minclip.data.records import Record
from minclip.data.shapes import ShapesConfig
from minclip.data.shards import ShardRecords
from minclip.data.tokenizer import encode_batch
from minclip.presets import PRESETS
from minclip.pretrained import export
from minclip.runs import data_digest, load, make_model, make_tokenizer
from minclip.towers.text import BertTextConfig, GPTTextConfig
from minclip.towers.vit import VisionTransformerConfig
from minlm.training.checkpoint import save_checkpoint
from minlm.training.config import files_beside_weights, load_config

TINY = replace(
    PRESETS["shapes"],
    model=CLIPConfig(
        image=VisionTransformerConfig(
            d_model=8, n_heads=2, n_layers=1, image_size=(32, 48), patch_size=(16, 16)
        ),
        text=BertTextConfig(d_model=8, n_heads=2, n_layers=1, vocab_size=120, context_length=20),
        embed_dim=6,
    ),
    data=ShapesConfig(train_size=20, dev_size=6),
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(run folder, the model in it, its tokenizer)."""
    records = TINY.data.read()["train"]
    tokenizer = make_tokenizer(TINY, records)
    config = TINY.with_tokenizer(tokenizer)
    model = CLIP(config.model).eval()
    run = tmp_path_factory.mktemp("run")
    save_checkpoint(run, 3, model.state_dict(), {}, files_beside_weights(config, tokenizer))
    return run, model, tokenizer


@pytest.fixture
def copy(saved, tmp_path):
    """A checkpoint folder that a test may damage."""
    return shutil.copytree(saved[0] / "step-00000003", tmp_path / "copy")


def test_loaded_is_saved(saved):
    run, model, tokenizer = saved
    for path in (run, run / "step-00000003", str(run)):
        loaded, words, transform = load(path)
        assert words.tokens == tokenizer.tokens
        assert not loaded.training
        assert loaded.config == model.config
        for name, value in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value)
        assert transform.image_size == (32, 48)
    tokens, token_mask, _ = encode_batch(words, ["a red circle", "a big blue star"], 20)
    images = torch.randn(3, 3, 32, 48)
    assert torch.equal(loaded(images, tokens, token_mask), model(images, tokens, token_mask))


def test_a_run_starts_from_the_towers_that_its_config_names(saved, tmp_path):
    """And where it is continued, from its checkpoint: the files may be gone by then."""
    run, model, tokenizer = saved
    export(model, tokenizer, TINY.image_transform(train=False), tmp_path / "out", "towers")
    named = {
        name: replace(getattr(model.config, name), weights=str(tmp_path / "out" / name), trained_blocks=0)
        for name in ("image", "text")
    }
    config = replace(TINY, model=replace(model.config, **named))
    torch.manual_seed(1)
    started = make_model(config, tmp_path / "new", resume=False)
    for name, value in model.state_dict().items():
        same = torch.equal(started.state_dict()[name], value)
        assert same == (not name.endswith("projection.weight")), name
    assert started.image_tower.frozen
    shutil.rmtree(tmp_path / "out")
    continued = make_model(config, run, resume=True)
    assert all(torch.equal(continued.state_dict()[name], value) for name, value in model.state_dict().items())


def test_a_run_with_the_sigmoid_loss_starts_at_its_batchs_bias(tmp_path):
    model, train = replace(TINY.model, loss="sigmoid"), replace(TINY.train, batch_size=18)
    config = replace(TINY, model=model, train=train)
    assert make_model(config, tmp_path, resume=False).logit_bias.item() == pytest.approx(-math.log(17))


def test_classes_are_those_of_the_data(data_root):
    data = Cifar10Config(root=str(data_root / "cifar-10-batches-py"), templates=("a {}",))
    names, templates = data.classes()
    assert (names[0], len(names), templates) == ("airplane", 10, ("a {}",))
    assert ShapesConfig(train_size=3, dev_size=3).classes()[0] == ()


def test_the_datas_digest_is_of_names_and_captions(tmp_path):
    def some(*changes):
        rows = [["a", ("one", "two")], ["b", ("three",)], *changes]
        return data_digest([Record(name, None, captions, 0) for name, captions in rows])

    assert some() == some()
    others = [some(["c", ("four",)]), some(["c", ("five",)]), some(["d", ("four",)])]
    assert len({some(), *others}) == 4
    shards = [ShardRecords([tmp_path / "0.tar"], [size], (), 1) for size in (3, 3, 4)]
    digests = [data_digest(records) for records in shards]  # no shard is opened
    assert digests[0] == digests[1] != digests[2]


def test_the_package_offers_it(saved):
    assert minclip.load is load


def test_a_loaded_model_can_be_trained_on(saved):
    model, _, _ = load(saved[0])
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.encode_image(torch.randn(1, 3, 32, 48)).sum().backward()


def test_another_vocabulary_of_the_same_size_is_refused(copy):
    lines = (copy / "vocab.txt").read_text().splitlines()
    lines[-1], lines[-2] = lines[-2], lines[-1]
    (copy / "vocab.txt").write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=r"has digest .* the model was trained with"):
        load(copy)


def test_another_shape_in_the_config_is_refused(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model": config["model"] | {"embed_dim": 7}}))
    with pytest.raises(
        ValueError, match=r"image_projection.weight is \(6, 8\), config.json makes it \(7, 8\)"
    ):
        load(copy)


@pytest.mark.parametrize(
    "tower, n_layers",
    [
        ("image", 10**9),
        ("text", 10**9),
        ("image", {"type": "ResNetConfig", "depths": [1, 10**9, 1, 1]}),
        ("image", {"type": "ModifiedResNetConfig", "depths": [1, 1, 1, 10**9]}),
    ],
)
def test_a_depth_without_weights_is_refused_before_it_is_built(copy, monkeypatch, tower, n_layers):
    config = json.loads((copy / "config.json").read_text())
    towers = config["model"]
    towers[tower] = n_layers if isinstance(n_layers, dict) else towers[tower] | {"n_layers": n_layers}
    (copy / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(minclip.runs, "CLIP", lambda config: pytest.fail("the model is built"))
    with pytest.raises(
        ValueError, match=r"asks for 1,000,000,\d+ layers, .* has \d+ tensors: put the run's own"
    ):
        load(copy)
    newest = copy.rename(copy.parent / "step-99999999")
    with pytest.raises(ValueError, match=r"asks for 1,000,000,\d+ layers"):
        make_model(load_config(minclip.runs.RunConfig, newest / "config.json"), newest.parent, resume=True)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda x: x.index_fill(0, torch.tensor([1]), torch.nan),
            "image_projection.weight has NaN",
        ),
        (torch.Tensor.half, "image_projection.weight is of torch.float16, torch.float32 is needed"),
        (torch.Tensor.double, "image_projection.weight is of torch.float64, torch.float32 is needed"),
        (torch.Tensor.int, "image_projection.weight is of torch.int32, torch.float32 is needed"),
        (torch.Tensor.bool, "image_projection.weight is of torch.bool, torch.float32 is needed"),
        (lambda x: x[:-1].clone(), r"image_projection.weight is \(5, 8\), config.json makes it \(6, 8\)"),
    ],
)
def test_numbers_that_are_no_weights_are_refused(copy, saved, change, message):
    """Both by `load` and by a run that is resumed."""
    path = copy / "model.safetensors"
    weights = load_file(path)
    weights["image_projection.weight"] = change(weights["image_projection.weight"])
    save_file(weights, path)
    with pytest.raises(ValueError, match=f"{copy}.*: {message}"):
        load(copy)
    newest = copy.rename(copy.parent / "step-99999999")
    with pytest.raises(ValueError, match=f"{newest}.*: {message}"):
        make_model(replace(TINY, model=saved[1].config), newest.parent, resume=True)


def test_another_end_of_text_in_the_config_is_refused(tmp_path):
    """With it all texts would have equal embeddings."""
    text = GPTTextConfig(d_model=8, n_heads=2, n_layers=1, vocab_size=120, context_length=20)
    config = replace(TINY, model=replace(TINY.model, text=text))
    tokenizer = make_tokenizer(config, TINY.data.read()["train"])
    config = config.with_tokenizer(tokenizer)
    weights = CLIP(config.model).state_dict()
    save_checkpoint(tmp_path, 3, weights, {}, files_beside_weights(config, tokenizer))
    load(tmp_path)
    text = replace(config.model.text, end_id=7)
    config = replace(config, model=replace(config.model, text=text))
    save_checkpoint(tmp_path, 4, weights, {}, files_beside_weights(config, tokenizer))
    with pytest.raises(
        ValueError,
        match=rf"another vocab_size or end_id than the vocabulary \(120, {tokenizer.end_id}\): put",
    ):
        load(tmp_path)


def test_missing_and_extra_tensors_are_named(copy):
    weights = load_file(copy / "model.safetensors")
    scale = weights.pop("logit_scale")
    save_file(weights | {"stranger": scale}, copy / "model.safetensors")
    with pytest.raises(ValueError, match=r"differ in the tensors \['logit_scale', 'stranger'\]"):
        load(copy)


@pytest.mark.parametrize("name", ["config.json", "vocab.txt", "model.safetensors"])
def test_missing_and_torn_files_are_named(copy, name):
    whole = (copy / name).read_bytes()
    (copy / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=str(copy)):
        load(copy)
    (copy / name).unlink()
    with pytest.raises(ValueError, match=r"put the run's config.json back|vocab|no checkpoint in"):
        load(copy)


def test_a_vocabulary_file_named_by_the_config_is_used(saved, tmp_path):
    _, _, tokenizer = saved
    tokenizer.save(tmp_path)
    named = make_tokenizer(replace(TINY, vocabulary=str(tmp_path / "vocab.txt")), [])
    assert named.tokens == tokenizer.tokens
