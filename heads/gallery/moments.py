"""Counts, means and sums of products: joined and taken apart exactly, and packed small.

Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
variances" (1979), in float64; with a negative count the same formula takes images out again.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Moments(NamedTuple):
    """What is known of N vectors at each of P places."""

    #: ``[P]`` float64, how many there are.
    number: Tensor
    #: ``[P, C]`` float64.
    mean: Tensor
    #: ``[P, C, C]`` float64, the sum of outer products of the vectors less their mean.
    products: Tensor

    def cpu(self) -> Moments:
        """Return them on the processor."""
        return Moments(*(x.cpu() for x in self))

    def joined(self, other: Moments, sign: int = 1) -> Moments:
        """Return the moments of both together, or with ``sign=-1`` of these without the other's."""
        count = self.number + sign * other.number
        # Of a place at which nothing is left nothing is known.
        some = count > 0.5
        share = torch.where(some, sign * other.number / count.clamp_min(1), 0)
        far = other.mean - self.mean
        mean = self.mean + far * share[:, None]
        weight = self.number * share
        products = self.products + sign * other.products
        products = torch.baddbmm(products, (far * weight[:, None])[:, :, None], far[:, None])
        return Moments(
            torch.where(some, count, 0),
            torch.where(some[:, None], mean, 0),
            torch.where(some[:, None, None], products, 0),
        )


def packed(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Return float64 ``[P, C, C]`` as its lower triangle in 40 bits a number.

    A float32 and, as int8, what that lost in 256ths of its last place: 1.25 times what a triangle
    of float32 takes, and less than 2^-31 of a number lost. Float32 alone is not enough: its
    rounding of a large variance is a good part of a small one beside it, and of a small ridge.

    Returns
    -------
    tuple
        ``[P, C * (C + 1) / 2]`` float32 and int8.
    """
    row, column = torch.tril_indices(*symmetric.shape[1:])
    exact = symmetric[:, row, column]
    high = exact.float()
    low = ((exact - high.double()) / _place(high) * 256).round().clamp(-128, 127)
    return high, low.to(torch.int8)


def unpacked(high: Tensor, low: Tensor) -> Tensor:
    """Return the symmetric float64 ``[P, C, C]`` that `packed` was given."""
    exact = high.double() + low.double() / 256 * _place(high)
    size = int((2 * exact.shape[1]) ** 0.5)
    row, column = torch.tril_indices(size, size)
    made = torch.empty(len(exact), size, size, dtype=torch.float64)
    made[:, row, column] = exact
    made[:, column, row] = exact
    return made


def _place(high: Tensor) -> Tensor:
    """Return what the last place of a float32 is worth, float64."""
    size = high.abs()
    up = torch.nextafter(size, torch.full_like(size, torch.inf))
    return up.double() - size.double()
