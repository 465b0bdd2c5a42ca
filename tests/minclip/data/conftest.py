"""One tokenizer of each kind."""

import pytest

from minclip.data.clip_bpe import ClipBPE
from minclip.data.wordpiece import WordPiece
from minlm.tokenizer import BPETokenizer, train_bpe
from tests.minclip.data.vocabularies import CORPUS, made_up_merges


@pytest.fixture(scope="module")
def small() -> WordPiece:
    return WordPiece.train(CORPUS, 90)


@pytest.fixture(scope="module")
def pairs_bpe() -> ClipBPE:
    return ClipBPE(made_up_merges())


@pytest.fixture(scope="module")
def byte_level() -> BPETokenizer:
    return train_bpe(" ".join(CORPUS) * 3, 270)
