"""One version of the model in service, opened whole: what answers, and what it calls itself."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.images.formats.names import suffix_of
from flows.runtime.home import Home
from flows.runtime.sections import KeepSettings
from flows.serving.kept import Kept
from flows.serving.said import New
from flows.use.predict import Told as ToldOf
from headwater.errors import HeadwaterError, ModelError
from headwater.files import read_regular
from storage.registry.registry import Registry
from storage.registry.service.in_service import InService
from storage.serving.detector import Detector
from storage.serving.files import model_folder
from storage.serving.prediction import Prediction, note_on


@dataclass(frozen=True)
class Asked:
    """One picture that somebody asks about.

    Parameters
    ----------
    content, sha256
        The file's bytes and their digest.
    name
        As whoever asks calls it.
    suffix
        Of its format.
    pixels
        As of `features.images.pixels.read_image`.
    region
        ``[H, W]`` bool, of models whose images have regions of interest of their own; or None.
    """

    content: bytes = field(repr=False)
    sha256: str
    name: str
    suffix: str
    pixels: NDArray[Any] = field(repr=False)
    region: NDArray[np.bool_] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Told:
    """What a version says of a picture.

    Parameters
    ----------
    asked, got
        The picture, and what the model says of it.
    by
        The version.
    seconds
        It took, a picture of its batch.
    """

    asked: Asked
    got: Prediction
    by: OpenVersion
    seconds: float

    def new(self) -> New:
        """Return it as it is kept."""
        return kept_as(self.by.detector, self.by.row, self.got, self.asked, self.seconds)

    def to_json(self, image_set: str) -> dict[str, Any]:
        """Return the answer, JSON-ready; text of others is not made safe yet."""
        row, got, asked = self.by.row, self.got, self.asked
        lacking = self.by.detector.own_regions and asked.region is None
        return {
            "set": image_set,
            "name": asked.name,
            "sha256": asked.sha256,
            "score": got.score,
            "p_value": got.p_value,
            "threshold": got.threshold,
            "verdict": got.verdict,
            "regions": [region.to_json() for region in got.regions],
            "model": row["model"],
            "version": str(row["version"]),
            "service_version": str(row["service_version"]),
            "seconds": round(self.seconds, 6),
            "note": note_on(got.regions, asked.pixels.shape[:2], lacking=lacking),
        }


def kept_as(
    detector: Detector,
    row: Mapping[str, Any],
    got: Prediction,
    asked: Asked,
    seconds: float,
) -> New:
    """Return what a model says of a picture as it is kept; `row` as of `InService.champion`."""
    return New(
        sha256=asked.sha256,
        name=asked.name,
        score=got.score,
        p_value=got.p_value,
        threshold=got.threshold,
        gap=gap_of(got.score, got.threshold, detector.calibration.median),
        verdict=got.verdict,
        regions=[region.to_json() for region in got.regions],
        model=row["model"],
        version=str(row["version"]),
        service_version=str(row.get("service_version") or ""),
        seconds=seconds,
        content=asked.content,
        suffix=asked.suffix,
    )


def keeper(home: Home, image_set: str, rule: KeepSettings) -> ToldOf:
    """Return what `flows.use.predict.predict` is to tell, so that it is kept as in service.

    Raises
    ------
    ModelError
        Where nothing is in service: what another model says is not kept.
    """
    if InService(Registry(home.root, home.tracking_url), image_set).champion() is None:
        raise ModelError(
            f"predict --keep: nothing is in service for {image_set}",
            expected="a champion: what it says is kept",
            remedy=f"headwater promote {image_set} HEAD, or leave --keep out",
        )
    kept = Kept(home, image_set, rule)

    def keep(
        detector: Detector,
        row: Mapping[str, Any],
        files: Sequence[Path],
        got: Prediction,
        seconds: float,
    ) -> None:
        content = read_regular(files[0])
        digest = hashlib.sha256(content).hexdigest()
        check_number(got, row)
        asked = Asked(content, digest, str(files[0]), suffix_of(content), np.empty(0))
        kept.add([kept_as(detector, row, got, asked, seconds)])

    return keep


def gap_of(score: float, threshold: float, median: float) -> float:
    """Return how far a score is above the threshold, of the way there from the median normal.

    Examples
    --------
    >>> gap_of(3.0, 2.0, 1.0), gap_of(1.5, 2.0, 1.0), gap_of(1.0, 2.0, 2.0)
    (1.0, -0.5, -0.5)
    """
    way = abs(threshold - median) or abs(threshold) or 1.0
    return (score - threshold) / way


class OpenVersion:
    """A version in service, opened.

    Parameters
    ----------
    row
        As of `storage.registry.service.in_service.InService.champion`.
    registry
        Has its files.
    device
        ``auto``, ``cpu`` or ``cuda[:n]``.

    Raises
    ------
    ModelError
        Where its files are gone or damaged, or it does not answer.
    """

    def __init__(self, row: Mapping[str, Any], registry: Registry, device: str = "auto") -> None:
        self.row = dict(row)
        place = registry.download(row["uri"])
        self.detector = Detector.load(place, registry, device)
        folder = model_folder(place)
        self._files = {} if registry.on_server else _stamps(folder)
        self._folder = folder
        self._warm_up()

    @property
    def name(self) -> str:
        """What it is called where something is said of it."""
        row = self.row
        return f"{row['model']} version {row['version']} (in service: {row['service_version']})"

    def changed(self) -> str:
        """Return what became of its files since it was opened; empty where they are as they were.

        What is open answers all the same; a start anew would find them damaged or gone.
        """
        now = _stamps(self._folder) if self._files else {}
        wrong = sorted(name for name, stamp in self._files.items() if now.get(name) != stamp)
        if not wrong:
            return ""
        return f"{self._folder / wrong[0]} was changed or is gone since it was opened"

    def answer(self, asked: Sequence[Asked]) -> list[Told | Exception]:
        """Return what it says of pictures, in their order; what is wrong with one is its own."""
        begin = time.perf_counter()
        try:
            found = self._predict(asked)
        except Exception as error:
            if len(asked) == 1:
                return [error]
            # One of them; the others are answered.
            return [told for one in asked for told in self.answer([one])]
        seconds = (time.perf_counter() - begin) / len(asked)
        return [Told(one, got, self, seconds) for one, got in zip(asked, found, strict=True)]

    def _predict(self, asked: Sequence[Asked]) -> list[Prediction]:
        rois = [one.region for one in asked] if self.detector.own_regions else None
        if rois is None and any(one.region is not None for one in asked):
            raise ModelError(
                f"a region of interest for {self.row['model']}",
                expected="a model that was trained with regions beside the images (--roi beside)",
                remedy="leave it out",
            )
        found = self.detector.predict([x.pixels for x in asked], rois=rois, batch=len(asked))
        for got in found:
            check_number(got, self.row)
        return found

    def _warm_up(self) -> None:
        """Ask it once, so that the first who asks does not wait, and one that cannot is no model.

        Raises `ModelError` where it does not answer with numbers.
        """
        height, width = self.detector.spec.input_size
        pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
        try:
            check_number(self.detector.predict([pixels])[0], self.row)
        except HeadwaterError as error:
            raise ModelError(
                f"{self.row['model']} version {self.row['version']} does not answer: "
                f"{error.culprit}",
                expected=error.expected,
                remedy="headwater rollback SET, or headwater promote SET HEAD",
            ) from error


def check_number(got: Prediction, row: Mapping[str, Any]) -> None:
    """Raise `ModelError` where a score is no number: compared with anything it would be normal."""
    if not np.isfinite([got.score, got.threshold]).all():
        raise ModelError(
            f"{row['model']} version {row['version']}: score {got.score}, threshold "
            f"{got.threshold}",
            expected="finite numbers",
        )


def _stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of each file of a model."""
    found = {}
    for file in folder.iterdir() if folder.is_dir() else ():
        if file.is_file():
            about = file.stat()
            found[file.name] = about.st_size, about.st_mtime_ns
    return found
