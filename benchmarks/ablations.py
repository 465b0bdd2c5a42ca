"""Value of each idea in the recipe of shakespeare-char: the preset with one thing changed, at equal steps.

    python benchmarks/ablations.py --text input.txt --seeds 2

Nats a character on the whole validation text (windows end to end), mean over the seeds, and the seconds that
training took beside the preset's in the same run. Ideas that are not in the project's code stand below as a few
lines each.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minlm.lm import TransformerLM
from minlm.presets import PRESETS, RunConfig
from minlm.runs import make_tokenizer
from minlm.task import Continuation
from minlm.training.errors import run_main
from minlm.training.loop import fit
from minlm.training.options import OneLineParser
from minlm.transformer import ACTIVATIONS

ACTIVATIONS["relu_squared"] = lambda x: F.relu(x).square()


class HeadNorm(nn.Module):
    """Each head's query and key brought to unit root mean square, with a learned gain each (QK-norm)."""

    def __init__(self, d_model: int, n_heads: int):
        super().__init__()
        self.n_heads, self.gain = n_heads, nn.Parameter(torch.ones(2, 1, d_model // n_heads))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, 3 D), as in_proj gives it -> (B, T, 3 D)."""
        parts = x.unflatten(-1, (3, self.n_heads, -1))  # (B, T, 3, H, K)
        normed = F.rms_norm(parts[:, :, :2].float(), self.gain.shape[-1:]) * self.gain  # (B, T, 2, H, K)
        return torch.cat([normed.to(x.dtype), parts[:, :, 2:]], dim=2).flatten(2)  # (B, T, 3 D)


def qk_norm(model: TransformerLM) -> None:
    for block in model.transformer.blocks:
        attention, sizes = block.attention, (model.config.d_model, model.config.n_heads)
        attention.in_proj = nn.Sequential(attention.in_proj, HeadNorm(*sizes))


def zero_outputs(model: TransformerLM) -> None:
    for block in model.transformer.blocks:
        for layer in (block.attention.out_proj, block.mlp.fc2):
            nn.init.zeros_(layer.weight)


def soft_cap(model: TransformerLM) -> None:
    to_logits = model.to_logits
    model.to_logits = lambda features: 15 * torch.tanh(to_logits(features) / 15)


def changed(config: RunConfig, model: dict | None = None, train: dict | None = None, **own) -> RunConfig:
    return replace(
        config,
        model=replace(config.model, **(model or {})),
        train=replace(config.train, **(train or {})),
        **own,
    )


def variants(preset: RunConfig) -> dict[str, tuple[RunConfig, Callable[[TransformerLM], None] | None]]:
    """{what is changed: (config, change of the new model)}; the first is the preset itself."""
    return {
        "the preset": (preset, None),
        "AdamW for all, rate 0.003": (changed(preset, train={"muon_lr": 0.0, "lr": 0.003}), None),
        "AdamW for all, rate 0.01": (changed(preset, train={"muon_lr": 0.0, "lr": 0.01}), None),
        "Muon's momentum 0.95": (changed(preset, train={"muon_momentum": 0.95}), None),
        "learned positions": (changed(preset, model={"positions": "learned"}), None),
        "sinusoidal positions": (changed(preset, model={"positions": "sinusoidal"}), None),
        "a head of its own": (changed(preset, model={"tied": False}), None),
        "4 layers": (changed(preset, model={"n_layers": 4}), None),
        "d_ff 4 x d_model": (changed(preset, model={"d_ff": None}), None),
        "cosine instead of a line": (changed(preset, train={"schedule": "cosine"}), None),
        "moving average 0.95": (changed(preset, train={"ema_decay": 0.95}), None),
        "weight decay 0.01": (changed(preset, train={"weight_decay": 0.01}), None),
        "dropout 0.1": (changed(preset, model={"dropout": 0.1}), None),
        "512 byte pairs": (changed(preset, model={"vocab_size": 512}, tokens="byte-pairs"), None),
        "ReLU squared": (changed(preset, model={"activation": "relu_squared"}), None),
        "QK-norm": (preset, qk_norm),
        "outputs start at zero": (preset, zero_outputs),
        "logits capped at 15": (preset, soft_cap),
    }


def run(config: RunConfig, change: Callable | None, text: str, seed: int) -> tuple[float, float]:
    """(nats a character, seconds of training)."""
    config = changed(config, data=replace(config.data, path=text), train={"seed": seed})
    texts = config.data.read()
    tokenizer = make_tokenizer(config, texts)
    config = config.with_tokenizer(tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        task = Continuation(config, tokenizer, texts, Path(folder))
        torch.manual_seed(seed)
        model = TransformerLM(config.model)
        if change:
            change(model)
        started = time.perf_counter()
        fit(model, task, config.train, Path(folder))
        seconds = time.perf_counter() - started
        return task.text_loss(model, config.model.context_length).metrics()["nats_per_character"], seconds


def main() -> None:
    parser = OneLineParser(description=__doc__)
    parser.add_argument("--text", required=True, help="tiny Shakespeare, input.txt")
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_args()
    if given.seeds < 1:
        raise ValueError(f"--seeds {given.seeds} must be at least 1")
    preset = PRESETS["shakespeare-char"]
    # What only the first run of a process pays is not the preset's.
    run(changed(preset, train={"steps": 10}), None, given.text, 0)
    print(f"{'changed':>28} {'nats a character':>17} {'against preset':>15} {'seconds, ratio':>15}")
    first: tuple[float, float] | None = None
    for name, (config, change) in variants(preset).items():
        pairs = [run(config, change, given.text, seed) for seed in range(given.seeds)]
        nats, seconds = (statistics.mean(column) for column in zip(*pairs, strict=True))
        first = first or (nats, seconds)
        print(
            f"{name:>28} {nats:>17.4f} {nats / first[0] - 1:>+15.1%} {seconds / first[1]:>15.2f}", flush=True
        )


if __name__ == "__main__":
    run_main(main)
