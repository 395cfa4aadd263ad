"""Score new images with a registered model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from features.images.pixels import read_image, sha256_of
from features.images.preprocess import picture
from features.images.records import BrokenImage
from features.images.scan import list_images
from flows.pictures.maps import prediction_overlay
from flows.runtime.console import reporter
from heads.catalogue import get_head
from headwater.errors import ConfigError, DataError, ImageError, ModelError
from headwater.spec import seed_of_untrained
from storage.registry.registry import Registry
from storage.serving.detector import Detector

if TYPE_CHECKING:
    from flows.runtime.console import Reporter
    from flows.runtime.home import Home


def choose_head(registry: Registry, image_set: str, head: str | None) -> str:
    """Return the head to predict with: the one named, or the set's only one.

    Raises
    ------
    ModelError
        Where the set has no model, or several and none was named.
    """
    known = sorted({row["head"] for row in registry.leaderboard(image_set)})
    if not known:
        raise ModelError(
            f"no models of image set {image_set!r} in {registry.place}",
            expected="at least one registered model",
            remedy=f"headwater run {image_set} --images DIR (or --pairs DIR)",
        )
    if head is None and len(known) > 1:
        raise ModelError(
            f"{image_set!r} has models of several heads",
            expected=f"--head with one of {', '.join(known)}",
            remedy=f"headwater compare {image_set} shows how they do",
        )
    if head is not None and head not in known:
        raise ModelError(
            f"no model of head {head!r} in {image_set!r}", expected=f"one of {', '.join(known)}"
        )
    return head or known[0]


@dataclass(frozen=True)
class Chosen:
    """A registered model to predict with, and where its pictures go."""

    uri: str
    registry: Registry
    folder: Path


def choose_model(
    home: Home,
    image_set: str,
    head: str | None,
    version: str | None,
    folder: Path | None,
    *,
    pairs: bool,
) -> Chosen:
    """Return the model to predict with; pictures go below the home where no folder is given.

    Raises
    ------
    ConfigError
        Where the model looks at pairs and `pairs` does not say so, or the other way round.
    ModelError
        Where there is no such model, or several and none was named.
    """
    registry = Registry(home.root, home.tracking_url)
    name = choose_head(registry, image_set, head)
    if get_head(name).pairs and not pairs:
        raise ConfigError(
            f"head {name} of {image_set} compares pairs of images",
            expected=f"headwater predict {image_set} --pair CURRENT HISTORY",
            remedy="give the image now and the one before",
        )
    if pairs and not get_head(name).pairs:
        raise ConfigError(
            f"head {name} of {image_set} looks at single images",
            expected=f"headwater predict {image_set} IMAGE",
            remedy="--pair is for models of pair heads",
        )
    model = registry.get_model(image_set, name, version)
    if seed_of_untrained(model["weights"]) is not None:
        reporter().line("note: this model rests on the demo's untrained net: illustrative only")
    if folder is None:
        folder = home.pictures / image_set / "predictions" / f"{name}-v{model['version']}"
    return Chosen(model["uri"], registry, folder)


def make_folder(folder: Path) -> None:
    """Make the folder that pictures go to.

    Raises
    ------
    ConfigError
        Where it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{folder}: {error.strerror}", expected="a folder to write pictures to, with --out"
        ) from error


def readable(path: Path, broken: list[BrokenImage]) -> np.ndarray | None:
    """Return an image, or None where it cannot be read, which is added to `broken`."""
    try:
        return read_image(path)
    except ImageError as error:
        broken.append(BrokenImage(path, error.culprit.removeprefix(f"{path}: ")))
        return None


def predict_images(
    home: Home,
    image_set: str,
    images: list[Path],
    head: str | None,
    version: str | None,
    folder: Path | None,
    threshold: float | None,
    reporter: Reporter,
) -> tuple[list[dict[str, Any]], list[BrokenImage]]:
    """Score images one at a time and write an overlay for each.

    Parameters
    ----------
    home, image_set, head, version
        Which model.
    images
        Files or folders.
    folder
        Where the overlays go; by default below the home, by set and model.
    threshold
        Instead of the model's.
    reporter
        Shows progress.

    Returns
    -------
    tuple
        Rows ``image, score, threshold, verdict, heat_map`` and what could not be read.
    """
    chosen = choose_model(home, image_set, head, version, folder, pairs=False)
    detector = Detector.load(chosen.uri, chosen.registry)
    files = [file for path in images for file in list_images(path)]
    if not files:
        raise DataError(
            f"no images in {', '.join(map(str, images))}", expected="PNG, JPEG, TIFF or BMP files"
        )
    make_folder(chosen.folder)
    rows: list[dict[str, Any]] = []
    broken: list[BrokenImage] = []
    for done, path in enumerate(files):
        reporter.update("images", done, len(files), path.name)
        if (pixels := readable(path, broken)) is None:
            continue
        (got,) = detector.predict([pixels], threshold=threshold)
        # The content in the name: another image of the same name never takes its place.
        target = chosen.folder / f"{path.stem}-{sha256_of(path)[:8]}.png"
        prediction_overlay(
            picture(pixels, detector.spec),
            got.map,
            got.score,
            got.verdict,
            got.threshold,
            target,
            pixel_threshold=got.pixel_threshold,
        )
        rows.append(
            {
                "image": str(path),
                "score": float(got.score),
                "threshold": float(got.threshold),
                "verdict": got.verdict,
                "heat_map": str(target),
            }
        )
    return rows, broken
