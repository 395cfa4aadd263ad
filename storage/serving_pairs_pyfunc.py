"""An old name, kept: registered models import it (docs/architecture.md, "Old names")."""

from headwater.samples import PAIR
from storage.serving.pyfunc import SIGNATURES
from storage.serving.pyfunc import ServedModel as PairModel

PAIR_SIGNATURE = SIGNATURES[PAIR]

__all__ = ["PAIR_SIGNATURE", "PairModel"]
