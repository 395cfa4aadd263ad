"""An old name, kept: registered models import it (docs/architecture.md, "Old names")."""

# ruff: noqa: F401
from headwater.samples import PAIR
from storage.serving.pyfunc import SIGNATURES
from storage.serving.pyfunc import ServedModel as PairModel

PAIR_SIGNATURE = SIGNATURES[PAIR]
