"""Embeddings do not depend on the batch or the mode; scores are exact; an ensemble is the mean of its prompts."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from minclip.evaluation.embed import (
    embed_classes,
    embed_images,
    embed_texts,
    evaluating,
    exact_pair,
    image_features,
)
from tests.minclip.tiny_clip import TOKENIZER, TinyCLIP, phrases, record, transform, units


def test_scores_are_exact():
    """Sums in another order round differently in float32: here they do not round at all."""
    images, texts = exact_pair(units(3, 777, 0), units(5, 777, 1), "text")
    shuffled = torch.randperm(777, generator=torch.Generator().manual_seed(2))
    assert torch.equal(images @ texts.T, images[:, shuffled] @ texts[:, shuffled].T)
    assert torch.equal((images[0] * texts[0]).sum(), (images @ texts.T)[0, 0])
    torch.testing.assert_close(images.float(), units(3, 777, 0), atol=2**-25, rtol=0)


@pytest.mark.parametrize("length, fits", [(0.985, True), (1.015, True), (0.95, False), (1.05, False)])
def test_a_row_may_differ_from_unit_length_by_rounding(length, fits):
    rows = torch.eye(3) * torch.tensor([1.0, length, 1.0])[:, None]
    if fits:
        exact_pair(rows, torch.eye(3), "text")
        return
    with pytest.raises(ValueError, match=f"image embeddings: row 1 has length {length}"):
        exact_pair(rows, torch.eye(3), "text")
    with pytest.raises(ValueError, match=f"text embeddings: row 1 has length {length}"):
        exact_pair(torch.eye(3), rows, "text")


def test_a_text_longer_than_the_context_is_cut_and_named(recwarn):
    model = TinyCLIP()
    model.config.text.context_length = 5
    cut = embed_texts(model, TOKENIZER, ["a photo of"])
    assert not recwarn
    long = embed_texts(model, TOKENIZER, ["red star", "a photo of red green star", "a photo of blue"], 2)
    assert torch.equal(long[1], cut[0])
    (warning,) = recwarn  # one line for all batches
    assert str(warning.message).startswith(
        "2 of 3 texts are cut to context_length=5 tokens, 'a photo of red green star' among them"
    )


@given(st.lists(phrases, min_size=1, max_size=12), st.integers(1, 5))
def test_texts_do_not_depend_on_the_batch_and_equal_texts_are_equal(texts, batch_size):
    model = TinyCLIP()
    got = embed_texts(model, TOKENIZER, texts, batch_size)
    one_by_one = torch.cat([embed_texts(model, TOKENIZER, [text], 1) for text in texts])
    torch.testing.assert_close(got, one_by_one, atol=1e-6, rtol=0)
    for first, second in itertools.combinations(range(len(texts)), 2):
        if texts[first] == texts[second]:
            assert torch.equal(got[first], got[second])
    torch.testing.assert_close(got.norm(dim=1), torch.ones(len(texts)))


def test_features_are_those_of_the_tower_in_evaluation_mode():
    model, records = TinyCLIP().train(), [record(index, ("a",)) for index in range(5)]
    wanted = torch.stack([transform(some.open()).mean(dim=(1, 2)) for some in records])
    torch.testing.assert_close(image_features(model, records, transform, 2), wanted)


@given(st.integers(1, 9), st.integers(1, 5))
def test_images_do_not_depend_on_the_batch(count, batch_size):
    model, records = TinyCLIP(), [record(index, ("a",)) for index in range(count)]
    got = embed_images(model, records, transform, batch_size)
    one_by_one = torch.cat([embed_images(model, [some], transform, 1) for some in records])
    torch.testing.assert_close(got, one_by_one, atol=1e-6, rtol=0)
    assert not got.requires_grad


def test_every_module_gets_its_mode_back_also_after_an_error():
    model = TinyCLIP().train()
    model.colours.eval()  # a frozen tower
    before = [module.training for module in model.modules()]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
        assert torch.is_inference_mode_enabled()
    assert [module.training for module in model.modules()] == before
    with pytest.raises(ValueError, match="broken file"), evaluating(model):
        raise ValueError("broken file")
    assert [module.training for module in model.modules()] == before
    embed_texts(model, TOKENIZER, ["a"])
    embed_images(model, [record(0, ("a",))], transform)
    assert [module.training for module in model.modules()] == before


def test_embeddings_can_be_trained_on_afterwards():
    got = embed_texts(TinyCLIP(), TOKENIZER, ["a", "red"])
    probe = nn.Linear(8, 1)
    probe(got).sum().backward()
    got[0] = 0.0  # and are ordinary tensors, no longer bound to inference mode


def test_an_ensemble_of_one_template_is_that_template():
    model, names = TinyCLIP(), ["red circle", "star"]
    got = embed_classes(model, TOKENIZER, names, ["a photo of a {}"])
    wanted = embed_texts(model, TOKENIZER, [f"a photo of a {name}" for name in names])
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=0)


def test_an_ensemble_is_the_mean_of_unit_vectors_at_unit_length():
    model = TinyCLIP()
    got = embed_classes(model, TOKENIZER, ["star", "circle"], ["a {}", "photo of the {}", "{} {}"])
    prompts = ["a star", "photo of the star", "star star"]
    mean = embed_texts(model, TOKENIZER, prompts).sum(dim=0)
    torch.testing.assert_close(got[0], mean / mean.norm(), atol=1e-6, rtol=0)
    torch.testing.assert_close(got.norm(dim=1), torch.ones(2))


def test_the_article_fits_the_class():
    model = TinyCLIP()
    got = embed_classes(model, TOKENIZER, ["apple", "star"], ["a {}"])
    torch.testing.assert_close(got, embed_texts(model, TOKENIZER, ["an apple", "a star"]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "names, templates, message",
    [
        (["star"], ["a photo"], r"templates \('a photo',\) need .* each with \"\{\}\" for the class"),
        ([], ["a {}"], "no class names: give at least 1"),
        (["star"], [], r"templates \(\) need one or more texts"),
        (
            ["star", "red", "star"],
            ["a {}"],
            "class name 'star' is given more than once: class names must differ",
        ),
    ],
)
def test_embed_classes_refuses(names, templates, message):
    with pytest.raises(ValueError, match=message):
        embed_classes(TinyCLIP(), TOKENIZER, names, templates)


def test_no_text_to_embed():
    with pytest.raises(ValueError, match="no texts to evaluate, at least 1 is needed"):
        embed_texts(TinyCLIP(), TOKENIZER, [])
