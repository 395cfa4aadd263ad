"""DNFAD: two branches of dynamic flow modules over one map, one for the whole, one per position.

Li et al., "Dual-branch Normalizing Flow for Anomaly Detection and Localization from Images".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from FrEIA.framework import SequenceINN
from torch import Tensor, nn
from torch.optim import Optimizer

from heads.contract import Batch, HeadConfig, Reference, Shapes, Size, register
from heads.flow.map_head import MapFlowConfig, MapFlowHead, nodes_of, through
from heads.looking import mean_over, only, places
from heads.parts.coupling import AffineCoupling
from heads.parts.dsam import DynamicSubnet
from heads.parts.elementary import Permute
from heads.parts.seeds import seeded
from heads.training.trainer import adam
from headwater.errors import ConfigError
from headwater.spec import BackboneInfo, LayerSpec, Needs


@dataclass(frozen=True)
class DualFlowConfig(MapFlowConfig):
    """Settings of `dual_flow`; the defaults are the paper's (section 4.2).

    Parameters
    ----------
    branches
        ``both``, ``global`` (the paper's variant 1) or ``local`` (variant 2).
    dsam
        Dynamic spatial attention in the subnets; variants 1 to 3 are without.
    layers
        Dynamic flow modules per branch; 1 to 10 in the paper's table 7.
    clamp
        Alpha of eq. 7; the paper does not give its value.
    final_relu
        Close the subnets with a ReLU, as the text of section 3.3 has it.
    groups
        Groups G of the IDConv.
    hidden_ratio
        Channels between a subnet's two convolutions over those that it sees.
    local_kernel
        Kernel size of the local branch's convolutions; the paper's is 3. With 1 only the gate and
        the norm see more than a position.
    fuse
        How the two nodes' maps become one: ``sum``, ``concat`` or ``auto`` (``sum`` of a
        transformer's tokens, ``concat`` of a convolutional net's stages).
    pool
        Pooling of a convolutional net's stages before they are fused, as in a layer's name.
    weight_decay
        AdamW's; the paper does not give it.
    """

    clamp: float = 2.0
    lr: float = 5e-5
    batch_size: int = 8
    epochs: int = 200
    branches: Literal["both", "global", "local"] = "both"
    dsam: bool = True
    layers: int = 6
    final_relu: bool = False
    groups: int = 8
    hidden_ratio: float = 1.0
    local_kernel: int = 3
    fuse: Literal["auto", "sum", "concat"] = "auto"
    pool: str = ""
    betas: tuple[float, float] = (0.8, 0.8)
    eps: float = 1e-8
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.branches not in ("both", "global", "local"):
            raise ConfigError(f"branches {self.branches!r}", expected="both, global or local")
        if self.layers < 1:
            raise ConfigError(f"layers {self.layers}", expected="1 or more")
        if self.fuse not in ("auto", "sum", "concat"):
            raise ConfigError(f"fuse {self.fuse!r}", expected="auto, sum or concat")
        if self.local_kernel < 1 or self.local_kernel % 2 == 0:
            raise ConfigError(f"local_kernel {self.local_kernel}", expected="an odd size")


@register
class DualFlow(MapFlowHead):
    """Global and local branch of dynamic flow modules over the same map.

    A module shuffles the channels, splits them in halves and changes each from the other with scale
    and shift from a `DynamicSubnet` (section 3.2). The global branch learns by the likelihood of
    the map (eq. 9), the local one by that of each position, averaged (eq. 12, 13); the loss is
    their sum (eq. 14), each per dimension. Score: section 3.5.
    """

    name = "dual_flow"
    Config = DualFlowConfig
    paper = "DNFAD (Li et al., dual-branch normalizing flow)"
    summary = "global and local flow head, dynamic spatial attention"
    reads = "a transformer's blocks 7 and 11 of 12, or stages of strides 8 and 16"
    reference = Reference(
        "vit_base_patch8_224", 224, {"blocks.6+blocks.10~norm~sum": (768, 28, 28)}
    )
    presets = {
        "small": {
            "channels": 256,
            "standardise": True,
            "pool": "avg3s2",
            "layers": 3,
            "hidden_ratio": 0.15,
            "lr": 3e-3,
            "epochs": 10,
            "clip_norm": 1.0,
        }
    }
    config: DualFlowConfig

    @classmethod
    def needs(cls, config: HeadConfig, backbone: BackboneInfo, resize: Size) -> Needs:
        """Return one layer: blocks 7 and 11 of a transformer, or stages of stride 8 and 16."""
        assert isinstance(config, DualFlowConfig)
        nodes = nodes_of(cls.name, config, backbone, (7, 11), (8, 16))
        fuse = config.fuse
        if fuse == "auto":
            fuse = "sum" if backbone.tokens else "concat"
        pool = "" if backbone.tokens else config.pool
        layer = LayerSpec(nodes, pool=pool, fuse=fuse, norm=backbone.tokens)
        paper = backbone.name.startswith(("vit_base_patch8_224", "wide_resnet50_2"))
        return Needs((layer,), config.resize(224 if paper else None))

    def __init__(self, config: DualFlowConfig, shapes: Shapes, map_size: Size) -> None:
        super().__init__(config, shapes, map_size)
        if len(self.shapes) != 1:
            raise ConfigError(f"{self.name}: {len(self.shapes)} layers", expected="one fused layer")
        names = ("global", "local") if config.branches == "both" else (config.branches,)
        self.branches = nn.ModuleDict({name: self._branch(name) for name in names})
        self.settle()

    def _branch(self, name: str) -> SequenceINN:
        config, local = self.config, name == "local"
        subnet = partial(
            DynamicSubnet,
            attention=config.dsam,
            kernel=config.local_kernel if local else 3,
            final_relu=config.final_relu,
            groups=config.groups,
            hidden_ratio=config.hidden_ratio,
        )
        (shape,) = self.dims
        branch = SequenceINN(*shape)
        for layer in range(config.layers):
            seed = (config.seed * 1009 + local) * 1009 + layer
            branch.append(Permute, seed=seed, per_position=local)
            with seeded(seed):
                branch.append(AffineCoupling, subnet=subnet, clamp=config.clamp, per_position=local)
        return branch

    def inputs(self, batch: Batch) -> list[Tensor]:
        """Return the map once per branch: each branch is a bijection of it."""
        (x,) = super().inputs(batch)
        return [x] * len(self.branches)

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """Return AdamW with the paper's settings."""
        return adam(parameters, self.config, decoupled=True)

    def transform(self, maps: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Return the latents of the branches and their log-determinants' sum, ``[B]``."""
        return through(self.branches.values(), maps)

    def invert(self, z: Sequence[Tensor]) -> list[Tensor]:
        """Return the standardised map per branch."""
        return [b(x, rev=True)[0] for b, x in zip(self.branches.values(), z, strict=True)]

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return the branches' negative log-likelihoods per dimension and their sum."""
        maps, fixed = self.standardised(self.inputs(batch))
        fixed = fixed / len(maps)
        figures = {}
        for (name, branch), x in zip(self.branches.items(), maps, strict=True):
            channels, positions = x.shape[1], places((x.shape[2], x.shape[3]))
            z, log_det = branch(x)
            if name == "global":  # eq. 9
                value = 0.5 * only(z.square()).flatten(1).sum(1) - log_det - fixed
                figures[f"nll_{name}"] = value / (channels * positions)
            else:  # eq. 12 and 13
                each = 0.5 * z.square().sum(1) - log_det - (fixed / positions)[:, None, None]
                figures[f"nll_{name}"] = mean_over(each) / channels
        loss = torch.stack(list(figures.values())).sum(0)
        return {"loss": loss, "nll": loss / len(figures), **figures}
