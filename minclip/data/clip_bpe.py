"""CLIP's byte-level BPE, run from its merges file (Radford et al. 2021, section 2.4; Sennrich et al. 2016).

A text is cleaned, lower-cased and cut into words. A word starts as its UTF-8 bytes, the last one marked `</w>`. Of the
merges that apply, the earliest in the file is applied, until none applies. No text is unknown.

Differences from CLIP's published code:
- CLIP first repairs texts with the package ftfy. Here that step is Unicode's NFC form alone, as in Hugging Face's
  tokenizer. Texts that ftfy changes further get other ids: curly quotes, ligatures, full-width letters, wrong
  encodings ("schÃ¶n"), control characters. HTML entities ("&amp;") are resolved as in CLIP; Hugging Face keeps them.
- A literal "<|endoftext|>" in a text is text: "<|", "endoftext", "|>". The published tokenizers make it the end token,
  so that a caption could end early and be pooled there.
- Letters and numbers are those of Python's Unicode tables, not of the package `regex`. The published pattern also
  loses one character, a lone iota subscript (U+0345).
"""

import functools
import gzip
import hashlib
import html
import itertools
import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from minlm.merges import BYTE_CHARACTERS, CHARACTER_BYTES, merge_pair

N_MERGES = 49_152 - 256 - 2
START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
MAX_BYTES = 2**26  # of a decompressed vocabulary; CLIP's has three million
CACHE_LIMIT = 2**16  # chunks of text between spaces whose ids are kept

# Unicode's white space; Python's \s has four more separators, \x1c to \x1f.
WHITESPACE = re.compile(r"[^\S\x1c-\x1f]+")


def read_lines(path: str | Path, file_names: Sequence[str]) -> list[str]:
    """Read the lines of a vocabulary file, plain or gzipped. In a folder, read the one file of `file_names`.

    Raises ValueError if there is no such file or several, or if it is empty or damaged.
    """
    path = Path(path)
    if path.is_dir():
        found = [name for name in file_names if (path / name).is_file()]
        if len(found) != 1:
            raise ValueError(f"{path} has {len(found)} of {', '.join(file_names)}: keep exactly one")
        path = path / found[0]
    if not path.is_file():
        raise ValueError(f"{path} is missing: give a vocabulary file or its folder ({', '.join(file_names)})")
    with path.open("rb") as file:
        zipped = file.peek(2)[:2] == b"\x1f\x8b"
        try:
            data = (gzip.GzipFile(fileobj=file) if zipped else file).read(MAX_BYTES + 1)
            text = data.decode("utf-8")
        except Exception as error:
            raise ValueError(f"{path} is damaged ({error}): fetch it again") from error
    if len(data) > MAX_BYTES:
        raise ValueError(f"{path} is longer than {MAX_BYTES} bytes: give a vocabulary file")
    if not text.strip():
        raise ValueError(f"{path} is empty: fetch it again")
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n")


def caption_ids(ids: Iterable[int], vocab_size: int, start_id: int, end_id: int) -> list[int]:
    """Return the ids of a row's text: up to the first end id, without start ids. ValueError for ids out of range."""
    kept = []
    for i in map(int, ids):
        if not 0 <= i < vocab_size:
            raise ValueError(f"token id {i} is outside 0..{vocab_size - 1}: use the tokenizer that made it")
        if i == end_id:
            break
        if i != start_id:
            kept.append(i)
    return kept


def clean_text(text: str) -> str:
    """Resolve HTML entities (twice, as in CLIP: "&amp;lt;"), apply NFC, collapse white space, lower-case."""
    text = unicodedata.normalize("NFC", html.unescape(html.unescape(text)))
    return WHITESPACE.sub(" ", text).strip(" ").lower()


@functools.cache
def word_pattern() -> re.Pattern[str]:
    r"""Return CLIP's pattern for the words of a chunk without white space: 's|'t|...|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+

    `re` has no \p{L}. Its \w is letters, all numbers and "_"; its \d is the decimal digits. Listing the other numbers
    (Roman numerals, fractions, superscripts) gives both classes exactly.
    """
    characters = map(chr, range(sys.maxunicode + 1))
    other_numbers = "".join(c for c in characters if unicodedata.category(c) in ("Nl", "No"))
    contractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    return re.compile(rf"{contractions}|[^\W\d_{other_numbers}]+|[\d{other_numbers}]|[\W_]+")


