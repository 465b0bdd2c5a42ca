"""Loss of a language model on a whole split, in units that do not depend on its vocabulary, and baselines.

Units: nats per character, bits per byte of UTF-8, and perplexity, which is per token.
"""

from dataclasses import asdict, dataclass
from math import log

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from minlm.data import ReplyDataset, text_size
from minlm.lm import TransformerLM
from minlm.losses import bits_per_byte, perplexity, token_loss
from minlm.seq2seq import EncoderDecoder
from minlm.tokenizer import Tokenizer

Following = tuple[np.ndarray, np.ndarray]  # (previous, targets), ids (n) each: targets[i] follows previous[i]
PEER_BATCHES = 200  # nanoGPT's eval_iters
PAIRS = 1 << 20  # pairs of tokens counted at once


@dataclass(frozen=True)
class TextLoss:
    """Total loss on a text in nats, with token, character and byte counts."""

    nats: float
    tokens: int
    characters: int
    bytes: int

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens

    def metrics(self) -> dict[str, float]:
        """Return the metrics of result.json."""
        return {
            "nats_per_character": self.nats / self.characters,
            "bits_per_byte": bits_per_byte(self.nats, self.bytes),
            "perplexity": perplexity(self.nats_per_token),
            **{name: value for name, value in asdict(self).items() if name != "nats"},
        }


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's parameters."""
    return next(model.parameters()).device


def strided_windows(n_ids: int, context_length: int, stride: int) -> list[tuple[int, int, int]]:
    """Return (start, end, scored) per window: inputs start to end - 1, scored targets scored + 1 to end.

    The windows score each target 1 to n_ids - 1 once. All but the first score their last `stride` targets, each with a
    context of at least context_length - stride tokens.
    """
    if not 1 <= stride <= context_length:
        raise ValueError(f"stride={stride} must be in [1, context_length={context_length}]")
    windows, scored = [], 0
    while scored < n_ids - 1:
        end = min(context_length if not windows else scored + stride, n_ids - 1)
        windows.append((max(0, end - context_length), end, scored))
        scored = end
    return windows


@torch.inference_mode()
def evaluate_text(
    model: TransformerLM,
    tokenizer: Tokenizer,
    ids: np.ndarray,
    stride: int | None = None,
    batch_size: int = 32,
) -> TextLoss:
    """Compute the loss on a text of ids (n), without its first token, by a model in eval mode.

    The windows overlap (see `strided_windows`). stride: half the context by default. ValueError for a single token.
    """
    if len(ids) < 2:
        raise ValueError(f"a text of {len(ids)} tokens cannot be scored: give at least 2")
    context_length, device = model.config.context_length, device_of(model)
    windows = strided_windows(
        len(ids), context_length, (context_length + 1) // 2 if stride is None else stride
    )
    nats = 0.0
    # A batch has windows of one length and one number of targets; only the first and last windows differ.
    for group in tqdm(list(batched(windows, batch_size)), "scoring", leave=False, disable=None):
        rows = np.stack([ids[start : end + 1] for start, end, _ in group]).astype(np.int64)
        rows = torch.from_numpy(rows).to(device)  # (B, T + 1)
        n_scored = group[0][1] - group[0][2]
        features = model.features(rows[:, :-1])[:, -n_scored:]  # (B, scored, D)
        nats += token_loss(model.to_logits(features), rows[:, -n_scored:])[0].item()
    return TextLoss(nats, len(ids) - 1, *text_size(ids[1:], tokenizer))


def batched(windows: list[tuple[int, int, int]], size: int) -> list[list[tuple[int, int, int]]]:
    """Group consecutive windows of one shape, up to `size` per group."""
    groups: list[list[tuple[int, int, int]]] = []
    for window in windows:
        start, end, scored = window
        last = groups[-1][-1] if groups else None
        if (
            last
            and len(groups[-1]) < size
            and (end - start, end - scored) == (last[1] - last[0], last[1] - last[2])
        ):
            groups[-1].append(window)
        else:
            groups.append([window])
    return groups


@torch.inference_mode()
def random_batches_loss(
    model: TransformerLM,
    ids: np.ndarray,
    batch_size: int,
    seed: int,
    n_batches: int = PEER_BATCHES,
    context_length: int | None = None,
) -> float:
    """Estimate the loss in nats per token as nanoGPT does, from randomly placed windows drawn with replacement.

    The first tokens of a window have little context, so the estimate is above the loss on the whole text.
    context_length: the model's by default. ValueError for a text shorter than a window.
    """
    context_length, device = context_length or model.config.context_length, device_of(model)
    if len(ids) <= context_length:
        raise ValueError(f"{len(ids)} tokens do not fill a window of {context_length}: give a longer text")
    generator, total = torch.Generator().manual_seed(seed), 0.0
    for _ in range(n_batches):
        starts = torch.randint(len(ids) - context_length, (batch_size,), generator=generator).tolist()
        rows = np.stack([ids[start : start + context_length + 1] for start in starts]).astype(np.int64)
        rows = torch.from_numpy(rows).to(device)  # (B, T + 1)
        nats, count = token_loss(model(rows[:, :-1]), rows[:, 1:])
        total += nats.item() / count
    return total / n_batches


