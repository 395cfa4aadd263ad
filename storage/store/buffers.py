"""Memory for batches that is used again.

A fresh large allocation costs a page fault per 4 KB, which is slower than reading the features.
"""

from __future__ import annotations

import collections
import math
import weakref

import numpy as np
import torch

#: Smaller tensors are allocated anew: the C library reuses them by itself.
_LEAST = 1 << 20
_KEPT = 8


class BufferPool:
    """Hands out tensors whose memory returns when the last view of it is gone.

    The tensor's storage holds a numpy view; when torch lets go of it, whoever kept the tensor or
    any view of it, the memory is free to be handed out again.
    """

    def __init__(self) -> None:
        self._free: dict[int, collections.deque[np.ndarray]] = {}

    def take(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return an uninitialised tensor."""
        size = math.prod(shape) * dtype.itemsize
        if size < _LEAST:
            return torch.empty(shape, dtype=dtype)
        free = self._free.setdefault(size, collections.deque(maxlen=_KEPT))
        try:
            base = free.pop()
        except IndexError:
            base = np.empty(size, np.uint8)
        lent = base[:]
        weakref.finalize(lent, free.append, base).atexit = False
        return torch.from_numpy(lent).view(dtype).view(shape)
