"""What a training leaves for people: the table, a histogram, curves, a sheet of maps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from features.images.pixels import read_image
from features.images.preprocess import own_picture, picture
from flows.pictures.charts import curves, score_histogram
from flows.pictures.maps import Cell, map_sheet, outcome
from flows.pictures.panels import faded
from flows.runtime.home import working_folder
from heads.looking import seen_of
from headwater.geometry import place
from headwater.samples import IMAGE, PAIR

if TYPE_CHECKING:
    from flows.training.data import TrainingData
    from flows.training.evaluation import Judgement
    from storage.registry.runs import Run

#: The sheet of each kind of sample: its file, and how many it shows.
SHEETS = {IMAGE: ("heat-maps.png", 15), PAIR: ("change-maps.png", 12)}


def write_artifacts(data: TrainingData, run: Run, judged: Judgement) -> None:
    """Draw and log the pictures and the table of samples to the training's MLflow run."""
    training, kind, labels = data.training, data.kind, judged.labels
    run.log_table(judged.table, f"{kind.name}s")
    if data.pairs is not None:
        run.log_json(data.pairs.to_json(), "pairs.json")
    threshold = judged.calibration.threshold
    with working_folder(training.home.root / "tmp", "figures-") as folder:
        made = []
        if judged.held_scores is not None:
            made.append(folder / "scores.png")
            score_histogram(judged.held_scores, judged.scores, labels, threshold, made[-1])
        if kind == IMAGE and labels.any() and not labels.all():
            made.append(folder / "curves.png")
            curves(judged.scores, labels, threshold, made[-1])
        name, most = SHEETS[kind]
        if cells := [c for row in judged.table[:most] if (c := _cell(data, judged, row))]:
            title = f"{training.image_set} / {training.plan.head}: worst mistakes first"
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
        for path in made:
            run.log_file(path, "figures")


def _cell(data: TrainingData, judged: Judgement, row: dict[str, Any]) -> Cell | None:
    """Return one sample of the sheet, or None where its files are not at hand any more."""
    at, correct = row["index"], row["correct"]
    sample, heat, mask = judged.samples[at], judged.maps[at], judged.masks[at]
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
    heat, mask = np.asarray(heat)[filled], mask if mask is None else mask[filled]
    if sample.is_pair:
        caption, said = sample.key, f"{row['verdict']}, score {row['score']:.3g}"
        if row["wrong_pixels"] is not None:
            said = f"{row['wrong_pixels']} of {heat.size} pixels wrong, {said}"
    else:
        caption = f"{sample.kind}/{Path(sample.key).stem}"
        flagged = row["verdict"] == IMAGE.verdicts[1]
        said = f"{outcome(flagged, sample.defective)}, score {row['score']:.4g}"
    mistaken = None if correct is None else not correct
    return Cell(tuple(x[filled] for x in images), heat, caption, said, mask, mistaken)
