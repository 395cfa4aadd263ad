"""An old name, kept: heads of other packages import it (docs/architecture.md, "Old names")."""

from heads.judging.scores import LikelihoodScores, fuse, log_likelihood, top_k_mean, upsample

__all__ = ["LikelihoodScores", "fuse", "log_likelihood", "top_k_mean", "upsample"]
