"""BERT's WordPiece, trained here or loaded (Devlin et al. 2019; Wu et al. 2016).

As in Google's code: control characters are removed; text is lower-cased and loses its accents (unless the vocabulary
is cased); it is cut at white space and around punctuation and CJK characters; then the longest known piece is taken
first.

No text gives a special token, except [UNK] for a word that the vocabulary cannot spell: a literal "[SEP]" becomes "[",
"sep", "]", as in Google's code. Hugging Face's tokenizers make it the control token, so that a caption could end early.
Two more differences from Hugging Face's fast tokenizer: its Unicode tables are older than Python's, and it does not
write the last sigma of a Greek word as "ς".
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from minclip.data.clip_bpe import CACHE_LIMIT, caption_ids, read_lines
from minlm.merges import learn_merges
from minlm.pretrained.options import option
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
    """Return `text` without U+FFFD, control, format and private-use characters; tabs and line ends stay."""
    if not text.isprintable():  # printable: neither a control nor white space other than " "
        dropped = ("Cc", "Cf", "Co", "Cs")
        text = "".join(c for c in text if c in "\t\n\r" or unicodedata.category(c) not in dropped)
    return text.replace("\ufffd", "")


def stands_alone(character: str) -> bool:
    """Return True for a character that BERT makes a word: punctuation, ASCII symbols, CJK characters."""
    if character.isascii():
        return character.isprintable() and not character.isalnum() and character != " "
    return unicodedata.category(character)[0] == "P" or any(ord(character) in block for block in CJK_BLOCKS)


def remove_case(text: str) -> str:
    """Return `text` in lower case and without accents."""
    decomposed = unicodedata.normalize("NFD", text.lower())
    return "".join(character for character in decomposed if unicodedata.category(character) != "Mn")


def split_words(chunk: str) -> list[str]:
    """Return the words of a `chunk` without white space."""
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
    """Count the lower-cased words of up to 100 characters in `texts`."""
    chunks = Counter(chunk for text in texts for chunk in remove_controls(text).split())
    words = Counter()
    for chunk, count in chunks.items():
        for word in split_words(remove_case(chunk)):
            if len(word) <= MAX_WORD:
                words[word] += count
    return words


def learn_pieces(words: Counter[str], n_pieces: int) -> list[str]:
    """Learn up to `n_pieces` pieces of two or more characters, by merging the most frequent neighbours.

    Ties go to the first pair in alphabetical order, so the order of the texts does not matter. A pair that occurs once
    is not merged: it would spell a single word of the corpus.
    """
    spelled = [[word[0], *(CONTINUES + c for c in word[1:])] for word in words]
    merges = learn_merges(
        spelled, list(words.values()), lambda left, right: left + right.removeprefix(CONTINUES)
    )
    pieces: dict[str, None] = {}  # in order of learning; two pairs can make the same piece
    for piece, count in merges:
        if count < 2 or len(pieces) == n_pieces:
            break
        pieces[piece] = None
    return list(pieces)


class WordPiece:
    """BERT's tokenizer over a list of tokens; a token's id is its index in the list.

    lower_case: lower-case texts and remove their accents (an uncased vocabulary).
    Attributes: pad_id, unk_id, start_id ([CLS]), end_id ([SEP]), vocab_size, digest (SHA-256 of the saved files).
    Raises ValueError if a special token is missing, or a token is empty, repeated or has a line end.
    """

    FILE_NAMES = ("vocab.txt",)

    def __init__(self, tokens: Sequence[str], lower_case: bool = True):
        self.tokens, self.lower_case = list(tokens), lower_case
        missing = [token for token in SPECIAL_TOKENS if token not in self.tokens]
        if missing:
            raise ValueError(
                f"the vocabulary of {len(self.tokens)} tokens has no {', '.join(missing)}: give BERT's"
            )
        self._ids = {token: i for i, token in enumerate(self.tokens)}
        for i, token in enumerate(self.tokens):
            if not token or "\n" in token or "\r" in token:
                raise ValueError(
                    f"line {i + 1} of the vocabulary is {token!r}: a token is not empty and has no line end"
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
        """Learn a vocabulary of at most `vocab_size` tokens: special tokens, every character of `texts`, merges.

        The most frequent neighbours are merged, as in BPE (Sennrich et al. 2016) and Hugging Face's trainer; Google's
        own was never published. The result depends only on the count of each word. No text over the characters of
        `texts` has an [UNK], except for words of more than 100 characters.
        Raises ValueError if `vocab_size` is too small for the characters, or there are no words.
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
        """Load a vocab.txt with one token per line, or the one in a folder.

        tokenizer_config.json beside it says whether it is cased; without one, its tokens do.
        """
        tokens = read_lines(path, cls.FILE_NAMES)
        try:
            return cls(tokens, lower_case_beside(Path(path), tokens))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without start and end."""
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
        """Return the text's words that are [UNK] or spelled by several tokens of at most two characters on average.

        Such words are rare in the captions that the vocabulary was learned from. Each is listed once, in order;
        punctuation and symbols are left out.
        """
        words = dict.fromkeys(word for chunk in remove_controls(text).split() for word in self._words(chunk))
        spelled = {word: self._word_ids(word) for word in words if word[0].isalnum()}
        return [
            word
            for word, ids in spelled.items()
            if ids == [self.unk_id] or (len(ids) > 1 and len(word) <= 2 * len(ids))
        ]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of a row up to its first end id: words between spaces ("hi !"), without padding."""
        words = []
        for i in caption_ids(ids, self.vocab_size, self.start_id, self.end_id):
            token = self.tokens[i]
            if words and token.startswith(CONTINUES):
                words[-1] += token.removeprefix(CONTINUES)
            elif i != self.pad_id:
                words.append(token)
        return " ".join(words)

    def save(self, folder: str | Path) -> None:
        """Write vocab.txt into `folder`, and for a cased vocabulary tokenizer_config.json."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        if not self.lower_case:
            (Path(folder) / CONFIG_NAME).write_text(CASED, encoding="utf-8")
        (Path(folder) / "vocab.txt").write_text(self._file_text(), encoding="utf-8", newline="\n")

    def _file_text(self) -> str:
        return "".join(f"{token}\n" for token in self.tokens)


def lower_case_beside(path: Path, tokens: Sequence[str]) -> bool:
    """Return True if the vocabulary `tokens`, read from `path`, is uncased.

    tokenizer_config.json decides. If it does not say, a vocabulary with capitals is cased, and one without capitals and
    accents is uncased. Raises ValueError for accents without capitals, and for options that WordPiece does not have.
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
                f"accents ({marked[0]!r}) without capitals do not say whether it is cased: put a {CONFIG_NAME} with "
                "do_lower_case beside it"
            )
    for name, value in (("strip_accents", lower_case), ("tokenize_chinese_chars", True)):
        if option(options, name, bool, where, value) != value:
            raise ValueError(
                f"{where} has {name}={not value}: with do_lower_case={lower_case} it must be {value}"
            )
    return lower_case
