"""The device and the precision of the config, or a one-line error."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from minlm.training.loop import Precision, check_hardware, choose_device, multiplies_bfloat16
from minlm.training.state import TrainConfig


def test_hardware_that_is_absent_is_refused_at_once():
    check_hardware(TrainConfig(steps=1, precision="bf16", device="cpu"))
    with pytest.raises(ValueError, match=r"--train.precision fp16 needs a GPU"):
        check_hardware(TrainConfig(steps=1, precision="fp16", device="cpu"))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device=cuda, but torch sees no such GPU"):
            check_hardware(TrainConfig(steps=1, device="cuda"))


def test_auto_precision_is_bf16_where_the_hardware_multiplies_it(monkeypatch):
    for native, kind in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        with Precision("auto", torch.device("cpu")).forward():
            assert nn.Linear(2, 2)(torch.zeros(1, 2)).dtype == kind


def test_no_silent_fallback_of_device_or_precision():
    with pytest.raises(ValueError, match=r"--train.precision fp16 needs a GPU"):
        Precision("fp16", torch.device("cpu"))
    if not torch.cuda.is_available():
        assert choose_device("auto").type == "cpu"
        with pytest.raises(ValueError, match="device=cuda, but torch sees no such GPU"):
            choose_device("cuda")


@pytest.mark.parametrize("here, expected", [([], "cpu"), (["mps"], "mps"), (["cuda", "mps"], "cuda")])
def test_auto_takes_the_gpu_that_is_there(monkeypatch, here, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in here)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in here)
    assert choose_device("auto").type == expected
    for name in {"cuda", "mps"} - set(here):
        with pytest.raises(ValueError, match=f"device={name}, but torch sees no such GPU: use cpu"):
            choose_device(name)
    if "mps" in here:  # emulated there
        assert not multiplies_bfloat16(torch.device("mps"))


@given(st.sampled_from(["float32", "bf16"]), st.integers(0, 10**6))
def test_only_the_forward_pass_is_in_16_bits(name, seed):
    torch.manual_seed(seed)
    layer: Any = nn.Linear(4, 3)
    x = torch.randn(2, 4)
    precision = Precision(name, torch.device("cpu"))
    with precision.forward():
        out = layer(x)
    assert out.dtype == {"float32": torch.float32, "bf16": torch.bfloat16}[name]
    precision.backward(out.float().sum())
    assert layer.weight.grad.dtype == torch.float32
    torch.testing.assert_close(layer.weight.grad, x.sum(dim=0).expand(3, 4), atol=0.05, rtol=0.05)
