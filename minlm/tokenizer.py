"""Text to ids and back: characters, byte-level BPE trained here, and GPT-2's own vocabulary.

Both classes have `encode`, `decode`, `token_bytes`, `vocab_size`, `digest`, `save`, and the reserved ids `end_id`,
`pad_id`, `start_id` (None unless reserved). Reserved ids follow the ordinary ones, in the order of `specials`.
`encode` never returns a reserved id, whatever the text.

Byte-level BPE: Sennrich et al. 2016, section 3.2 (merges); Radford et al. 2019, section 2.2 (bytes).
"""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import regex
import tiktoken

from minlm.merges import CHARACTER_BYTES, learn_merges
from minlm.training.files import replace_text

# GPT-2's pre-tokenisation, in tiktoken's form. No merge crosses the end of a match.
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
GPT2_TOKENS = 50256  # 256 bytes and 50,000 merges; <|endoftext|> is the next id
SPECIALS = {"end": "<|endoftext|>", "pad": "<|pad|>", "start": "<|start|>"}
FILE_NAME = "minlm-tokenizer.json"
# OpenAI's names, then Hugging Face's
GPT2_FILES = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))


class CharTokenizer:
    """Tokenizer with one id per character of `text`, in the order of their code points.

    specials: the ids to reserve, of "end", "pad" and "start", in this order. ValueError for an empty text.
    """

    def __init__(self, text: str, specials: Sequence[str] = ()):
        if not text:
            raise ValueError("the text is empty: give the text to encode")
        self.characters = "".join(sorted(set(text)))
        self.specials = _checked_specials(specials)
        self._tokens = [*self.characters, *(SPECIALS[name] for name in self.specials)]
        self._ids = {character: i for i, character in enumerate(self.characters)}
        self.vocab_size = len(self._tokens)
        self.end_id, self.pad_id, self.start_id = _special_ids(self.specials, len(self.characters))
        self.digest = _sha256(
            "characters", self.specials, [c.encode("utf-8", "surrogatepass") for c in self.characters]
        )

    def encode(self, text: str) -> list[int]:
        """Return one id per character. ValueError for a character outside the vocabulary."""
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            character = error.args[0]
            raise ValueError(
                f"character {character!r} (U+{ord(character):04X}) is not among the {len(self.characters)} "
                "characters of the vocabulary: remove it, or build the tokenizer from a text with it"
            ) from None

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text, with a name such as <|pad|> for a reserved id. ValueError for an id out of range."""
        return "".join(self._tokens[i] for i in _checked_ids(ids, self.vocab_size))

    def token_bytes(self, token: int) -> bytes:
        """Return the token's text in UTF-8."""
        return self._tokens[token].encode("utf-8", "surrogatepass")

    def save(self, folder: str | Path) -> None:
        """Write one JSON file, which `load_tokenizer` reads."""
        _save(folder, {"kind": "characters", "characters": self.characters}, self)


