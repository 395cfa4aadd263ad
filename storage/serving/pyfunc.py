"""The MLflow face of a `Detector`: base64 images in a table, scores and maps in a table out.

Input: a table with the text column ``image``, each the base64 of a PNG, JPEG, BMP, TIFF, WebP or
PNM file. Paths and URLs are not taken: a server must not read files at a client's word.

Output, a row an image:

- ``score``, ``verdict`` (``normal`` or ``anomalous``: score above threshold) and ``threshold``;
- ``map``: the anomaly map at the extractor's input size, as base64. By default a 16-bit grey PNG
  whose pixel v stands for ``map_low + v / 65535 * (map_high - map_low)``; with the parameter
  ``map="npy"`` NumPy's file format, float32, exact; with ``map="none"`` empty. `decode_map` reads
  all of them;
- ``error``: empty, or why this image could not be scored; the others are.

Parameters: ``threshold``, ``alpha`` and ``beta`` override the model's own; ``map`` as above.
"""

from __future__ import annotations

import base64
import binascii
import io
import threading
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from features.images.pixels import decode_image
from headwater.errors import ConfigError, ImageError
from headwater.version import __version__
from storage.registry.client import mlflow
from storage.serving.detector import Detector, Prediction
from storage.serving.files import BACKBONE_FILE, HEAD_FILE, MANIFEST

# After the import that sets MLflow's environment.
from mlflow.models import Model, ModelSignature  # isort: skip
from mlflow.pyfunc import PythonModel  # isort: skip
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema  # isort: skip

#: Longest base64 text taken for an image: files of 96 MiB.
_LONGEST = 1 << 27
_MAPS = ("png", "npy", "none")
_COLUMNS = ("score", "verdict", "threshold", "map", "map_low", "map_high", "error")
_PACKAGES = ("torch", "torchvision", "timm", "FrEIA", "safetensors", "numpy", "pandas", "pillow")
_SAVING = threading.Lock()

OUTPUTS = Schema(
    [
        ColSpec("double", "score", required=False),
        ColSpec("string", "verdict"),
        ColSpec("double", "threshold"),
        ColSpec("string", "map"),
        ColSpec("double", "map_low", required=False),
        ColSpec("double", "map_high", required=False),
        ColSpec("string", "error"),
    ]
)
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec("string", "image")]),
    outputs=OUTPUTS,
    params=ParamSchema(
        [
            ParamSpec("threshold", "double", None),
            ParamSpec("alpha", "double", None),
            ParamSpec("beta", "double", None),
            ParamSpec("map", "string", "png"),
        ]
    ),
)


