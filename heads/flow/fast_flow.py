"""FastFlow: one two-dimensional flow head per layer of the backbone.

Yu et al., "FastFlow: Unsupervised Anomaly Detection and Localization via 2D Normalizing Flows",
arXiv:2111.07677 (2021). A baseline of the other papers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from FrEIA.framework import SequenceINN
from torch import Tensor, nn

from heads.contract import HeadConfig, Reference, Shape, Shapes, Size, register
from heads.flow.map_head import MapFlowConfig, MapFlowHead, global_affine, nodes_of, through
from heads.parts.coupling import AffineCoupling
from heads.parts.elementary import Permute
from heads.parts.seeds import seeded
from heads.parts.subnets import TwoConvSubnet
from headwater.errors import ConfigError
from headwater.spec import BackboneInfo, LayerSpec, Needs


@dataclass(frozen=True)
class FastFlowConfig(MapFlowConfig):
    """Settings of `fast_flow`; the defaults are the paper's for WideResNet-50-2.

    Parameters
    ----------
    steps
        Coupling blocks per layer: 8 for convolutional nets, 20 for transformers (preset ``vit``).
    kernels
        Kernel sizes of the subnets, taken in turn: ``(3, 1)`` alternates, ``(3,)`` is all 3x3.
    hidden_ratio
        Hidden channels of the subnets over those of the half they see: 1.0; 0.16 for transformers.
    """

    clamp: float = 2.0
    lr: float = 1e-3
    weight_decay: float = 1e-5
    batch_size: int = 32
    epochs: int = 500
    top_k: float = 0.0
    steps: int = 8
    kernels: tuple[int, ...] = (3, 1)
    hidden_ratio: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise ConfigError(f"steps {self.steps}", expected="1 or more")
        if not self.kernels or any(k < 1 or k % 2 == 0 for k in self.kernels):
            raise ConfigError(f"kernels {self.kernels}", expected="odd sizes such as 3 and 1")
        if self.hidden_ratio <= 0:
            raise ConfigError(f"hidden_ratio {self.hidden_ratio}", expected="a positive number")


@register
class FastFlow(MapFlowHead):
    """Independent stacks of couplings with alternating 3x3 and 1x1 subnets, one per layer.

    Score: likelihood maps, up-sampled and averaged over layers (section 3.4); the image's is the
    largest pixel's.
    """

    name = "fast_flow"
    Config = FastFlowConfig
    paper = "FastFlow (Yu et al., arXiv:2111.07677), baseline"
    summary = "one 2-D flow head per layer, 3x3 and 1x1 subnets in turn"
    reads = "stages of strides 4, 8 and 16, or a transformer's block 7 of 12"
    reference = Reference(
        "wide_resnet50_2",
        256,
        {"layer1": (256, 64, 64), "layer2": (512, 32, 32), "layer3": (1024, 16, 16)},
    )
    presets = {
        "vit": {"steps": 20, "hidden_ratio": 0.16},
        "small": {
            "channels": 256,
            "standardise": True,
            "steps": 4,
            "lr": 2e-3,
            "batch_size": 8,
            "epochs": 6,
        },
    }
    fusion = ("mean", "mean")
    #: Whether log-determinants are kept apart by position.
    per_position: ClassVar[bool] = False
    config: FastFlowConfig

    @classmethod
    def needs(cls, config: HeadConfig, backbone: BackboneInfo, resize: Size) -> Needs:
        """Return the stages of strides 4, 8 and 16, or a transformer's block at 7/12 of its depth.

        The paper's DeiT gives block 7 of 12.
        """
        assert isinstance(config, FastFlowConfig)
        nodes = nodes_of(cls.name, config, backbone, (7,), (4, 8, 16))
        paper = 256 if backbone.name.startswith(("wide_resnet50_2", "resnet18")) else None
        return Needs(tuple(LayerSpec((n,)) for n in nodes), config.resize(paper))

    def __init__(self, config: FastFlowConfig, shapes: Shapes, map_size: Size) -> None:
        super().__init__(config, shapes, map_size)
        self.stacks = nn.ModuleList(
            self._stack(shape, index) for index, shape in enumerate(self.dims)
        )
        self.settle()

    def _stack(self, shape: Shape, index: int) -> SequenceINN:
        stack, config, apart = SequenceINN(*shape), self.config, {"per_position": self.per_position}
        for step in range(config.steps):
            seed = (config.seed * 1009 + index) * 1009 + step
            kernel = config.kernels[step % len(config.kernels)]
            subnet = partial(TwoConvSubnet, kernel=kernel, ratio=config.hidden_ratio)
            with seeded(seed):
                stack.append(
                    AffineCoupling, subnet=subnet, clamp=config.clamp, two_sided=False, **apart
                )
            stack.append(global_affine, **apart)
            stack.append(Permute, seed=seed, **apart)
        return stack

    def transform(self, maps: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Return the latents of all layers and the log-determinant, ``[B]``."""
        return through(self.stacks, maps)

    def invert(self, z: Sequence[Tensor]) -> list[Tensor]:
        """Return the standardised maps of the latents of all layers."""
        return [stack(x, rev=True)[0] for stack, x in zip(self.stacks, z, strict=True)]
