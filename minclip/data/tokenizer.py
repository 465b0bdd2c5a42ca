"""Texts to token ids: BERT's WordPiece, trained here or loaded; CLIP's BPE and GPT-2's; batches of each.

WordPiece follows Google's BERT code (Devlin et al. 2019): control characters out, lower case and no accents (unless
the vocabulary is cased), cut at white space, around punctuation and CJK characters, then the longest known piece
first (Wu et al. 2016).

No text gives a special token, except [UNK] for a word that the vocabulary cannot spell: a literal "[SEP]" reads as
"[", "sep", "]", as in Google's code. Hugging Face's tokenizers turn it into the control token: whoever writes a
caption could end it. Two differences more from Hugging Face's fast tokenizer: its Unicode tables are older than
Python's (accents and punctuation added since), and the last sigma of a Greek word is "ς" here and in Google's code.
"""

import hashlib
import heapq
import itertools
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from minclip.data.clip_bpe import CACHE_LIMIT, WORD_END, ClipBPE, caption_ids, merge_pair, read_lines
from minlm.pretrained.options import option
from minlm.tokenizer import FILE_NAME as BYTE_LEVEL_FILE
from minlm.tokenizer import GPT2_FILES, BPETokenizer
from minlm.tokenizer import load_tokenizer as load_byte_level
from minlm.training.files import read_object

PAD, UNK, CLS, SEP, MASK = SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_WORD = 100  # characters; BERT calls longer words unknown
CONFIG_NAME = "tokenizer_config.json"  # of Hugging Face
CASED = '{"tokenizer_class": "BertTokenizer", "do_lower_case": false}\n'
CONTINUES = "##"  # how a piece that does not start a word begins
# The blocks that BERT calls Chinese characters; Hangul and kana are written with spaces or as words, and stay whole.
CJK_BLOCKS = (
    range(0x4E00, 0xA000),
    range(0x3400, 0x4DC0),
    range(0x20000, 0x2A6E0),
    range(0x2A700, 0x2B740),
    range(0x2B740, 0x2B820),
    range(0x2B820, 0x2CEB0),
    range(0xF900, 0xFB00),
    range(0x2F800, 0x2FA20),
)


def remove_controls(text: str) -> str:
    """`text` without U+FFFD, control, format and private characters; tab and line ends stay as white space."""
    if not text.isprintable():  # printable: neither a control nor white space other than " "
        dropped = ("Cc", "Cf", "Co", "Cs")
        text = "".join(c for c in text if c in "\t\n\r" or unicodedata.category(c) not in dropped)
    return text.replace("\ufffd", "")


def stands_alone(character: str) -> bool:
    """Whether BERT makes the character a word of its own: punctuation, every ASCII symbol, CJK characters."""
    if character.isascii():
        return character.isprintable() and not character.isalnum() and character != " "
    return unicodedata.category(character)[0] == "P" or any(ord(character) in block for block in CJK_BLOCKS)


def remove_case(text: str) -> str:
    """`text` in lower case, without accents; doing it twice changes nothing more."""
    decomposed = unicodedata.normalize("NFD", text.lower())
    return "".join(character for character in decomposed if unicodedata.category(character) != "Mn")


def split_words(chunk: str) -> list[str]:
    """Words of a `chunk` that has no white space."""
    words, inside = [], False
    for character in chunk:
        alone = stands_alone(character)
        if inside and not alone:
            words[-1] += character
        else:
            words.append(character)
        inside = not alone
    return words


def count_words(texts: Iterable[str]) -> Counter[str]:
    """How often each lower-cased word that WordPiece can spell (up to 100 characters) occurs in `texts`."""
    chunks = Counter(chunk for text in texts for chunk in remove_controls(text).split())
    words = Counter()
    for chunk, count in chunks.items():
        for word in split_words(remove_case(chunk)):
            if len(word) <= MAX_WORD:
                words[word] += count
    return words


def learn_pieces(words: Counter[str], n_pieces: int) -> list[str]:
    """Up to `n_pieces` pieces of more than one character: the most frequent neighbours, merged again and again.

    Ties go to the first pair in alphabetical order, so that the order of the texts does not matter. A pair that occurs
    once is not merged: it would spell a single word of the corpus.
    """
    spelled = [([word[0], *(CONTINUES + c for c in word[1:])], count) for word, count in words.items()]
    counts, where = Counter(), defaultdict(set)
    for i, (symbols, count) in enumerate(spelled):
        for pair in itertools.pairwise(symbols):
            counts[pair] += count
            where[pair].add(i)
    queue = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(queue)
    pieces: dict[str, None] = {}  # in order of learning; two pairs can make the same piece
    while queue and len(pieces) < n_pieces:
        count, pair = heapq.heappop(queue)
        if -count != counts[pair]:  # an older count: the newer one is in the queue too
            continue
        if -count < 2:
            break
        piece = pair[0] + pair[1].removeprefix(CONTINUES)
        pieces[piece] = None
        changed = set()
        for i in where.pop(pair):
            symbols, count = spelled[i]
            merged = merge_pair(symbols, pair, piece)
            spelled[i] = merged, count
            for old in itertools.pairwise(symbols):
                counts[old] -= count
                changed.add(old)
            for new in itertools.pairwise(merged):
                counts[new] += count
                where[new].add(i)
                changed.add(new)
        for other in changed:
            if counts[other] > 0:
                heapq.heappush(queue, (-counts[other], other))
    return list(pieces)


