"""Seeded construction: weights and permutations that depend on a seed alone."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from headwater.spec import digest

# Torch's and numpy's global generators belong to the process: two heads built in two threads
# would otherwise draw from each other's stream.
_LOCK = threading.RLock()


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU and numpy's global generators for the body, then put them back.

    Build modules under this: layers draw from torch's, FrEIA's own permutations from numpy's.

    Parameters
    ----------
    seed
        Any integer.
    """
    with _LOCK, torch.random.fork_rng(devices=[]):
        before = np.random.get_state()
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            np.random.set_state(before)


def draw_channels(channels: int, most: int, seed: int) -> Tensor:
    """Return at most `most` of a layer's channels, drawn by `seed`, in order: ``[kept]`` int64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(channels, generator=generator, device="cpu")[:most].sort().values


def seed_from(*parts: object) -> int:
    """Return the seed that `parts` decide: far apart for neighbouring ones."""
    return int(digest(list(parts)), 16) % 2**63
