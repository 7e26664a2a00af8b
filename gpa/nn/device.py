"""Which device and precision a model runs on when the caller says "auto"."""

from __future__ import annotations

import time

import torch

from gpa.errors import UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """The device asked for, or the first of CUDA, MPS and CPU that completes a small computation."""
    if isinstance(device, torch.device):
        return device
    if device != "auto":
        try:
            chosen = torch.device(device)
            torch.zeros(1, device=chosen)
        except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
            raise UsageError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
        return chosen
    names = ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    return next((torch.device(name) for name in names if _works(name)), torch.device("cpu"))


def _works(name: str) -> bool:
    """Whether a card that reports itself can compute: an old driver or an unsupported card fails here."""
    try:
        x = torch.ones(8, 8, device=name)
        return bool((x @ x).sum().item() == 512)
    except RuntimeError:
        return False


def pick_dtype(dtype: str | torch.dtype, device: torch.device, stored: torch.dtype) -> torch.dtype:
    """The precision asked for; "auto" is bfloat16 where weights are stored so and the device has it natively.

    Everything else computes in float32: float16 overflows in models trained in bfloat16, and on a CPU half
    precision is slower.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype in DTYPES:
        return DTYPES[dtype]
    if dtype != "auto":
        raise UsageError(f"dtype {dtype!r}: choose one of auto, {', '.join(DTYPES)}")
    native = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
    return torch.bfloat16 if stored == torch.bfloat16 and native else torch.float32


def bfloat16_slowdown(size: int = 384) -> float:
    """How many times as long as in float32 a product takes this processor in bfloat16, by trying.

    Below 1 on processors that have instructions for it; ten and more on others, where it is emulated.
    """
    took = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(size, size, dtype=dtype)
        torch.mm(a, a)  # kernels are chosen
        times = []
        for _ in range(3):  # the least: other work only adds
            began = time.perf_counter()
            torch.mm(a, a)
            times.append(time.perf_counter() - began)
        took[dtype] = min(times)
    return took[torch.bfloat16] / took[torch.float32]
