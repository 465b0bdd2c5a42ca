"""Text -> what a model is trained on: windows of a long text, or (line, reply) pairs.

A split is a file of token ids, memory-mapped: training reads the windows it draws, and no more of it is in memory.
A text is encoded piece by piece; the text itself is in memory while that is done. Training and validation have one
file each, so that no window reaches across.
"""

import hashlib
import os
import random
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from minlm.screenplay.script import parse_script, read_script
from minlm.tokenizer import BPETokenizer, CharTokenizer
from minlm.training.bounds import Bounded, within
from minlm.training.distributed import rank

ID_TYPE = np.uint32  # any vocabulary; four bytes per token
PIECE = 1 << 18  # characters that are encoded at once
CUT = re.compile(r"(?<=\S)[ \n]")


@dataclass(frozen=True, kw_only=True)
class TextFileConfig(Bounded):
    """A screenplay, or any plain text, from a file.

    path: the text, UTF-8 or Windows-1252; a web page's <pre> is found
    split: what is held out: whole scenes of a script, drawn by the seed, or the end of the text
    validation_fraction: share of the characters held out
    split_seed: draws the scenes that are held out

    A text whose scenes are too few or too long for that share, or that has none, is split at its end instead.
    """

    path: str = ""
    split: Literal["scenes", "end"] = "end"
    validation_fraction: Annotated[float, within("(0, 1)")] = 0.1
    split_seed: int = 0

    def entropy(self, text: str) -> dict[str, float]:
        """Nothing is known of it."""
        return {}

    def read(self) -> dict[str, str]:
        """{"train", "validation"}: two texts. ValueError: no such file, or nothing in it."""
        if not self.path:
            raise ValueError("no text to learn from: give a script or any plain text with --data.path FILE")
        text = read_script(self.path)
        splits = self.scene_splits(text) if self.split == "scenes" else None
        if self.split == "scenes" and splits is None and rank() == 0:
            print(
                f"the scenes of {self.path} cannot be split into {1 - self.validation_fraction:.0%} and "
                f"{self.validation_fraction:.0%}: its end is held out instead",
                file=sys.stderr,
            )
        end = int((1 - self.validation_fraction) * len(text))
        return checked_splits(splits or {"train": text[:end], "validation": text[end:]})

    def scene_splits(self, text: str) -> dict[str, str] | None:
        """{"train", "validation"}, split by scenes; None where that comes nowhere near the fraction."""
        try:
            scenes = [scene.text + "\n" for scene in parse_script(text).scenes]
        except ValueError:  # nobody speaks: a plain text
            return None
        return split_scenes(scenes, self.validation_fraction, self.split_seed)


def split_scenes(scenes: Sequence[str], fraction: float, seed: int) -> dict[str, str] | None:
    """Scenes drawn one by one until they have `fraction` of the characters are validation; the others train.

    None where validation is then more than twice, or training less than half, of what is wanted.
    """
    order = list(range(len(scenes)))
    random.Random(f"{seed}/scenes").shuffle(order)
    total, held_out, size = sum(map(len, scenes)), set(), 0
    for i in order:
        if size < fraction * total:
            held_out.add(i)
            size += len(scenes[i])
    if size > 2 * fraction * total or total - size < (1 - fraction) * total / 2:
        return None
    train = "".join(scene for i, scene in enumerate(scenes) if i not in held_out)
    return {"train": train, "validation": "".join(scenes[i] for i in sorted(held_out))}


def checked_splits(splits: dict[str, str]) -> dict[str, str]:
    for name, text in splits.items():
        if len(text) < 2:
            raise ValueError(
                f"split {name} has {len(text)} characters: give a longer text, or another validation_fraction"
            )
    return splits


def pieces(text: str, size: int = PIECE) -> Iterator[str]:
    """The text in pieces of `size` characters, or as many more as it takes to end at a cut.

    Encoded one by one they have the ids of the whole. A cut lies before a space or line end and behind a character
    that is not white space. In GPT2_PATTERN no match goes from the one to the other, and none looks back.
    """
    start = 0
    while start < len(text):
        cut = CUT.search(text, start + size)
        end = cut.start() if cut else len(text)
        yield text[start:end]
        start = end


def encoded(text: str, tokenizer: CharTokenizer | BPETokenizer, size: int = PIECE) -> Iterator[np.ndarray]:
    """The ids of a text, piece by piece: in all they are tokenizer.encode(text)."""
    for piece in pieces(text, size):
        yield np.array(tokenizer.encode(piece), dtype=ID_TYPE)


def encode_splits(
    texts: dict[str, str], tokenizer: CharTokenizer | BPETokenizer, folder: Path
) -> dict[str, np.ndarray]:
    """Write the ids of each text to folder/NAME.ids, unless they are there already, and memory-map them.

    ValueError where what is there already is no such file.
    """
    splits = {}
    for name, text in texts.items():
        path = folder / f"{name}.ids"
        if not path.exists():
            temporary = path.with_suffix(".new")
            try:
                with temporary.open("wb") as file:
                    for ids in encoded(text, tokenizer):
                        file.write(ids)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        size = path.stat().st_size
        if size == 0 or size % ID_TYPE().itemsize:
            raise ValueError(f"{path} has {size} bytes, which are no ids: remove it, and it is written again")
        ids = splits[name] = np.memmap(path, dtype=ID_TYPE, mode="r")
        if ids.max() >= tokenizer.vocab_size:
            raise ValueError(
                f"{path} has id {ids.max()}, the vocabulary has {tokenizer.vocab_size}: remove it, and it is "
                "written again"
            )
    return splits


