"""Which arithmetic a backbone runs in here: what the hardware says, then a short measurement."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from headwater.spec import LayerSpec, Precision

if TYPE_CHECKING:
    from features.backbones.backbone import Backbone

_BEST: dict[tuple[str, str], Precision] = {}


def best_precision(backbone: Backbone, device: str | None = None) -> Precision:
    """Return the faster arithmetic of this backbone here: what the hardware says, then measured.

    Without bfloat16 units the answer is float32. With them it is bfloat16 unless a short run shows
    it clearly slower: the margin keeps a busy machine from changing its mind, and with it the
    extractor's identity, from run to run. Remembered for the process.
    """
    kind = torch.device(device or backbone.device).type
    key = (backbone.name, kind)
    if key not in _BEST:
        _BEST[key] = _choose(backbone, kind)
    return _BEST[key]


def _choose(backbone: Backbone, kind: str) -> Precision:
    if kind == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if kind != "cpu" or not _cpu_has_bfloat16() or not backbone.info.stages:
        return "float32"
    layers = (LayerSpec((backbone.info.stages[-1],)),)
    size = backbone.native_size
    image = torch.zeros(backbone.batch_size(size), 3, *size)
    order: tuple[Precision, Precision] = ("float32", "bfloat16")
    best: dict[Precision, float] = dict.fromkeys(order, float("inf"))
    calls = backbone.calls
    for turn in range(8):
        # The first turn prepares; one in favour is enough, against it all must agree.
        if turn > 1 and best["bfloat16"] <= best["float32"]:
            break
        for precision in order:
            start = time.perf_counter()
            backbone.maps(image, layers, precision)
            if turn:
                best[precision] = min(best[precision], time.perf_counter() - start)
    backbone.calls = calls
    return "float32" if best["bfloat16"] > 1.25 * best["float32"] else "bfloat16"


def _cpu_has_bfloat16() -> bool:
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if known:
        return any(known.get(k) for k in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
