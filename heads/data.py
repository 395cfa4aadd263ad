"""An old name, kept: heads of other packages import it (docs/architecture.md, "Old names")."""

# ruff: noqa: F401
from heads.contract import Batch, FeatureSource, Shape, check_finite
from heads.training.sources import TensorSource, source_fingerprint, to_device
from heads.training.splits import split_held_out
