"""Score new pairs with a registered model."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.images.preprocess import picture
from features.images.records import BrokenImage
from features.images.scan import list_images
from flows.pictures.pairs import pair_overlay
from flows.use.predict import choose_model, make_folder, readable
from headwater.errors import DataError
from storage.serving.pair_detector import PairDetector

if TYPE_CHECKING:
    from flows.runtime.console import Reporter
    from flows.runtime.home import Home


def join_paths(current: Path, history: Path) -> list[tuple[Path, Path]]:
    """Return two files as one pair, or the files of two folders that have the same names.

    Raises
    ------
    DataError
        Where a path is not there, or the folders have no name in common.
    """
    if current.is_dir() != history.is_dir():
        raise DataError(
            f"--pair {current} {history}: a file and a folder", expected="two files, or two folders"
        )
    sides = []
    for place in (current, history):
        files = list_images(place)
        sides.append({_name(f, place): f for f in files})
    if not current.is_dir():
        return [(current, history)]
    both = sorted(sides[0].keys() & sides[1].keys())
    if not both:
        raise DataError(
            f"--pair {current} {history}: no image of the same name in both",
            expected="the same name for the two images of a place",
        )
    return [(sides[0][n], sides[1][n]) for n in both]


def _name(file: Path, place: Path) -> str:
    return str(file.relative_to(place).with_suffix("")) if place.is_dir() else file.stem


def predict_pairs(
    home: Home,
    image_set: str,
    pair: tuple[Path, Path],
    head: str | None,
    version: str | None,
    folder: Path | None,
    threshold: float | None,
    reporter: Reporter,
) -> tuple[list[dict[str, Any]], list[BrokenImage]]:
    """Score pairs one at a time and write a picture of the change map for each.

    Parameters
    ----------
    home, image_set, head, version
        Which model.
    pair
        Current and history: files, or folders that are joined by name.
    folder
        Where the pictures go; by default below the home, by set and model.
    threshold
        Instead of the model's, for pairs.
    reporter
        Shows progress.

    Returns
    -------
    tuple
        Rows ``current, history, score, threshold, verdict, changed_share, change_map`` and what
        could not be read.

    Raises
    ------
    ConfigError
        Where the model looks at single images.
    """
    chosen = choose_model(home, image_set, head, version, folder, pairs=True)
    detector = PairDetector.load(chosen.uri, chosen.registry)
    files = join_paths(*pair)
    make_folder(chosen.folder)
    rows: list[dict[str, Any]] = []
    broken: list[BrokenImage] = []
    for done, paths in enumerate(files):
        reporter.update("pairs", done, len(files), paths[0].name)
        # Both, so that two broken ones are both named.
        current, history = (readable(path, broken) for path in paths)
        if current is None or history is None:
            continue
        (got,) = detector.predict([(current, history)], threshold=threshold)
        # The contents in the name: another pair of the same name never takes its place.
        text = hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:8]
        target = chosen.folder / f"{paths[0].stem}-{text}.png"
        share = float((got.map > detector.cut).mean())
        pair_overlay(
            picture(current, detector.spec),
            picture(history, detector.spec),
            got.map,
            got.verdict,
            f"score {got.score:.4g}, threshold {got.threshold:.4g}, {share:.2%} of pixels changed",
            detector.cut,
            target,
            probabilities=detector.probabilities,
        )
        rows.append(
            {
                "current": str(paths[0]),
                "history": str(paths[1]),
                "score": float(got.score),
                "threshold": float(got.threshold),
                "verdict": got.verdict,
                "changed_share": share,
                "change_map": str(target),
            }
        )
    return rows, broken
