"""Heads at equal steps: recall against parameters of dense, low-rank, NdLinear and residual projections.

    python benchmarks/heads.py                      trains towers first, on the built-in data
    python benchmarks/heads.py --run RUN            towers and data of a finished run

The towers are frozen, so their features of all images and captions are computed once. Each head is trained on the same
batches for the same number of steps with AdamW; of the learning rates 0.001, 0.01 and 0.03 the one with the lowest
training loss counts. The metric is recall@1 on the dev split, the mean of both directions. Prints a table and writes
a plot to --plot.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train_clip
from minclip.clip import CLIP, MAX_LOGIT_SCALE
from minclip.config import RunConfig
from minclip.data.records import Record
from minclip.data.tokenizer import Tokenizer, encode_batch
from minclip.data.transforms import ImageTransform
from minclip.evaluation.embed import evaluating, image_features
from minclip.evaluation.retrieval import retrieval
from minclip.losses import clip_loss
from minclip.presets import PRESETS
from minclip.runs import check_splits, load
from minclip.towers.projection import LinearNorm, NdLinear, ResidualHead, linear, two_axes
from minlm.plots import BLUE, GREEN, ORANGE, PURPLE, VERMILION, new_figure, plain_axes, save_figure
from minlm.training.checkpoint import last_checkpoint
from minlm.training.config import check_file, load_config
from minlm.training.errors import run_main
from minlm.training.options import OneLineParser

STEPS, BATCH, RATES = 400, 256, (1e-3, 1e-2, 3e-2)
STYLES = {
    "dense": (BLUE, "o"),
    "dense, LayerNorm": (PURPLE, "D"),
    "residual": (GREEN, "^"),
    "low rank": (ORANGE, "s"),
    "NdLinear": (VERMILION, "v"),
}


def heads(embed_dim: int, widths: Sequence[int]) -> list[tuple[str, str, Callable[[int], nn.Module]]]:
    """List the heads as (family, name, function from a tower's width to its head)."""
    rows = [
        ("dense", "dense", lambda width: linear(width, embed_dim, bias=False)),
        ("dense, LayerNorm", "dense, LayerNorm", lambda width: LinearNorm(width, embed_dim)),
        ("residual", "residual", lambda width: ResidualHead(width, embed_dim)),
    ]
    for rank in (1, 2, 4, 8, 16, 32, 64):
        if rank < min(*widths, embed_dim):
            rows.append(
                ("low rank", f"low rank {rank}", lambda width, rank=rank: low_rank(width, rank, embed_dim))
            )
    most = two_axes(max(widths), embed_dim)[1][0]
    for first in (1, 2, 4, 8, 16, 32):
        if first <= most and not any(width % first for width in (*widths, embed_dim)):
            name = f"NdLinear, axes of {first} and {embed_dim // first}"
            rows.append(("NdLinear", name, lambda width, first=first: nd_linear(width, first, embed_dim)))
    return rows


def low_rank(width: int, rank: int, embed_dim: int) -> nn.Module:
    """Build a linear map of a given rank, without biases."""
    return nn.Sequential(linear(width, rank, bias=False), linear(rank, embed_dim, bias=False))


def nd_linear(width: int, first: int, embed_dim: int) -> nn.Module:
    """Build an NdLinear head over two axes; the first keeps its size."""
    shape, out_shape = (first, width // first), (first, embed_dim // first)
    return nn.Sequential(nn.Unflatten(-1, shape), NdLinear(shape, out_shape), nn.Flatten(-2))


def text_features(model: CLIP, tokenizer: Tokenizer, texts: Sequence[str]) -> Tensor:
    """Compute the text tower's features (M, D), before the projection."""
    parts = []
    with evaluating(model):
        for start in range(0, len(texts), 256):
            some = texts[start : start + 256]
            tokens, token_mask, _ = encode_batch(tokenizer, some, model.config.text.context_length)
            parts.append(model.text_tower(tokens, token_mask).float())
    return torch.cat(parts)


def train_heads(
    make: Callable[[int], nn.Module], images: Tensor, texts: Tensor, first: Tensor, counts: Tensor, lr: float
) -> tuple[nn.Module, nn.Module, float]:
    """Train both heads for STEPS steps of InfoNCE on features -> (image head, text head, mean loss of the last 50).

    texts[first[i] : first[i] + counts[i]] are the captions of image i; each step draws one of them.
    """
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)  # the same batches for every head
    image_head, text_head = make(images.shape[1]), make(texts.shape[1])
    logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
    parameters = [*image_head.parameters(), *text_head.parameters(), logit_scale]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=STEPS, pct_start=0.1)
    losses = []
    for _ in range(STEPS):
        rows = torch.randperm(len(images), generator=generator)[:BATCH]
        drawn = first[rows] + (torch.rand(len(rows), generator=generator) * counts[rows]).long()
        u, v = F.normalize(image_head(images[rows]), dim=-1), F.normalize(text_head(texts[drawn]), dim=-1)
        total, count = clip_loss(u, v, logit_scale)
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            logit_scale.clamp_(0, MAX_LOGIT_SCALE)
        losses.append(float(total.detach()) / count)
    return image_head.eval(), text_head.eval(), sum(losses[-50:]) / 50


