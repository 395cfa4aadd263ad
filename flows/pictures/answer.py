"""The picture of what a model says of one sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from features.images.preprocess import own_picture
from flows.pictures.maps import prediction_overlay
from flows.pictures.panels import faded
from headwater.geometry import frame_of
from storage.serving.detector import Detector
from storage.serving.prediction import Prediction

#: Regions that a picture shows, the largest: more would hide what they are drawn over.
MOST_BOXES = 12


def draw_prediction(
    detector: Detector, images: Sequence[np.ndarray], got: Prediction, path: Path
) -> dict[str, Any]:
    """Draw what a detector said of a sample; return what is to be told of its map.

    Parameters
    ----------
    images
        The sample's images, as they were given to the detector.
    path
        PNG to write.

    Returns
    -------
    dict
        ``heat_map``, of pairs ``changed_share`` and ``change_map``.
    """
    told: dict[str, Any] = {"heat_map": str(path)}
    frame = frame_of(images[0].shape[0], images[0].shape[1], detector.spec)
    note, cut = "", got.pixel_threshold
    if detector.kind.paired:
        cut = detector.cut
        seen = np.ones(got.map.shape, bool) if got.looked is None else got.looked
        share = float((got.map > cut)[seen].mean())
        told = {"changed_share": share, "change_map": str(path)}
        note = f", {share:.2%} of pixels changed"
    prediction_overlay(
        detector.kind,
        [faded(own_picture(image, detector.spec), got.looked) for image in images],
        got.map,
        got.verdict,
        f"score {got.score:.4g}, threshold {got.threshold:.4g}{note}",
        path,
        cut=cut,
        boxes=[frame.on_map(region.box) for region in got.regions[:MOST_BOXES]],
        probabilities=detector.head.labelled,
    )
    return told
