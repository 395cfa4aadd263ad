"""An old name, kept: heads of other packages import it (docs/architecture.md, "Old names")."""

from heads.catalogue import PLUGINS, get_head, make_config, registry
from heads.contract import (
    Batch,
    FeatureSource,
    Head,
    HeadConfig,
    Reference,
    Scores,
    Shape,
    register,
)
from heads.training.arithmetic import device_of

__all__ = [
    "PLUGINS",
    "Batch",
    "FeatureSource",
    "Head",
    "HeadConfig",
    "Reference",
    "Scores",
    "Shape",
    "device_of",
    "get_head",
    "make_config",
    "register",
    "registry",
]
