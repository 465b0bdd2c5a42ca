"""The tokenizers that a CLIP can use (BERT's WordPiece, CLIP's BPE, GPT-2's BPE), and batches of texts."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from minclip.data.clip_bpe import WORD_END, ClipBPE, read_lines
from minclip.data.wordpiece import CLS, SPECIAL_TOKENS, WordPiece
from minlm.tokenizer import FILE_NAME as BYTE_LEVEL_FILE
from minlm.tokenizer import GPT2_FILES, BPETokenizer
from minlm.tokenizer import load_tokenizer as load_byte_level

Tokenizer = WordPiece | ClipBPE | BPETokenizer


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load the tokenizer of the vocabulary at `path`, a file or a folder; its content decides which one.

    Raises ValueError if it is not a vocabulary, or if a folder has the files of several.
    """
    if is_byte_level(Path(path)):
        tokenizer = load_byte_level(path)
        if not isinstance(tokenizer, BPETokenizer) or tokenizer.end_id is None:
            raise ValueError(f"{path} has no end of text, at which captions are pooled: give GPT-2's files")
        return tokenizer
    lines = read_lines(path, WordPiece.FILE_NAMES + ClipBPE.FILE_NAMES)
    if "#version" in lines[0]:
        return ClipBPE.load(path)
    if any(token in lines for token in SPECIAL_TOKENS):
        return WordPiece.load(path)
    raise ValueError(
        f"{path} starts with {lines[0][:40]!r}: give a WordPiece list (one token per line, with {CLS}) or CLIP's "
        "merges (#version in the first line)"
    )


def is_byte_level(path: Path) -> bool:
    """Return True for GPT-2's files, and for the tokenizer file of a run with such a vocabulary.

    CLIP's merges end words with </w>. GPT-2's have a JSON of ids beside them. A .tiktoken file has two columns.
    """
    if path.is_dir():
        named = [path / name for name in (BYTE_LEVEL_FILE, "encoder.json", "merges.txt")]
        path = next(filter(Path.is_file, [*named, *path.glob("*.tiktoken")]), path)
    content = path.read_bytes() if path.is_file() else b""
    if content.startswith(b"#version"):
        pairs = [vocabulary for vocabulary, merges in GPT2_FILES if path.name == merges]
        beside = any(path.with_name(vocabulary).is_file() for vocabulary in pairs)
        return beside and WORD_END.encode() not in content
    return content.startswith(b"{") or re.match(rb"[\w+/=]+ \d+\r?\n", content) is not None


def encode_batch(
    tokenizer: Tokenizer, texts: Sequence[str], context_length: int
) -> tuple[Tensor, Tensor, int]:
    """Encode texts as tokens (B, T) int64 and token_mask (B, T), True = a real token; count truncated texts.

    A row is the start id (if the vocabulary has one; GPT-2's has not), the text's ids and the end id. Ids beyond
    `context_length` are cut, the end id stays. T is the longest row.
    Returns tokens, token_mask, the number of truncated texts.
    Raises ValueError for a context_length below 3 (start, one token, end), no texts, or texts that are not strings.
    """
    if context_length < 3:
        raise ValueError(
            f"context_length {context_length} is below 3: give room for start, one token and end"
        )
    if isinstance(texts, str) or not len(texts):
        raise ValueError(f"texts is {texts!r}: give a list of at least one string")
    start = [] if tokenizer.start_id is None else [tokenizer.start_id]
    room = context_length - len(start) - 1
    rows, n_truncated = [], 0
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"texts[{i}] is {text!r}, not a string: remove the row or correct its caption")
        ids = tokenizer.encode(text)
        n_truncated += len(ids) > room
        rows.append([*start, *ids[:room], tokenizer.end_id])
    pad_id = tokenizer.end_id if tokenizer.pad_id is None else tokenizer.pad_id  # masked anyway
    width = max(map(len, rows))
    tokens = torch.tensor([row + [pad_id] * (width - len(row)) for row in rows])  # (B, T)
    token_mask = torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]  # (B, T)
    return tokens, token_mask, n_truncated
