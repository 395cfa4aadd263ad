"""What a training leaves for people: the table, a histogram, curves, a sheet of maps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.torch import save_file

from features.images.pixels import read_image
from features.images.preprocess import own_picture, picture
from flows.extraction.samples import Sample
from flows.pictures.charts import curves, score_histogram
from flows.pictures.maps import Cell, map_sheet, outcome
from flows.pictures.panels import faded
from flows.runtime.home import working_folder
from flows.training.small_maps import FILE, save, small_maps
from heads.looking import seen_of
from heads.training.growing import GrowingHead
from heads.training.kept import KEPT, keep
from headwater.geometry import place
from headwater.samples import IMAGE, PAIR

if TYPE_CHECKING:
    from flows.training.data import TrainingData
    from flows.training.evaluation import Judgement
    from heads.contract import Head
    from heads.training.out_of_fold import OutOfFold
    from storage.registry.runs import Run

#: What a head takes to grow, beside its state.
KEEPSAKE = "keepsake.safetensors"
#: The sheet of the normals with the highest out-of-fold scores.
ODD = "odd-normals.png"
#: The sheet of each kind of sample: its file, and how many it shows.
SHEETS = {IMAGE: ("heat-maps.png", 15), PAIR: ("change-maps.png", 12)}


def write_artifacts(
    data: TrainingData, run: Run, judged: Judgement, apart: OutOfFold | None = None
) -> None:
    """Draw and log the pictures and the tables of samples to the training's MLflow run."""
    training, kind, labels = data.training, data.kind, judged.labels
    run.log_table(judged.table, f"{kind.name}s")
    if apart is not None:
        run.log_json(apart.folds.to_json(), "folds.json")
        run.log_table(_normals(data, apart), "normals")
    if judged.resamples is not None:
        run.log_json(judged.resamples.to_json(), "resamples.json")
    if data.pairs is not None:
        run.log_json(data.pairs.to_json(), "pairs.json")
    threshold = judged.calibration.threshold
    with working_folder(training.home.root / "tmp", "figures-") as folder:
        made = []
        if judged.held_scores is not None:
            made.append(folder / "scores.png")
            held = "held-out normal" if apart is None else "out-of-fold normal"
            score_histogram(judged.held_scores, judged.scores, labels, threshold, made[-1], held)
        if kind == IMAGE and labels.any() and not labels.all():
            made.append(folder / "curves.png")
            curves(judged.scores, labels, threshold, made[-1])
        name, most = SHEETS[kind]
        if cells := [c for row in judged.table[:most] if (c := _cell(data, judged, row))]:
            title = f"{training.image_set} / {training.plan.head}: {counted(judged.table, cells)}"
            made.append(folder / name)
            map_sheet(
                kind,
                cells,
                made[-1],
                title,
                threshold=threshold,
                cut=judged.cut,
                probabilities=judged.calibration.rule == "fixed",
            )
        odd = [] if apart is None else _oddest(data, apart, most)
        if odd:
            made.append(folder / ODD)
            title = f"{training.image_set} / {training.plan.head}: oddest normals, out of fold"
            map_sheet(kind, odd, made[-1], title, threshold=threshold, cut=judged.cut)
        for path in made:
            run.log_file(path, "figures")
        if apart is not None:
            run.log_file(keep(apart, folder / KEPT))
        run.log_file(_small(data, judged, apart, folder / FILE))


def write_keepsake(data: TrainingData, run: Run, head: Head) -> None:
    """Log what a head takes to grow, beside the model: to answer it does not need that."""
    kept = head.keepsake() if isinstance(head, GrowingHead) else {}
    if kept:
        with working_folder(data.training.home.root / "tmp", "keepsake-") as folder:
            save_file({k: v.contiguous() for k, v in kept.items()}, folder / KEEPSAKE)
            run.log_file(folder / KEEPSAKE)


def _small(data: TrainingData, judged: Judgement, apart: OutOfFold | None, path: Path) -> Path:
    """Write the maps of the test samples and of the normals, made small; the scale is one."""
    fixed = judged.calibration.rule == "fixed"

    def sized(samples: Iterable[Sample], maps: Iterable[Any]) -> Iterator[Any]:
        for sample, heat in zip(samples, maps, strict=True):
            yield sample.id, heat, data.size_of(sample.contents[0])

    tested = sized(judged.samples, judged.maps)
    test, scale = small_maps(tested, data.spec, judged.cut, probabilities=fixed)
    groups = {"test": test}
    if apart is not None:
        known = {s.id: s for s in data.learnt}
        normals = sized([known[image] for image in apart.images], apart.maps)
        given = scale if test else None
        groups["normals"], _ = small_maps(normals, data.spec, judged.cut, scale=given)
    return save(path, groups)


