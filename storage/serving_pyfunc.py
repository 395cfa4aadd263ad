"""An old name, kept: registered models import it (docs/architecture.md, "Old names")."""

from storage.serving.pyfunc import AnomalyModel, decode_map, encode_image

__all__ = ["AnomalyModel", "decode_map", "encode_image"]
