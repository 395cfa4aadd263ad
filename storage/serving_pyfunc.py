"""An old name, kept: registered models import it (docs/architecture.md, "Old names")."""

# ruff: noqa: F401
from headwater.samples import IMAGE
from storage.serving.encoding import decode_base64, decode_map, encode_image, encode_map
from storage.serving.pyfunc import OUTPUTS, SIGNATURES
from storage.serving.pyfunc import ServedModel as AnomalyModel

SIGNATURE = SIGNATURES[IMAGE]
