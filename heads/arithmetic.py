"""Precision, threads and deterministic kernels of a training."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headwater.errors import ConfigError
from headwater.spec import Precision


def choose_precision(asked: str, device: torch.device) -> Precision:
    """Return the arithmetic of the subnets for ``auto``, ``float32`` or ``bfloat16``."""
    if asked == "float32":
        return "float32"
    if asked == "bfloat16":
        return "bfloat16"
    if asked != "auto":
        raise ConfigError(f"precision {asked!r}", expected="auto, float32 or bfloat16")
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    # Without the instructions bfloat16 is emulated and several times slower than float32. The
    # check, unlike a measurement, gives the same answer on a busy machine.
    able = any(
        getattr(torch.cpu, name, lambda: False)()
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return "bfloat16" if able else "float32"


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[Any]:
    """Return the autocast context of a device and precision."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


# Below this many channels the detour costs more than it saves.
_WIDE = 256


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x @ weight.T + bias`` of ``[N, C]``; on a processor in float32 as a convolution.

    The matrix library that torch brings along keeps to AVX2 on processors that are not its maker's;
    its convolutions, a 1x1 one over N positions here, do not, and are 1.6 times as fast there.
    """
    plain = x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32
    if plain or x.ndim != 2 or min(weight.shape) < _WIDE or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    positions = x[None, None].permute(0, 3, 2, 1)  # [1, C, N, 1], channels-last as it lies
    y = F.conv2d(positions, weight[:, :, None, None], bias)
    return y.permute(0, 2, 3, 1).reshape(len(x), -1)


class Linear(nn.Linear):
    """A linear layer of vectors that goes through `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, C]`` to ``[N, C_out]``."""
        return linear(x, self.weight, self.bias)


@contextlib.contextmanager
def running(device: torch.device, threads: int | None) -> Iterator[None]:
    """Set threads and deterministic kernels for the body, and put back what was there."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    gpu = device.type == "cuda"
    was = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    if gpu:
        # cuBLAS reads this when it starts; without it matrix products may differ run to run.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        if threads is not None:
            torch.set_num_threads(before)
        if gpu:
            torch.use_deterministic_algorithms(was, warn_only=warn_only)
            torch.backends.cudnn.benchmark = benchmark
