"""A flow head over the differences of normal pairs: change detection without labels.

Ours, beside AnoDFDNet, since labelled pairs are rare: it learns what differs between two images of
one place when nothing is wrong (light, viewpoint, noise), and finds differences unlike these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from heads.contract import Batch, HeadConfig, Scores, Size, Training, register
from heads.flow.fast_flow import FastFlow, FastFlowConfig
from heads.flow.flow_head import nll_per_dimension
from heads.flow.map_head import nodes_of
from heads.judging.scores import top_k_mean
from heads.looking import only
from heads.pairs.pair_head import DifferenceSource, PairHead, differences
from heads.pairs.source import CURRENT
from headwater.errors import ConfigError
from headwater.spec import BackboneInfo, LayerSpec, Needs


@dataclass(frozen=True)
class PairFlowConfig(FastFlowConfig):
    """Settings of `pair_flow`.

    Parameters
    ----------
    strides
        Strides of the backbone's stages, one stack each; those it has not are left out. A map
        finer than the changes places them; one coarser than they are mostly says which place they
        are near, and every layer counts alike in the score.
    root
        Model the square roots of the differences, which are less heavy-tailed, and divide them by
        their root mean square without taking a mean off: before any training half the mean of z^2
        then is the plain mean difference, each channel in units of its own.
    noise
        Deviation of the Gaussian noise added in training, in units of a channel's deviation.
        Where two images agree exactly their differences are exactly 0, and a density over such
        points grows without bound: the noise bounds it, as dequantisation does for pixels.
    scoring
        ``density``: the negative log-likelihood per position and channel, its log-determinant
        counted, averaged over layers. ``energy``: ½ mean_c z² alone. ``likelihood``: FastFlow's
        ``max(P) - P`` of that, with the maximum of held-out pairs. Where images agree the
        couplings learn to stretch what little differs, and z looks no quieter there than in a
        change: the log-determinant is what tells them apart.
    """

    standardise: bool = True
    lr: float = 1e-3
    batch_size: int = 8
    epochs: int = 60
    top_k: float = 0.001
    score: str = "paper"
    strides: tuple[int, ...] = (4, 8, 16)
    root: bool = False
    noise: float = 0.1
    scoring: Literal["density", "energy", "likelihood"] = "density"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.strides:
            raise ConfigError("strides ()", expected="at least one")
        if self.noise < 0:
            raise ConfigError(f"noise {self.noise}", expected="0 or more")
        if self.scoring not in ("density", "energy", "likelihood"):
            raise ConfigError(f"scoring {self.scoring!r}", expected="density, energy or likelihood")


@register
class PairFlow(PairHead, FastFlow):
    """FastFlow's stacks of couplings over ``|F_c - F_h|``, one per layer, fitted on normal pairs.

    The features are AnoDFDNet's (eq. 2), the flow head FastFlow's (section 3.3). Masks are not
    looked at. Normal pairs may be crops in which nothing has changed
    (`features.images.crops.cut_normal_pairs`), at the scale at which pairs will be tested.
    """

    name = "pair_flow"
    Config = PairFlowConfig
    paper = "ours, on AnoDFDNet's feature differences and FastFlow's couplings"
    summary = "paired images without labels: flow head over feature differences"
    reads = FastFlow.reads + ", of both images"
    presets = {
        "vit": {"steps": 20, "hidden_ratio": 0.16},
        "small": {"steps": 4, "epochs": 10, "strides": (2, 4), "root": True, "noise": 1.0},
    }
    per_position = True
    config: PairFlowConfig

    @classmethod
    def needs(cls, config: HeadConfig, backbone: BackboneInfo, resize: Size) -> Needs:
        """Return the stages of the strides asked for, or one block of a transformer.

        The image size is the run's own, but where the configuration names one.
        """
        assert isinstance(config, PairFlowConfig)
        there = [s for s in sorted(config.strides) if s in backbone.strides]
        nodes = nodes_of(cls.name, config, backbone, (7,), there or config.strides)
        return Needs(tuple(LayerSpec((n,)) for n in nodes), config.resize(None))

    def inputs(self, batch: Batch) -> list[Tensor]:
        """Return the layers' absolute differences, of a pair batch or already taken."""
        if any(name.startswith(CURRENT) for name in batch):
            batch = differences(batch, self.config.root)
        return super().inputs(batch)

    def standard(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Return the moments; of roots no mean is taken off, so that no difference stays 0."""
        if not self.config.root:
            return mean, std
        return torch.zeros_like(mean), (mean.square() + std.square()).sqrt()

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return the negative log-likelihood per dimension, ``[B]``; of noisy maps in training."""
        maps = self.inputs(batch)
        if self.training and self.config.noise:
            for i, (x, part) in enumerate(zip(maps, self.scale, strict=True)):
                std = part.std[None, :, None, None]  # type: ignore[index]
                # Drawn on the CPU, whose generator a checkpoint keeps on every device.
                noise = torch.randn(x.shape).to(x.device)
                maps[i] = x + only(self.config.noise * std * noise)
        return {"nll": nll_per_dimension(*self.latent_of(maps))}

    @staticmethod
    def why_not(config: HeadConfig) -> str:
        """Return why it cannot grow."""
        return "a head over pairs is trained in full"

    def learn(self, training: Training) -> dict[str, float]:
        """Learn the density of normal pairs' differences."""
        train, held_out = (DifferenceSource(pairs, self.config.root) for pairs in training[:2])
        return super().learn(training._replace(train=train, held_out=held_out))

    @property
    def score_limit(self) -> float | None:
        """The stored maximum, where that is what scores are taken from."""
        return super().score_limit if self.config.scoring == "likelihood" else None

    def as_published(self, batch: Batch) -> Scores:
        """Score pairs by how unlikely their differences are; see `PairFlowConfig.scoring`."""
        if self.config.scoring == "likelihood":
            return super().as_published(batch)
        maps = self.heat(self.energies(batch))
        return Scores(image=top_k_mean(maps, self.config.top_k), maps=maps)

    def energies(self, batch: Batch) -> list[Tensor]:
        """Return the energy or, per position, the negative log-likelihood of each layer."""
        maps = []
        for stack, x in zip(self.stacks, self.standardised(self.inputs(batch))[0], strict=True):
            z, log_det = stack(x)  # the log-determinant per position, ``[B, H, W]``
            energy = 0.5 * z.float().square().mean(1)
            if self.config.scoring == "density":
                energy = energy - log_det.float() / z.shape[1]
            maps.append(energy)
        return maps
