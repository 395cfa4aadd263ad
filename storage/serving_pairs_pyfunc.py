"""An old name, kept: registered models import it (docs/architecture.md, "Old names")."""

from storage.serving.pair_pyfunc import PairModel

__all__ = ["PairModel"]