class WordPiece:
    """BERT's tokenizer over a list of tokens; a token's id is its place in the list.

    lower_case: whether texts are lower-cased and lose their accents (an uncased vocabulary)
    Attributes: pad_id, unk_id, start_id ([CLS]), end_id ([SEP]), vocab_size, digest (sha256 of the saved files).
    Raises ValueError when a special token is missing, or a token is empty, repeated or holds a line end.
    """

    FILE_NAMES = ("vocab.txt",)

    def __init__(self, tokens: Sequence[str], lower_case: bool = True):
        self.tokens, self.lower_case = list(tokens), lower_case
        missing = [token for token in SPECIAL_TOKENS if token not in self.tokens]
        if missing:
            raise ValueError(f"the vocabulary of {len(self.tokens)} tokens misses {', '.join(missing)}")
        self._ids = {token: i for i, token in enumerate(self.tokens)}
        for i, token in enumerate(self.tokens):
            if not token or "\n" in token or "\r" in token:
                raise ValueError(
                    f"line {i + 1} of the vocabulary is {token!r}: empty, or with a line end inside"
                )
            if self._ids[token] != i:
                raise ValueError(
                    f"the token {token!r} is on lines {i + 1} and {self._ids[token] + 1}: keep one"
                )
        self.pad_id, self.unk_id = self._ids[PAD], self._ids[UNK]
        self.start_id, self.end_id = self._ids[CLS], self._ids[SEP]
        self.vocab_size = len(self.tokens)
        saved = self._file_text() + ("" if lower_case else CASED)
        self.digest = hashlib.sha256(saved.encode("utf-8")).hexdigest()
        self._cache: dict[str, list[int]] = {}

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "WordPiece":
        """A vocabulary of at most `vocab_size` tokens: special ones, every character of `texts`, then merged pieces.

        Neighbours are chosen by how often they occur, as in BPE (Sennrich et al. 2016) and in Hugging Face's trainer;
        Google's own was never published. No text over the characters of `texts` has an [UNK], words of more than 100
        characters aside. The result depends on how often each word occurs and on nothing else.
        Raises ValueError when `vocab_size` is too small for the characters, or there are no words.
        """
        if isinstance(texts, str):
            raise ValueError("texts is one string: give a list of strings")
        words = count_words(texts)
        if not words:
            raise ValueError("texts has no words to train on: give at least one text that is not blank")
        characters = sorted({character for word in words for character in word})
        inside = [CONTINUES + character for character in characters if not stands_alone(character)]
        tokens = [*SPECIAL_TOKENS, *characters, *inside]
        if vocab_size < len(tokens):
            raise ValueError(
                f"vocab_size {vocab_size} is too small for the special tokens and the {len(characters)} characters "
                f"of the texts: give at least {len(tokens)}"
            )
        return cls(tokens + learn_pieces(words, vocab_size - len(tokens)))

    @classmethod
    def load(cls, path: str | Path) -> "WordPiece":
        """From a vocab.txt with one token per line, or from a folder holding it.

        The tokenizer_config.json beside it says whether it is cased; without one, its tokens do.
        """
        tokens = read_lines(path, cls.FILE_NAMES)
        try:
            return cls(tokens, lower_case_beside(Path(path), tokens))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without start and end."""
        ids = []
        for chunk in remove_controls(text).split():
            if chunk not in self._cache:
                if len(self._cache) >= CACHE_LIMIT:
                    self._cache.clear()
                self._cache[chunk] = [i for word in self._words(chunk) for i in self._word_ids(word)]
            ids += self._cache[chunk]
        return ids

    def _words(self, chunk: str) -> list[str]:
        return split_words(remove_case(chunk) if self.lower_case else chunk)

    def _word_ids(self, word: str) -> list[int]:
        if len(word) > MAX_WORD:
            return [self.unk_id]
        ids, start = [], 0
        while start < len(word):
            prefix = CONTINUES if start else ""
            for end in range(len(word), start, -1):
                piece = prefix + word[start:end]
                if piece in self._ids:
                    break
            else:
                return [self.unk_id]
            ids.append(self._ids[piece])
            start = end
        return ids

    def unfamiliar(self, text: str) -> list[str]:
        """Words of the text that are [UNK] or have two or more tokens of at most two characters on average.

        The captions that the vocabulary was made from have such words rarely or never. Each is listed once, in
        order; punctuation and symbols are not words here.
        """
        words = dict.fromkeys(word for chunk in remove_controls(text).split() for word in self._words(chunk))
        spelled = {word: self._word_ids(word) for word in words if word[0].isalnum()}
        return [
            word
            for word, ids in spelled.items()
            if ids == [self.unk_id] or (len(ids) > 1 and len(word) <= 2 * len(ids))
        ]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of a row up to its first end id: words between spaces ("hi !"), pads left out, [UNK] as such."""
        words = []
        for i in caption_ids(self, ids):
            token = self.tokens[i]
            if words and token.startswith(CONTINUES):
                words[-1] += token.removeprefix(CONTINUES)
            elif i != self.pad_id:
                words.append(token)
        return " ".join(words)

    def save(self, folder: str | Path) -> None:
        """Write vocab.txt into `folder`, and tokenizer_config.json where it is cased."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        if not self.lower_case:
            (Path(folder) / CONFIG_NAME).write_text(CASED, encoding="utf-8")
        (Path(folder) / "vocab.txt").write_text(self._file_text(), encoding="utf-8", newline="\n")

    def _file_text(self) -> str:
        return "".join(f"{token}\n" for token in self.tokens)


def lower_case_beside(path: Path, tokens: Sequence[str]) -> bool:
    """Whether the vocabulary `tokens`, read from `path`, is uncased.

    tokenizer_config.json says so; where it does not, an uncased vocabulary has no capitals and no accents, and a cased
    one has capitals. Raises ValueError for anything between, and for options that WordPiece here does not have.
    """
    where = (path if path.is_dir() else path.parent) / CONFIG_NAME
    options = read_object(where, missing_ok=True)
    lower_case = option(options, "do_lower_case", bool, where)
    if lower_case is None:
        words = [token.removeprefix(CONTINUES) for token in tokens if not re.fullmatch(r"\[\w+\]", token)]
        marked = [word for word in words if word != remove_case(word)]
        lower_case = not any(word != word.lower() for word in marked)
        if lower_case and marked:
            raise ValueError(
                f"it has accents ({marked[0]!r}) and no capitals, so it may be cased or not: put a {CONFIG_NAME} with "
                f"do_lower_case beside it"
            )
    for name, value in (("strip_accents", lower_case), ("tokenize_chinese_chars", True)):
        if option(options, name, bool, where, value) != value:
            raise ValueError(
                f"{where} has {name}={not value}: with do_lower_case={lower_case} it must be {value}"
            )
    return lower_case


Tokenizer = WordPiece | ClipBPE | BPETokenizer


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer whose vocabulary is at `path`, a file or a folder; which one, its content says.

    Raises ValueError when it is none, or when a folder holds the files of several.
    """
    if is_byte_level(Path(path)):
        tokenizer = load_byte_level(path)
        if not isinstance(tokenizer, BPETokenizer) or tokenizer.end_id is None:
            raise ValueError(f"{path} is a vocabulary without an end of text, at which a caption is pooled")
        return tokenizer
    lines = read_lines(path, WordPiece.FILE_NAMES + ClipBPE.FILE_NAMES)
    if "#version" in lines[0]:
        return ClipBPE.load(path)
    if any(token in lines for token in SPECIAL_TOKENS):
        return WordPiece.load(path)
    raise ValueError(
        f"{path} starts with {lines[0][:40]!r}: neither a WordPiece list (one token a line, {CLS} among them) "
        "nor CLIP's merges (#version in the first line)"
    )


