"""Where a model is trained, and in which precision."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from minlm.training.state import TrainConfig


def choose_device(name: str) -> torch.device:
    """auto = cuda, else mps (Apple), where there is one. ValueError for a device that is absent: no silent fallback."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, present in there.items() if present)
    if not there[name]:
        raise ValueError(
            f"device={name}, but torch sees no such GPU: use cpu, or a build of torch that has it"
        )
    return torch.device(name)


class Precision:
    """Mixed precision of a training step (Micikevicius et al. 2018): weights and optimizer stay float32.

    name: as TrainConfig.precision. ValueError for fp16 on a CPU.
    """

    def __init__(self, name: str, device: torch.device):
        if name == "auto":
            name = "bf16" if multiplies_bfloat16(device) else "float32"
        if name == "fp16" and device.type == "cpu":
            raise ValueError("--train.precision fp16 needs a GPU: use bf16 or float32 on a CPU")
        self.device = device
        self.dtype = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def forward(self) -> AbstractContextManager:
        """The context of a forward pass: matrix products in 16 bits, where that was asked for."""
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients to the parameters, scaled up in fp16 so that small ones are not lost.

        Called outside `forward`: each gradient then has the precision of its forward product, and what is float32 in
        the loss stays float32.
        """
        self.scaler.scale(loss).backward()


def check_hardware(config: TrainConfig) -> None:
    """ValueError if this machine cannot train so: raised before anything is read or written."""
    Precision(config.precision, choose_device(config.device))


def multiplies_bfloat16(device: torch.device) -> bool:
    """Tell if the hardware has bfloat16 products; elsewhere they are emulated, and slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
