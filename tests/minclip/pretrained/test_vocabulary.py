"""The vocabulary beside the weights, in each of its files."""

import json

import pytest
import torch

import minclip
import minclip.data.clip_bpe
from minclip.data.clip_bpe import ClipBPE
from minclip.data.tokenizer import WordPiece
from minclip.pretrained import export, load_clip
from tests.minclip.pretrained.published import (
    WORDS,
    clip_batch,
    drawn_clip,
    hf_folder,
    text_config,
    transform_of,
)


def test_the_vocabulary_lies_beside_or_is_given(tmp_path):
    model = hf_folder(tmp_path)
    again, tokenizer, _ = load_clip(tmp_path)
    assert tokenizer.digest == WORDS.digest == again.config.text.vocab_digest
    torch.testing.assert_close(again(*clip_batch(model)), model(*clip_batch(model)))
    words = (tmp_path / "vocab.txt").rename(tmp_path.parent / f"{tmp_path.name}.txt")
    with pytest.raises(
        ValueError,
        match=r"0 vocabularies beside .*: put one of vocab.txt, merges.txt.* load_image_tower",
    ):
        load_clip(tmp_path)
    assert load_clip(tmp_path, words)[1].digest == WORDS.digest
    tokens = {token: i for i, token in enumerate(WORDS.tokens)}
    normalizer = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
    normalizer |= {"lowercase": True, "strip_accents": None}
    saved = {"normalizer": normalizer, "model": {"type": "WordPiece", "vocab": tokens}}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(saved))
    assert load_clip(tmp_path)[1].digest == WORDS.digest
    path.write_text(json.dumps(saved | {"normalizer": normalizer | {"lowercase": False}}))
    assert not load_clip(tmp_path)[1].lower_case
    for change in (
        {"strip_accents": False},
        {"type": "Sequence"},
        {"lowercase": "yes"},
        {"clean_text": False},
    ):
        path.write_text(json.dumps(saved | {"normalizer": normalizer | change}))
        with pytest.raises(ValueError, match="is of another tokenizer"):
            load_clip(tmp_path)
    path.write_text(json.dumps(saved | {"model": {"type": "WordPiece", "vocab": tokens | {"the": 90}}}))
    with pytest.raises(ValueError, match=r"tokenizer.json is damaged \(its ids are not 0 to 35\)"):
        load_clip(tmp_path)
    WordPiece([*WORDS.tokens, "more"]).save(tmp_path)
    with pytest.raises(
        ValueError, match=r"has 37 tokens and its text ends with id 3; the model in .* has 36 and 3"
    ):
        load_clip(tmp_path)


def test_merges_from_a_tokenizer_json(tmp_path, monkeypatch):
    """Merges are stored as pairs or as strings."""
    monkeypatch.setattr(minclip.data.clip_bpe, "N_MERGES", 2)
    bpe = ClipBPE([("a", "b"), ("ab", "c</w>")])
    model = drawn_clip(text=text_config(bpe))
    export(model, bpe, transform_of(model), tmp_path, "hf-clip")
    (tmp_path / "merges.txt").unlink()
    for merges in ([["a", "b"], ["ab", "c</w>"]], ["a b", "ab c</w>"]):
        saved = {"normalizer": None, "model": {"type": "BPE", "end_of_word_suffix": "</w>", "merges": merges}}
        (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
        assert load_clip(tmp_path)[1].digest == bpe.digest