def is_byte_level(path: Path) -> bool:
    """Whether these are GPT-2's files, or the one that a run with such a vocabulary saved.

    CLIP's merges end words with </w>; GPT-2's lie beside a JSON of ids; a .tiktoken file has two columns.
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
    """Texts -> tokens (B, T) int64, token_mask (B, T) bool (True = real), the number of texts that were cut.

    A row is start (where the vocabulary has one: GPT-2's has not), ids, end, cut to `context_length` in such a way
    that the end stays; T is the longest row.
    Raises ValueError for a context_length below 3 (start, one token, end), no texts, or texts that are no strings.
    """
    if context_length < 3:
        raise ValueError(f"context_length {context_length} is below 3: start, one token and end must fit")
    if isinstance(texts, str) or not len(texts):
        raise ValueError(f"texts is {texts!r}: give a list of at least one string")
    start = [] if tokenizer.start_id is None else [tokenizer.start_id]
    room = context_length - len(start) - 1
    rows, n_truncated = [], 0
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"texts[{i}] is {text!r}, not a string: drop the row or mend its caption")
        ids = tokenizer.encode(text)
        n_truncated += len(ids) > room
        rows.append([*start, *ids[:room], tokenizer.end_id])
    lengths = torch.tensor([len(row) for row in rows])  # (B)
    token_mask = torch.arange(int(lengths.max())) < lengths[:, None]  # (B, T)
    pad_id = tokenizer.end_id if tokenizer.pad_id is None else tokenizer.pad_id  # masked, and past the end
    tokens = torch.full(token_mask.shape, pad_id)  # (B, T)
    tokens[token_mask] = torch.tensor(list(itertools.chain.from_iterable(rows)))
    return tokens, token_mask, n_truncated
