"""Score new images, or pairs of them, with a registered model."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from features.images.depth import Depth, about_depths
from features.images.masks import read_mask
from features.images.pixels import read_decoded, read_image
from features.images.places.beside import region_of
from features.images.places.regions import region_on
from features.images.scan import list_images
from flows.pictures.answer import draw_prediction
from flows.use.models.choose import choose_model
from heads.catalogue import get_head
from headwater.errors import ConfigError, DataError, ImageError, ModelError, several
from headwater.files import read_regular, short_name
from headwater.samples import IMAGE, PAIR, SampleKind
from headwater.spec import seed_of_untrained
from headwater.text import shown
from storage.registry.registry import Registry
from storage.serving.detector import Detector
from storage.serving.prediction import ALL_LOOKED_AT, Prediction, note_on

if TYPE_CHECKING:
    from flows.runtime.console import Reporter
    from flows.runtime.home import Home

#: Hears what a model says of a sample; see `predict`.
Told: TypeAlias = Callable[[Detector, Mapping[str, Any], Sequence[Path], Prediction, float], None]


def open_model(
    home: Home,
    image_set: str,
    head: str | None,
    version: str | int | None,
    kind: SampleKind | None = None,
    *,
    first: Sequence[str] = (),
    device: str = "auto",
) -> tuple[Detector, dict[str, Any]]:
    """Return a registered model, opened, and what `choose_model` says of it.

    Parameters
    ----------
    image_set, head, version, first
        See `choose_model`.
    kind
        What it must judge; anything where None.

    Raises
    ------
    ConfigError
        Where the model judges another kind of sample.
    ModelError
        Where there is no such model, or several and none was named.
    """
    registry = Registry(home.root, home.tracking_url)
    model = choose_model(registry, image_set, head, version, first)
    known = PAIR if get_head(model["head"]).pairs else IMAGE
    _check_kind(f"head {model['head']} of {image_set}", known, kind)
    return Detector.load(model["uri"], registry, device), model


def open_bundle(
    file: Path, kind: SampleKind | None = None, device: str = "auto"
) -> tuple[Detector, dict[str, Any]]:
    """Return the model of a file that `headwater bundle` wrote, and what that says of it.

    Raises
    ------
    ConfigError
        Where the model judges another kind of sample than `kind`.
    ModelError
        Where the file is no bundle, damaged, or of a newer Headwater.
    """
    if not file.is_file():
        raise ModelError(
            f"{file} is not there" if not file.exists() else f"{file} is no file",
            expected="a file that `headwater bundle` wrote",
        )
    detector = Detector.load(file, device=device)
    model = detector.manifest["bundle"]
    _check_kind(f"the model of {file}", detector.kind, kind)
    return detector, {"weights": "", "version": "?", "model": file.stem, **model}


def _check_kind(culprit: str, known: SampleKind, wanted: SampleKind | None) -> None:
    if wanted in (None, known):
        return
    how, remedy = "IMAGE", "--pair is for models of pair heads"
    if known.paired:
        how, remedy = "--pair CURRENT HISTORY", "give the image now and the one before"
    raise ConfigError(
        f"{culprit} {known.does}", expected=f"headwater predict ... {how}", remedy=remedy
    )


def join_paths(current: Path, history: Path) -> list[tuple[Path, ...]]:
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
    found = [list_images(place) for place in (current, history)]
    if not current.is_dir():
        return [(current, history)]
    sides = [
        {str(file.relative_to(place).with_suffix("")): file for file in files}
        for place, files in zip((current, history), found, strict=True)
    ]
    both = sorted(sides[0].keys() & sides[1].keys())
    if not both:
        raise DataError(
            f"--pair {current} {history}: no image of the same name in both",
            expected="the same name for the two images of a place",
        )
    return [(sides[0][n], sides[1][n]) for n in both]


def predict(
    home: Home,
    image_set: str,
    reporter: Reporter,
    *,
    bundle: Path | None = None,
    images: Sequence[Path] = (),
    pair: tuple[Path, Path] | None = None,
    head: str | None = None,
    version: str | None = None,
    folder: Path | None = None,
    threshold: float | None = None,
    roi: Path | None = None,
    told: Told | None = None,
) -> list[dict[str, Any]]:
    """Score images, or pairs of them, one at a time and write a picture of the map for each.

    Parameters
    ----------
    home, image_set, head, version
        Which model: see `flows.use.models.choose.choose_model`.
    bundle
        Instead: a file that `headwater bundle` wrote; the home is not looked at.
    images
        Files or folders.
    pair
        Instead: current and history, files, or folders that are joined by name.
    folder
        Where the pictures go; by default below the home, by set and model; of a bundle in
        ``predictions`` here.
    threshold
        Instead of the model's.
    roi
        Of a model whose images have regions of interest of their own: a mask for all images, or a
        folder of them; without it ``NAME_roi.png`` beside each image is taken.
    told
        Called with the model, what `choose_model` says of it, the sample's files, what the model
        says and the seconds that this took.

    Returns
    -------
    list of dict
        A row a sample, in their order: ``image, score, p_value, threshold, verdict, regions, model,
        version, heat_map, note, error``, of pairs ``current, history, ..., changed_share,
        change_map, note, error``; regions as of `storage.serving.prediction.Region.to_json`. `note`
        is what is to be known of the answer, mostly nothing. `error` is empty but of
        what could not be read or was not there: then there is no score and no picture (None), no
        verdict (empty) and no region.

    Raises
    ------
    ConfigError
        Where the model judges another kind of sample, or no picture can be written to `folder`.
    DataError
        Where there is nothing to score: no path holds an image, or either side of pairs.
    ModelError
        Where there is no such model, or several and none was named.
    """
    kind = PAIR if pair else IMAGE
    if bundle is not None:
        detector, model = open_bundle(bundle, kind)
        folder = folder or Path("predictions") / f"{model['model']}-v{model['version']}"
    else:
        detector, model = open_model(home, image_set, head, version, kind)
    if roi is not None and not (detector.own_regions and roi.exists()):
        raise ConfigError(
            f"--roi {roi}",
            expected="a mask or a folder of masks, of a model that was trained with --roi beside",
            remedy="leave it out: a model of one region has it"
            if roi.exists()
            else "check the path",
        )
    if seed_of_untrained(model["weights"]) is not None:
        reporter.line("note: this model rests on the demo's untrained net: illustrative only")
    if detector.about_regions:
        reporter.line(f"note: {detector.about_regions}")
    samples, missing = (join_paths(*pair), {}) if pair else _listed(images)
    name = f"{model['head']}-v{model['version']}"
    folder = folder or home.pictures / image_set / "predictions" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{folder}: {error.strerror}", expected="a folder to write pictures to, with --out"
        ) from error
    rows: list[dict[str, Any]] = []
    depths: list[Depth | None] = []
    whole = 0
    for done, paths in enumerate(samples):
        reporter.update(f"{kind.name}s", done, len(samples), paths[0].name)
        pixels, wrong = [], []
        row = _unread(kind, paths, detector, threshold, model)
        if paths[0] in missing:
            rows.append({**row, "error": missing[paths[0]]})
            continue
        for path in paths:
            try:
                decoded = read_decoded(path)
                pixels.append(decoded.pixels)
                depths.append(Depth.of(decoded.pixels))
                for said in decoded.notes:
                    reporter.line(f"note: {shown(path)} {said}")
            except ImageError as error:
                wrong.append((path, error))
        if wrong:
            rows.append({**row, "error": "; ".join(_reason(*w, kind) for w in wrong)})
            continue
        try:
            rois = None
            if detector.own_regions:
                place = _place_of(paths[0], images)
                rois = [region_beside(paths[0], place, roi, pixels[0].shape[:2])]
                whole += rois[0] is None
            begin = time.perf_counter()
            (got,) = detector.predict([pixels], threshold=threshold, rois=rois)
            if told is not None:
                told(detector, model, paths, got, time.perf_counter() - begin)
        except ImageError as error:  # the model's region of interest does not fit it
            rows.append({**row, "error": error.culprit})
            continue
        # The content in the name: another sample of the same name never takes its place.
        text = hashlib.sha256(b"".join(read_regular(path) for path in paths)).hexdigest()[:8]
        target = folder / short_name(paths[0].stem, f"-{text}.png")
        rows.append(
            {
                **row,
                "score": got.score,
                "p_value": got.p_value,
                "verdict": got.verdict,
                "regions": [region.to_json() for region in got.regions],
                **draw_prediction(detector, pixels, got, target),
                "note": note_on(
                    got.regions, pixels[0].shape, lacking=rois is not None and rois[0] is None
                ),
            }
        )
    if whole:
        reporter.line(f"note: {whole} of {len(samples)} images: {ALL_LOOKED_AT}")
    for said in about_depths(depths, detector.spec.value_range):
        reporter.line(f"note: {said}")
    return rows


def _listed(images: Sequence[Path]) -> tuple[list[tuple[Path, ...]], dict[Path, str]]:
    """Return the images of all paths, and of paths that hold none why; one at least must hold some.

    Such a path stands among the images where it was given.
    """
    found: list[tuple[Path, ...]] = []
    missing: dict[Path, str] = {}
    errors: list[DataError] = []
    for path in images:
        try:
            found += [(file,) for file in list_images(path)]
        except DataError as error:
            errors.append(error)
            missing[path] = error.culprit.removeprefix(f"{path}: ")
            found.append((path,))
    if errors and len(missing) == len(set(images)):
        if len(errors) == 1:
            raise errors[0]
        raise DataError(
            several(error.culprit for error in errors), expected="an image, or a folder of them"
        )
    return found, missing


def _unread(
    kind: SampleKind,
    paths: Sequence[Path],
    detector: Detector,
    threshold: float | None,
    model: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the row of a sample of which nothing but its name is known."""
    picture = ("changed_share", "change_map") if kind.paired else ("heat_map",)
    return {
        **dict(zip(kind.images, map(str, paths), strict=True)),
        "score": None,
        "p_value": None,
        "threshold": detector.threshold if threshold is None else threshold,
        "verdict": "",
        "regions": [],
        "model": model["model"],
        "version": str(model["version"]),
        "service_version": model.get("service_version"),
        **dict.fromkeys(picture),
        "note": "",
        "error": "",
    }