def token_counts(ids: np.ndarray, vocab_size: int) -> np.ndarray:
    """How often each id occurs, (vocab_size); the ids (n) are read piece by piece."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for start in range(0, len(ids), PIECE):
        counts += np.bincount(ids[start : start + PIECE], minlength=vocab_size)
    return counts


def text_size(ids: np.ndarray, tokenizer: CharTokenizer | BPETokenizer) -> tuple[int, int]:
    """(characters, bytes of UTF-8) of the text of ids (n), from its tokens' counts.

    A character whose first byte lies before the ids is not counted, its other bytes are.
    """
    characters = n_bytes = 0
    for token, count in enumerate(token_counts(ids, tokenizer.vocab_size).tolist()):
        if count:
            content = tokenizer.token_bytes(token)
            characters += count * sum(
                byte & 0xC0 != 0x80 for byte in content
            )  # 10xxxxxx continues a character
            n_bytes += count * len(content)
    return characters, n_bytes


def texts_digest(texts: dict[str, str]) -> str:
    """SHA-256 of the texts with a zero byte between them, without a copy of any of them."""
    digest = hashlib.sha256()
    for i, text in enumerate(texts.values()):
        digest.update(b"\0" if i else b"")
        for piece in pieces(text):
            digest.update(piece.encode())
    return digest.hexdigest()


def fit_context(context_length: int, splits: dict[str, np.ndarray]) -> int:
    """context_length, or as much of it as the shortest split can fill; a window's targets need one id more.

    ValueError where that is nothing.
    """
    name, ids = min(splits.items(), key=lambda item: len(item[1]))
    if len(ids) < 2:
        raise ValueError(f"split {name} has {len(ids)} tokens, at least 2 are needed: give a longer text")
    return min(context_length, len(ids) - 1)


class TokenizedDataset(Dataset):
    """Windows of context_length ids and the ids that follow them; the key is (epoch, index).

    In an epoch the windows lie end to end, none overlaps another, and where the first one begins is drawn from
    (seed, epoch): over the epochs they begin at every place where a window fits, so that every token is seen,
    and at every place of a window. ids (n) is an array or a memory map. ValueError where it does not fill one.
    """

    def __init__(self, ids: np.ndarray, context_length: int, seed: int):
        if len(ids) <= context_length:
            raise ValueError(
                f"{len(ids)} tokens do not fill a window of context_length={context_length} and the token after "
                f"it: lower context_length"
            )
        self.ids, self.context_length, self.seed = ids, context_length, seed
        self.n_windows = max(1, (len(ids) - context_length) // context_length)

    def __len__(self) -> int:
        return self.n_windows

    def phase(self, epoch: int) -> int:
        """Where the first window of an epoch begins."""
        last = len(self.ids) - 1 - self.n_windows * self.context_length  # where all windows still fit
        return random.Random(f"{self.seed}/{epoch}/phase").randint(0, last)

    def __getitem__(self, key: tuple[int, int]) -> np.ndarray:
        """(epoch, index) -> (context_length + 1) ids: the window and the token after it."""
        epoch, index = key
        start = self.phase(epoch) + index * self.context_length
        return self.ids[start : start + self.context_length + 1]

    def collate(self, windows: list[np.ndarray]) -> dict[str, Tensor]:
        """Windows -> tokens and targets (B, T): targets[:, t] follows tokens[:, t]."""
        ids = torch.from_numpy(np.stack(windows).astype(np.int64))  # (B, T + 1)
        return {"tokens": ids[:, :-1], "targets": ids[:, 1:]}


class ReplyDataset(Dataset):
    """(line, reply) pairs for an encoder-decoder; the key is (epoch, index), and every epoch is the same.

    Lines are cut at context_length tokens; a reply keeps its end id. `n_cut` counts both.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[str, str]],
        tokenizer: CharTokenizer | BPETokenizer,
        context_length: int,
    ):
        if not pairs:
            raise ValueError("no reply in this split: nobody answers anybody; give a longer script")
        self.tokenizer = tokenizer
        encoded = [(tokenizer.encode(line), tokenizer.encode(reply)) for line, reply in pairs]
        self.n_cut = sum(
            len(line) > context_length or len(reply) >= context_length for line, reply in encoded
        )
        self.pairs = [
            (line[:context_length], [*reply[: context_length - 1], tokenizer.end_id])
            for line, reply in encoded
        ]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> tuple[list[int], list[int]]:
        return self.pairs[key[1]]

    def collate(self, pairs: list[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
        """-> source, source_mask (B, S); tokens, targets, token_mask (B, T): tokens begin with start_id."""
        source, source_mask = padded([line for line, _ in pairs], self.tokenizer.pad_id)
        targets, token_mask = padded([reply for _, reply in pairs], self.tokenizer.pad_id)
        start = torch.full((len(pairs), 1), self.tokenizer.start_id)
        tokens = torch.cat([start, targets[:, :-1]], dim=1)  # (B, T)
        names = ("source", "source_mask", "tokens", "targets", "token_mask")
        return dict(zip(names, (source, source_mask, tokens, targets, token_mask), strict=True))

    def batches(self, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """All pairs once, in order."""
        for start in range(0, len(self), batch_size):
            yield self.collate(self.pairs[start : start + batch_size])


def padded(rows: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Rows of unequal length -> tokens (B, T), padded on the right, and token_mask (B, T), True = real."""
    length = max(map(len, rows))
    tokens = torch.tensor([row + [pad_id] * (length - len(row)) for row in rows])  # (B, T)
    real = torch.arange(length) < torch.tensor([len(row) for row in rows])[:, None]  # (B, T)
    return tokens, real
