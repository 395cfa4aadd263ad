"""Glow on single vectors: the packed invertible linear map, its steps and perceptrons."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from FrEIA.framework import SequenceINN
from torch import Tensor, nn

from heads.parts.coupling import AffineCoupling
from heads.parts.elementary import ActNorm, Elementary
from heads.parts.linear import Linear, linear


class InvertibleLinear(Elementary):
    """An invertible linear map of vectors, ``W = R L (U + diag(exp(log_s)))``.

    Kingma & Dhariwal, "Glow" (2018), section 3.2, with the drawn rotation R that it begins as in
    place of a permutation, and triangles that begin as the identity. Triangles of a rotation are
    badly conditioned: at 1,536 channels twelve of Adam's steps at F²R's rate blow the map up.

    Both triangles sit in one matrix, so that the number of parameters is the number of degrees of
    freedom. In evaluation the matrix and its inverse (worked out in float64) are kept until a
    parameter changes.

    Parameters
    ----------
    dims_in
        One shape, ``(C,)``.
    seed
        Decides the rotation.
    """

    rotation: Tensor
    log_rotation: Tensor

    def __init__(self, dims_in: Sequence[Sequence[int]], seed: int) -> None:
        super().__init__(dims_in)
        rotation, log_rotation = _rotation(self.channels, seed)
        self.register_buffer("rotation", rotation)
        self.register_buffer("log_rotation", log_rotation)
        self.packed = nn.Parameter(torch.zeros_like(rotation))
        self.log_s = nn.Parameter(torch.zeros_like(rotation[0]))
        self._kept: dict[tuple[object, ...], Tensor] = {}

    def _triangles(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        packed = self.packed.to(dtype)
        eye = torch.eye(self.channels, dtype=dtype, device=packed.device)
        return packed.tril(-1) + eye, packed.triu(1) + self.log_s.to(dtype).exp().diag()

    def weight(self, dtype: torch.dtype, rev: bool = False) -> Tensor:
        """Return the matrix, or its inverse, as `dtype`."""
        if torch.is_grad_enabled() and not rev:
            lower, upper = self._triangles(dtype)
            return linear(self.rotation.to(dtype), linear(upper.T, lower))
        changes = (self.packed._version, self.log_s._version, self.rotation._version)
        place = (self.packed.data_ptr(), self.log_s.data_ptr(), self.packed.device)
        state = (*changes, *place, dtype)
        if self._kept and next(iter(self._kept))[:-1] != state:
            self._kept.clear()
        key = (*state, rev)
        if key not in self._kept:
            lower, upper = self._triangles(torch.float64)
            rotation = self.rotation.to(torch.float64)
            if rev:
                # Inverted, not transposed: rounded to float32 it is no exact rotation.
                turned = torch.linalg.inv(rotation)
                half = torch.linalg.solve_triangular(lower, turned, upper=False, unitriangular=True)
                whole = torch.linalg.solve_triangular(upper, half, upper=True)
            else:
                whole = rotation @ (lower @ upper)
            if torch.is_grad_enabled():
                return whole.to(dtype)
            self._kept[key] = whole.to(dtype)
        return self._kept[key]

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_kept": {}}

    def transform(self, x: Tensor, rev: bool) -> tuple[Tensor, Tensor]:
        """Mix the channels, or undo it where `rev`."""
        # bfloat16 here would make the inverse wrong in the third digit
        with torch.autocast(x.device.type, enabled=False):
            y = linear(x, self.weight(x.dtype, rev))
        log_det = self.log_s.to(x.dtype).sum() + self.log_rotation.to(x.dtype)
        return y, self.spread(log_det, x, rev)


def _rotation(channels: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return a drawn rotation, float32, and the logarithm of its determinant's size."""
    noise = torch.empty(channels, channels, dtype=torch.float64)
    if noise.is_meta:  # where parameters are only counted nothing can be drawn
        return noise.float(), torch.empty(())
    noise.normal_(generator=torch.Generator().manual_seed(seed))
    rotation = torch.linalg.qr(noise)[0].float()
    return rotation, torch.linalg.slogdet(rotation.double()).logabsdet.float()


def coupling_net(hidden: int, channels_in: int, channels_out: int) -> nn.Sequential:
    """Return a three-layer perceptron whose last layer starts at zero, as Glow's does."""
    last = Linear(hidden, channels_out)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(
        Linear(channels_in, hidden),
        nn.ReLU(),
        Linear(hidden, hidden),
        nn.ReLU(),
        last,
    )


def vector_glow(channels: int, steps: int, hidden: int, clamp: float, seed: int) -> SequenceINN:
    """Return Glow on vectors: per step ActNorm, invertible linear map, affine coupling."""
    glow = SequenceINN(channels)
    for k in range(steps):
        glow.append(ActNorm)
        glow.append(InvertibleLinear, seed=seed * 1000 + k)
        glow.append(
            AffineCoupling,
            subnet=lambda a, b: coupling_net(hidden, a, b),
            clamp=clamp,
            two_sided=False,
        )
    return glow


def perceptron(channels_in: int, hidden: int, channels_out: int, layers: int = 4) -> nn.Sequential:
    """Return `layers` linear layers with batch norm and leaky ReLU between them."""
    widths = [channels_in, *[hidden] * (layers - 1)]
    built: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        built += [Linear(a, b), nn.BatchNorm1d(b), nn.LeakyReLU()]
    return nn.Sequential(*built, Linear(widths[-1], channels_out))
