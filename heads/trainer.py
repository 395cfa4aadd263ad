"""An old name, kept: heads of other packages import it (docs/architecture.md, "Old names")."""

# ruff: noqa: F401
from heads.contract import NullProgress, Progress, TrainOptions
from heads.training.arithmetic import autocast, choose_precision, running
from heads.training.trainer import LossFn, Schedule, TrainResult, train_module
