"""The MLflow face of a `PairDetector`: two base64 images a row in, score and change map out.

Input: a table with the text columns ``current`` and ``history``, images as `serving_pyfunc` takes
them. Output and the parameters ``threshold`` and ``map`` are as described there, with the verdicts
``changed`` and ``unchanged``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from features.images.pixels import decode_image
from headwater.errors import ConfigError, ImageError
from storage.serving.pair_detector import PairDetector
from storage.serving.pyfunc import (
    OUTPUTS,
    decode_base64,
    encode_example,
    failed_row,
    output_row,
    output_table,
    save_pyfunc,
    split_params,
)

# After the import that sets MLflow's environment.
from mlflow.models import ModelSignature  # isort: skip
from mlflow.pyfunc import PythonModel  # isort: skip
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema  # isort: skip

_SIDES = ("current", "history")

PAIR_SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec("string", side) for side in _SIDES]),
    outputs=OUTPUTS,
    params=ParamSchema([ParamSpec("threshold", "double", None), ParamSpec("map", "string", "png")]),
)


class PairModel(PythonModel):
    """The pyfunc that `storage/serving_pairs_model.py` hands to MLflow."""

    detector: PairDetector
    # As of `storage.serving.pyfunc.AnomalyModel`.
    _skip_type_hint_validation = True

    def load_context(self, context: Any) -> None:
        """Open the model's files."""
        self.detector = PairDetector.load(Path(context.artifacts["manifest"]).parent)

    def predict(  # type: ignore[no-untyped-def]
        self, context: Any, model_input, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Score a table of pairs; see the module's text for columns and parameters.

        Raises
        ------
        ConfigError
            For an unknown map format or a missing column.
        """
        given, kind = split_params(params)
        columns = set(model_input) if isinstance(model_input, pd.DataFrame) else set()
        if not columns.issuperset(_SIDES):
            raise ConfigError(
                "input without the columns current and history",
                expected="a table with two base64 images a row",
            )
        rows = zip(*(model_input[side] for side in _SIDES), strict=True)
        return output_table([self._one(pair, at, kind, given) for at, pair in enumerate(rows)])

    def _one(
        self, pair: tuple[Any, ...], at: int, kind: str, given: dict[str, Any]
    ) -> dict[str, Any]:
        try:
            current, history = (
                decode_image(decode_base64(value, f"{side} {at}"), f"{side} {at}")
                for side, value in zip(_SIDES, pair, strict=True)
            )
        except ImageError as error:
            return failed_row(given.get("threshold", self.detector.threshold), error)
        (got,) = self.detector.predict([(current, history)], **given)
        return output_row(got, kind)


def write_pair_model(
    folder: Path, parts: Path, example: tuple[NDArray[np.uint8], NDArray[np.uint8]] | None
) -> None:
    """Write an MLflow model of the three files in `parts` to `folder`; see `save_model`."""
    if example is None:
        grey = np.full((64, 64, 3), 128, np.uint8)
        example = (grey, grey)
    table = pd.DataFrame(
        {side: [encode_example(x)] for side, x in zip(_SIDES, example, strict=True)}
    )
    save_pyfunc(folder, parts, "pair_model_code.py", PAIR_SIGNATURE, table)
