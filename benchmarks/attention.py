"""Comparison of two forms of attention on this machine: written out, and torch's fused kernel.

    python benchmarks/attention.py

Interleaved in one run, medians; the ratio is written-out / fused, so above 1 the fused kernel wins.
MultiHeadAttention's choice (minlm/transformer.py) rests on this table.
"""

import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minlm.masks import causal_mask
from minlm.training.errors import run_main
from minlm.training.options import OneLineParser
from minlm.transformer import attention

CASES = {  # name: (B, H, T, K)
    "ViT, 64 pixels in patches of 8": (128, 4, 65, 32),
    "captions": (256, 4, 24, 32),
    "GPT, context 256": (16, 4, 256, 32),
}
ROUNDS = 15


def main() -> None:
    OneLineParser(description=__doc__).parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, median of {ROUNDS}")
    for name, (batch, heads, length, size) in CASES.items():
        for dtype in (torch.float32, torch.bfloat16):
            for masked in (False, True):
                shape = (batch, length, heads, size)
                q, k, v = (
                    torch.randn(shape, dtype=dtype, device=device).transpose(1, 2).requires_grad_()
                    for _ in "qkv"
                )
                mask = causal_mask(length, device=device) if masked else None
                ways = {
                    "written": lambda q=q, k=k, v=v, mask=mask: attention(q, k, v, mask)[0],
                    "fused": lambda q=q, k=k, v=v, mask=mask: F.scaled_dot_product_attention(q, k, v, mask),
                }
                seconds = {way: [] for way in ways}
                for _ in range(ROUNDS + 1):
                    for way, run in ways.items():
                        start = time.perf_counter()
                        run().sum().backward()
                        if device.type == "cuda":
                            torch.cuda.synchronize()
                        seconds[way].append(time.perf_counter() - start)
                written, fused = (statistics.median(seconds[way][1:]) for way in ("written", "fused"))
                kind = f"{str(dtype).removeprefix('torch.')}, {'masked' if masked else 'no mask'}"
                timing = f"written {1e3 * written:7.2f} ms, fused {1e3 * fused:7.2f} ms"
                print(f"{name:32} {kind:20} {timing}, ratio {written / fused:.2f}")


if __name__ == "__main__":
    run_main(main)
