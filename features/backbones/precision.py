"""Which arithmetic a backbone runs in here: what the hardware says, then a short measurement."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from headwater.spec import Precision

_BEST: dict[tuple[str, str], Precision] = {}


def faster_precision(net: str, kind: str, run: Callable[[Precision], bool]) -> Precision:
    """Return the faster arithmetic of a net here: what the hardware says, then measured.

    Without bfloat16 units the answer is float32. With them it is bfloat16 unless a short run shows
    it clearly slower: the margin keeps a busy machine from changing its mind, and with it the
    extractor's identity, from run to run. Remembered for the process.

    Parameters
    ----------
    net, kind
        timm model name and type of the device: what the answer is remembered for.
    run
        Runs a batch in an arithmetic; returns False where there is nothing to run.
    """
    if (net, kind) not in _BEST:
        _BEST[net, kind] = _choose(kind, run)
    return _BEST[net, kind]


def _choose(kind: str, run: Callable[[Precision], bool]) -> Precision:
    if kind == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if kind != "cpu" or not _cpu_has_bfloat16():
        return "float32"
    order: tuple[Precision, Precision] = ("float32", "bfloat16")
    best: dict[Precision, float] = dict.fromkeys(order, float("inf"))
    for turn in range(8):
        # The first turn prepares; one in favour is enough, against it all must agree.
        if turn > 1 and best["bfloat16"] <= best["float32"]:
            break
        for precision in order:
            start = time.perf_counter()
            if not run(precision):
                return "float32"
            if turn:
                best[precision] = min(best[precision], time.perf_counter() - start)
    return "float32" if best["bfloat16"] > 1.25 * best["float32"] else "bfloat16"


def _cpu_has_bfloat16() -> bool:
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if known:
        return any(known.get(k) for k in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
