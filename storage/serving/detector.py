"""From a registered model to predictions: one folder holds all it takes, and no pickles.

A model is three files: ``manifest.json`` (what was extracted how, which head, its thresholds),
``head.safetensors`` and ``backbone.safetensors`` (only the weights that the head's layers use).
`Detector` puts them together; the MLflow model (`storage.serving.pyfunc`) and the command line
both predict through it, so that serving and evaluation cannot differ: the same preprocessing, the
same backbone arithmetic, and features rounded to the stored dtype as in the store.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from features.backbones.backbone import Backbone, restore_backbone
from features.images.preprocess import preprocess
from heads.catalogue import get_head, make_config
from heads.contract import Head, Scores
from heads.training.arithmetic import device_of
from headwater.errors import ModelError, ShapeError
from headwater.spec import ExtractorSpec, LayerSpec
from storage.serving.files import BACKBONE_FILE, HEAD_FILE, MANIFEST, read_manifest, write_parts

if TYPE_CHECKING:
    from heads.judging.calibration import Calibration

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class Fetches(Protocol):
    """What `Detector.load` needs of a registry."""

    def download(self, uri: str) -> Path:
        """Return the local folder of a model URI."""


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image.

    Parameters
    ----------
    score
        Image score, larger is more anomalous.
    verdict
        ``"anomalous"`` where the score is above the threshold, else ``"normal"``.
    map
        ``[H, W]`` float32 anomaly map at the extractor's input size.
    threshold
        What the score was compared with.
    pixel_threshold
        Map value that few normal pixels exceed, None where the model has none.
    """

    score: float
    verdict: str
    map: NDArray[np.float32]
    threshold: float
    pixel_threshold: float | None = None


@dataclass(frozen=True)
class Parts:
    """What a model's three files hold, put together.

    `backbone` is None where the head learnt its own encoder from images.
    """

    backbone: Backbone | None
    head: Head
    spec: ExtractorSpec
    layers: tuple[LayerSpec, ...]
    manifest: dict[str, Any]


def open_parts(location: str | Path, registry: Fetches | None, device: str) -> Parts:
    """Open a model's files; see `Detector.load` for parameters and errors."""
    if str(location).startswith("models:/"):
        if registry is None:
            raise ModelError(
                f"model URI {location!r} without a registry",
                expected="a folder, or a registry that fetches it",
            )
        folder = registry.download(str(location))
    else:
        folder = Path(location)
    folder, manifest = read_manifest(folder)
    spec = ExtractorSpec.from_json(manifest["spec"])
    layers = tuple(LayerSpec.parse(name) for name in manifest["layers"])
    where = device_of(device)
    try:
        weights = load_file(folder / BACKBONE_FILE)
        state = load_file(folder / HEAD_FILE)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder}: {error}", expected="whole safetensors files") from error
    about = manifest["head"]
    config = make_config(about["name"], about["config"])
    backbone = None
    if not get_head(about["name"]).reads_images(config):
        backbone = restore_backbone(
            spec.backbone,
            weights,
            weights_id=spec.weights,
            options=dict(spec.options),
            device=str(where),
        )
        backbone.check_weights(layers)
    shapes = {k: (v[0], v[1], v[2]) for k, v in about["shapes"].items()}
    height, width = about["map_size"]
    head = get_head(about["name"])(config, shapes, (height, width))
    try:
        head.load_state_dict(state, strict=True)
    except (RuntimeError, KeyError) as error:
        raise ModelError(
            f"{folder / HEAD_FILE} does not fit head {about['name']}: {error}",
            expected="the state that this head saved",
            remedy=f"the model was made by Headwater {manifest.get('headwater', 'unknown')}",
        ) from error
    head.requires_grad_(False)
    return Parts(backbone, head.eval().to(where), spec, layers, manifest)


def check_images(images: Sequence[NDArray[np.uint8]]) -> None:
    """Raise `ShapeError` for an array that is no 8-bit colour image."""
    for at, image in enumerate(images):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ShapeError(f"image {at}: {image.dtype} {image.shape}", expected="uint8 [H, W, 3]")


def stored_features(
    images: Sequence[NDArray[np.uint8]],
    head: Head,
    backbone: Backbone | None,
    spec: ExtractorSpec,
    layers: Sequence[LayerSpec],
) -> dict[str, torch.Tensor]:
    """Return what a store would hold of images, float32 ``[B, C, H, W]`` by layer.

    Without a backbone: the preprocessed images themselves, under the one layer's name.
    """
    device = next(head.buffers(), next(head.parameters(), torch.empty(0))).device
    pixels = torch.stack([preprocess(x, spec) for x in images]).to(device)
    if backbone is None:
        return {layers[0].name: pixels}
    maps = backbone.maps(pixels, layers, spec.precision)
    dtype = _DTYPES[spec.dtype]
    return {k: v.to(dtype).float() for k, v in maps.items()}


def predictions(
    got: Scores, threshold: float, pixel_threshold: float | None, verdicts: tuple[str, str]
) -> list[Prediction]:
    """Return a batch's predictions; `verdicts` are the words up to the threshold and above it."""
    return [
        Prediction(score, verdicts[score > threshold], heat.numpy(), threshold, pixel_threshold)
        for score, heat in zip(got.image.float().tolist(), got.maps.float().cpu(), strict=True)
    ]


