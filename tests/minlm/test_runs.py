"""A run's checkpoint is the model again, with its own vocabulary; damaged ones are refused; resuming is exact."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import train_lm
from minlm.lm import LMConfig
from minlm.presets import RunConfig
from minlm.runs import MODELS, load, make_tokenizer
from minlm.seq2seq import Seq2SeqConfig
from minlm.tokenizer import CharTokenizer
from minlm.training.checkpoint import last_checkpoint, load_weights, save_checkpoint
from minlm.training.config import files_beside_weights, load_config
from minlm.training.state import TrainConfig

TEXTS = {"train": "to be or not to be, that is the question: " * 4, "validation": "être, that is"}
SIZES = {"d_model": 8, "n_heads": 2, "n_layers": 1, "context_length": 12, "vocab_size": 264}
MODEL_CONFIGS = {
    "learned": LMConfig(**SIZES),
    "sinusoidal": LMConfig(**SIZES, positions="sinusoidal", tied=False),
    "rotary": LMConfig(**SIZES, positions="rotary"),
    "seq2seq": Seq2SeqConfig(**SIZES),
}


def saved(folder, kind, tokens="byte-pairs"):
    """(run folder, the model in it, its tokenizer, its config)."""
    config = RunConfig(tokens=tokens, model=MODEL_CONFIGS[kind], train=TrainConfig(steps=1))
    tokenizer = make_tokenizer(config, TEXTS)
    config = config.with_tokenizer(tokenizer)
    model = MODELS[type(config.model)](config.model).eval()
    save_checkpoint(folder, 3, model.state_dict(), {}, files_beside_weights(config, tokenizer))
    return folder, model, tokenizer, config


@pytest.mark.parametrize("tokens", ["characters", "byte-pairs"])
@pytest.mark.parametrize("kind", MODEL_CONFIGS)
def test_loaded_is_saved(tmp_path, kind, tokens):
    """Bit for bit, so the tables that are no weights (sines, frequencies) are there too."""
    run, model, tokenizer, config = saved(tmp_path / "run", kind, tokens)
    for path in (run, run / "step-00000003", str(run)):
        loaded, words, told = load(path)
        assert told == config
        assert (words.digest, words.specials) == (tokenizer.digest, tokenizer.specials)
        assert not loaded.training
        ids = torch.tensor([words.encode("not to be")[:12]])
        inputs = (ids, ids) if kind == "seq2seq" else (ids,)
        assert torch.equal(loaded(*inputs), model(*inputs))
    loaded(*inputs).sum().backward()  # and it can be trained on


@pytest.fixture
def checkpoint(tmp_path):
    run, *_ = saved(tmp_path / "run", "rotary")
    return run / "step-00000003"


def test_another_vocabulary_is_refused(checkpoint):
    CharTokenizer("another").save(checkpoint)
    with pytest.raises(ValueError, match=r"has digest .* the model was trained with"):
        load(checkpoint)


def test_another_shape_in_the_config_is_refused(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    config["model"]["d_model"] = 16
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"embedding.tokens.weight is \(264, 8\), .* makes it \(264, 16\)"):
        load(checkpoint)


def test_a_depth_without_weights_is_refused_before_it_is_built(checkpoint, monkeypatch):
    config = json.loads((checkpoint / "config.json").read_text())
    config["model"]["n_layers"] = 10**9
    (checkpoint / "config.json").write_text(json.dumps(config))
    monkeypatch.setitem(MODELS, LMConfig, lambda config: pytest.fail("the model is built"))
    with pytest.raises(
        ValueError, match=r"asks for 1,000,000,000 layers, .* has \d+ tensors: put the run's own"
    ):
        load(checkpoint)


def test_another_start_in_the_config_is_refused(tmp_path):
    run, _, tokenizer, _ = saved(tmp_path / "run", "seq2seq")
    path = run / "step-00000003" / "config.json"
    config = json.loads(path.read_text())
    config["model"]["start_id"] = 5
    path.write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=f"begins with id {tokenizer.start_id} .* says start_id=5: put the run's own"
    ):
        load(run)


def test_numbers_that_are_no_weights_are_refused(checkpoint):
    path = checkpoint / "model.safetensors"
    weights = load_file(path)
    for wrong, message in (
        (torch.tensor(torch.nan), "NaN or infinite"),
        (torch.tensor(0), "is of torch.int64"),
    ):
        name = "transformer.norm.weight"
        save_file(weights | {name: wrong.expand(8).contiguous()}, path)
        with pytest.raises(ValueError, match=f"{checkpoint}: {name} .*{message}"):
            load(checkpoint)


@pytest.mark.parametrize("name", ["config.json", "minlm-tokenizer.json", "model.safetensors"])
def test_missing_and_torn_files_are_named(checkpoint, name):
    whole = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=str(checkpoint)):
        load(checkpoint)
    (checkpoint / name).unlink()
    with pytest.raises(ValueError, match=r"no config at|no tokenizer in|no checkpoint in"):
        load(checkpoint)


def test_characters_are_those_of_both_texts_and_byte_pairs_of_the_training_text():
    config = RunConfig(model=MODEL_CONFIGS["learned"], train=TrainConfig(steps=1))
    characters = make_tokenizer(config, TEXTS)
    assert set(characters.characters) == set("".join(TEXTS.values()))
    pairs = make_tokenizer(replace(config, tokens="byte-pairs"), TEXTS)
    assert pairs.vocab_size == 264
    other = make_tokenizer(replace(config, tokens="byte-pairs"), TEXTS | {"validation": "something else"})
    assert other.digest == pairs.digest


@pytest.mark.parametrize("tokens", ["characters", "byte-pairs"])
def test_an_encoder_decoder_gets_the_ids_it_needs(tokens):
    config = RunConfig(tokens=tokens, model=MODEL_CONFIGS["seq2seq"], train=TrainConfig(steps=1))
    tokenizer = make_tokenizer(config, TEXTS)
    assert tokenizer.specials == ("end", "pad", "start")
    assert config.with_tokenizer(tokenizer).model.start_id == tokenizer.start_id


def test_gpt2s_vocabulary_is_taken_where_the_config_names_it(data_root):
    for name in ("vocab", "vocab/encoder.json"):
        config = RunConfig(
            vocabulary=str(data_root / name), model=MODEL_CONFIGS["learned"], train=TrainConfig(steps=1)
        )
        tokenizer = make_tokenizer(config, {})
        assert tokenizer.encode("Hello world") == [15496, 995]
        assert config.with_tokenizer(tokenizer).model.vocab_size == 50257
        with pytest.raises(ValueError, match="needs start, end and pad ids"):
            replace(config, model=MODEL_CONFIGS["seq2seq"]).with_tokenizer(tokenizer)


def test_a_killed_run_goes_on_as_if_it_had_not_been(lm_run, tmp_path):
    """A run killed after step 4 and resumed: weights, figures and metrics are the same bit for bit."""
    run = shutil.copytree(lm_run, tmp_path / "run")
    shutil.rmtree(run / "step-00000006")
    (run / "result.json").unlink()
    written = (run / "train.ids").stat().st_mtime_ns
    train_lm.train(load_config(RunConfig, run / "config.json"), run, resume=True)
    assert (run / "train.ids").stat().st_mtime_ns == written
    whole, again = (load_weights(last_checkpoint(folder)) for folder in (lm_run, run))
    assert last_checkpoint(run).name == "step-00000006"
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    for name in ("sample.txt", "config.json"):
        assert (run / name).read_text() == (lm_run / name).read_text()

    def told(folder):
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        rows.append(json.loads((folder / "result.json").read_text()))
        return [{k: v for k, v in row.items() if "second" not in k} for row in rows]

    assert told(run) == told(lm_run)
