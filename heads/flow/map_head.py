"""What the flow heads over whole maps share: likelihood maps and scores, and which maps."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from heads.contract import Batch, HeadConfig, Scores, Shape, Shapes, Size, Training
from heads.flow.flow_head import DensityConfig, DensityHead
from heads.judging.scores import Fusion, LikelihoodScores, Normaliser, log_likelihood
from heads.looking import looking
from heads.parts.elementary import ActNorm, Standardise
from heads.training.sources import to_device
from heads.training.trainer import Schedule
from headwater.errors import ConfigError
from headwater.spec import BackboneInfo


@dataclass(frozen=True)
class MapFlowConfig(DensityConfig):
    """Settings that the flow heads over maps have in common.

    Parameters
    ----------
    warmup_epochs
        Epochs of linear warm-up of the learning rate.
    top_k
        Of ``score: paper``: the mean of this share of the largest pixels; 0 is the maximum.
    normaliser
        Of ``score: paper``, whose maps are ``max(P) - P``. ``stored``: maxima fixed on normal
        images; ``image``: each image's own.
    """

    warmup_epochs: float = 0.0
    top_k: float = 0.03
    normaliser: Normaliser = "stored"


class MapFlowHead(DensityHead):
    """Base of flow heads that read maps and score by the likelihood of each position.

    A subclass gives `transform`, `invert` and what differs of `DensityHead`.
    """

    Config: ClassVar[type[HeadConfig]] = MapFlowConfig
    fusion: ClassVar[tuple[Fusion, Fusion]] = ("sum", "sum")
    config: MapFlowConfig

    def __init__(self, config: MapFlowConfig, shapes: Shapes, map_size: Size) -> None:
        super().__init__(config, shapes, map_size)
        self.draw_channels(config.channels, config.seed)
        self.scale = nn.ModuleList(Standardise([shape]) for shape in self.dims)
        self.scorer = LikelihoodScores(*self.fusion, config.top_k, config.normaliser)

    @abstractmethod
    def transform(self, maps: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Return latents and log-determinant per sample of the standardised maps."""

    @abstractmethod
    def invert(self, z: Sequence[Tensor]) -> list[Tensor]:
        """Return the standardised maps of latents."""

    def standardised(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Return the standardised maps and the log-determinant of that, ``[B]``."""
        out = [x.contiguous(memory_format=torch.channels_last) for x in maps]
        total = out[0].new_zeros(len(out[0]))
        # One part per layer; where branches read the same layer they share it.
        for i, part in enumerate(self.standards_of(len(out))):
            (out[i],), log_det = part((out[i],))
            total = total + log_det
        return out, total

    def standards(self) -> list[Standardise]:
        """Return the standardising part of each layer."""
        return cast("list[Standardise]", list(self.scale))

    def standards_of(self, count: int) -> list[Standardise]:
        """Return the standardising part of each of `count` maps; none where it is off."""
        return self.standards() * (count // len(self.scale)) if self.config.standardise else []

    def latent_of(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Return `latent` of maps as `inputs` gives them."""
        standard, fixed = self.standardised(maps)
        z, log_det = self.transform(standard)
        return z, log_det + fixed

    def reverse(self, z: Sequence[Tensor]) -> list[Tensor]:
        """Return the maps whose latents are `z`."""
        maps = self.invert(z)
        for i, part in enumerate(self.standards_of(len(maps))):
            maps[i] = part((maps[i],), rev=True)[0][0]
        return maps

    def log_maps(self, batch: Batch) -> list[Tensor]:
        """Return the log-likelihood maps ``[B, H_i, W_i]`` that are fused to scores."""
        return [log_likelihood(z) for z in self.latent(batch)[0]]

    def schedule(self) -> Schedule:
        """Return the learning rate: a linear warm-up, then constant."""
        return Schedule(warmup=self.config.warmup_epochs)

    def learn_more(
        self, training: Training, epochs: int, since: Mapping[str, Any] | None = None
    ) -> dict[str, float]:
        """Learn the density of normal features; fix the normalisers on held-out normals."""
        figures = super().learn_more(training, epochs, since)
        if not self.published:
            return figures
        source = training.held_out if len(training.held_out) else training.train
        batches = (to_device(b, self.fitted.device) for b in source.batches(self.config.batch_size))
        with torch.no_grad():
            self.scorer.fit(self._each(batches), self.map_size)
        return figures

    def _each(self, batches: Iterable[Batch]) -> Iterator[list[Tensor]]:
        """Yield the log-likelihood maps of batches; while one is used, what of it is looked at."""
        for batch in batches:
            with looking(batch):
                yield self.log_maps(batch)

    @property
    def score_limit(self) -> float | None:
        """The stored maximum: ``max(P) - P`` with P above 0. Energies have no such."""
        return float(self.scorer.image_top) if self._limited else None

    @property
    def map_limit(self) -> float | None:
        """The same of maps."""
        return float(self.scorer.map_top) if self._limited else None

    @property
    def _limited(self) -> bool:
        return self.published and self.config.normaliser == "stored"

    def as_published(self, batch: Batch) -> Scores:
        """Score maps ``[B, C, H, W]`` per layer; see `LikelihoodScores`."""
        return self.scorer(self.log_maps(batch), self.map_size)


def through(stacks: Iterable[nn.Module], maps: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Return the latents of one stack a map, and their log-determinants' sum, ``[B]``."""
    pairs = [stack(x) for stack, x in zip(stacks, maps, strict=True)]
    total = torch.stack([p[1].reshape(len(p[1]), -1).sum(1) for p in pairs]).sum(0)
    return [p[0] for p in pairs], total


def global_affine(dims: Sequence[Shape], per_position: bool = False) -> ActNorm:
    """Return a learnt affine map per channel that starts as the identity.

    The maps are standardised already, on all training images and with a floor for channels that
    hardly move; setting it anew from the first batch would blow such channels up.
    """
    part = ActNorm(dims, per_position)
    part.ready.fill_(True)
    return part


def nodes_of(
    head: str,
    config: HeadConfig,
    backbone: BackboneInfo,
    blocks: Sequence[int],
    strides: Sequence[int],
) -> tuple[str, ...]:
    """Return the nodes that are configured, else of a transformer `blocks`, else of `strides`."""
    if config.nodes:
        return config.nodes
    if backbone.tokens:
        return token_nodes(head, backbone, blocks)
    return stage_nodes(head, backbone, strides)


def stage_nodes(
    head: str, backbone: BackboneInfo, strides: Sequence[int], nodes: Sequence[str] = ()
) -> tuple[str, ...]:
    """Return one node per stride: `nodes` where given, else the backbone's stages.

    Raises
    ------
    ConfigError
        Where the backbone has no stage of a stride, or `nodes` are of another number.
    """
    if nodes:
        if len(nodes) != len(strides):
            raise ConfigError(
                f"{head}: {len(nodes)} nodes {', '.join(nodes)}",
                expected=f"{len(strides)} nodes, fine to coarse",
            )
        return tuple(nodes)
    # Of several stages with one stride the deepest sees most. A net that pads nothing has strides
    # that are nearly whole: inception_v3's 35x35 map of 299 px counts as stride 8.
    stages = dict(zip(backbone.strides, backbone.stages, strict=True))
    near: dict[int, str] = {}
    for want in strides:
        found = sorted((abs(math.log2(s / want)), name) for s, name in stages.items())
        if found and found[0][0] < 0.2:
            near[want] = found[0][1]
    missing = [s for s in strides if s not in near]
    if missing or backbone.tokens:
        have = ", ".join(f"{n} (stride {s})" for s, n in stages.items()) or "none"
        raise ConfigError(
            f"{head} with backbone {backbone.name}: no stage of stride "
            + ", ".join(map(str, missing or strides)),
            expected=f"stages of strides {', '.join(map(str, strides))}; it has {have}",
            remedy="choose another backbone or name the nodes, fine to coarse",
        )
    return tuple(near[s] for s in strides)


def token_nodes(head: str, backbone: BackboneInfo, blocks: Sequence[int]) -> tuple[str, ...]:
    """Return the nodes of transformer blocks, 1-based and out of 12, scaled to the depth.

    Raises
    ------
    ConfigError
        Where the backbone is too shallow for as many different blocks.
    """
    numbers = [max(1, round(b * backbone.depth / 12)) - 1 for b in blocks]
    if len(set(numbers)) < len(blocks) or backbone.depth < 1:
        raise ConfigError(
            f"{head} with backbone {backbone.name}: {backbone.depth} transformer blocks",
            expected=f"blocks {', '.join(map(str, blocks))} of 12, or as many of another depth",
            remedy="choose another backbone or name the nodes",
        )
    return tuple(f"blocks.{n}" for n in numbers)
