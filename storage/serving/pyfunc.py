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
- ``error``: empty, or why this sample could not be scored; the others are;
- ``regions``: where it is, a list of objects with ``x``, ``y``, ``width``, ``height``, ``area``,
  ``peak_x``, ``peak_y`` and ``peak`` (`storage.serving.prediction.Region`), the largest first;
- ``model`` and ``version``: which model says so; the version is known where MLflow loads it from a
  registry, else empty;
- ``note``: empty, or what is to be known of this answer.

Of a model whose images have regions of interest of their own (``--roi beside``) the text column
``roi`` takes that of each, a mask as base64 as well; without it all of the image is looked at, and
``note`` says so.

Parameters: ``threshold`` overrides the model's own, as do ``alpha`` and ``beta`` of models over
single images; ``map`` as above.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from mlflow.models import ModelSignature
from mlflow.pyfunc import PythonModel
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array, Object, Property

import storage.registry.client  # noqa: F401  MLflow is quiet from here on
from features.images.masks import Mask
from features.images.pixels import decode_image, look_at
from features.images.places.regions import region_on
from headwater.errors import ConfigError, ImageError, ModelError
from headwater.samples import IMAGE, PAIR
from storage.serving.detector import Detector
from storage.serving.encoding import decode_base64, encode_map
from storage.serving.prediction import Region, note_on

#: The file in which MLflow says which version of a registered model it has fetched.
_REGISTERED = "registered_model_meta"
_MAPS = ("png", "npy", "none")
_REGION = Object(
    [
        Property(field.name, DataType.double if field.name == "peak" else DataType.long)
        for field in dataclasses.fields(Region)
    ]
)
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
        ColSpec(Array(_REGION), "regions"),
        ColSpec("string", "model"),
        ColSpec("string", "version"),
        ColSpec("string", "note"),
    ]
)
#: An input of models whose images have regions of interest of their own.
ROI = "roi"
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


def signature_of(detector: Detector) -> ModelSignature:
    """Return what a model takes and gives."""
    plain = SIGNATURES[detector.kind]
    if not detector.own_regions:
        return plain
    own = Schema([*plain.inputs.inputs, ColSpec("string", ROI, required=False)])
    return ModelSignature(inputs=own, outputs=plain.outputs, params=plain.params)


class ServedModel(PythonModel):
    """The pyfunc that `storage/serving/model_code.py` hands to MLflow, of every model."""

    detector: Detector
    #: What answers call it.
    model, version = "", ""
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
        about = self.detector.manifest.get("about", {})
        self.model = ".".join(filter(None, (about.get("image_set"), self.detector.head.name)))
        if model and (model / _REGISTERED).is_file():
            found = yaml.safe_load((model / _REGISTERED).read_text()) or {}
            self.model = str(found.get("model_name") or self.model)
            self.version = str(found.get("model_version", ""))

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
        rois: list[Any] = [None] * len(model_input)
        if self.detector.own_regions and ROI in columns:
            rois = model_input[ROI].tolist()
        rows = [
            self._one(sample, roi, at, kind, given)
            for at, (sample, roi) in enumerate(zip(samples, rois, strict=True))
        ]
        made = pd.DataFrame(rows, columns=OUTPUTS.input_names())
        if any(made["error"]):
            # JSON has no NaN: what is missing is None.
            made = made.astype(object).where(made.notna(), None)
        return made

    def _one(
        self, sample: Sequence[Any], roi: Any, at: int, kind: str, given: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the output row of one sample."""
        threshold = given.get("threshold", self.detector.threshold)
        row = {"score": None, "verdict": "", "threshold": threshold, "map": "", "error": ""}
        row |= {"model": self.model, "version": self.version, "note": "", "regions": []}
        try:
            images = [
                decode_image(decode_base64(value, f"{name} {at}"), f"{name} {at}")
                for name, value in zip(self.detector.kind.images, sample, strict=True)
            ]
            rois = None
            if self.detector.own_regions:
                rois = [self._region(roi, f"{ROI} {at}", images[0].shape)]
            (got,) = self.detector.predict([images], rois=rois, **given)
            lacking = rois is not None and rois[0] is None
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
            "regions": [region.to_json() for region in got.regions],
            "note": note_on(got.regions, images[0].shape, lacking=lacking),
        }

    @staticmethod
    def _region(value: Any, name: str, shape: tuple[int, ...]) -> Any:
        """Return an image's region of interest, ``[H, W]`` bool; None where none is given."""
        if value is None or value == "" or value != value:
            return None
        mask = Mask.of(look_at(decode_base64(value, name), name, smallest=1)).marked
        return region_on(mask, shape[0], shape[1], name)
