"""CLIP's byte-level BPE, run from its merges file (Radford et al. 2021, section 2.4; Sennrich et al. 2016).

A text is cleaned and lower-cased and cut into words; a word starts as its UTF-8 bytes, the last one marked
`</w>`. The merge that stands earliest in the file is applied until none applies. No text is unknown.

Where this differs from CLIP's published code, and why:
- CLIP first repairs texts with the package ftfy. Here that step is Unicode's NFC form alone (which ftfy and
  Hugging Face's tokenizer share), so a text that ftfy would change further gets other ids: curly quotes made
  straight, ligatures and full-width letters made plain, wrong encodings ("schÃ¶n") undone, control characters
  dropped. Hugging Face's tokenizer does none of this, and leaves "&amp;" as it is, which CLIP and this one resolve.
- A literal "<|endoftext|>" in a text is text: "<|", "endoftext", "|>". The published tokenizers turn it into the
  end token: whoever writes a caption could end it, and move the place at which the text tower is pooled.
- Letters and numbers are those of Python's Unicode tables, older or newer than those of the package `regex`, whose
  published pattern also loses one character, the iota subscript on its own (U+0345).
"""

import functools
import gzip
import hashlib
import html
import itertools
import re
import sys
import unicodedata
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

N_MERGES = 49_152 - 256 - 2
START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
MAX_BYTES = 2**26  # of a vocabulary, decompressed; CLIP's has three million
CACHE_LIMIT = 2**16  # chunks of text between spaces whose ids are remembered

# White space as Unicode defines it; Python's \s holds four separators more, \x1c to \x1f.
WHITESPACE = re.compile(r"[^\S\x1c-\x1f]+")

# GPT-2's alphabet of bytes: those that Latin-1 shows are written as its characters, the others as chr(256) onwards.
_SHOWN = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_HIDDEN = [byte for byte in range(256) if byte not in _SHOWN]
BYTE_CHARACTERS = {byte: chr(byte) for byte in _SHOWN} | {
    byte: chr(256 + i) for i, byte in enumerate(_HIDDEN)
}
CHARACTER_BYTES = {character: byte for byte, character in BYTE_CHARACTERS.items()}


def read_lines(path: str | Path, file_names: Sequence[str]) -> list[str]:
    """The lines of a vocabulary file, plain or gzipped; in a folder, of the one file with one of `file_names`.

    Raises ValueError when there is no such file, when a folder holds several, or when it is empty or damaged.
    """
    path = Path(path)
    if path.is_dir():
        found = [name for name in file_names if (path / name).is_file()]
        if len(found) != 1:
            raise ValueError(f"{path} holds {len(found)} of {', '.join(file_names)}: exactly one is needed")
        path = path / found[0]
    if not path.is_file():
        raise ValueError(f"{path} is missing: give a vocabulary file or its folder ({', '.join(file_names)})")
    with path.open("rb") as file:
        zipped = file.peek(2)[:2] == b"\x1f\x8b"
        try:
            data = (gzip.GzipFile(fileobj=file) if zipped else file).read(MAX_BYTES + 1)
            text = data.decode("utf-8")
        except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is damaged ({error}): fetch it again") from error
    if len(data) > MAX_BYTES:
        raise ValueError(f"{path} is longer than {MAX_BYTES} bytes, as no vocabulary is: give another file")
    if not text.strip():
        raise ValueError(f"{path} is empty: fetch it again")
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n")


def caption_ids(tokenizer, ids: Iterable[int]) -> list[int]:
    """The ids of a row's text: without start ids, up to the first end id. ValueError for ids out of range."""
    kept = []
    for i in map(int, ids):
        if not 0 <= i < tokenizer.vocab_size:
            raise ValueError(f"token id {i} is outside 0..{tokenizer.vocab_size - 1}: another tokenizer's?")
        if i == tokenizer.end_id:
            break
        if i != tokenizer.start_id:
            kept.append(i)
    return kept


def merge_pair(symbols: list[str], pair: tuple[str, str], merged: str) -> list[str]:
    """`symbols` with every occurrence of `pair`, taken from the left, replaced by `merged`."""
    result, i = [], 0
    while i < len(symbols):
        if symbols[i] == pair[0] and i + 1 < len(symbols) and symbols[i + 1] == pair[1]:
            result.append(merged)
            i += 2
        else:
            result.append(symbols[i])
            i += 1
    return result


