"""The two tasks on tiny runs: their loss, their cost, and what they show of a model."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from minlm import task as tasks
from minlm.evaluate import evaluate_replies, evaluate_text, reply_tokens
from minlm.generate import SamplingConfig, beam_search
from minlm.runs import load
from minlm.screenplay.script import parse_script, reply_pairs
from minlm.task import Continuation, Replies
from minlm.training.loop import Precision


@pytest.fixture(scope="module")
def continuation(lm_run, tmp_path_factory):
    """(task, model, tokenizer, texts) of the run that continues."""
    model, tokenizer, config = load(lm_run)
    texts = config.data.read()
    folder = tmp_path_factory.mktemp("ids")
    return Continuation(config, tokenizer, texts, folder), model, tokenizer, texts


@pytest.fixture(scope="module")
def replies(reply_run):
    """(task, model, tokenizer, texts) of the run that replies."""
    model, tokenizer, config = load(reply_run)
    texts = config.data.read()
    return Replies(config, tokenizer, texts, reply_run), model, tokenizer, texts


def test_continuing_learns_the_next_token(continuation):
    task, model, tokenizer, _ = continuation
    batch = task.dataset.collate([task.dataset[0, i] for i in range(3)])
    loss, count, metrics = task.backward(model, batch, Precision("float32", torch.device("cpu")))
    expected = F.cross_entropy(model(batch["tokens"]).flatten(0, 1), batch["targets"].flatten())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert count == batch["targets"].numel()
    assert metrics == {"chance": math.log(tokenizer.vocab_size)}


def test_continuing_is_followed_on_the_whole_validation_text(continuation):
    task, model, tokenizer, texts = continuation
    ids = np.array(tokenizer.encode(texts["validation"]))
    assert task.text_loss(model) == evaluate_text(model, tokenizer, ids)
    assert task.text_loss(model, stride=3) == evaluate_text(model, tokenizer, ids, stride=3)
    assert f"{len(ids):,} tokens of validation" in task.describe()


def test_a_sample_continues_the_first_line(continuation, monkeypatch):
    task, model, _, texts = continuation
    monkeypatch.setattr(tasks, "SAMPLE", SamplingConfig(max_new_tokens=9))
    heading = texts["validation"].partition("\n")[0] + "\n"
    sample = task.sample(model)
    assert sample.startswith(heading)
    assert len(sample) > len(heading) + 1


def test_replying_learns_the_reply_smoothed(replies):
    task, model, tokenizer, _ = replies
    line, reply = task.dataset.pairs[0]
    nats, count = task.loss(model, task.dataset.collate([(line, reply)]))
    logits = model(torch.tensor([line]), torch.tensor([[tokenizer.start_id, *reply[:-1]]]))[0]
    expected = F.cross_entropy(logits, torch.tensor(reply), label_smoothing=0.1)
    assert nats.item() / count == pytest.approx(expected.item(), rel=1e-5)


def test_replying_is_followed_without_smoothing(replies):
    task, model, _, texts = replies
    pairs = reply_pairs(parse_script(texts["validation"]))
    assert len(task.validation) == len(pairs)
    assert task.text_loss(model, stride=5) == evaluate_replies(model, task.validation)
    n_cut = task.dataset.n_cut + task.validation.n_cut
    assert f"{len(pairs)} pairs of validation, {n_cut} of them cut at 80 tokens" in task.describe()


def test_a_sample_shows_lines_with_both_replies(replies, monkeypatch):
    task, model, tokenizer, texts = replies
    monkeypatch.setattr(tasks, "BEAM", 1)
    monkeypatch.setattr(tasks, "SHOWN_REPLIES", 2)
    shown = task.sample(model).split("\n\n")
    pairs = reply_pairs(parse_script(texts["validation"]))
    assert len(shown) == 2
    for (line, reply), text in zip(pairs, shown, strict=False):
        [(best, _)] = beam_search(model, [tokenizer.encode(line)[:80]], 80, 1, tokenizer.end_id)
        assert text.strip() == f"line:   {line}\nmodel:  {tokenizer.decode(best)}\nscript: {reply}".strip()


def test_baselines_are_of_what_the_model_is_scored_on(continuation, replies):
    """A model of zeros is at chance, and the baselines' targets are the model's."""
    for task, model, tokenizer, _ in (continuation, replies):
        blank = copy.deepcopy(model)
        for parameter in blank.parameters():
            torch.nn.init.zeros_(parameter)
        losses = task.baselines()
        loss = task.text_loss(blank)
        assert losses["chance"] == pytest.approx(loss.metrics()["nats_per_character"], rel=1e-5)
        assert losses["chance"] == pytest.approx(
            loss.tokens * math.log(tokenizer.vocab_size) / loss.characters
        )
        assert losses["bigram"] < losses["unigram"] < losses["chance"]


def test_replies_are_read_from_their_start_to_their_end(replies):
    task, *_ = replies
    previous, targets = reply_tokens(task.validation)
    batch = next(task.validation.batches(len(task.validation)))
    for found, name in ((previous, "tokens"), (targets, "targets")):
        assert found.tolist() == batch[name][batch["token_mask"]].tolist()


def test_attention_is_drawn(continuation, replies, tmp_path, monkeypatch):
    drawn = {}

    def draw(weights, rows, path, columns=None):
        drawn[path] = (weights.shape, "".join(rows), "".join(rows if columns is None else columns))
        kept(weights, rows, path, columns)

    kept = tasks.attention_maps
    monkeypatch.setattr(tasks, "attention_maps", draw)
    for name, (task, model, *_) in {"lm": continuation, "reply": replies}.items():
        task.draw(model, tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as image:
            assert min(image.size) > 300
    shape, rows, _ = drawn[tmp_path / "lm.png"]
    assert shape == (2, 32, 32)
    assert continuation[3]["validation"].startswith(rows)
    line, reply = reply_pairs(parse_script(replies[3]["validation"]))[0]
    _, rows, columns = drawn[tmp_path / "reply.png"]
    assert f"<|start|>{reply}".startswith(rows)
    assert columns == line[: tasks.SHOWN_TOKENS]
