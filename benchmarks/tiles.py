"""Memory and speed of large contrastive batches and of retrieval, whose B x B and N x M scores are never all held.

    python benchmarks/tiles.py          small sizes, a minute
    python benchmarks/tiles.py --all    16,384 pairs; 20,000 images and 100,000 captions: 20 minutes on two cores

Each row runs in processes of its own, whose peaks of resident memory are compared; images and embeddings are the
inputs and are not counted. Seconds are medians of interleaved runs; --cpu takes the processor's instead of the
clock's, for a busy machine.
"""

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minclip.clip import CLIP, contrastive_loss, embed_batch
from minclip.evaluation.retrieval import retrieval
from minclip.gradcache import cached_backward
from minclip.losses import contrastive_metrics
from minclip.presets import PRESETS
from minlm.training.batches import Batch
from minlm.training.errors import run_main
from minlm.training.loop import Precision
from minlm.training.options import OneLineParser

PART = 256  # pairs that the towers embed at once
WIDTH = 512  # embeddings of ViT-B/32
ROUNDS = 5


def peak() -> int:
    """Return this process's largest resident memory so far, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def alone(function: Callable, *arguments):
    """Call a function in a fresh process, whose peak of memory is its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def medians(ways: dict[str, Callable], clock: Callable[[], float], rounds: int = ROUNDS) -> dict[str, float]:
    """Time functions in turn, after one round to warm up -> median seconds of each."""
    seconds = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, run in ways.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def make_batch(n_pairs: int) -> tuple[CLIP, Batch]:
    """Make the shapes preset's CLIP and a batch of random pairs."""
    config = PRESETS["shapes"].model
    images = torch.rand(n_pairs, 3, *config.image.image_size)  # (B, C, h, w)
    tokens = torch.randint(config.text.vocab_size, (n_pairs, 24))
    tokens[:, -1] = config.text.end_id
    batch = {
        "images": images,
        "tokens": tokens,
        "token_mask": tokens >= 0,
        "groups": torch.arange(n_pairs) // 2,
    }
    return CLIP(config), batch


def loss_and_metrics(model: CLIP, images: torch.Tensor, texts: torch.Tensor, groups: torch.Tensor):
    """Compute what a training step computes from embeddings (B, E)."""
    total, n_pairs = contrastive_loss(model, images, texts, groups)
    metrics = contrastive_metrics(images, texts, model.logit_scale, groups, model.logit_bias)
    return total / n_pairs, metrics


def step_memory(n_pairs: int, n_parts: int, n_embedded: int) -> float:
    """Take one training step's gradients -> peak of memory in bytes, without the images.

    n_embedded: parts that the towers really embed; the others repeat their pairs, which saves time and no memory.
    """
    torch.manual_seed(0)
    model, batch = make_batch(n_pairs)
    rows = n_pairs // n_parts * n_embedded
    few = {name: side[:rows] for name, side in batch.items()}

    def loss(images: torch.Tensor, texts: torch.Tensor):
        repeated = (side.repeat(n_parts // n_embedded, 1) for side in (images, texts))  # (B, E) each
        return loss_and_metrics(model, *repeated, batch["groups"])

    cached_backward(model, few, n_embedded, Precision("float32", torch.device("cpu")), loss)
    return peak() - batch["images"].nbytes


def step_seconds(n_pairs: int, clock: Callable[[], float]) -> dict[str, float]:
    """Time the parts of a step: plain, on PART pairs; their embeddings without a graph; the loss of n_pairs."""
    torch.manual_seed(0)
    model, batch = make_batch(PART)
    pair = [
        F.normalize(torch.randn(n_pairs, model.config.embed_dim), dim=1).requires_grad_() for _ in range(2)
    ]
    groups = torch.arange(n_pairs) // 2

    def embed() -> None:
        with torch.no_grad():
            embed_batch(model, batch)

    return medians(
        {
            "plain": lambda: loss_and_metrics(model, *embed_batch(model, batch), batch["groups"])[
                0
            ].backward(),
            "embed": embed,
            "loss": lambda: loss_and_metrics(model, *pair, groups)[0].backward(),
        },
        clock,
    )


def make_embeddings(n_images: int, n_texts: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Make unit embeddings of images and of their captions, near them, and the image of each caption."""
    torch.manual_seed(0)
    images = F.normalize(torch.randn(n_images, WIDTH), dim=1)
    image_of_text = torch.arange(n_texts) % n_images
    texts = images[image_of_text].add_(torch.randn(n_texts, WIDTH), alpha=3 / WIDTH**0.5)
    return images, F.normalize(texts, dim=1), image_of_text


def product_passes(images: torch.Tensor, texts: torch.Tensor, n_scores: int = 2**22) -> None:
    """Find the ten best answers in both directions with float32 products, in blocks."""
    for queries, answers in ((images, texts), (texts, images)):
        for some in queries.split(max(1, n_scores // len(answers))):
            (some @ answers.T).topk(10)


def retrieval_memory(n_images: int, n_texts: int) -> float:
    """Compute retrieval metrics -> bytes of memory above what the embeddings take."""
    embeddings = make_embeddings(n_images, n_texts)
    before = peak()
    retrieval(*embeddings)
    return peak() - before


def retrieval_seconds(n_images: int, n_texts: int, clock: Callable[[], float]) -> dict[str, float]:
    """Time retrieval and the two plain product passes."""
    images, texts, image_of_text = make_embeddings(n_images, n_texts)
    ways = {
        "retrieval": lambda: retrieval(images, texts, image_of_text),
        "plain": lambda: product_passes(images, texts),
    }
    return medians(ways, clock, rounds=3)


def rows(
    n_pairs: int, n_images: int, n_texts: int, clock: Callable[[], float] = time.perf_counter
) -> Iterator[str]:
    """Measure a step and retrieval, and describe each in one line."""
    n_parts = n_pairs // PART
    small, large = alone(step_memory, PART, 1, 1), alone(step_memory, n_pairs, n_parts, 1)
    spent = alone(step_seconds, n_pairs, clock)
    share = spent["plain"] / (spent["plain"] + spent["embed"] + spent["loss"] / n_parts)
    yield (
        f"step of {n_pairs:,} pairs against {PART}: memory {large / 2**30:.2f} GiB / {small / 2**30:.2f} GiB = "
        f"{large / small:.2f}; pairs/s {share:.0%} (loss and metrics: {spent['loss']:.2f} s)"
    )
    more = alone(retrieval_memory, n_images, n_texts)
    times = alone(retrieval_seconds, n_images, n_texts, clock)
    ratio = times["retrieval"] / times["plain"]
    yield (
        f"retrieval of {n_images:,} images x {n_texts:,} captions: {more / 2**30:.2f} GiB above the embeddings; "
        f"{times['retrieval']:.2f} s / two product passes {times['plain']:.2f} s = {ratio:.2f}"
    )


def main() -> None:
    parser = OneLineParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="the large sizes")
    parser.add_argument("--cpu", action="store_true", help="the processor's seconds, for a busy machine")
    options = parser.parse_args()
    sizes = (16_384, 20_000, 100_000) if options.all else (2048, 2000, 10_000)
    clock = time.process_time if options.cpu else time.perf_counter
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    for row in rows(*sizes, clock):
        print(row, flush=True)


if __name__ == "__main__":
    run_main(main)
