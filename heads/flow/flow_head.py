"""What all flow heads have in common: latents, likelihood, and how most of them learn."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from heads.contract import Batch, Head, HeadConfig, Scores, Shapes, Size, Training
from heads.judging.rules import RuledConfig, RuledHead
from heads.judging.scores import log_likelihood
from heads.looking import only, places
from heads.parts.elementary import Standardise, channel_statistics
from heads.parts.seeds import draw_channels
from heads.training.growing import GrowingHead, Growth, fewer_epochs
from heads.training.trainer import Schedule, adam, train_module
from headwater.errors import ConfigError, GrowthError


def check_channels(channels: int) -> None:
    """Raise `ConfigError` where a setting `channels` is neither 0 nor two or more."""
    if channels < 0 or channels == 1:
        raise ConfigError(f"channels {channels}", expected="0, for all, or at least 2")


def nll_per_dimension(z: Sequence[Tensor], logdet: Tensor) -> Tensor:
    """Return ``(½‖z‖² − log|det J|) / dim`` per sample, ``[B]``, without the constant.

    Of the positions that are looked at (`heads.looking`).
    """
    square, dims = energy(z)
    return (0.5 * square - logdet) / dims


def energy(z: Sequence[Tensor]) -> tuple[Tensor, Tensor | int]:
    """Return ‖z‖² per sample, ``[B]``, and its number of dimensions, where it is looked at."""
    dims = sum(
        part.shape[1] * (places((part.shape[2], part.shape[3])) if part.ndim == 4 else 1)
        for part in z
    )
    return torch.stack([only(part.square()).flatten(1).sum(1) for part in z]).sum(0), dims


def energy_map(z: Tensor) -> Tensor:
    """Return ``1/2 mean_c z**2`` at each position of ``[B, C, H, W]``, ``[B, H, W]`` float32."""
    return -log_likelihood(z)


class FlowHead(Head):
    """A head with an invertible net over its maps.

    A subclass gives `latent` and `reverse`; the contract tests check inverse and log-determinant
    through them.
    """

    fitted: Tensor

    def __init__(self, config: HeadConfig, shapes: Shapes, map_size: Size) -> None:
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
        """Return the maps that the flow head is a bijection of, in the layers' order.

        They are 0 where the images are not looked at, whatever the backbone made of that.
        """
        return [only(self.of_drawn(i, batch[layer], 1)) for i, layer in enumerate(self.shapes)]

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


@dataclass(frozen=True)
class DensityConfig(RuledConfig):
    """Settings of the flow heads that learn the density of their maps.

    Parameters
    ----------
    image_size
        Pixels of the square image: a number, ``run`` (the run's own size) or ``auto`` (the paper's
        size on the paper's backbone, the run's own elsewhere).
    channels
        Channels of each layer that are read, drawn by the seed, as PaDiM does; 0 reads all, as the
        papers do. The cost of most subnets grows with its square.
    standardise
        Begin with a fixed affine map to mean 0 and deviation 1 per channel, measured on the
        training images and counted in the log-determinant. The papers have none; it makes learning
        rate and clamp mean the same on every backbone.
    clamp
        Soft clamp of the log-scales.
    lr, batch_size, epochs, clip_norm
        Learning rate, images per step, epochs, largest gradient norm (None: not clipped).
    """

    image_size: int | str = "auto"
    channels: int = 0
    standardise: bool = False
    clamp: float = 1.9
    lr: float = 1e-4
    batch_size: int = 16
    epochs: int = 100
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        size = self.image_size
        if size not in ("auto", "run") and not (isinstance(size, int) and size > 0):
            raise ConfigError(f"image_size {size!r}", expected="auto, run or a number of pixels")
        if self.clamp <= 0:
            raise ConfigError(f"clamp {self.clamp}", expected="a positive number")
        check_channels(self.channels)

    def resize(self, paper_size: int | None) -> Size | None:
        """Return the size for `Needs`; `paper_size` is the paper's on this backbone, if any."""
        size = {"auto": paper_size, "run": None}.get(str(self.image_size), self.image_size)
        return None if size is None else (int(size), int(size))