def positions(records: Sequence[Record]) -> tuple[list[str], Tensor, Tensor]:
    """Return all captions, the position of each record's first caption, and its number of captions."""
    counts = torch.tensor([len(record.captions) for record in records])
    return [text for record in records for text in record.captions], counts.cumsum(0) - counts, counts


def measure(config: RunConfig, model: CLIP, tokenizer: Tokenizer, transform: ImageTransform) -> list[dict]:
    """Train and evaluate all heads on the features of one model -> one row of metrics per head."""
    splits = config.data.read()
    check_splits(splits)
    train, dev = splits["train"], splits["dev"]
    captions, first, counts = positions(train)
    dev_captions, _, dev_counts = positions(dev)
    images, dev_images = (image_features(model, some, transform) for some in (train, dev))
    texts, dev_texts = (text_features(model, tokenizer, some) for some in (captions, dev_captions))
    image_of_text = torch.arange(len(dev)).repeat_interleave(dev_counts)
    rows = []
    print(
        f"{len(train):,} training and {len(dev):,} dev images; widths {images.shape[1]} and {texts.shape[1]}"
    )
    for family, name, make in heads(config.model.embed_dim, (images.shape[1], texts.shape[1])):
        start = time.perf_counter()
        runs = [(*train_heads(make, images, texts, first, counts, lr), lr) for lr in RATES]
        image_head, text_head, loss, lr = min(runs, key=lambda run: run[2])
        with torch.no_grad():
            pair = F.normalize(image_head(dev_images), dim=-1), F.normalize(text_head(dev_texts), dim=-1)
        found = retrieval(*pair, image_of_text)
        size = sum(p.numel() for head in (image_head, text_head) for p in head.parameters())
        recalls = [found[way]["recall@1"] for way in ("image_to_text", "text_to_image")]
        row = {"family": family, "name": name, "parameters": size, "recall": sum(recalls) / 2, "loss": loss}
        rows.append(row)
        print(
            f"| {name:28} | {size:9,} | {recalls[0]:6.1%} | {recalls[1]:6.1%} | {loss:6.3f} | {lr:5.0e} | "
            f"{time.perf_counter() - start:5.1f} s |",
            flush=True,
        )
    return rows


def draw(rows: list[dict], title: str, path: Path) -> None:
    """Plot recall@1 against parameters, one line per family."""
    figure = new_figure(7.5, 4.8)
    axes = figure.add_subplot()
    for family, (color, marker) in STYLES.items():
        some = sorted((row["parameters"], 100 * row["recall"]) for row in rows if row["family"] == family)
        axes.plot(*zip(*some, strict=True), color=color, marker=marker, linewidth=1.2, label=family)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("parameters of both heads")
    axes.set_ylabel("dev recall@1, mean of both directions (%)")
    axes.set_title(title, fontsize=11)
    axes.legend(frameon=False)
    plain_axes(axes)
    save_figure(figure, path)


def main() -> None:
    """Run the benchmark."""
    parser = OneLineParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="use the towers and data of this finished run")
    parser.add_argument("--plot", type=Path, default=Path("heads.png"))
    given = parser.parse_args()
    check_file(given.plot, "--plot")
    with tempfile.TemporaryDirectory() as folder:
        run = given.run or Path(folder) / "towers"
        if given.run is None:
            config = PRESETS["shapes"]
            data, settings = (
                replace(config.data, train_size=6000),
                replace(config.train, steps=200, minutes=0.0),
            )
            train_clip.train(replace(config, data=data, train=settings), run)
        model, tokenizer, transform = load(run)
        config = load_config(RunConfig, last_checkpoint(run) / "config.json")
    print("| head | parameters | image to text R@1 | text to image R@1 | training loss | rate | time |")
    print("|---|---|---|---|---|---|---|")
    rows = measure(config, model, tokenizer, transform)
    draw(rows, f"Heads on frozen towers, {STEPS} steps each", given.plot)
    print(f"plot: {given.plot}")


if __name__ == "__main__":
    run_main(main)
