"""Elementary invertible parts: permutation, standardisation, ActNorm, invertible 1x1.

Each takes one input of shape ``[B, C]`` or ``[B, C, H, W]`` and follows FrEIA's protocol:
``module((x,), rev=False) -> ((y,), logdet)`` with one log-determinant per sample, ``[B]``, or per
position, ``[B, H, W]``, where built with ``per_position=True`` (then use `SequenceINN`, which adds
log-determinants of any shape; `GraphINN` knows ``[B]`` only).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from heads.contract import FeatureSource, check_finite
from heads.looking import LOOKED, only, places, positions
from heads.parts.invertible import Invertible


def soft_clamp(s: Tensor, alpha: float) -> Tensor:
    """Return ``(2 alpha / pi) arctan(s / alpha)``: a log-scale kept within ``±alpha``.

    Examples
    --------
    >>> soft_clamp(torch.tensor([0.0, 2.0, 1e6]), 2.0)
    tensor([0.0000, 1.0000, 2.0000])
    """
    return (2 * alpha / torch.pi) * torch.atan(s / alpha)


class Elementary(Invertible):
    """Base of the parts that take one map and give one; they give `transform`.

    Parameters
    ----------
    dims_in
        FrEIA's list with one shape, ``(C,)`` or ``(C, H, W)``.
    per_position
        Give the log-determinant per position instead of per sample.
    """

    def __init__(self, dims_in: Sequence[Sequence[int]], per_position: bool = False) -> None:
        super().__init__(dims_in)
        self.channels = int(dims_in[0][0])
        self.per_position = per_position

    def change(self, maps: list[Tensor], rev: bool) -> tuple[list[Tensor], Tensor]:
        """Transform the one map."""
        y, logdet = self.transform(maps[0], rev)
        return [y], logdet

    @abstractmethod
    def transform(self, x: Tensor, rev: bool) -> tuple[Tensor, Tensor]:
        """Return the changed map and the log-determinant of that; the way back where `rev`."""

    def spread(self, position: Tensor | float, x: Tensor, rev: bool) -> Tensor:
        """Return one position's log-determinant as that of each sample (or position) of `x`."""
        size = x.shape[2:]
        value = torch.as_tensor(position, dtype=x.dtype, device=x.device)
        if self.per_position:
            out = only(value.expand(x.shape[0], *size))
        elif len(size) == 2:
            out = (value * places((size[0], size[1]))).expand(x.shape[0])
        else:
            out = (value * size.numel()).expand(x.shape[0])
        return -out if rev else out

    def column(self, vector: Tensor, x: Tensor) -> Tensor:
        """Return a vector over channels in a shape that broadcasts over `x`, in its dtype."""
        return vector.to(x.dtype).reshape(1, -1, *([1] * (x.ndim - 2)))