class DensityHead(RuledHead, FlowHead, GrowingHead):
    """Base of flow heads that learn by the likelihood of normal maps.

    A subclass gives `latent_of`, `standards` and `as_published` and, where it differs from Adam at
    a constant rate and the plain negative log-likelihood, `optimizer`, `schedule` and `loss`.
    """

    Config: ClassVar[type[HeadConfig]] = DensityConfig
    config: DensityConfig
    keeps = False

    def settle(self) -> None:
        """Lay the weights out channels-last; called when a subclass is built.

        It is the layout in which convolutions and norms over channels copy nothing. A head that was
        loaded must have it too, or its scores would differ in the last digit.
        """
        self.to(memory_format=torch.channels_last)

    def latent(self, batch: Batch) -> tuple[list[Tensor], Tensor]:
        """Return the latents ``[B, C, H, W]`` and ``log|det dz/dx|``, ``[B]``."""
        return self.latent_of(self.inputs(batch))

    @abstractmethod
    def as_published(self, batch: Batch) -> Scores:
        """Return the scores and maps of the head's paper."""

    def energies(self, batch: Batch) -> list[Tensor]:
        """Return half the mean squared latent at each position, ``[B, H_i, W_i]`` a scale."""
        return [energy_map(z) for z in self.latent(batch)[0]]

    def scored(self, batch: Batch) -> Scores:
        """Score maps as published, or by another rule from the energies: these never saturate."""
        return self.as_published(batch) if self.published else self.judged(self.energies(batch))

    @abstractmethod
    def standards(self) -> list[Standardise]:
        """Return the standardising part of each layer."""

    def standard(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Return what standardising takes off and divides by, of the channels' moments, ``[C]``."""
        return mean, std

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """Return the optimizer of this head."""
        return adam(parameters, self.config)

    def schedule(self) -> Schedule:
        """Return the learning rate over the steps."""
        return Schedule()

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return the figures of a batch, per sample; ``loss`` or ``nll`` is minimised."""
        return {"nll": self.nll(batch)}

    def identity(self) -> dict[str, Any]:
        """Return what a checkpoint must agree in to be resumed."""
        return {
            "head": self.name,
            "config": dataclasses.asdict(self.config),
            "shapes": {k: list(v) for k, v in self.shapes.items()},
        }

    def learn(self, training: Training) -> dict[str, float]:
        """Learn the density of normal maps: maximise their likelihood, per dimension."""
        if self.config.standardise:
            statistics = channel_statistics(training.train, list(self.shapes)).values()
            for i, (part, moments) in enumerate(zip(self.standards(), statistics, strict=True)):
                mean, std = (self.of_drawn(i, m) for m in moments)
                part.set(*self.standard(mean, std))
        return self.learn_more(training, self.config.epochs)

    def learn_more(
        self, training: Training, epochs: int, since: Mapping[str, Any] | None = None
    ) -> dict[str, float]:
        """Learn from the weights that are there on; `since` tells a checkpoint what these are."""
        return train_module(
            self,
            self.loss,
            training.train,
            training.held_out,
            optimizer=self.optimizer,
            epochs=epochs,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            options=training.options,
            progress=training.progress,
            schedule=self.schedule(),
            clip_norm=self.config.clip_norm,
            identity=self.identity() | (dict(since) if since else {}),
        ).figures()

    def grown(self, growth: Growth) -> dict[str, float]:
        """Go on from the weights that were learnt, with all images and a share of the epochs.

        Standardising stays as it was: another one would be another head to go on from.
        """
        if len(growth.gone):
            raise GrowthError(
                f"{self.name}: what it has learnt of an image cannot be taken out of its weights",
                remedy="train it in full",
            )
        options = growth.options
        epochs = fewer_epochs(options.epochs or self.config.epochs, growth.share)
        options = dataclasses.replace(options, epochs=None)
        # Nothing is gone: an empty source of the right shapes.
        training = Training(growth.train, growth.gone, options, growth.progress)
        weights = [float(p.detach().double().abs().sum()) for p in self.parameters()]
        return self.learn_more(training, epochs, {"since": weights})
