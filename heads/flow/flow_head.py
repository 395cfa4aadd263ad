"""What all flow heads have in common: latents, likelihood, readiness."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from heads.contract import Batch, Head, HeadConfig, Shape, check_finite
from heads.parts.seeds import draw_channels
from headwater.errors import ConfigError, NotFittedError


def check_channels(channels: int) -> None:
    """Raise `ConfigError` where a setting `channels` is neither 0 nor two or more."""
    if channels < 0 or channels == 1:
        raise ConfigError(f"channels {channels}", expected="0, for all, or at least 2")


def nll_per_dimension(z: Sequence[Tensor], logdet: Tensor) -> Tensor:
    """Return ``(½‖z‖² − log|det J|) / dim`` per sample, ``[B]``, without the constant."""
    dims = sum(part[0].numel() for part in z)
    square = torch.stack([part.square().flatten(1).sum(1) for part in z]).sum(0)
    return (0.5 * square - logdet) / dims


class FlowHead(Head):
    """A head whose score comes from an exact likelihood.

    A subclass gives `latent` and `reverse`; the contract tests check inverse and log-determinant
    through them. Set `mark_fitted` at the end of `fit` and call `check_ready` in `score`.
    """

    fitted: Tensor

    def __init__(
        self, config: HeadConfig, shapes: Mapping[str, Shape], map_size: tuple[int, int]
    ) -> None:
        super().__init__(config, shapes, map_size)
        self.register_buffer("fitted", torch.tensor(False))
        #: Shapes of what `inputs` gives.
        self.dims = list(self.shapes.values())
        self._drawn: list[str | None] = [None] * len(self.dims)

    def draw_channels(self, most: int, seed: int) -> None:
        """Read at most `most` channels of each layer from here on, drawn by `seed`; 0 for all.

        Layers with as many channels keep the same ones, as image scales of one node must.
        """
        for i, (channels, height, width) in enumerate(self.dims):
            if 0 < most < channels:
                self._drawn[i] = f"drawn_{i}"
                self.register_buffer(f"drawn_{i}", draw_channels(channels, most, seed))
                self.dims[i] = (most, height, width)

    def of_drawn(self, index: int, x: Tensor, dim: int = 0) -> Tensor:
        """Return what of `x`, with all channels of layer `index` along `dim`, is drawn."""
        name = self._drawn[index]
        return x if name is None else x.index_select(dim, self.get_buffer(name).to(x.device))

    def inputs(self, batch: Batch) -> list[Tensor]:
        """Return the maps that the flow head is a bijection of, in the layers' order."""
        return [self.of_drawn(i, batch[layer], 1) for i, layer in enumerate(self.shapes)]

    @abstractmethod
    def latent(self, batch: Batch) -> tuple[list[Tensor], Tensor]:
        """Return the latents and ``log|det dz/dx|`` per sample, ``[B]``."""

    def latent_of(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Return `latent` of maps as `inputs` gives them."""
        return self.latent(dict(zip(self.shapes, maps, strict=True)))

    @abstractmethod
    def reverse(self, z: Sequence[Tensor]) -> list[Tensor]:
        """Return the inputs (as `inputs` gives them) that `latent` maps to `z`."""

    def nll(self, batch: Batch) -> Tensor:
        """Return ``(½‖z‖² − log|det J|) / dim`` per sample, ``[B]``, without the constant."""
        return nll_per_dimension(*self.latent(batch))

    def mark_fitted(self) -> None:
        """Say, in the saved state too, that the head may score."""
        self.fitted.fill_(True)

    def check_ready(self, batch: Batch) -> None:
        """Raise where the head is not fitted, the maps are of another shape or not finite.

        Raises
        ------
        NotFittedError, ShapeError, FeatureRangeError
        """
        if not bool(self.fitted):
            raise NotFittedError.of(self.name)
        self.check(batch)
        check_finite({k: batch[k] for k in self.shapes}, self.name)
