"""An old name, kept: heads of other packages import it (docs/architecture.md, "Old names")."""

# ruff: noqa: F401
from heads.contract import Scores
from heads.judging.scores import (
    Fusion,
    LikelihoodScores,
    Normaliser,
    fuse,
    log_likelihood,
    top_k_mean,
    upsample,
)
