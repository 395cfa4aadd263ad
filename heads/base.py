"""An old name, kept: heads of other packages import it (docs/architecture.md, "Old names")."""

# ruff: noqa: F401
from heads.catalogue import PLUGINS, broken_plugins, get_head, make_config
from heads.catalogue import all_heads as registry
from heads.contract import (
    Batch,
    FeatureSource,
    H,
    Head,
    HeadConfig,
    Reference,
    Scores,
    Shape,
    register,
)
from heads.training.arithmetic import device_of