class BPETokenizer:
    """Byte-level BPE, run as a `tiktoken.Encoding`; `decode(encode(text)) == text` for any text (UTF-8).

    ranks: {token's bytes: id}, ids 0 to n - 1, with all 256 single bytes. Lower ids merge first.
    specials: the ids n, n + 1, ... to reserve, of "end", "pad" and "start". ValueError for incomplete ranks.
    """

    def __init__(self, ranks: dict[bytes, int], specials: Sequence[str] = ("end",)):
        n_missing = sum(bytes([b]) not in ranks for b in range(256))
        if n_missing or sorted(ranks.values()) != list(range(len(ranks))):
            raise ValueError(
                f"a BPE vocabulary needs all 256 bytes ({n_missing} missing) and ids 0 to {len(ranks) - 1} "
                "once each: use train_bpe, or load GPT-2's"
            )
        self.ranks = ranks
        self.specials = _checked_specials(specials)
        self.end_id, self.pad_id, self.start_id = _special_ids(self.specials, len(ranks))
        self.vocab_size = len(ranks) + len(self.specials)
        self.digest = _sha256(GPT2_PATTERN, self.specials, sorted(ranks, key=ranks.__getitem__))
        self.encoding = tiktoken.Encoding(
            name=f"bpe-{self.digest[:12]}",
            pat_str=GPT2_PATTERN,
            mergeable_ranks=ranks,
            special_tokens={SPECIALS[name]: len(ranks) + i for i, name in enumerate(self.specials)},
        )

    def encode(self, text: str) -> list[int]:
        """Return ids of ordinary tokens only: "<|endoftext|>" in a text is ordinary characters."""
        return self.encoding.encode_ordinary(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text, with U+FFFD for bytes that are not UTF-8. ValueError for an id out of range."""
        return self.encoding.decode(_checked_ids(ids, self.vocab_size))

    def token_bytes(self, token: int) -> bytes:
        """Return the token's bytes, which need not be whole characters."""
        return self.encoding.decode_single_token_bytes(token)

    def save(self, folder: str | Path) -> None:
        """Write one JSON file, which `load_tokenizer` reads."""
        tokens = sorted(self.ranks, key=self.ranks.__getitem__)
        _save(folder, {"kind": "bpe", "tokens": [base64.b64encode(t).decode("ascii") for t in tokens]}, self)


def train_bpe(text: str, vocab_size: int, specials: Sequence[str] = ("end",)) -> BPETokenizer:
    """Learn merges on `text` until there are `vocab_size` ids: 256 bytes, merges, reserved ids.

    Ties go to the pair of lowest ids. ValueError if the text yields fewer tokens.
    """
    n_tokens = vocab_size - len(specials)
    if n_tokens < 256:
        raise ValueError(
            f"vocab_size {vocab_size} is too small: give at least {256 + len(specials)}, "
            "one id per byte and the reserved ids"
        )
    types = Counter(match.group() for match in regex.finditer(GPT2_PATTERN, text))
    tokens = [bytes([b]) for b in range(256)]
    ranks = {token: i for i, token in enumerate(tokens)}

    def join(left: int, right: int) -> int:
        token = tokens[left] + tokens[right]
        if token not in ranks:  # pairs with the same bytes share an id
            ranks[token] = len(tokens)
            tokens.append(token)
        return ranks[token]

    merges = learn_merges([list(word.encode("utf-8")) for word in types], list(types.values()), join)
    while len(tokens) < n_tokens:
        if next(merges, None) is None:
            raise ValueError(
                f"--model.vocab_size {vocab_size} is more than this text of {len(text)} characters yields: "
                f"give at most {len(tokens) + len(specials)}, or more text"
            )
    return BPETokenizer(ranks, specials)


Tokenizer = CharTokenizer | BPETokenizer


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read a tokenizer that `save` wrote, GPT-2's encoder.json + vocab.bpe, or GPT-2's .tiktoken file.

    path: one of the files, or a folder with one of them. ValueError for missing or damaged files.
    """
    path = Path(path)
    if path.is_dir():
        path = _tokenizer_file(path)
    for vocabulary, merges in GPT2_FILES:
        if path.name in (vocabulary, merges):
            return BPETokenizer(_gpt2_ranks(path.with_name(vocabulary), path.with_name(merges)))
    text = _read(path)
    return _from_json(text, path) if text.lstrip().startswith("{") else _from_tiktoken(text, path)


def _tokenizer_file(folder: Path) -> Path:
    pairs = [folder / vocabulary for vocabulary, merges in GPT2_FILES if (folder / merges).is_file()]
    for path in (folder / FILE_NAME, *pairs, *sorted(folder.glob("*.tiktoken"))):
        if path.is_file():
            return path
    names = ", ".join((FILE_NAME, *map(" + ".join, GPT2_FILES), "*.tiktoken"))
    raise ValueError(f"no tokenizer in {folder}: looked for {names}")


def _gpt2_ranks(vocabulary: Path, merges: Path) -> dict[bytes, int]:
    """Return {token's bytes: id} of a vocabulary: single bytes, one token per merge, end of text.

    ValueError if the merges give another vocabulary.
    """
    lines = [line for line in _read(merges).splitlines() if line and not line.startswith("#version")]
    merged, text = [*("".join(line.split()) for line in lines), SPECIALS["end"]], _read(vocabulary)
    try:
        ids = json.loads(text)
        tokens = sorted(ids, key=ids.__getitem__)
        if tokens[256:] != merged or [ids[token] for token in tokens] != list(range(len(tokens))):
            raise ValueError("other tokens or ids")
        return {bytes(CHARACTER_BYTES[c] for c in token): i for i, token in enumerate(tokens[:-1])}
    except Exception as error:
        raise ValueError(
            f"{vocabulary} and {merges.name} do not fit together ({error!r}): fetch both again"
        ) from None


def _from_tiktoken(text: str, path: Path) -> BPETokenizer:
    try:
        rows = [line.split() for line in text.splitlines() if line]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in rows}
    except ValueError:
        raise ValueError(f"{path} is not a tokenizer: neither JSON nor lines of base64 and rank") from None
    # Such a file does not give its pattern, so only the one vocabulary known here can be read.
    if len(ranks) != GPT2_TOKENS:
        raise ValueError(
            f"{path} has {len(ranks)} tokens, GPT-2's has {GPT2_TOKENS}: give GPT-2's; the file of another "
            "vocabulary does not say how to split words"
        )
    return BPETokenizer(ranks)


def _from_json(text: str, path: Path) -> Tokenizer:
    try:
        saved = json.loads(text)
        if saved["kind"] == "characters":
            tokenizer = CharTokenizer(saved["characters"], saved["specials"])
        else:
            tokens = [base64.b64decode(token, validate=True) for token in saved["tokens"]]
            tokenizer = BPETokenizer({token: i for i, token in enumerate(tokens)}, saved["specials"])
        if tokenizer.digest != saved["digest"]:
            raise ValueError("its digest is another")
    except Exception as error:
        raise ValueError(
            f"{path} is damaged or not a run's tokenizer ({error!r}): give a vocab.txt, or the copy in the run's "
            "newest step-* folder"
        ) from None
    return tokenizer


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"no such tokenizer file: {path}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a tokenizer: it is not UTF-8 text") from None


def _save(folder: str | Path, saved: dict[str, Any], tokenizer: Tokenizer) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    saved |= {"specials": tokenizer.specials, "digest": tokenizer.digest}
    replace_text(Path(folder) / FILE_NAME, json.dumps(saved))


def _checked_specials(specials: Sequence[str]) -> tuple[str, ...]:
    specials = tuple(specials)
    if len(set(specials)) != len(specials) or not set(specials) <= set(SPECIALS):
        raise ValueError(f"specials {specials} must be different names of {tuple(SPECIALS)}")
    return specials


def _special_ids(specials: tuple[str, ...], first: int) -> list[int | None]:
    """Return the ids of end, pad and start, None if not reserved."""
    return [first + specials.index(name) if name in specials else None for name in ("end", "pad", "start")]


def _checked_ids(ids: Sequence[int], vocab_size: int) -> list[int]:
    bad = next((i for i in ids if not 0 <= i < vocab_size), None)
    if bad is not None:
        raise ValueError(f"id {bad} is outside the vocabulary: ids run from 0 to {vocab_size - 1}")
    return list(ids)


def _sha256(kind: str, specials: tuple[str, ...], tokens: list[bytes]) -> str:
    # JSON separates the tokens, so that no two vocabularies give the same bytes.
    parts = [kind, list(specials), [token.hex() for token in tokens]]
    return hashlib.sha256(json.dumps(parts).encode("utf-8")).hexdigest()
