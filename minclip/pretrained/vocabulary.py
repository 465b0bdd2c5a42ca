"""Vocabulary files beside a CLIP's weights, read and written: this project's and Hugging Face's."""

from pathlib import Path
from typing import Any

from minclip.data.clip_bpe import N_MERGES, ClipBPE
from minclip.data.tokenizer import Tokenizer, WordPiece, load_tokenizer
from minlm.pretrained.gpt2 import write_bpe
from minlm.tokenizer import BPETokenizer
from minlm.training.files import read_object, write_json

TOKENIZER_JSON = "tokenizer.json"  # the only vocabulary in newer folders of Hugging Face's
BERT_NORMALIZER = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}


def tokenizer_beside(weights: Path, vocabulary: str | Path | None) -> Tokenizer:
    """Load the tokenizer of a vocabulary file, or else of the files beside the weights.

    Raises ValueError where there is none: no published CLIP file holds its vocabulary.
    """
    if vocabulary is not None:
        return load_tokenizer(vocabulary)
    folder = weights.parent
    names = (*WordPiece.FILE_NAMES, *ClipBPE.FILE_NAMES)
    found = [folder / name for name in names if (folder / name).is_file()]
    if len(found) == 1:
        return load_tokenizer(found[0])
    if not found and (folder / TOKENIZER_JSON).is_file():
        return read_tokenizer_json(folder / TOKENIZER_JSON)
    raise ValueError(
        f"{len(found)} vocabularies beside {weights}: put one of {', '.join(names)}, {TOKENIZER_JSON} there, or "
        "name the file (--vocabulary; in Python vocabulary=). Without one, minclip.pretrained.load_clip_model, "
        "load_image_tower and load_text_tower load the model or a tower alone"
    )


def read_tokenizer_json(path: Path) -> Tokenizer:
    """Load CLIP's BPE or BERT's WordPiece from a tokenizer.json; ValueError for any other."""
    saved = read_object(path)
    try:
        tokenizer = parse_tokenizer(saved.get("model") or {}, saved.get("normalizer") or {})
    except Exception as error:  # a user's file: any part of it may be missing or of another kind
        raise ValueError(f"{path} is damaged ({error})") from None
    if tokenizer is None:
        raise ValueError(
            f"{path} is of another tokenizer: only CLIP's BPE and BERT's WordPiece can be loaded"
        )
    return tokenizer


def parse_tokenizer(model: dict[str, Any], normalizer: dict[str, Any]) -> Tokenizer | None:
    """Make the tokenizer of these parts of a tokenizer.json; None for any but CLIP's and BERT's."""
    if model.get("type") == "BPE" and model["end_of_word_suffix"] == "</w>":
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        return ClipBPE([(left, right) for left, right in pairs[:N_MERGES]])
    if model.get("type") == "WordPiece" and BERT_NORMALIZER.items() <= normalizer.items():
        lower_case, strip_accents = normalizer["lowercase"], normalizer["strip_accents"]
        tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
        if list(map(model["vocab"].get, tokens)) != list(range(len(tokens))):
            raise ValueError(f"its ids are not 0 to {len(tokens) - 1}")
        if type(lower_case) is bool and strip_accents in (None, lower_case):
            return WordPiece(tokens, lower_case)
    return None


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the vocabulary, in files that Hugging Face's tokenizers read too."""
    tokenizer.save(folder)
    match tokenizer:
        case BPETokenizer():
            write_bpe(tokenizer, folder)
            options = {"tokenizer_class": "GPT2Tokenizer"}
        case ClipBPE():
            write_json(folder / "vocab.json", {token: i for i, token in enumerate(tokenizer.tokens)})
            options = {"tokenizer_class": "CLIPTokenizer"}
        case WordPiece():
            options = {"tokenizer_class": "BertTokenizer", "do_lower_case": tokenizer.lower_case}
    write_json(folder / "tokenizer_config.json", options)