def counted(table: Sequence[Mapping[str, Any]], cells: Sequence[Cell]) -> str:
    """Return in words how many of the mistakes a sheet shows, as far as the truth is known."""
    if "wrong_pixels" in table[0]:
        return f"most wrong pixels first, {len(cells)} of {len(table)} pairs shown"
    wrong = sum(row["correct"] is False for row in table)
    shown = sum(cell.mistaken is True for cell in cells)
    if not wrong:
        return f"no mistakes; {len(cells)} of {len(table)} nearest to one"
    return f"worst mistakes first, {shown} of {wrong} shown"


def _oddest(data: TrainingData, apart: OutOfFold, most: int) -> list[Cell]:
    """Return the normals with the highest out-of-fold scores, as far as their files are at hand."""
    known, cells = {s.id: s for s in data.learnt}, []
    size = data.spec.input_size
    for i in np.argsort(-apart.scores, kind="stable")[:most].tolist():
        sample, thin = known[apart.images[i]], apart.maps[i]
        heat = np.ma.repeat(np.ma.repeat(thin, apart.step, 0), apart.step, 1)[: size[0], : size[1]]
        said = f"fold {apart.folds.of[apart.images[i]] + 1}, score {apart.scores[i]:.4g}"
        if (opened := _opened(data, sample, heat, None)) is not None:
            cells.append(Cell(*opened[:2], Path(sample.key).name, said))
    return cells


def _normals(data: TrainingData, apart: OutOfFold) -> list[dict[str, Any]]:
    """Return the normals by their out-of-fold scores, the oddest first.

    The p-value is an image's among the others: the share of them, itself counted, that scores as
    high.
    """
    keys = {s.id: s.key for s in data.learnt}
    order = np.argsort(-apart.scores, kind="stable")
    ascending = np.sort(apart.scores)
    above = len(ascending) - np.searchsorted(ascending, apart.scores, side="left")
    return [
        {
            "key" if data.pairs is not None else "path": keys[apart.images[i]],
            "sha256": apart.images[i],
            "fold": apart.folds.of[apart.images[i]],
            "score": float(apart.scores[i]),
            "p_value": int(above[i]) / len(ascending),
        }
        for i in order.tolist()
    ]


def _cell(data: TrainingData, judged: Judgement, row: dict[str, Any]) -> Cell | None:
    """Return one sample of the sheet, or None where its files are not at hand any more."""
    at, correct = row["index"], row["correct"]
    sample, heat, mask = judged.samples[at], judged.maps[at], judged.masks[at]
    if (opened := _opened(data, sample, heat, mask)) is None:
        return None
    images, heat, mask = opened
    if sample.is_pair:
        caption, said = sample.key, f"{row['verdict']}, score {row['score']:.3g}"
        if row["wrong_pixels"] is not None:
            said = f"{row['wrong_pixels']} of {heat.size} pixels wrong, {said}"
    else:
        caption = f"{sample.kind}/{Path(sample.key).stem}"
        flagged = row["verdict"] == IMAGE.verdicts[1]
        said = f"{outcome(flagged, sample.defective)}, score {row['score']:.4g}"
    mistaken = None if correct is None else not correct
    return Cell(images, heat, caption, said, mask, mistaken)


def _opened(
    data: TrainingData, sample: Sample, heat: np.ndarray, mask: np.ndarray | None
) -> tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray | None] | None:
    """Return a sample's pictures, map and mask without padding; None where a file is gone."""
    looked = seen_of(heat)
    try:
        given = [read_image(path) for path in sample.paths]
        draw = picture if data.spec.tiles is None else own_picture
        images = tuple(faded(draw(image, data.spec), looked) for image in given)
    except (OSError, ValueError):
        return None
    # Padding is nobody's image.
    filled = slice(None), slice(None)
    if data.spec.tiles is None:
        filled = place(given[0].shape[0], given[0].shape[1], data.spec).filled
    return (
        tuple(x[filled] for x in images),
        np.asarray(heat)[filled],
        mask if mask is None else mask[filled],
    )
