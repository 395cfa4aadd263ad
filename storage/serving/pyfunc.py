"""The MLflow face of a `Detector`: base64 images in a table, scores and maps in a table out.

Input: a table with the text column ``image``, of models over pairs ``current`` and ``history``,
each cell the base64 of a PNG, JPEG, BMP, TIFF, WebP or PNM file. Paths and URLs are not taken: a
server must not read files at a client's word.

Output, a row a sample:

- ``score``, ``verdict`` (``normal`` or ``anomalous``, of pairs ``unchanged`` or ``changed``: score
  above threshold) and ``threshold``;
- ``p_value``: the share of normal samples that score as high; missing where the model has no
  out-of-fold scores of normals;
- ``map``: the map of anomalies or changes over the whole image, as base64: at the extractor's
  input size, or, of models that keep an image's aspect, in that aspect. By default a
  16-bit grey PNG whose pixel v stands for ``map_low + v / 65535 * (map_high - map_low)``; with the
  parameter ``map="npy"`` NumPy's file format, float32, exact; with ``map="none"`` empty.
  `storage.serving.encoding.decode_map` reads all of them;
- ``error``: empty, or why this sample could not be scored; the others are.

Parameters: ``threshold`` overrides the model's own, as do ``alpha`` and ``beta`` of models over
single images; ``map`` as above.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import ModelSignature
from mlflow.pyfunc import PythonModel
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

import storage.registry.client  # noqa: F401  MLflow is quiet from here on
from features.images.pixels import decode_image
from headwater.errors import ConfigError, ImageError, ModelError
from headwater.samples import IMAGE, PAIR
from storage.serving.detector import Detector
from storage.serving.encoding import decode_base64, encode_map

_MAPS = ("png", "npy", "none")
OUTPUTS = Schema(
    [
        ColSpec("double", "score", required=False),
        ColSpec("string", "verdict"),
        ColSpec("double", "threshold"),
        ColSpec("string", "map"),
        ColSpec("double", "map_low", required=False),
        ColSpec("double", "map_high", required=False),
        ColSpec("string", "error"),
        ColSpec("double", "p_value", required=False),
    ]
)
SIGNATURES = {
    kind: ModelSignature(
        inputs=Schema([ColSpec("string", name) for name in kind.images]),
        outputs=OUTPUTS,
        params=ParamSchema(
            [
                *(ParamSpec(name, "double", None) for name in factors),
                ParamSpec("map", "string", "png"),
            ]
        ),
    )
    for kind, factors in ((IMAGE, ("threshold", "alpha", "beta")), (PAIR, ("threshold",)))
}


class ServedModel(PythonModel):
    """The pyfunc that `storage/serving/model_code.py` hands to MLflow, of every model."""

    detector: Detector
    # The signature says what the input is; MLflow would check type hints too, and warns in red
    # where it has none that it can check: hence none for the input either.
    _skip_type_hint_validation = True

    def __init__(self) -> None:
        # MLflow says where the model's files are (`load_context`) and not where the model is, which
        # its code alone knows: the file that makes this object lies in the model's folder.
        self._code = Path(sys._getframe(1).f_globals.get("__file__") or "").absolute()

    # MLflow looks these methods' parameters up by name: `context` it must be.
    def load_context(self, context: Any) -> None:
        """Open the model's files.

        Raises
        ------
        ModelError
            Where ``MLmodel`` names files outside the model's folder.
        """
        model = self._code.parent if (self._code.parent / "MLmodel").is_file() else None
        for name, place in context.artifacts.items():
            path = Path(place).absolute()  # not resolved: a link is its owner's choice
            if ".." in path.parts or (model and not path.is_relative_to(model)):
                raise ModelError(
                    f"{model or 'a model'}: MLmodel names a file outside it as {name}: {place}",
                    expected="artifacts/NAME, as Headwater saves it",
                    remedy="fetch the model again from the registry",
                )
        self.detector = Detector.load(Path(context.artifacts["manifest"]).parent)

    def predict(  # type: ignore[no-untyped-def]
        self, context: Any, model_input, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Score a table of samples; see the module's text for columns and parameters.

        Raises
        ------
        ConfigError
            For an unknown map format or a missing column.
        ModelError
            For alpha or beta with a head that has none.
        """
        given = {k: v for k, v in (params or {}).items() if v is not None}
        kind, names = given.pop("map", "png"), self.detector.kind.images
        if kind not in _MAPS:
            raise ConfigError(f"map {kind!r}", expected="one of " + ", ".join(_MAPS))
        columns = set(model_input) if isinstance(model_input, pd.DataFrame) else set()
        if not columns.issuperset(names):
            which, what = "a column", "base64 images"
            if self.detector.kind.paired:
                which, what = "the columns", "two base64 images a row"
            raise ConfigError(
                f"input without {which} {' and '.join(names)}", expected=f"a table with {what}"
            )
        samples = zip(*(model_input[name] for name in names), strict=True)
        rows = [self._one(sample, at, kind, given) for at, sample in enumerate(samples)]
        made = pd.DataFrame(rows, columns=OUTPUTS.input_names())
        if any(made["error"]):
            # JSON has no NaN: what is missing is None.
            made = made.astype(object).where(made.notna(), None)
        return made

    def _one(
        self, sample: Sequence[Any], at: int, kind: str, given: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the output row of one sample."""
        threshold = given.get("threshold", self.detector.threshold)
        row = {"score": None, "verdict": "", "threshold": threshold, "map": "", "error": ""}
        try:
            images = [
                decode_image(decode_base64(value, f"{name} {at}"), f"{name} {at}")
                for name, value in zip(self.detector.kind.images, sample, strict=True)
            ]
            (got,) = self.detector.predict([images], **given)
        except ImageError as error:
            missing = dict.fromkeys(("map_low", "map_high", "p_value"))
            return {**row, **missing, "error": str(error)}
        return {
            **row,
            "score": got.score,
            "verdict": got.verdict,
            "threshold": got.threshold,
            "map": encode_map(got.map, kind),
            "map_low": float(got.map.min()),
            "map_high": float(got.map.max()),
            "p_value": got.p_value,
        }
