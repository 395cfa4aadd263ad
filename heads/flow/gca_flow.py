"""GCAFlow and the MSFlow it builds on: asymmetric flow heads per scale, fused by one coupling.

GCAFlow: Liao et al., Sensors 25 (2025) 3205. MSFlow: Zhou et al., IEEE TNNLS 36 (2024) 2437.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from FrEIA.framework import SequenceINN
from torch import Tensor, nn

from heads.contract import HeadConfig, Reference, Shape, Shapes, Size, register
from heads.flow.map_head import MapFlowConfig, MapFlowHead, global_affine, stage_nodes
from heads.parts.attention import KINDS
from heads.parts.coupling import AffineCoupling
from heads.parts.elementary import Permute
from heads.parts.fusion import FusionCoupling
from heads.parts.position import PositionCode
from heads.parts.seeds import seeded
from heads.parts.subnets import HierarchicalSubnet, PlainSubnet
from headwater.errors import ConfigError
from headwater.spec import BackboneInfo, LayerSpec, Needs


@dataclass(frozen=True)
class GCAFlowConfig(MapFlowConfig):
    """Settings of `gca_flow`; the defaults are the paper's.

    Parameters
    ----------
    blocks
        Coupling blocks per scale, fine to coarse.
    subnet
        ``hierarchical``: GCAFlow's H-Flow; ``plain``: MSFlow's two convolutions.
    kernel
        Size of the subnets' spatial convolutions: 3, 5 or 7 in the paper's table 6.
    expansion
        Widening of the H-Flow's inverted bottleneck: 1 to 4 in the paper's table 7.
    attention
        Channel attention of the fusion: ``gca``, ``se``, ``eca`` (table 8) or ``none``.
    fusion
        Whether the scales are fused by the last coupling.
    position_channels
        Channels of the position code, a multiple of 4; 0 leaves it out.
    pool
        Pooling of the backbone's maps, as in a layer's name; empty leaves it out.
    """

    lr: float = 1e-4
    warmup_epochs: float = 2.0
    batch_size: int = 16
    epochs: int = 100
    clip_norm: float | None = 2.0
    blocks: tuple[int, ...] = (2, 5, 8)
    subnet: Literal["hierarchical", "plain"] = "hierarchical"
    kernel: int = 5
    expansion: int = 4
    attention: str = "gca"
    fusion: bool = True
    position_channels: int = 64
    pool: str = "avg3s2"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.blocks or min(self.blocks) < 1:
            raise ConfigError(f"blocks {self.blocks}", expected="at least 1 block per scale")
        if self.subnet not in ("hierarchical", "plain"):
            raise ConfigError(f"subnet {self.subnet!r}", expected="hierarchical or plain")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ConfigError(f"kernel {self.kernel}", expected="an odd size such as 3, 5 or 7")
        if self.expansion < 1:
            raise ConfigError(f"expansion {self.expansion}", expected="1 or more")
        if self.attention not in KINDS:
            raise ConfigError(f"attention {self.attention!r}", expected=", ".join(KINDS))


@dataclass(frozen=True)
class MSFlowConfig(GCAFlowConfig):
    """Settings of `ms_flow`: plain subnets, 3x3 kernels, no channel attention."""

    subnet: Literal["hierarchical", "plain"] = "plain"
    kernel: int = 3
    attention: str = "none"


STRIDES = (4, 8, 16)
PAPER_NET = "wide_resnet50_2"
# Chosen for a minute's training on two cores from resnet18's maps at 256 px: a third of the
# blocks, small kernels, a rate that fits the few steps.
_SMALL = {
    "channels": 256,
    "standardise": True,
    "blocks": (1, 2, 3),
    "kernel": 3,
    "expansion": 2,
    "position_channels": 32,
    "lr": 2e-3,
    "warmup_epochs": 1.0,
    "batch_size": 8,
    "epochs": 12,
}


@register
class GCAFlow(MapFlowHead):
    """Three asymmetric stacks of H-Flow blocks and the FusionAttnFlow over their outputs.

    Per scale, `blocks` times: a learnt affine map per channel, a permutation, an affine coupling
    of one half whose subnet sees the other half and a position code (sections 3.2 to 3.4); then one
    coupling over all scales with channel attention (sections 3.5, 3.6). Score: section 3.7.
    """

    name = "gca_flow"
    Config = GCAFlowConfig
    paper = "GCAFlow (Liao et al., Sensors 2025, 25(10), 3205)"
    summary = "multi-scale flow head, hierarchical subnets, channel attention"
    reads = "stages of strides 4, 8 and 16, pooled 3x3 with stride 2"
    reference = Reference(
        PAPER_NET,
        512,
        {f"layer{k}~avg3s2": (c, n, n) for k, c, n in ((1, 256, 64), (2, 512, 32), (3, 1024, 16))},
    )
    presets = {"small": _SMALL}
    fusion = ("sum", "product")
    config: GCAFlowConfig

    @classmethod
    def needs(cls, config: HeadConfig, backbone: BackboneInfo, resize: Size) -> Needs:
        """Return the pooled maps of strides 4, 8 and 16, or of `config.nodes`."""
        assert isinstance(config, GCAFlowConfig)
        if not config.nodes and len(config.blocks) != len(STRIDES):
            raise ConfigError(
                f"{cls.name}: blocks {config.blocks} for stages of strides 4, 8 and 16",
                expected="three numbers",
                remedy="give three numbers, or name as many nodes as there are numbers",
            )
        strides = STRIDES if not config.nodes else range(len(config.blocks))
        nodes = stage_nodes(cls.name, backbone, strides, config.nodes)
        layers = tuple(LayerSpec((n,), pool=config.pool) for n in nodes)
        return Needs(layers, config.resize(512 if backbone.name.startswith(PAPER_NET) else None))

    def __init__(self, config: GCAFlowConfig, shapes: Shapes, map_size: Size) -> None:
        super().__init__(config, shapes, map_size)
        if len(self.shapes) != len(config.blocks):
            raise ConfigError(
                f"{self.name}: blocks {config.blocks} for {len(self.shapes)} layers",
                expected="one number per layer",
            )
        # A seed of its own for every part: changing one leaves the others' weights as they were.
        self.scales = nn.ModuleList(
            self._stack(shape, count, index)
            for index, (shape, count) in enumerate(zip(self.dims, config.blocks, strict=True))
        )
        self.fuse: FusionCoupling | None = None
        if config.fusion:
            with seeded(self._seed(len(self.dims), 0)):
                self.fuse = FusionCoupling(
                    self.dims, clamp=config.clamp, attention=config.attention
                )
        self.settle()

    def _stack(self, shape: Shape, count: int, index: int) -> SequenceINN:
        position = PositionCode(self.config.position_channels, *shape[1:])
        stack = SequenceINN(*shape)
        clamp, subnet = self.config.clamp, self._subnet(position)
        for block in range(count):
            seed = self._seed(index, block)
            stack.append(global_affine)
            stack.append(Permute, seed=seed)
            with seeded(seed):
                stack.append(AffineCoupling, subnet=subnet, clamp=clamp, two_sided=False)
        # What the last coupling left alone is in both halves of the fusion.
        stack.append(Permute, seed=self._seed(index, count))
        return stack

    def _seed(self, scale: int, block: int) -> int:
        return (self.config.seed * 1009 + scale) * 1009 + block

    def _subnet(self, position: PositionCode) -> Callable[[int, int], nn.Module]:
        config = self.config
        own: dict[str, Any] = {"position": position, "kernel": config.kernel}
        if config.subnet == "plain":
            return partial(PlainSubnet, **own)
        return partial(HierarchicalSubnet, expansion=config.expansion, **own)

    def transform(self, maps: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Return the latents of all scales and the log-determinant, ``[B]``."""
        pairs = [stack(x) for stack, x in zip(self.scales, maps, strict=True)]
        z, log_det = [p[0] for p in pairs], sum(p[1] for p in pairs)
        if self.fuse is not None:
            fused, more = self.fuse(z)
            z, log_det = list(fused), log_det + more
        return z, log_det

    def invert(self, z: Sequence[Tensor]) -> list[Tensor]:
        """Return the standardised maps of the latents of all scales."""
        maps = list(z)
        if self.fuse is not None:
            maps = list(self.fuse(maps, rev=True)[0])
        return [stack(x, rev=True)[0] for stack, x in zip(self.scales, maps, strict=True)]


@register
class MSFlow(GCAFlow):
    """MSFlow: plain convolutional subnets, fusion without channel attention."""

    name = "ms_flow"
    Config = MSFlowConfig
    paper = "MSFlow (Zhou et al., IEEE TNNLS 2024), GCAFlow's base"
    summary = "multi-scale flow head, plain subnets"
    presets = {"small": {k: v for k, v in _SMALL.items() if k != "expansion"}}
