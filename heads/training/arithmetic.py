"""Precision, threads and deterministic kernels of a training."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch

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


def device_of(name: str) -> torch.device:
    """Return the torch device for ``auto``, ``cpu`` or ``cuda[:n]``.

    On a GPU, float32 is made to mean float32 from here on: cuDNN's convolutions would round to
    TF32's 10 bits by default, which is neither what a score nor what an inverse may be.

    Raises
    ------
    ConfigError
        Another name, or a GPU where there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device {name!r}", expected="auto, cpu, cuda or cuda:1") from None
    if device.type == "cuda":
        if not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
            raise ConfigError(
                f"device {name!r}: torch sees {torch.cuda.device_count()} GPUs here",
                expected="auto, cpu or a GPU that is there",
            )
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
    return device
