"""Scales of the contrastive losses, and comparisons to a tolerance that fits them."""

import math

import torch
from hypothesis import strategies as st

from tests.laws import close

scales = st.floats(0, math.log(100))
# Logits of up to 100 in float32 are good to 1e-5; in float64 the same laws hold to rounding.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}


def same(found: torch.Tensor, expected: torch.Tensor | float, law: str = "") -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    tolerance = TOLERANCE[found.dtype]
    close(found.double(), expected, law, atol=tolerance, rtol=tolerance)


def log_scale(scale: float) -> torch.Tensor:
    return torch.tensor(scale, dtype=torch.float64)
