"""What all flow heads have in common: latents, likelihood, readiness."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from heads.base import Batch, Head, HeadConfig, Shape
from heads.data import check_finite
from headwater.errors import NotFittedError


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

    def inputs(self, batch: Batch) -> list[Tensor]:
        """Return the maps that the flow head is a bijection of, in the layers' order."""
        return [batch[layer] for layer in self.shapes]

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
        z, logdet = self.latent(batch)
        dims = sum(part[0].numel() for part in z)
        square = torch.stack([part.square().flatten(1).sum(1) for part in z]).sum(0)
        return (0.5 * square - logdet) / dims

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
            raise NotFittedError(
                f"{self.name} was asked to score before it was fitted",
                expected="a trained head",
                remedy="call fit, or load the state of a trained head",
            )
        self.check(batch)
        check_finite({k: batch[k] for k in self.shapes}, self.name)