def clean_text(text: str) -> str:
    """HTML entities resolved (twice, as in CLIP: "&amp;lt;"), NFC, one space for white space, lower case."""
    text = unicodedata.normalize("NFC", html.unescape(html.unescape(text)))
    return WHITESPACE.sub(" ", text).strip(" ").lower()


@functools.cache
def word_pattern() -> re.Pattern:
    r"""CLIP's pattern for the words of a chunk without white space: 's|'t|...|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+

    `re` has no \p{L}: its \w is letters, all numbers and "_", its \d the decimal digits. Listing the other
    numbers (Roman numerals, fractions, superscripts) gives both classes exactly.
    """
    characters = map(chr, range(sys.maxunicode + 1))
    other_numbers = "".join(c for c in characters if unicodedata.category(c) in ("Nl", "No"))
    contractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    return re.compile(rf"{contractions}|[^\W\d_{other_numbers}]+|[\d{other_numbers}]|[\W_]+")


class ClipBPE:
    """CLIP's tokenizer: 512 byte symbols (plain, then with `</w>`), 48,894 merges, start and end of text.

    merges: pairs of symbols in order of priority; the first 48,894 are used, as CLIP does with its longer file.
    Attributes: pad_id (0, which is also "!": only the token mask tells them apart), unk_id (None: bytes spell
    every text), start_id 49406, end_id 49407, vocab_size 49408, digest (sha256 of the saved file).
    Raises ValueError when merges are too few, repeated, or use a symbol that no earlier one makes.
    """

    FILE_NAMES = ("merges.txt", "bpe_simple_vocab_16e6.txt.gz")

    def __init__(self, merges: Sequence[tuple[str, str]]):
        if len(merges) < N_MERGES:
            raise ValueError(f"{len(merges)} merges where CLIP uses {N_MERGES}: fetch the file again")
        self.merges = [tuple(pair) for pair in merges[:N_MERGES]]
        characters = list(BYTE_CHARACTERS.values())
        self.tokens = characters + [character + WORD_END for character in characters]
        known = set(self.tokens)
        for line, (left, right) in enumerate(self.merges, start=2):
            if left not in known or right not in known:
                raise ValueError(f"line {line}: '{left} {right}' uses a symbol that no earlier merge makes")
            if left + right in known:
                raise ValueError(f"line {line}: '{left} {right}' makes a symbol that is there already")
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
        """From bpe_simple_vocab_16e6.txt.gz, Hugging Face's merges.txt, or a folder holding one of them."""
        header, *lines = read_lines(path, cls.FILE_NAMES)
        if "#version" not in header:
            raise ValueError(
                f"{path} starts with {header[:40]!r}, not with a merges file's header (#version)"
            )
        merges = [tuple(line.split(" ")) for line in lines[:N_MERGES]]
        bad = next((i for i, pair in enumerate(merges) if len(pair) != 2), None)
        if bad is not None:
            raise ValueError(f"{path}: line {bad + 2} is {lines[bad][:40]!r}, not two symbols and a space")
        if not any(right.endswith(WORD_END) for _, right in merges):
            raise ValueError(f"{path} has no merge with {WORD_END}: another model's merges (GPT-2's?)")
        try:
            return cls(merges)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without start and end. Half a surrogate pair, which is no character, reads as "?"."""
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
        """The text of a row up to its first end id: the cleaned text, with a space after every word ("hi !").

        Bytes that are no UTF-8, where ids were cut inside a character, read as U+FFFD.
        """
        data = b""
        for token in (self.tokens[i] for i in caption_ids(self, ids)):
            data += bytes(CHARACTER_BYTES[character] for character in token.removesuffix(WORD_END))
            data += b" " if token.endswith(WORD_END) else b""
        return data.decode("utf-8", errors="replace").strip(" ")

    def save(self, folder: str | Path) -> None:
        """Write merges.txt, the file that Hugging Face's tokenizers read too, into `folder`."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "merges.txt").write_text(self._file_text(), encoding="utf-8", newline="\n")

    def _file_text(self) -> str:
        return "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in self.merges)