def _reason(path: Path, error: ImageError, kind: SampleKind) -> str:
    """Return why an image cannot be read; of a pair's with its path."""
    reason = error.culprit.removeprefix(f"{path}: ")
    return f"{path}: {reason}" if kind.paired else reason


def _place_of(image: Path, given: Sequence[Path]) -> Path:
    """Return the folder that was given and holds an image, else that of the file."""
    holding = (path.resolve() for path in given if path.is_dir())
    return next((p for p in holding if image.resolve().is_relative_to(p)), image.parent)


def ask(detector: Detector, file: Path) -> Prediction:
    """Return what a model over single images says of a file, its own region of interest looked at.

    Raises
    ------
    ImageError
        Where the file cannot be read, or its region does not fit it.
    """
    pixels = read_image(file)
    (got,) = detector.predict([pixels], rois=regions_beside(detector, [file]))
    return got


def regions_beside(detector: Detector, files: Sequence[Path]) -> list[np.ndarray | None] | None:
    """Return the regions of interest beside image files; None where the model knows of none.

    Raises
    ------
    ImageError
        Where a file cannot be read, or its region does not fit it.
    """
    if not detector.own_regions:
        return None
    return [region_beside(f, f.parent, None, read_image(f).shape[:2]) for f in files]


def region_beside(
    image: Path, root: Path, roi: Path | None, size: tuple[int, ...]
) -> np.ndarray | None:
    """Return the region of interest of an image, ``[H, W]`` bool at its size, or None for all.

    Parameters
    ----------
    image
        Its file, below `root`.
    roi
        A mask, or a folder as `features.images.places.beside.region_of` takes it.
    size
        ``(height, width)`` of the image, pixels.

    Raises
    ------
    ImageError
        A region that cannot be read or does not fit.
    """
    folder = roi if roi is not None and roi.is_dir() else None
    path = roi if roi and folder is None else region_of(image, root, folder)
    return None if path is None else region_on(read_mask(path), size[0], size[1], str(path))