class Detector:
    """A trained head with its backbone: pixels in, scores out.

    Parameters
    ----------
    backbone
        Loaded backbone on the head's device.
    head
        Fitted head.
    spec, layers
        What the head was trained on.
    calibration
        Thresholds, as `heads.judging.calibration.Calibration.to_json` gives them.
    manifest
        The model's manifest, for those who ask.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: Head,
        spec: ExtractorSpec,
        layers: Sequence[LayerSpec],
        calibration: Mapping[str, Any],
        manifest: Mapping[str, Any] | None = None,
    ) -> None:
        self.backbone, self.head, self.spec = backbone, head.eval(), spec
        self.layers, self.calibration = tuple(layers), dict(calibration)
        self.manifest = dict(manifest or {})
        self._factored: dict[tuple[float, float], Any] = {}
        self._lock = threading.Lock()

    @property
    def threshold(self) -> float:
        """The image threshold set on held-out normal images."""
        return float(self.calibration["threshold"])

    @classmethod
    def load(
        cls, location: str | Path, registry: Fetches | None = None, device: str = "auto"
    ) -> Detector:
        """Open a model.

        Parameters
        ----------
        location
            Folder of a model (an MLflow model's, or of the three files alone), or
            ``models:/NAME/VERSION``.
        registry
            Fetches the latter.
        device
            ``auto``, ``cpu`` or ``cuda[:n]``.

        Raises
        ------
        ModelError
            Where there is no model, its files were changed, or it is of a newer Headwater.
        WeightsError
            Where the backbone's weights do not fit.
        """
        parts = open_parts(location, registry, device)
        if parts.head.pairs or parts.backbone is None:
            raise ModelError(
                f"{location} is a model of head {parts.head.name}, which compares pairs of images",
                expected="a model over single images",
                remedy="storage.serving.pair_detector.PairDetector opens it",
            )
        return cls(
            parts.backbone,
            parts.head,
            parts.spec,
            parts.layers,
            parts.manifest["calibration"],
            parts.manifest,
        )

    @torch.inference_mode()
    def predict(
        self,
        images: Sequence[NDArray[np.uint8]],
        *,
        threshold: float | None = None,
        alpha: float | None = None,
        beta: float | None = None,
        batch: int = 8,
    ) -> list[Prediction]:
        """Score images; each one's score depends on that image alone.

        Parameters
        ----------
        images
            ``[H, W, 3]`` uint8 each, of any size.
        threshold
            Instead of the model's own.
        alpha, beta
            Factors of heads that have them (`f2r`), instead of the model's own. The threshold stays
            what it is: it was set at the model's own factors.
        batch
            Images computed at a time.

        Raises
        ------
        ModelError
            Where factors are given and the head has none.
        ShapeError
            For an array that is no 8-bit colour image.
        """
        check_images(images)
        head = self._with_factors(alpha, beta)
        limit = self.threshold if threshold is None else float(threshold)
        pixel = self.calibration.get("pixel_threshold")
        found: list[Prediction] = []
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            got = head.score(self.features(part))
            found += predictions(got, limit, pixel, ("normal", "anomalous"))
        return found

    @torch.inference_mode()
    def features(self, images: Sequence[NDArray[np.uint8]]) -> dict[str, torch.Tensor]:
        """Return what the store would hold of these images, float32 ``[B, C, H, W]`` by layer."""
        return stored_features(images, self.head, self.backbone, self.spec, self.layers)

    def _with_factors(self, alpha: float | None, beta: float | None) -> Head:
        """Return the head at these factors; one that has them has `preference` and `prefer`."""
        if alpha is None and beta is None:
            return self.head
        if not hasattr(self.head, "prefer"):
            raise ModelError(
                f"head {self.head.name} has no factors alpha and beta",
                expected="a head such as f2r",
                remedy="leave alpha and beta out",
            )
        head: Any = self.head
        own = head.preference.tolist()
        pair = (own[0] if alpha is None else float(alpha), own[1] if beta is None else float(beta))
        with self._lock:
            made = self._factored.get(pair)
            if made is None:
                # The gallery is made anew for each pair: keep the last two that were asked for.
                while len(self._factored) >= 2:
                    self._factored.pop(next(iter(self._factored)))
                # A head may count the changes of its tensors, which inference tensors do not.
                with torch.inference_mode(False), torch.no_grad():
                    made = copy.deepcopy(head)
                    made.prefer(*pair)
                self._factored[pair] = made
            return made


def save_model(
    folder: Path,
    *,
    head: Head,
    backbone: Backbone | None,
    spec: ExtractorSpec,
    layers: Sequence[LayerSpec],
    calibration: Calibration,
    example: Any = None,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write an MLflow model that serves this head; `storage.registry.runs.Run.register` takes it.

    Parameters
    ----------
    folder
        To write; must not exist.
    head
        Fitted head.
    backbone
        The backbone its features came from, None where the head learnt its own encoder.
    spec, layers
        What the head was trained on (the plain images' specification).
    calibration
        Thresholds.
    example
        ``[H, W, 3]`` uint8 for the input example, of a pair head two of them; grey ones are made
        where none are given.
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
    from storage.serving.pair_pyfunc import write_pair_model
    from storage.serving.pyfunc import write_mlflow_model

    if folder.exists():
        raise ModelError(f"{folder} exists", expected="a folder that does not exist yet")
    parts = folder.with_name(folder.name + ".parts")
    try:
        write_parts(parts, head, backbone, spec, layers, calibration, about)
        (write_pair_model if head.pairs else write_mlflow_model)(folder, parts, example)
    finally:
        for name in (MANIFEST, HEAD_FILE, BACKBONE_FILE):
            (parts / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            parts.rmdir()
    return folder