@torch.inference_mode()
def evaluate_replies(model: EncoderDecoder, dataset: ReplyDataset, batch_size: int = 32) -> TextLoss:
    """Compute the loss on all replies of a dataset, each given its line; the end of a reply counts as a line end."""
    device, nats, tokens = device_of(model), 0.0, 0
    for batch in dataset.batches(batch_size):
        total, count = reply_loss(model, {name: value.to(device) for name, value in batch.items()})
        nats, tokens = nats + total.item(), tokens + count
    return TextLoss(nats, tokens, *reply_size(dataset))


def reply_size(dataset: ReplyDataset) -> tuple[int, int]:
    """Count the (characters, bytes of UTF-8) of all replies; the end of each counts as a line end."""
    replies = [dataset.tokenizer.decode(reply[:-1]) + "\n" for _, reply in dataset.pairs]
    return sum(map(len, replies)), sum(len(reply.encode("utf-8", "surrogatepass")) for reply in replies)


def reply_tokens(dataset: ReplyDataset) -> Following:
    """Return (previous, targets) of all replies, as the decoder reads them: from start_id to end_id."""
    start_id, replies = dataset.tokenizer.start_id, [reply for _, reply in dataset.pairs]
    previous = [token for reply in replies for token in (start_id, *reply[:-1])]
    return np.array(previous), np.concatenate(replies)


def baselines(
    train: Following, validation: Following, vocab_size: int, n_characters: int
) -> dict[str, float]:
    """Compute the validation loss, in nats per character, of three count-based models of the same tokens.

        chance    p(w) = 1 / V
        unigram   p(w) = (n(w) + T / V) / (n + T)
        bigram    p(w | v) = (n(v w) + T(v) p(w)) / (n(v) + T(v)),    p(w) the unigram's

    n: number of training targets; n(v w): those w that follow v; T and T(v): the different ones among them, with
    T(v) = 1 for a v that training lacks (Witten and Bell 1991, method C). Each p is a distribution over all V ids.
    n_characters: of the text of the validation targets.
    """
    (known, n_known), (scored, n_scored) = (pair_counts(pairs, vocab_size) for pairs in (train, validation))
    before, after = np.divmod(known, vocab_size)
    counts = np.bincount(after, n_known, vocab_size)  # (V)
    kinds = np.count_nonzero(counts)
    unigram = (counts + kinds / vocab_size) / (counts.sum() + kinds)  # (V)
    n_before = np.bincount(before, n_known, vocab_size)  # (V)
    kinds_after = np.bincount(before, minlength=vocab_size).clip(min=1)  # (V)

    v, w = np.divmod(scored, vocab_size)
    place = np.searchsorted(known, scored).clip(max=len(known) - 1)
    n_vw = np.where(known[place] == scored, n_known[place], 0)
    bigram = (n_vw + kinds_after[v] * unigram[w]) / (n_before[v] + kinds_after[v])
    nats = {
        "chance": n_scored.sum() * log(vocab_size),
        "unigram": -n_scored @ np.log(unigram[w]),
        "bigram": -n_scored @ np.log(bigram),
    }
    return {name: float(value) / n_characters for name, value in nats.items()}


def pair_counts(pairs: Following, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Count the pairs v w -> (codes, counts), sorted by their codes v V + w; read piece by piece."""
    previous, targets = pairs
    codes = counts = np.zeros(0, dtype=np.int64)
    for start in range(0, len(targets), PAIRS):
        some = slice(start, start + PAIRS)
        found, times = np.unique(
            previous[some].astype(np.int64) * vocab_size + targets[some], return_counts=True
        )
        codes, place = np.unique(np.concatenate([codes, found]), return_inverse=True)
        counts = np.bincount(place, np.concatenate([counts, times])).astype(np.int64)
    return codes, counts


def reply_loss(
    model: EncoderDecoder, batch: dict[str, Tensor], label_smoothing: float = 0.0
) -> tuple[Tensor, int]:
    """Compute the loss of a batch of a ReplyDataset -> (sum in nats, tokens of the replies)."""
    logits = model(batch["source"], batch["tokens"], batch["source_mask"])  # (B, T, V)
    return token_loss(logits, batch["targets"], batch["token_mask"], label_smoothing)
