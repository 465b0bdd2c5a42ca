"""Text to ids and back: characters, byte-level BPE trained here, and GPT-2's own vocabulary.

Both classes share one interface: `encode`, `decode`, `token_bytes`, `vocab_size`, `digest`, `save`, and the
reserved ids `end_id`, `pad_id`, `start_id` (None where not asked for). Reserved ids come after the ordinary ones,
in the order of `specials`; `encode` never gives one, whatever the text says.

Byte-level BPE: Sennrich et al. 2016, section 3.2 (merges); Radford et al. 2019, section 2.2 (bytes).
"""

import base64
import hashlib
import heapq
import itertools
import json
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import regex
import tiktoken

# GPT-2's pre-tokenisation in the form tiktoken runs: merges never cross from one match to the next.
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
GPT2_TOKENS = 50256  # 256 bytes and 50,000 merges; <|endoftext|> is the next id
SPECIALS = {"end": "<|endoftext|>", "pad": "<|pad|>", "start": "<|start|>"}
FILE_NAME = "minlm-tokenizer.json"
# OpenAI's names, then Hugging Face's
GPT2_FILES = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))


class CharTokenizer:
    """One id for each character of `text`, in the order of their code points.

    specials: which of "end", "pad", "start" to reserve, in the order of their ids.
    """

    def __init__(self, text: str, specials: Sequence[str] = ()):
        if not text:
            raise ValueError("no characters in an empty text: give the text that is to be encoded")
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
        """One id a character; ValueError for a character outside the vocabulary."""
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            character = error.args[0]
            raise ValueError(
                f"character {character!r} (U+{ord(character):04X}) is not among the {len(self.characters)} "
                "characters of the vocabulary: remove it, or build the tokenizer from a text that has it"
            ) from None

    def decode(self, ids: Sequence[int]) -> str:
        """The text; a reserved id shows as its name, <|pad|>. ValueError for an id out of range."""
        return "".join(self._tokens[i] for i in _checked_ids(ids, self.vocab_size))

    def token_bytes(self, token: int) -> bytes:
        """One token's text in UTF-8; those of a text's tokens, joined, are the text's."""
        return self._tokens[token].encode("utf-8", "surrogatepass")

    def save(self, folder: str | Path) -> None:
        """Writes one JSON file, which `load_tokenizer` reads."""
        _write(folder, {"kind": "characters", "characters": self.characters}, self)