class AnomalyModel(PythonModel):
    """The pyfunc that `storage/serving_model.py` hands to MLflow."""

    detector: Detector
    # The signature says what the input is; MLflow would check type hints too, and warns in red
    # where it has none that it can check: hence none for the input either.
    _skip_type_hint_validation = True

    # MLflow looks these methods' parameters up by name: `context` it must be.
    def load_context(self, context: Any) -> None:
        """Open the model's files."""
        self.detector = Detector.load(Path(context.artifacts["manifest"]).parent)

    def predict(  # type: ignore[no-untyped-def]
        self, context: Any, model_input, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Score a table of images; see the module's text for columns and parameters.

        Raises
        ------
        ConfigError
            For an unknown map format or a missing column.
        ModelError
            For alpha or beta with a head that has none.
        """
        given, kind = split_params(params)
        if not isinstance(model_input, pd.DataFrame) or "image" not in model_input:
            raise ConfigError("input without a column image", expected="a table with base64 images")
        rows = [self._one(value, at, kind, given) for at, value in enumerate(model_input["image"])]
        return output_table(rows)

    def _one(self, value: Any, at: int, kind: str, given: dict[str, Any]) -> dict[str, Any]:
        threshold = given.get("threshold", self.detector.threshold)
        try:
            image = decode_image(decode_base64(value, f"image {at}"), f"image {at}")
        except ImageError as error:
            return failed_row(threshold, error)
        (got,) = self.detector.predict([image], **given)
        return output_row(got, kind)


def split_params(params: Mapping[str, Any] | None) -> tuple[dict[str, Any], str]:
    """Return the parameters for the detector, and the map's format; `ConfigError` for no format."""
    given = {k: v for k, v in (params or {}).items() if v is not None}
    kind = given.pop("map", "png")
    if kind not in _MAPS:
        raise ConfigError(f"map {kind!r}", expected="one of " + ", ".join(_MAPS))
    return given, kind


def output_row(got: Prediction, kind: str) -> dict[str, Any]:
    """Return the output row of one prediction."""
    return {
        "score": got.score,
        "verdict": got.verdict,
        "threshold": got.threshold,
        "map": encode_map(got.map, kind),
        "map_low": float(got.map.min()),
        "map_high": float(got.map.max()),
        "error": "",
    }


def failed_row(threshold: float, error: ImageError) -> dict[str, Any]:
    """Return the output row of what could not be scored."""
    empty = {"score": None, "map": "", "map_low": None, "map_high": None}
    return {**empty, "verdict": "", "threshold": threshold, "error": str(error)}


def output_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Return the output; JSON has no NaN, so what is missing is None."""
    made = pd.DataFrame(rows, columns=list(_COLUMNS))
    if any(made["error"]):
        made = made.astype(object).where(made.notna(), None)
    return made


def decode_base64(value: Any, name: str) -> bytes:
    """Return the bytes of base64 text (a ``data:`` URL's too); bytes are taken as they are.

    Raises
    ------
    ImageError
        For anything else, and for more than 96 MiB.
    """
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    expected = "the base64 of an image file"
    if not isinstance(value, str):
        raise ImageError(f"{name}: {type(value).__name__}", expected=expected)
    if len(value) > _LONGEST:
        raise ImageError(f"{name}: {len(value) >> 20} MiB of text", expected="at most 128 MiB")
    text = value.partition(",")[2] if value.startswith("data:") else value
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"{name}: {error}", expected=expected) from error


def encode_map(heat: NDArray[np.float32], kind: str = "png") -> str:
    """Return a map as base64 text: a 16-bit PNG between its lowest and highest value, or npy."""
    if kind == "none":
        return ""
    file = io.BytesIO()
    if kind == "npy":
        np.save(file, np.ascontiguousarray(heat, np.float32), allow_pickle=False)
    else:
        low, high = float(heat.min()), float(heat.max())
        part = (heat.astype(np.float64) - low) / ((high - low) or 1.0)
        Image.fromarray(np.rint(part * 65535).astype(np.uint16)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")


def decode_map(row: Mapping[str, Any]) -> NDArray[np.float32]:
    """Return the ``[H, W]`` map of an output row, from either format.

    Raises
    ------
    ImageError
        Where the row has no map.
    """
    data = base64.b64decode(row["map"])
    if data.startswith(b"\x93NUMPY"):
        return np.load(io.BytesIO(data), allow_pickle=False)
    if not data:
        raise ImageError("a row without a map", expected='parameter map="png" or "npy"')
    part = np.asarray(Image.open(io.BytesIO(data), formats=("PNG",)), np.float64) / 65535
    low, high = float(row["map_low"]), float(row["map_high"])
    return (low + part * (high - low)).astype(np.float32)


def encode_image(image: NDArray[np.uint8]) -> str:
    """Return an ``[H, W, 3]`` uint8 image as the text that the model takes: a PNG in base64."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")


def requirements() -> list[str]:
    """Return what a served model needs, at the versions it was made with."""
    pins = [f"{name}=={metadata.version(name)}" for name in _PACKAGES]
    return [f"headwater=={__version__}", f"mlflow=={mlflow.__version__}", *pins]


def write_mlflow_model(folder: Path, parts: Path, example: NDArray[np.uint8] | None) -> None:
    """Write an MLflow model of the three files in `parts` to `folder`.

    Parameters
    ----------
    example
        Image of the input example; scaled down to at most 256 pixels a side.
    """
    if example is None:
        example = np.full((64, 64, 3), 128, np.uint8)
    table = pd.DataFrame({"image": [encode_example(example)]})
    save_pyfunc(folder, parts, "model_code.py", SIGNATURE, table)


def encode_example(image: NDArray[np.uint8]) -> str:
    """Return an image as the model takes it, scaled down to at most 256 pixels a side."""
    small = Image.fromarray(image)
    small.thumbnail((256, 256))
    return encode_image(np.asarray(small))


def save_pyfunc(
    folder: Path, parts: Path, code: str, signature: ModelSignature, example: pd.DataFrame
) -> None:
    """Write an MLflow model of the three files in `parts`, with the code beside this module."""
    files = {"manifest": MANIFEST, "head": HEAD_FILE, "backbone": BACKBONE_FILE}
    # MLflow runs the model's code into a global variable: one save at a time.
    with _SAVING:
        mlflow.pyfunc.save_model(
            path=str(folder),
            python_model=str(Path(__file__).with_name(code)),
            artifacts={k: str(parts / v) for k, v in files.items()},
            signature=signature,
            input_example=example,
            pip_requirements=requirements(),
        )
    # MLflow writes where the files lay on this machine; a model is the same wherever it was made.
    path = folder / "MLmodel"
    model = Model.load(str(path))
    flavour = model.flavors["python_function"]
    flavour["model_code_path"] = Path(flavour["model_code_path"]).name
    for artifact in flavour["artifacts"].values():
        artifact["uri"] = artifact["path"]
    model.save(str(path))
