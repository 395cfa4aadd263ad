"""What a training leaves for people: the table, a histogram, curves, a sheet of maps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.images.pixels import read_image
from features.images.preprocess import picture
from flows.pictures.charts import curves, score_histogram
from flows.pictures.maps import Cell, heat_map_sheet
from flows.pictures.pairs import PairCell, change_map_sheet
from flows.runtime.home import working_folder

if TYPE_CHECKING:
    from flows.training.data import TrainingData
    from flows.training.evaluation import Judgement
    from storage.registry.runs import Run

#: Samples on the sheet.
SHEET = 15
PAIRS_SHEET = 12


def write_artifacts(data: TrainingData, run: Run, judged: Judgement) -> None:
    """Draw and log the pictures and the table of samples.

    Parameters
    ----------
    data, run
        What was read, and the training's MLflow run.
    judged
        Test samples with scores and maps.
    """
    training, pairs = data.training, data.pairs
    run.log_table(judged.table, "images" if pairs is None else "pairs")
    if pairs is not None:
        run.log_json(pairs.to_json(), "pairs.json")
    threshold, labels = judged.calibration.threshold, judged.labels
    with working_folder(training.home.root / "tmp", "figures-") as folder:
        made = []
        if judged.held_scores is not None:
            made.append(folder / "scores.png")
            score_histogram(judged.held_scores, judged.scores, labels, threshold, made[-1])
        if pairs is None and labels.any() and not labels.all():
            made.append(folder / "curves.png")
            curves(judged.scores, labels, threshold, made[-1])
        untrained = training.backbone and training.backbone.untrained_seed is not None
        title = f"{training.image_set} / {training.plan.head}: worst mistakes first"
        title += " (untrained net: illustrative only)" if untrained else ""
        made += (_heat_maps if pairs is None else _change_maps)(data, judged, folder, title)
        for path in made:
            run.log_file(path, "figures")


def _pictures(data: TrainingData, judged: Judgement, row: dict[str, Any]) -> list[Any] | None:
    """Return a sample's images as the net sees them; None where a file is not at hand any more."""
    paths = judged.samples[row["index"]].paths
    try:
        return [picture(read_image(path), data.spec) for path in paths]
    except (OSError, ValueError):
        return None


def _heat_maps(data: TrainingData, judged: Judgement, folder: Path, title: str) -> list[Path]:
    cells = [
        Cell(
            image=seen[0],
            heat=judged.maps[row["index"]],
            mask=judged.masks[row["index"]],
            caption=f"{row['kind']}/{Path(row['path']).stem}",
            score=row["score"],
            defective=row["kind"] != "good",
            flagged=row["verdict"] == "anomalous",
        )
        for row in judged.table[:SHEET]
        if (seen := _pictures(data, judged, row))
    ]
    if not cells:
        return []
    limits = judged.calibration
    path = folder / "heat-maps.png"
    heat_map_sheet(cells, limits.threshold, path, title, pixel_threshold=limits.pixel_threshold)
    return [path]


def _change_maps(data: TrainingData, judged: Judgement, folder: Path, title: str) -> list[Path]:
    cells = []
    for row in judged.table[:PAIRS_SHEET]:
        if (seen := _pictures(data, judged, row)) is None:
            continue
        heat = judged.maps[row["index"]]
        said = f"{row['verdict']}, score {row['score']:.3g}"
        if row["wrong_pixels"] is not None:
            said = f"{row['wrong_pixels']} of {heat.size} pixels wrong, {said}"
        mistaken = None if row["correct"] is None else not row["correct"]
        mask = judged.masks[row["index"]]
        cells.append(PairCell(seen[0], seen[1], heat, row["key"], said, mask, mistaken))
    if not cells:
        return []
    path = folder / "change-maps.png"
    fixed = judged.calibration.rule == "fixed"
    change_map_sheet(cells, judged.cut, path, title, probabilities=fixed)
    return [path]
