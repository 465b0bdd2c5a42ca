"""Training data from text: windows of a long text, or (line, reply) pairs.

Each split is a memory-mapped file of token ids, so training holds in memory only the windows that it reads. Texts are
encoded piece by piece.
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
from minlm.tokenizer import Tokenizer
from minlm.training.bounds import Bounded, within
from minlm.training.distributed import rank

ID_TYPE = np.uint32  # any vocabulary; four bytes per token
PIECE = 1 << 18  # characters encoded at once
CUT = re.compile(r"(?<=\S)[ \n]")


@dataclass(frozen=True, kw_only=True)
class TextFileConfig(Bounded):
    """A screenplay, or any plain text, from a file.

    path: the text, UTF-8 or Windows-1252; a web page's <pre> is found
    split: the part held out: randomly drawn scenes of a script, or the end of the text
    validation_fraction: share of the characters held out
    split_seed: seed that draws the scenes held out

    A text without scenes, or with too few or too long ones, is split at its end.
    """

    path: str = ""
    split: Literal["scenes", "end"] = "end"
    validation_fraction: Annotated[float, within("(0, 1)")] = 0.1
    split_seed: int = 0

    def entropy(self, text: str) -> dict[str, float]:
        """Return no entropies: those of a file are unknown."""
        return {}

    def read(self) -> dict[str, str]:
        """Return {"train": text, "validation": text}. ValueError for a missing or too short file."""
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
        """Return {"train": text, "validation": text} split by scenes, None if that misses the fraction by far."""
        try:
            scenes = [scene.text + "\n" for scene in parse_script(text).scenes]
        except ValueError:  # no dialogue: a plain text
            return None
        return split_scenes(scenes, self.validation_fraction, self.split_seed)


def split_scenes(scenes: Sequence[str], fraction: float, seed: int) -> dict[str, str] | None:
    """Draw scenes for validation until they have `fraction` of the characters; the others are for training.

    Returns None if validation has more than twice, or training less than half, of its share.
    """
    order = list(range(len(scenes)))
    random.Random(f"{seed}/scenes").shuffle(order)
    total, size = sum(map(len, scenes)), 0
    held_out: set[int] = set()
    for i in order:
        if size < fraction * total:
            held_out.add(i)
            size += len(scenes[i])
    if size > 2 * fraction * total or total - size < (1 - fraction) * total / 2:
        return None
    train = "".join(scene for i, scene in enumerate(scenes) if i not in held_out)
    return {"train": train, "validation": "".join(scenes[i] for i in sorted(held_out))}


def checked_splits(splits: dict[str, str]) -> dict[str, str]:
    """Return the splits. ValueError for one of less than two characters."""
    for name, text in splits.items():
        if len(text) < 2:
            raise ValueError(
                f"split {name} has {len(text)} characters: give a longer text, or another validation_fraction"
            )
    return splits


def pieces(text: str, size: int = PIECE) -> Iterator[str]:
    """Yield the text in pieces of at least `size` characters that can be encoded one by one.

    Each ends before a space or line end, after a character that is not white space. No match of GPT2_PATTERN crosses
    such a place, and none looks back.
    """
    start = 0
    while start < len(text):
        cut = CUT.search(text, start + size)
        end = cut.start() if cut else len(text)
        yield text[start:end]
        start = end


def encoded(text: str, tokenizer: Tokenizer, size: int = PIECE) -> Iterator[np.ndarray]:
    """Yield the ids of tokenizer.encode(text), piece by piece."""
    for piece in pieces(text, size):
        yield np.array(tokenizer.encode(piece), dtype=ID_TYPE)


def encode_splits(texts: dict[str, str], tokenizer: Tokenizer, folder: Path) -> dict[str, np.ndarray]:
    """Write the ids of each text to folder/NAME.ids, unless the file exists, and memory-map them.

    ValueError if an existing file is not such a file.
    """
    splits = {}
    for name, text in texts.items():
        path = folder / f"{name}.ids"
        if not path.exists():
            temporary = path.with_suffix(".new")
            try:
                with temporary.open("wb") as file:
                    for ids in encoded(text, tokenizer):
                        file.write(ids.data)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        size = path.stat().st_size
        if size == 0 or size % ID_TYPE().itemsize:
            raise ValueError(f"{path} is not a token file ({size} bytes): delete it to rebuild it")
        ids = splits[name] = np.memmap(path, dtype=ID_TYPE, mode="r")
        if ids.max() >= tokenizer.vocab_size:
            raise ValueError(
                f"{path} has id {ids.max()}, but the vocabulary has {tokenizer.vocab_size} ids: delete it to rebuild it"
            )
    return splits


def token_counts(ids: np.ndarray, vocab_size: int) -> np.ndarray:
    """Count each id: ids (n), read piece by piece -> counts (vocab_size)."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for start in range(0, len(ids), PIECE):
        counts += np.bincount(ids[start : start + PIECE], minlength=vocab_size)
    return counts


