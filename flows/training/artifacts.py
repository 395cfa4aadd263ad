"""What a training leaves for people: curves, histogram, sheet of heat maps, table, the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from features.images.pixels import read_image, read_mask
from features.images.preprocess import mask_to_input, picture
from flows.pictures import charts as figures
from flows.pictures.maps import Cell, map_sheet, outcome
from flows.runtime.home import working_folder
from heads.judging.calibration import Calibration
from headwater.samples import IMAGE

if TYPE_CHECKING:
    from flows.training.evaluation import ScoredImages
    from flows.training.jobs import TrainJob
    from storage.registry.runs import Run

SHEET = 15


def write_artifacts(
    job: TrainJob,
    run: Run,
    scored: ScoredImages,
    held_out: np.ndarray,
    calibration: Calibration,
    rows: list[dict[str, Any]],
) -> None:
    """Draw and log the pictures and the per-image table.

    Parameters
    ----------
    job, run
        The training and its MLflow run.
    scored
        Test images with scores and maps.
    held_out
        ``[M]`` scores of the held-out normal images.
    calibration
        Thresholds.
    rows
        Per-image table, worst mistakes first.
    """
    labels = scored.labels
    untrained = "" if job.untrained_seed is None else " (untrained net: illustrative only)"
    run.log_table(rows, "images")
    with working_folder(Path(job.home) / "tmp", "figures-") as folder:
        made = [folder / "scores.png"]
        figures.score_histogram(held_out, scored.scores, labels, calibration.threshold, made[0])
        if labels.any() and not labels.all():
            made.append(folder / "curves.png")
            figures.curves(scored.scores, labels, calibration.threshold, made[-1])
        cells = [c for row in rows[:SHEET] if (c := _cell(job, scored, row)) is not None]
        if cells:
            made.append(folder / "heat-maps.png")
            map_sheet(
                IMAGE,
                cells,
                made[-1],
                f"{job.image_set} / {job.plan.head}: worst mistakes first{untrained}",
                threshold=calibration.threshold,
                cut=calibration.pixel_threshold,
            )
        for path in made:
            run.log_file(path, "figures")


def _cell(job: TrainJob, scored: ScoredImages, row: dict[str, Any]) -> Cell | None:
    """Return one image of the sheet, or None where its file is not at hand any more."""
    known = scored.table[row["index"]]
    try:
        image = picture(read_image(Path(job.root) / known["path"]), job.plan.spec)
        mask = None
        if known["mask"]:
            mask = mask_to_input(read_mask(Path(job.root) / known["mask"]), job.plan.spec)
    except (OSError, ValueError):
        return None
    flagged, defective = row["verdict"] == IMAGE.verdicts[1], known["kind"] != "good"
    return Cell(
        images=(image,),
        heat=scored.maps[row["index"]],
        caption=f"{known['kind']}/{Path(known['path']).stem}",
        said=f"{outcome(flagged, defective)}, score {row['score']:.4g}",
        mask=mask,
        mistaken=flagged != defective,
    )
