"""An old name, kept: heads of other packages import it (docs/architecture.md, "Old names")."""

# ruff: noqa: F401
from heads.flow.flow_head import FlowHead, check_channels, nll_per_dimension