def text_size(ids: np.ndarray, tokenizer: Tokenizer) -> tuple[int, int]:
    """Count the (characters, bytes of UTF-8) of the text of ids (n), from the counts of its tokens.

    Of a character that begins before the ids, only its remaining bytes are counted.
    """
    characters = n_bytes = 0
    for token, count in enumerate(token_counts(ids, tokenizer.vocab_size).tolist()):
        if count:
            content = tokenizer.token_bytes(token)
            # 10xxxxxx continues a character.
            characters += count * sum(byte & 0xC0 != 0x80 for byte in content)
            n_bytes += count * len(content)
    return characters, n_bytes


def texts_digest(texts: dict[str, str]) -> str:
    """Compute the SHA-256 of the texts with a zero byte between them, without copying them."""
    digest = hashlib.sha256()
    for i, text in enumerate(texts.values()):
        digest.update(b"\0" if i else b"")
        for piece in pieces(text):
            digest.update(piece.encode())
    return digest.hexdigest()


def fit_context(context_length: int, splits: dict[str, np.ndarray]) -> int:
    """Return context_length, shortened to what the shortest split fills; a window's targets need one more id.

    ValueError for a split of less than two tokens.
    """
    name, ids = min(splits.items(), key=lambda item: len(item[1]))
    if len(ids) < 2:
        raise ValueError(f"split {name} has {len(ids)} tokens, at least 2 are needed: give a longer text")
    return min(context_length, len(ids) - 1)


class TokenizedDataset(Dataset):
    """Windows of context_length ids and the next id of each; the key is (epoch, index).

    The windows of an epoch do not overlap. The first begins at an offset drawn from (seed, epoch), so that over the
    epochs every token is read at every place of a window. ids (n): an array or a memory map, with at least one window.
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
        """Draw the offset of an epoch's first window."""
        last = len(self.ids) - 1 - self.n_windows * self.context_length  # offset at which all windows fit
        return random.Random(f"{self.seed}/{epoch}/phase").randint(0, last)

    def __getitem__(self, key: tuple[int, int]) -> np.ndarray:
        """Return the window of (epoch, index) and the token after it, (context_length + 1) ids."""
        epoch, index = key
        start = self.phase(epoch) + index * self.context_length
        return self.ids[start : start + self.context_length + 1]

    def collate(self, windows: list[np.ndarray]) -> dict[str, Tensor]:
        """Stack windows to tokens and targets (B, T); targets[:, t] follows tokens[:, t]."""
        ids = torch.from_numpy(np.stack(windows).astype(np.int64))  # (B, T + 1)
        return {"tokens": ids[:, :-1], "targets": ids[:, 1:]}


class ReplyDataset(Dataset):
    """(line, reply) pairs for an encoder-decoder; the key is (epoch, index), all epochs are equal.

    Lines and replies are cut at context_length tokens; a reply keeps its end id. n_cut: number of pairs cut.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[str, str]],
        tokenizer: Tokenizer,
        context_length: int,
    ):
        if not pairs:
            raise ValueError("no reply in this split: give a longer script")
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
        """Pad pairs to source, source_mask (B, S) and tokens, targets, token_mask (B, T), tokens from start_id on."""
        source, source_mask = padded([line for line, _ in pairs], self.tokenizer.pad_id)
        targets, token_mask = padded([reply for _, reply in pairs], self.tokenizer.pad_id)
        start = torch.tensor([[self.tokenizer.start_id]] * len(pairs))  # (B, 1)
        tokens = torch.cat([start, targets[:, :-1]], dim=1)  # (B, T)
        names = ("source", "source_mask", "tokens", "targets", "token_mask")
        return dict(zip(names, (source, source_mask, tokens, targets, token_mask), strict=True))

    def batches(self, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Yield all pairs once, in order."""
        for start in range(0, len(self), batch_size):
            yield self.collate(self.pairs[start : start + batch_size])


def padded(rows: list[list[int]], pad_id: int | None) -> tuple[Tensor, Tensor]:
    """Pad rows on the right with pad_id -> tokens (B, T), token_mask (B, T), True = real."""
    length = max(map(len, rows))
    tokens = torch.tensor([row + [pad_id] * (length - len(row)) for row in rows])  # (B, T)
    real = torch.arange(length) < torch.tensor([len(row) for row in rows])[:, None]  # (B, T)
    return tokens, real