class BPETokenizer:
    """Byte-level BPE, run as a `tiktoken.Encoding`; `decode(encode(text)) == text` for any text (UTF-8).

    ranks: each token's bytes and its id, 0 .. n - 1, all 256 bytes among them; lower ids merge first.
    specials: which of "end", "pad", "start" to reserve; their ids are n, n + 1, ...
    """

    def __init__(self, ranks: dict[bytes, int], specials: Sequence[str] = ("end",)):
        n_missing = sum(bytes([b]) not in ranks for b in range(256))
        if n_missing or sorted(ranks.values()) != list(range(len(ranks))):
            raise ValueError(
                f"a BPE vocabulary needs all 256 bytes ({n_missing} missing) and ids 0 to {len(ranks) - 1} "
                "once each: train it with train_bpe, or load GPT-2's"
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
        """Ids of ordinary tokens only: "<|endoftext|>" in a text is thirteen characters like any others."""
        return self.encoding.encode_ordinary(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text; bytes that are not UTF-8 become U+FFFD. ValueError for an id out of range."""
        return self.encoding.decode(_checked_ids(ids, self.vocab_size))

    def token_bytes(self, token: int) -> bytes:
        """One token's bytes, which need not be whole characters; those of a text's tokens, joined, are the text's."""
        return self.encoding.decode_single_token_bytes(token)

    def save(self, folder: str | Path) -> None:
        """Writes one JSON file, which `load_tokenizer` reads."""
        tokens = sorted(self.ranks, key=self.ranks.__getitem__)
        _write(folder, {"kind": "bpe", "tokens": [base64.b64encode(t).decode("ascii") for t in tokens]}, self)


def train_bpe(text: str, vocab_size: int, specials: Sequence[str] = ("end",)) -> BPETokenizer:
    """Learns merges on `text` until there are `vocab_size` ids: 256 bytes, merges, then the reserved ids.

    Each step merges the most frequent pair of neighbouring tokens; of equal ones, that of lowest ids.
    Words are counted once a type, and a merge only visits the words that hold its pair. ValueError where the
    text yields fewer tokens than asked for.
    """
    n_tokens = vocab_size - len(specials)
    if n_tokens < 256:
        raise ValueError(
            f"vocab_size {vocab_size} is too small: ask for at least {256 + len(specials)}, "
            "one id a byte and the reserved ones"
        )
    types = Counter(match.group() for match in regex.finditer(GPT2_PATTERN, text))
    words = [list(word.encode("utf-8")) for word in types]
    frequency = list(types.values())
    counts = Counter()
    holders = defaultdict(set)  # pair -> words that may hold it
    for i, word in enumerate(words):
        for pair in itertools.pairwise(word):
            counts[pair] += frequency[i]
            holders[pair].add(i)
    heap = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(heap)
    tokens = [bytes([b]) for b in range(256)]
    ranks = {token: i for i, token in enumerate(tokens)}
    while len(tokens) < n_tokens:
        if not heap:
            raise ValueError(
                f"--model.vocab_size {vocab_size} is more than this text of {len(text)} characters yields: "
                f"ask for at most {len(tokens) + len(specials)}, or give more text"
            )
        negative_count, pair = heapq.heappop(heap)
        if counts[pair] != -negative_count or negative_count == 0:
            continue  # an old entry: every change of a count pushed a new one
        joined = tokens[pair[0]] + tokens[pair[1]]
        if joined not in ranks:  # should two pairs give the same bytes, they share an id
            ranks[joined] = len(tokens)
            tokens.append(joined)
        changed = Counter()
        for i in holders.pop(pair):
            merged = _merge(words[i], pair, ranks[joined])
            for old in itertools.pairwise(words[i]):
                changed[old] -= frequency[i]
            for new in itertools.pairwise(merged):
                changed[new] += frequency[i]
                holders[new].add(i)
            words[i] = merged
        for other, change in changed.items():
            if change:
                counts[other] += change
                heapq.heappush(heap, (-counts[other], other))
    return BPETokenizer(ranks, specials)


def load_tokenizer(path: str | Path) -> CharTokenizer | BPETokenizer:
    """Reads what `save` wrote, GPT-2's encoder.json + vocab.bpe, or GPT-2's .tiktoken file.

    path: a folder that holds one of them, or one of the files. ValueError where nothing fits, or for damage.
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


def _merge(word: list[int], pair: tuple[int, int], joined: int) -> list[int]:
    """The word with every occurrence of the pair replaced, from left to right."""
    merged, i = [], 0
    while i < len(word):
        hit = word[i] == pair[0] and i + 1 < len(word) and word[i + 1] == pair[1]
        merged.append(joined if hit else word[i])
        i += 2 if hit else 1
    return merged


def _byte_of_character() -> dict[str, int]:
    """GPT-2's files write each byte as a visible character: itself if printable, else one from U+0100 on.

    The order is that of the ids 0 to 255.
    """
    printable = [b for b in range(256) if chr(b).isprintable() and b != 32]
    hidden = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(hidden)}


def _gpt2_ranks(vocabulary: Path, merges: Path) -> dict[bytes, int]:
    """Bytes first, in any order, then one token a merge in theirs, then the end of text: the vocabulary must agree."""
    byte_of = _byte_of_character()
    lines = [line for line in _read(merges).splitlines() if line and not line.startswith("#version")]
    merged = [*("".join(line.split()) for line in lines), SPECIALS["end"]]
    try:
        ids = json.loads(_read(vocabulary))
        tokens = sorted(ids, key=ids.__getitem__)
        agree = tokens[256:] == merged and [ids[token] for token in tokens] == list(range(len(tokens)))
        ranks = {bytes(byte_of[character] for character in token): i for i, token in enumerate(tokens[:-1])}
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError, RecursionError):
        agree = False
    if not agree:
        raise ValueError(f"{vocabulary} and {merges.name} do not fit together: fetch both files anew")
    return ranks


def _from_tiktoken(text: str, path: Path) -> BPETokenizer:
    try:
        rows = [line.split() for line in text.splitlines() if line]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in rows}
    except ValueError:
        raise ValueError(f"{path} is no tokenizer: neither JSON nor lines of base64 and rank") from None
    # such a file does not say its pattern, so it must be the one vocabulary known here
    if len(ranks) != GPT2_TOKENS:
        raise ValueError(
            f"{path} holds {len(ranks)} tokens where GPT-2's holds {GPT2_TOKENS}: "
            "only GPT-2's is read, because such a file does not say how words are split"
        )
    return BPETokenizer(ranks)


def _from_json(text: str, path: Path) -> CharTokenizer | BPETokenizer:
    try:
        saved = json.loads(text)
        if saved["kind"] == "characters":
            tokenizer = CharTokenizer(saved["characters"], saved["specials"])
        else:
            tokens = [base64.b64decode(token, validate=True) for token in saved["tokens"]]
            tokenizer = BPETokenizer({token: i for i, token in enumerate(tokens)}, saved["specials"])
        intact = tokenizer.digest == saved["digest"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        intact = False
    if not intact:
        raise ValueError(
            f"{path} is damaged or no tokenizer of a run: give a vocab.txt, or the copy in the run's newest "
            "step-* folder"
        )
    return tokenizer


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"no such tokenizer file: {path}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no tokenizer: it is not UTF-8 text") from None


def _write(folder: str | Path, saved: dict, tokenizer: CharTokenizer | BPETokenizer) -> None:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{FILE_NAME}.{os.getpid()}"
    saved |= {"specials": tokenizer.specials, "digest": tokenizer.digest}
    temporary.write_text(json.dumps(saved), encoding="utf-8")
    os.replace(temporary, folder / FILE_NAME)


def _checked_specials(specials: Sequence[str]) -> tuple[str, ...]:
    specials = tuple(specials)
    if len(set(specials)) != len(specials) or not set(specials) <= set(SPECIALS):
        raise ValueError(f"specials {specials} must be different ones of {tuple(SPECIALS)}")
    return specials


def _special_ids(specials: tuple[str, ...], first: int) -> list[int | None]:
    """The ids of end, pad and start, None where not reserved."""
    return [first + specials.index(name) if name in specials else None for name in ("end", "pad", "start")]


def _checked_ids(ids: Sequence[int], vocab_size: int) -> list[int]:
    bad = next((i for i in ids if not 0 <= i < vocab_size), None)
    if bad is not None:
        raise ValueError(f"id {bad} is outside the vocabulary: ids run from 0 to {vocab_size - 1}")
    return list(ids)


# JSON keeps neighbouring tokens apart, so that no two vocabularies give the same bytes
def _sha256(kind: str, specials: tuple[str, ...], tokens: list[bytes]) -> str:
    parts = [kind, list(specials), [token.hex() for token in tokens]]
    return hashlib.sha256(json.dumps(parts).encode("utf-8")).hexdigest()
