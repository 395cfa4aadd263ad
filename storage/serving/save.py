"""A detector as an MLflow model: what `storage.registry.runs.Run.register` takes."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from headwater.errors import ModelError
from headwater.version import __version__
from storage.registry.client import mlflow
from storage.registry.runs import read_model
from storage.serving.detector import Detector, Sample
from storage.serving.encoding import encode_image
from storage.serving.manifest import BACKBONE_FILE, HEAD_FILE, MANIFEST
from storage.serving.pyfunc import signature_of

_PACKAGES = ("torch", "torchvision", "timm", "FrEIA", "safetensors", "numpy", "pandas", "pillow")
_SAVING = threading.Lock()


def save_model(
    folder: Path,
    detector: Detector,
    *,
    example: Sample | None = None,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write an MLflow model that serves this detector.

    Parameters
    ----------
    folder
        To write; must not exist.
    detector
        Head, backbone, what it was trained on, thresholds.
    example
        Sample for the input example: an image as the detector takes it, of a pair head two;
        scaled down to at most 256 pixels a side. Grey ones are made where none are given.
    about
        JSON-ready facts to keep in the manifest: image set, snapshot, training key.

    Returns
    -------
    Path
        `folder`.

    Raises
    ------
    ModelError
        Where the folder exists.
    """
    if folder.exists():
        raise ModelError(f"{folder} exists", expected="a folder that does not exist yet")
    names = detector.kind.images
    images: Any = example if detector.kind.paired else [example]
    if example is None:
        images = [np.full((64, 64, 3), 128, np.uint8)] * len(names)
    table = pd.DataFrame({k: [_example(v)] for k, v in zip(names, images, strict=True)})
    folder.parent.mkdir(parents=True, exist_ok=True)
    # MLflow runs the model's code into a global variable: one save at a time.
    with tempfile.TemporaryDirectory(dir=folder.parent) as files, _SAVING:
        detector.save(Path(files), about)
        # As addresses: MLflow would take a % in a path for a quoted character.
        place = Path(files).absolute().as_uri()
        artifacts = {"manifest": MANIFEST, "head": HEAD_FILE, "backbone": BACKBONE_FILE}
        mlflow.pyfunc.save_model(
            path=str(folder),
            python_model=str(Path(__file__).with_name("model_code.py")),
            artifacts={k: f"{place}/{v}" for k, v in artifacts.items()},
            signature=signature_of(detector),
            input_example=table,
            pip_requirements=_requirements(),
        )
    # MLflow writes where the files lay on this machine; a model is the same wherever it was made.
    path = folder / "MLmodel"
    model = read_model(path)
    flavour = model.flavors["python_function"]
    flavour["model_code_path"] = Path(flavour["model_code_path"]).name
    for artifact in flavour["artifacts"].values():
        artifact["uri"] = artifact["path"]
    model.save(str(path))
    return folder


def _example(image: Any) -> str:
    """Return an image as the model takes it, scaled down to at most 256 pixels a side."""
    if image.dtype != np.uint8:
        step = -(-max(image.shape[:2]) // 256)
        return encode_image(image[::step, ::step])
    small = Image.fromarray(image)
    small.thumbnail((256, 256))
    return encode_image(np.asarray(small))


def _requirements() -> list[str]:
    """Return what a served model needs, at the versions it was made with."""
    pins = [f"{name}=={metadata.version(name)}" for name in _PACKAGES]
    return [f"headwater=={__version__}", f"mlflow=={mlflow.__version__}", *pins]