class ClipBPE:
    """CLIP's tokenizer: 512 byte symbols (plain, then with `</w>`), 48,894 merges, start and end of text.

    merges: pairs of symbols in order of priority. The first 48,894 are used; CLIP's file has more.
    Attributes: pad_id (0, which is also "!": the token mask distinguishes them), unk_id (None: bytes spell every
    text), start_id 49406, end_id 49407, vocab_size 49408, digest (SHA-256 of the saved file).
    Raises ValueError if merges are too few, repeated, or use a symbol that no earlier one makes.
    """

    FILE_NAMES = ("merges.txt", "bpe_simple_vocab_16e6.txt.gz")

    def __init__(self, merges: Sequence[tuple[str, str]]):
        if len(merges) < N_MERGES:
            raise ValueError(f"{len(merges)} merges where CLIP uses {N_MERGES}: fetch the file again")
        self.merges = list(merges[:N_MERGES])
        characters = list(BYTE_CHARACTERS.values())
        self.tokens = characters + [character + WORD_END for character in characters]
        known = set(self.tokens)
        for line, (left, right) in enumerate(self.merges, start=2):
            if left not in known or right not in known:
                raise ValueError(f"line {line}: '{left} {right}' uses a symbol that no earlier merge makes")
            if left + right in known:
                raise ValueError(f"line {line}: '{left} {right}' makes a symbol that an earlier merge makes")
            known.add(left + right)
            self.tokens.append(left + right)
        self.tokens += [START, END]
        self.vocab_size = len(self.tokens)
        self.pad_id, self.unk_id = 0, None
        self.start_id, self.end_id = self.vocab_size - 2, self.vocab_size - 1
        self.digest = hashlib.sha256(self._file_text().encode("utf-8")).hexdigest()
        self._ids = {token: i for i, token in enumerate(self.tokens)}
        self._ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        self._cache: dict[str, list[int]] = {}

    @classmethod
    def load(cls, path: str | Path) -> "ClipBPE":
        """Load bpe_simple_vocab_16e6.txt.gz, Hugging Face's merges.txt, or the one of them in a folder."""
        header, *lines = read_lines(path, cls.FILE_NAMES)
        if "#version" not in header:
            raise ValueError(f"{path} starts with {header[:40]!r}, not with #version: give a merges file")
        merges = []
        for i, line in enumerate(lines[:N_MERGES], start=2):
            left, space, right = line.partition(" ")
            if not space or " " in right:
                raise ValueError(f"{path}: line {i} is {line[:40]!r}, not two symbols and a space")
            merges.append((left, right))
        if not any(right.endswith(WORD_END) for _, right in merges):
            raise ValueError(f"{path} has no merge with {WORD_END}: another model's merges (GPT-2's?)")
        try:
            return cls(merges)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without start and end. A lone surrogate reads as "?"."""
        ids = []
        for chunk in clean_text(text).split(" "):
            if chunk not in self._cache:
                if len(self._cache) >= CACHE_LIMIT:
                    self._cache.clear()
                words = word_pattern().findall(chunk)
                self._cache[chunk] = [i for word in words for i in self._word_ids(word)]
            ids += self._cache[chunk]
        return ids

    def _word_ids(self, word: str) -> list[int]:
        symbols = [BYTE_CHARACTERS[byte] for byte in word.encode("utf-8", errors="replace")]
        symbols[-1] += WORD_END
        while len(symbols) > 1:
            pair = min(itertools.pairwise(symbols), key=lambda pair: self._ranks.get(pair, N_MERGES))
            if pair not in self._ranks:
                break
            symbols = merge_pair(symbols, pair, "".join(pair))
        return [self._ids[symbol] for symbol in symbols]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the cleaned text of a row up to its first end id, with a space after every word ("hi !").

        Bytes that are not UTF-8, of a character cut by truncation, become U+FFFD.
        """
        data = b""
        for token in (self.tokens[i] for i in caption_ids(ids, self.vocab_size, self.start_id, self.end_id)):
            data += bytes(CHARACTER_BYTES[character] for character in token.removesuffix(WORD_END))
            data += b" " if token.endswith(WORD_END) else b""
        return data.decode("utf-8", errors="replace").strip(" ")

    def save(self, folder: str | Path) -> None:
        """Write merges.txt, which Hugging Face's tokenizers also read, into `folder`."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "merges.txt").write_text(self._file_text(), encoding="utf-8", newline="\n")

    def _file_text(self) -> str:
        return "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in self.merges)