class _Reorder(torch.autograd.Function):
    """``x[:, there]`` whose gradient is read in the order `back` instead of being scattered.

    Indexing does not know that its indices are a permutation, and sorts and adds up.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, there: Tensor, back: Tensor) -> Tensor:  # type: ignore[override]
        return x[:, there]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return gradient[:, ctx.saved_tensors[0]], None, None


class Permute(Elementary):
    """A fixed permutation of channels, drawn from a seed and saved with the weights.

    Parameters
    ----------
    dims_in
        One shape.
    seed
        Decides the permutation.

    Examples
    --------
    >>> part, x = Permute([(4,)], seed=0), torch.arange(4.0)[None]
    >>> (y,), logdet = part((x,))
    >>> (back,), _ = part((y,), rev=True)
    >>> y, bool((back == x).all()), logdet
    (tensor([[0., 1., 3., 2.]]), True, tensor([0.]))
    """

    order: Tensor
    inverse: Tensor

    def __init__(
        self, dims_in: Sequence[Sequence[int]], seed: int, per_position: bool = False
    ) -> None:
        super().__init__(dims_in, per_position)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(self.channels, generator=generator, device="cpu")
        self.register_buffer("order", order)
        # Not saved: it follows from the saved order (see `_load_from_state_dict`).
        self.register_buffer("inverse", torch.argsort(order), persistent=False)
        self.register_load_state_dict_post_hook(Permute._after_load)

    def _after_load(self, _keys: object) -> None:
        self.inverse = torch.argsort(self.order)

    def transform(self, x: Tensor, rev: bool) -> tuple[Tensor, Tensor]:
        """Permute, or undo it where `rev`."""
        there, back = (self.inverse, self.order) if rev else (self.order, self.inverse)
        return _Reorder.apply(x, there, back), self.spread(0.0, x, rev)


#: Least deviation of a channel over the channels' median. One that hardly moves on normal images
#: would else be blown up without measure where it moves.
FLOOR = 0.05


def floored(std: Tensor, least: float) -> Tensor:
    """Return ``[C]`` deviations of at least `FLOOR` of their median, and at least `least`."""
    return std.clamp_min(max(least, FLOOR * float(std.median())))


class Standardise(Elementary):
    """A fixed affine map per channel, ``(x - mean) / std``, set from training features.

    Its log-determinant is constant, so it changes what the likelihood's zero is and nothing of
    what is learnt; but couplings see inputs of one scale whatever the backbone.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, dims_in: Sequence[Sequence[int]], per_position: bool = False) -> None:
        super().__init__(dims_in, per_position)
        self.register_buffer("mean", torch.zeros(self.channels))
        self.register_buffer("std", torch.ones(self.channels))

    def set(self, mean: Tensor, std: Tensor) -> None:
        """Take over ``[C]`` statistics; deviations count for at least `FLOOR` of their median."""
        self.mean.copy_(mean.to(self.mean))
        self.std.copy_(floored(std, 1e-6).to(self.std))

    def transform(self, x: Tensor, rev: bool) -> tuple[Tensor, Tensor]:
        """Standardise, or undo it where `rev`."""
        mean, std = self.column(self.mean, x), self.column(self.std, x)
        # What is not looked at is a constant, on which what is may depend.
        y = x * std + mean if rev else only((x - mean) / std)
        return y, self.spread(-self.std.to(x.dtype).log().sum(), x, rev)


def channel_statistics(
    source: FeatureSource, layers: Sequence[str], size: int = 32
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return ``{layer: (mean [C], std [C])}`` over rows and positions, in one pass, float64.

    Over those positions that are looked at (`heads.looking`).
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = dict.fromkeys(layers, 0)
    ids = source.ids
    for batch in source.batches(size):
        check_finite({k: v for k, v in batch.items() if k in (*layers, "_rows")}, "training", ids)
        for layer in layers:
            x = batch[layer].double()
            counts[layer] += len(x) * x.shape[2] * x.shape[3]
            if LOOKED in batch:
                where = positions(batch[LOOKED], (x.shape[2], x.shape[3]))
                counts[layer] -= int((~where).sum())
                x = x * where[:, None]
            found = torch.stack([x.sum((0, 2, 3)), x.square().sum((0, 2, 3))])
            sums[layer] = sums[layer] + found if layer in sums else found
    out = {}
    for layer, (first, second) in sums.items():
        count = counts[layer]
        mean = first / count
        out[layer] = (mean, (second / count - mean.square()).clamp_min(0).sqrt())
    return out


class ActNorm(Elementary):
    """A learnt affine map per channel, set by the first training batch to mean 0, deviation 1.

    Kingma & Dhariwal, "Glow" (2018), section 3.1. Deviations count for at least `FLOOR` of their
    median, as in `Standardise`. That it was set is saved with the weights.
    """

    ready: Tensor

    def __init__(self, dims_in: Sequence[Sequence[int]], per_position: bool = False) -> None:
        super().__init__(dims_in, per_position)
        self.log_scale = nn.Parameter(torch.zeros(self.channels))
        self.bias = nn.Parameter(torch.zeros(self.channels))
        self.register_buffer("ready", torch.tensor(False))

    @torch.no_grad()
    def _set_from(self, x: Tensor) -> None:
        dims = [d for d in range(x.ndim) if d != 1]
        if x.numel() // self.channels > 1:  # one single vector has no deviation
            std = x.std(dims)
            self.log_scale.copy_(-floored(std, 1e-4).log())
        self.bias.copy_(-x.mean(dims) * self.log_scale.exp())
        self.ready.fill_(True)

    def transform(self, x: Tensor, rev: bool) -> tuple[Tensor, Tensor]:
        """Scale and shift, or undo it where `rev`."""
        if self.training and not rev and not bool(self.ready):
            self._set_from(x)
        log_scale, bias = self.column(self.log_scale, x), self.column(self.bias, x)
        if rev:
            y = (x - bias) * torch.exp(-log_scale)
        else:
            y = torch.addcmul(bias, x, torch.exp(log_scale))
        return y, self.spread(self.log_scale.to(x.dtype).sum(), x, rev)
