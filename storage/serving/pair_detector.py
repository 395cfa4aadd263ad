"""From a registered model over pairs to predictions: two images in, a change map out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from headwater.errors import ModelError
from storage.serving.detector import (
    Fetches,
    Parts,
    Prediction,
    check_images,
    open_parts,
    predictions,
    stored_features,
)

Image = NDArray[np.uint8]
_SIDES = ("current", "history")


class PairDetector:
    """A trained pair head with its backbone; both images are seen as the store's were.

    Parameters
    ----------
    parts
        A model's files, put together.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts, self.spec, self.head = parts, parts.spec, parts.head
        self.calibration, self.manifest = dict(parts.manifest["calibration"]), parts.manifest

    @classmethod
    def load(
        cls, location: str | Path, registry: Fetches | None = None, device: str = "auto"
    ) -> PairDetector:
        """Open a model; parameters and errors are those of `Detector.load`."""
        parts = open_parts(location, registry, device)
        if not parts.head.pairs:
            raise ModelError(
                f"{location} is a model of head {parts.head.name}, which looks at single images",
                expected="a model over pairs",
                remedy="storage.serving.detector.Detector opens it",
            )
        return cls(parts)

    @property
    def threshold(self) -> float:
        """A pair is called changed where its score is greater."""
        return float(self.calibration["threshold"])

    @property
    def cut(self) -> float:
        """A pixel is called changed where its map value is greater."""
        pixel = self.calibration.get("pixel_threshold")
        return self.threshold if pixel is None else float(pixel)

    @property
    def probabilities(self) -> bool:
        """Whether scores and map values are probabilities of a change."""
        return self.head.labelled

    @torch.inference_mode()
    def predict(
        self,
        pairs: Sequence[tuple[Image, Image]],
        *,
        threshold: float | None = None,
        batch: int = 8,
    ) -> list[Prediction]:
        """Score pairs; each one's score depends on its two images alone.

        Parameters
        ----------
        pairs
            ``(current, history)``, ``[H, W, 3]`` uint8 each, of any size.
        threshold
            Instead of the model's own, for pairs.
        batch
            Pairs computed at a time.

        Returns
        -------
        list of Prediction
            Verdicts are ``changed`` or ``unchanged``.

        Raises
        ------
        ShapeError
            For an array that is no 8-bit colour image.
        """
        check_images([image for pair in pairs for image in pair])
        limit = self.threshold if threshold is None else float(threshold)
        pixel = self.calibration.get("pixel_threshold")
        p = self.parts
        found: list[Prediction] = []
        for start in range(0, len(pairs), batch):
            part = pairs[start : start + batch]
            maps: dict[str, torch.Tensor] = {}
            for at, side in enumerate(_SIDES):
                images = [pair[at] for pair in part]
                made = stored_features(images, p.head, p.backbone, p.spec, p.layers)
                maps |= {f"{side}:{layer}": x for layer, x in made.items()}
            got = p.head.score(maps)
            found += predictions(got, limit, pixel, ("unchanged", "changed"))
        return found
