"""Embeddings with ties, and the smallest model with CLIP's interface, for the tests of evaluation."""

import itertools
from functools import partial
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from minclip.data.records import Record
from minclip.data.tokenizer import WordPiece

SEEDS = st.integers(0, 2**31 - 1)
WORDS = ["a", "photo", "of", "red", "green", "blue", "circle", "square", "star", "the"]
TOKENIZER = WordPiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])
phrases = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)


def units_with_ties(rows, seed):
    """Rows of the 24-cell: unit vectors whose dot products are -1, -1/2, 0, 1/2 or 1, so that there are many ties."""
    corners = torch.tensor(list(itertools.product((-0.5, 0.5), repeat=4)))
    axes = torch.cat([torch.eye(4), -torch.eye(4)])
    corners = torch.cat([corners, axes])
    return corners[torch.randint(len(corners), (rows,), generator=torch.Generator().manual_seed(seed))]


def units(rows, width, seed):
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def dot(first, second):
    return sum(a * b for a, b in zip(first, second, strict=True))


class TinyCLIP(nn.Module):
    """The interface of CLIP around a table of words and a colour; its dropout shows the mode."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(text=SimpleNamespace(context_length=16))
        self.logit_scale = nn.Parameter(torch.tensor(0.0))
        self.words = nn.Embedding(TOKENIZER.vocab_size, 8)
        self.colours = nn.Linear(3, 8)
        self.dropout = nn.Dropout(0.5)

    def image_tower(self, images):
        return self.dropout(images.mean(dim=(2, 3)))

    def encode_image(self, images):
        return F.normalize(self.colours(self.image_tower(images)), dim=-1)

    def encode_text(self, tokens, token_mask):
        words = self.dropout(self.words(tokens)) * token_mask[..., None]
        return F.normalize(words.sum(dim=1), dim=-1)


def spied(monkeypatch, module, name):
    """Record the arguments of a function's calls in the returned list."""
    calls, original = [], getattr(module, name)
    monkeypatch.setattr(module, name, lambda *given: calls.append(given) or original(*given))
    return calls


def transform(image):
    return torch.tensor(np.array(image)).permute(2, 0, 1) / 255  # (C, h, w)


def plain(colour):
    return Image.new("RGB", (2, 2), colour)


def record(index, captions, group=None):
    colour = (40 * index % 256, 91 * index % 256, 255 - index)
    return Record(f"image {index}", partial(plain, colour), captions, index if group is None else group)
