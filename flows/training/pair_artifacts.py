"""What the training of a pair head leaves for people: a sheet of change maps, a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from features.images.pairs import CHANGED
from features.images.pixels import read_image
from features.images.preprocess import picture
from flows.pictures import charts as figures
from flows.pictures.maps import Cell, map_sheet
from flows.runtime.home import working_folder
from heads.judging.calibration import Calibration
from headwater.samples import PAIR

if TYPE_CHECKING:
    from flows.extraction.pair_list import PairRow
    from flows.training.jobs import TrainJob
    from storage.registry.runs import Run

SHEET = 12


def write_pair_artifacts(
    job: TrainJob,
    run: Run,
    rows: Sequence[PairRow],
    table: Sequence[dict[str, Any]],
    scores: np.ndarray,
    maps: np.ndarray,
    masks: Sequence[np.ndarray | None],
    held_scores: np.ndarray | None,
    calibration: Calibration,
    cut: float,
) -> None:
    """Draw and log the pictures and the per-pair table.

    Parameters
    ----------
    job, run
        The training and its MLflow run.
    rows, scores, maps, masks
        The test pairs and what the head gave.
    table
        Per-pair table, worst mistakes first.
    held_scores
        Scores of held-out unchanged pairs, or None where the threshold is not theirs.
    calibration
        Thresholds.
    cut
        A pixel is called changed where its map value is greater.
    """
    run.log_table(table, "pairs")
    probabilities = calibration.rule == "fixed"
    with working_folder(Path(job.home) / "tmp", "figures-") as folder:
        made = []
        cells = [c for entry in table[:SHEET] if (c := _cell(job, rows, maps, masks, entry))]
        if cells:
            made.append(folder / "change-maps.png")
            map_sheet(
                PAIR,
                cells,
                made[-1],
                f"{job.image_set} / {job.plan.head}: worst mistakes first",
                threshold=calibration.threshold,
                cut=cut,
                probabilities=probabilities,
            )
        if held_scores is not None and len(rows):
            changed = np.array([r.kind == CHANGED for r in rows])
            made.append(folder / "scores.png")
            figures.score_histogram(held_scores, scores, changed, calibration.threshold, made[-1])
        for path in made:
            run.log_file(path, "figures")


def _cell(
    job: TrainJob,
    rows: Sequence[PairRow],
    maps: np.ndarray,
    masks: Sequence[np.ndarray | None],
    entry: dict[str, Any],
) -> Cell | None:
    """Return one pair of the sheet, or None where its files are not at hand any more."""
    row, at = rows[entry["index"]], entry["index"]
    try:
        current, history = (
            picture(read_image(path), job.plan.spec)
            for path in (row.current_path, row.history_path)
        )
    except (OSError, ValueError):
        return None
    said = f"{entry['verdict']}, score {entry['score']:.3g}"
    if entry["wrong_pixels"] is not None:
        said = f"{entry['wrong_pixels']} of {maps[at].size} pixels wrong, {said}"
    correct = entry["correct"]
    return Cell(
        (current, history),
        maps[at],
        row.key,
        said,
        masks[at],
        None if correct is None else not correct,
    )
