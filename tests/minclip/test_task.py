"""PairTask: gradients of the whole batch, and metrics on dev."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minclip.clip import contrastive_loss
from minclip.evaluation.embed import embed_texts
from minclip.evaluation.evaluate import evaluate_records
from minclip.runs import load
from minclip.task import PairTask
from tests.drawing import LOSSES, backward, batch_loss, batch_of, clip_configs, model_of, seeds


@given(clip_configs, st.integers(2, 6), seeds, st.sampled_from(LOSSES))
def test_backward_fills_the_gradients_of_the_mean_loss(config, n, seed, loss):
    config = replace(config, loss=loss, temperature=max(config.temperature, 0.05))
    model, batch = model_of(config, seed), batch_of(config, n, seed)
    total, count, _ = batch_loss(model, batch)
    (total / count).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad(set_to_none=True)
    value, counted, metrics = backward(model, batch)
    assert (value.item(), counted) == (pytest.approx((total / count).item(), rel=1e-5), n)
    assert {"chance", "top1", "scale"} <= metrics.keys()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def task(tiny_run, tiny_config):
    """(task, model) of the tiny run."""
    model, tokenizer, _ = load(tiny_run)
    splits = tiny_config.data.read()
    config = tiny_config.with_tokenizer(tokenizer)
    return PairTask(config, tokenizer, model, splits["train"], splits["dev"]), model


def test_dev_is_evaluated_by_the_loss_of_whole_batches_and_recall(task):
    task, model = task
    metrics = task.evaluate(model)
    recalls = {f"dev_{way}_recall@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 10)}
    assert metrics.keys() == {"dev_loss", *recalls}
    found = evaluate_records(
        model, task.dev, task.config.image_transform(train=False), task.tokenizer
    ).metrics
    for way in ("image_to_text", "text_to_image"):
        for k in (1, 10):
            assert metrics[f"dev_{way}_recall@{k}"] == found[way][f"recall@{k}"]
    transform = task.config.image_transform(train=False)
    losses = []
    with torch.no_grad():
        for start in range(0, len(task.dev) - 15, 16):  # batches of 16; the ragged last one is left out
            some = task.dev[start : start + 16]
            images = model.encode_image(torch.stack([transform(record.open()) for record in some]))
            texts = embed_texts(model, task.tokenizer, [record.captions[0] for record in some])
            total, count = contrastive_loss(
                model, images, texts, torch.tensor([record.group for record in some])
            )
            losses.append(total.item() / count)
    assert metrics["dev_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-3)


def test_the_score_is_recall_at_10_or_accuracy(task):
    task, _ = task
    assert task.score({"dev_loss": 9.0, "dev_zero_shot_top1": 0.5}) == 0.5
    recalls = {"dev_image_to_text_recall@10": 0.2, "dev_text_to_image_recall@10": 0.4}
    logged = {"dev_loss": 9.0, "dev_image_to_text_recall@1": 0.1, "dev_text_to_image_recall@1": 0.0}
    assert task.score(logged | recalls) == pytest.approx(0.3)


def test_the_scale_is_clamped_after_each_step(task):
    task, model = task
    before = model.logit_scale.detach().clone()
    with torch.no_grad():
        model.logit_scale.fill_(99.0)
    task.after_step(model)
    assert model.logit_scale.item() == pytest.approx(torch.tensor(100.0).log().item())
    with torch.no_grad():
        model.logit_scale.copy_(before)
