"""CS-Flow and CSA-Flow: one flow head over three image scales, with or without attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

from FrEIA.framework import InputNode, Node, OutputNode
from torch import Tensor

from heads.contract import Batch, HeadConfig, Reference, Scores, Shape, Shapes, Size, register
from heads.flow.flow_head import DensityConfig, DensityHead, energy
from heads.judging.scores import upsample
from heads.parts.cross_attention import ChannelGate, PublishedGate
from heads.parts.cross_scale import CrossScaleCoupling, CrossScaleSubnet
from heads.parts.elementary import Permute, Standardise
from heads.parts.invertible import OrderedGraphINN
from heads.parts.seeds import seed_from, seeded
from heads.training.trainer import Schedule
from headwater.errors import ConfigError
from headwater.spec import BackboneInfo, LayerSpec, Needs, digest

ATTENTIONS = ("none", "ca", "sa", "ca+sa", "as_published")


@dataclass(frozen=True)
class CSFlowConfig(DensityConfig):
    """Settings of `cs_flow` and `csa_flow`; the defaults are the paper's (section 4.2).

    Parameters
    ----------
    scales
        Image scales, each half the one before.
    kernels
        Kernel size of each coupling block's subnets; its length is the number of blocks.
    hidden
        Hidden channels of the subnets.
    slope
        Of the leaky ReLU.
    attention
        ``none``; ``ca``: channel gate inside the model; ``sa``: self-attention in the subnets;
        ``ca+sa``; ``as_published``: the gate in front without log-determinant, and ``sa``.
    reduction
        Bottleneck of the channel gate, and of the queries and keys, as a divisor.
    schedule
        ``constant`` (the paper), ``cosine`` or ``one_cycle``.
    warmup
        Epochs of warm-up; for ``one_cycle`` the share of steps that rise.
    """

    scales: int = 3
    kernels: tuple[int, ...] = (3, 3, 3, 5)
    hidden: int = 1024
    slope: float = 0.1
    clamp: float = 3.0
    attention: str = "none"
    reduction: int = 16
    epochs: int = 240
    lr: float = 2e-4
    betas: tuple[float, float] = (0.8, 0.8)
    eps: float = 1e-4
    weight_decay: float = 1e-5
    clip_norm: float = 1.0
    schedule: Literal["constant", "cosine", "one_cycle"] = "constant"
    warmup: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attention not in ATTENTIONS:
            raise ConfigError(
                f"attention {self.attention!r}", expected="one of " + ", ".join(ATTENTIONS)
            )
        if not self.kernels or any(k % 2 == 0 or k < 1 for k in self.kernels):
            raise ConfigError(f"kernels {self.kernels}", expected="odd sizes, one per block")
        if not 1 <= self.scales <= 5:
            raise ConfigError(f"{self.scales} scales", expected="1 to 5")


@dataclass(frozen=True)
class CSAFlowConfig(CSFlowConfig):
    """Settings of `csa_flow`: those of `cs_flow` with both attentions on."""

    attention: str = "ca+sa"


PAPER_SIZE = 768
# Found on held-out normals' likelihood and on synthetic defects.
SMALL: dict[str, Any] = {
    "image_size": "run",
    "channels": 256,
    "hidden": 32,
    "kernels": (3, 3),
    "standardise": True,
    "epochs": 30,
    "lr": 2e-3,
    "schedule": "cosine",
}


@register
class CSFlow(DensityHead):
    """Cross-scale flow head: couplings over three image scales whose subnets see all scales.

    Rudolph et al., "Fully Convolutional Cross-Scale-Flows" (CS-Flow), as CSA-Flow builds on it
    (sections 3.2 and 3.4). Unlike public code it inverts on all scales, and its log-determinant is
    per sample.
    """

    name = "cs_flow"
    Config = CSFlowConfig
    config: CSFlowConfig
    paper = "CSA-Flow without its attentions (CS-Flow)"
    summary = "cross-scale couplings over three image scales"
    reads = "one deep node at three image scales, the coarsest map at least 4x4"
    reference = Reference(
        "efficientnet_b5",
        PAPER_SIZE,
        {f"blocks.5{s}": (304, n, n) for s, n in (("", 24), ("@0.5", 12), ("@0.25", 6))},
    )
    presets = {"small": SMALL}

    def __init__(self, config: HeadConfig, shapes: Shapes, map_size: Size) -> None:
        super().__init__(config, shapes, map_size)
        dims = list(self.shapes.values())
        if len({d[0] for d in dims}) != 1 or len(dims) != self.config.scales or dims[0][0] < 2:
            raise ConfigError(
                f"{self.name}: maps of shapes {dims}",
                expected=f"{self.config.scales} scales of one node, at least 2 channels",
            )
        self.draw_channels(self.config.channels, config.seed)
        with seeded(config.seed):
            self.couplings = self._build(self.dims)
        self.settle()

    @classmethod
    def needs(cls, config: HeadConfig, backbone: BackboneInfo, resize: Size) -> Needs:
        """Return one node's maps at every image scale.

        EfficientNets give ``blocks.5``, the paper's; other backbones the deepest stage whose
        coarsest map is still 4x4 at the run's image size.

        Raises
        ------
        ConfigError
            Where no stage's coarsest map is 4x4.
        """
        config = cast("CSFlowConfig", config)
        efficient = "efficientnet" in backbone.name
        size = config.resize(PAPER_SIZE if efficient else None)
        nodes = config.nodes
        if not nodes and efficient and "blocks.6" in backbone.stages:
            nodes = ("blocks.5",)
        if not nodes:
            nodes = (cls._deepest(config, backbone, min(size or resize)),)
        scales = [0.5**k for k in range(config.scales)]
        if backbone.tokens:
            cls._whole_patches(config, backbone, size or resize)
        return Needs(tuple(LayerSpec(nodes, scale) for scale in scales), resize=size)

    @classmethod
    def _whole_patches(cls, config: CSFlowConfig, backbone: BackboneInfo, size: Size) -> None:
        """Raise where a transformer's patches do not fill the smallest image."""
        unit = max(backbone.strides) * 2 ** (config.scales - 1)
        if any(side % unit for side in size):
            near = max(unit, round(min(size) / unit) * unit)
            raise ConfigError(
                f"{cls.name}: images of {size[0]}x{size[1]} px at image scale "
                f"{0.5 ** (config.scales - 1):g} are no whole number of {backbone.name}'s patches",
                expected=f"sides that are multiples of {unit} px, such as {near}",
                remedy=f"--size {near} (and --backbone-option img_size={near}), or fewer scales",
            )

    @classmethod
    def _deepest(cls, config: CSFlowConfig, backbone: BackboneInfo, side: int) -> str:
        if not backbone.stages:
            raise ConfigError(
                f"{cls.name}: {backbone.name} has no stages whose weights are at hand",
                expected="a backbone with feature maps",
                remedy="name the node with nodes",
            )
        coarsest = side * 0.5 ** (config.scales - 1)
        fitting = [
            stage
            for stage, stride in zip(backbone.stages, backbone.strides, strict=True)
            if math.ceil(coarsest / stride) >= 4
        ]
        if not fitting:
            finest = min(backbone.strides, default=32)
            raise ConfigError(
                f"{cls.name}: {backbone.name} at {side} px has no map of 4x4 or more at image "
                f"scale {0.5 ** (config.scales - 1):g}",
                expected=f"images of at least {3 * finest * 2 ** (config.scales - 1) + 1} px",
                remedy="use larger images, fewer scales, or name the node with nodes",
            )
        return fitting[-1]

    def _build(self, dims: Sequence[Shape]) -> OrderedGraphINN:
        """Return the graph: per scale standardisation (and gate), then the coupling blocks."""
        config = self.config
        inputs = [InputNode(*d, name=f"scale {k}") for k, d in enumerate(dims)]
        nodes: list[Node] = list(inputs)
        tips: list[Any] = list(inputs)

        def each(part: type, **settings: Any) -> None:
            for k, tip in enumerate(tips):
                own = {n: v(k) if callable(v) else v for n, v in settings.items()}
                tips[k] = Node(tip, part, own, name=f"{part.__name__} {len(nodes)}")
                nodes.append(tips[k])

        if config.standardise:
            each(Standardise)
        if "ca" in config.attention.split("+"):
            each(ChannelGate, reduction=config.reduction, clamp=config.clamp)
        elif config.attention == "as_published":
            each(PublishedGate, reduction=config.reduction)
        for block, kernel in enumerate(config.kernels):
            each(Permute, seed=lambda k, b=block: seed_from("permutation", config.seed, b, k))
            coupling = Node(
                [(tip.out0 if isinstance(tip, Node) else tip) for tip in tips],
                CrossScaleCoupling,
                {"subnet": self._subnet(kernel), "clamp": config.clamp},
                name=f"coupling {block}",
            )
            nodes.append(coupling)
            tips = [(coupling, k) for k in range(len(dims))]
        nodes += [OutputNode(tip, name=f"latent {k}") for k, tip in enumerate(tips)]
        return OrderedGraphINN(nodes)

    def _subnet(self, kernel: int) -> Any:
        config = self.config
        attends = "sa" in config.attention.split("+") or config.attention == "as_published"
        depth = max(1, config.hidden // config.reduction) if attends else 0

        own: dict[str, Any] = {"scales": config.scales, "kernel": kernel, "slope": config.slope}
        return partial(CrossScaleSubnet, hidden=config.hidden, attention_depth=depth, **own)

    def latent_of(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Return one latent per scale, ``[B, C, h_k, w_k]``, and the log-determinant ``[B]``."""
        z, logdet = self.couplings(list(maps))
        return list(z), logdet

    def reverse(self, z: Sequence[Tensor]) -> list[Tensor]:
        """Return the maps of all scales (the gated ones with ``attention="as_published"``)."""
        return list(self.couplings(list(z), rev=True)[0])

    def standards(self) -> list[Standardise]:
        """Return the standardising part of each scale, where there are any."""
        return [m for m in self.couplings.modules() if isinstance(m, Standardise)]

    def schedule(self) -> Schedule:
        """Return the learning rate that the configuration names."""
        return Schedule(self.config.schedule, self.config.warmup)

    def identity(self) -> dict[str, Any]:
        """Return what a checkpoint must agree in to be resumed."""
        return {"head": self.name, "config": digest(self.config)}

    def as_published(self, batch: Batch) -> Scores:
        """Score maps: image = mean of ½z² over all scales, map = channel mean of z², finest scale.

        Section 4.3; the image score is the likelihood's quadratic term.
        """
        z, _ = self.latent(batch)
        square, dims = energy(z)
        maps = upsample(z[0].square().mean(1), self.map_size)
        return Scores(image=(0.5 * square / dims).float(), maps=maps.float())


@register
class CSAFlow(CSFlow):
    """Cross-scale flow head with channel attention and self-attention.

    "CSA-Flow" (`papers/000`): the channel gate of section 3.1 sits inside the model with its
    log-determinant counted, since in front of it, as published, it could raise the likelihood
    without bound by shrinking its input; the self-attention of section 3.3 sits in the subnets.
    """

    name = "csa_flow"
    Config = CSAFlowConfig
    paper = "CSA-Flow: cross-scale with attention normalizing flow"
    summary = "cross-scale couplings with channel attention and self-attention"
