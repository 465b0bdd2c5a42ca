"""Hypothesis profiles, the folder of real data, and a fixed seed for every test.

`pytest` uses the profile `fast`; HYPOTHESIS_PROFILE=ci draws the same examples every time,
HYPOTHESIS_PROFILE=deep draws fifty times as many.
"""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

# A failing example prints the corners of its tensors only.
torch.set_printoptions(threshold=20, edgeitems=2, linewidth=100, sci_mode=False)
settings.register_profile(
    "fast", max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("ci", settings.get_profile("fast"), derandomize=True, max_examples=40)
settings.register_profile("deep", settings.get_profile("fast"), max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


@pytest.fixture(autouse=True)
def fixed_seed():
    """Layers initialise from torch's global generator: the same in every run."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data: MINCLIP_DATA, or shared/data beside the checkout; skip the test if there is none."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    root = Path(os.environ.get("MINCLIP_DATA", beside))
    if not root.is_dir():
        pytest.skip(f"no real data: set MINCLIP_DATA to its folder (looked at {root})")
    return root
