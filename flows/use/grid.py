"""F²R's 169-point grid over alpha and beta on a registered model: one MLflow run, resumable.

What it finds was chosen on the test labels, as in the paper: everything that says which point is
best is named ``oracle``. Nothing is retrained and no model changes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from flows.extraction.pair_list import Version
from flows.pictures.grid import grid_heat_maps
from flows.runtime.home import Home
from flows.training.data import StoredSamples
from flows.training.truth import shown_masks
from heads.contract import NullProgress
from heads.gallery.coreset import k_center
from heads.gallery.f2r import F2R
from heads.gallery.f2r_grid import POINTS, GridResult, grid
from heads.gallery.neighbours import collect_vectors
from headwater.errors import ModelError
from headwater.spec import digest
from storage.registry.registry import Registry
from storage.serving.detector import Detector
from storage.store.feature_store import FeatureStore

if TYPE_CHECKING:
    from flows.runtime.console import Reporter

METRICS = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC"}
Coreset = Literal["once", "per_point"]


@dataclass
class GridOutcome:
    """What a grid found.

    Parameters
    ----------
    result
        The table.
    whole
        The same with (1, 1) and the model's own point, where they are not in the grid.
    own
        The model's own alpha and beta.
    run_id
        MLflow run.
    picture
        The heat maps, below the home.
    resumed
        Points that an earlier, broken grid had done.
    notes
        Things to know, such as masks that could not be read.
    """

    result: GridResult
    whole: GridResult
    own: tuple[float, float]
    run_id: str
    picture: Path
    resumed: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def metrics(self) -> list[str]:
        """The metrics that every point has: without masks there are none of pixels."""
        return [metric for metric in METRICS if all(metric in row for row in self.result.table)]

    @property
    def at(self) -> dict[tuple[float, float], dict[str, float]]:
        """The rows of `whole` by their alpha and beta."""
        return {(row["alpha"], row["beta"]): row for row in self.whole.table}

    def rows(self) -> list[dict[str, Any]]:
        """Return the points worth reading: the plain gallery's, the model's, the best ones."""
        named = {
            "plain gallery (1, 1)": (1.0, 1.0),
            "the model's own": self.own,
            "oracle: best image AUROC": self.result.best("image_auroc"),
        }
        if "pixel_auroc" in self.metrics:
            named["oracle: best pixel AUROC"] = self.result.best("pixel_auroc")
        return [{"point": k, **self.at[p]} for k, p in named.items() if p in self.at]

    def correlations(self) -> dict[str, dict[str, Any]]:
        """Return the paper's Table 5 for each metric."""
        return {
            metric: {k: asdict(v) for k, v in self.result.correlations(metric).items()}
            for metric in self.metrics
        }


def run_grid(
    home: Home,
    image_set: str,
    reporter: Reporter,
    *,
    version: str | None = None,
    coreset: Coreset = "once",
    points: tuple[tuple[float, float], ...] = POINTS,
) -> GridOutcome:
    """Score the stored test images at every point and log table, heat maps and correlations.

    Each point is written down as it is done: a grid that was broken off goes on from there.

    Parameters
    ----------
    home, image_set, version
        Which registered `f2r` model.
    coreset
        ``once``: the model's gallery, re-reversed at each point; ``per_point``: a coreset of the
        same size chosen anew at each point, the exact protocol, which takes far longer.
    points
        ``(alpha, beta)`` pairs.

    Raises
    ------
    ModelError
        No such model, or one that was made without its net.
    DataError
        Test images of one kind only.
    """
    registry = Registry(home.root, home.tracking_url)
    model = registry.get_model(image_set, F2R.name, version)
    detector = Detector.load(model["uri"], registry)
    head = detector.head
    if not isinstance(head, F2R):
        raise ModelError(f"{model['uri']} is no model of f2r", expected="one of head f2r")
    head.net  # noqa: B018  a model without its net says so before anything is done
    if detector.spec.tiles is not None:
        raise ModelError(
            f"{model['uri']} was trained on tiles: the grid is over whole images",
            expected="a model trained without --tile",
            remedy=f"headwater run {image_set} --tile 0 --heads {F2R.name}",
        )
    store = FeatureStore.open(home.store, image_set, create=False)
    snapshot = store.resolve(model["snapshot"] or None)
    root = Path(home.card(image_set).get("root", ""))
    stored = StoredSamples(
        home, image_set, Version((snapshot,)), detector.spec, detector.layers, root
    )
    samples, source = stored.test, stored.source(stored.test)
    notes: list[str] = []
    # 169 points are compared with each other: the size of the maps does, at a quarter of the time.
    masks = shown_masks(samples, detector.spec, notes)
    about = {
        "model": model["uri"],
        "run": model["run_id"],
        "snapshot": snapshot,
        "coreset": coreset,
        # a mask that was mended changes the figures
        "masks": [None if m is None else [list(m.shape), int(m.sum())] for m in masks],
    }
    progress = home.checkpoints / f"grid-{digest(about)}.jsonl"
    done = _read(progress)
    own = (round(head.preference[0].item(), 4), round(head.preference[1].item(), 4))
    every = tuple(dict.fromkeys([*points, (1.0, 1.0), own]))

    def told(row: dict[str, float]) -> None:
        progress.parent.mkdir(parents=True, exist_ok=True)
        with progress.open("a") as file:
            file.write(json.dumps(row) + "\n")

    class Shown(NullProgress):
        def step(self, done: int, total: int, text: str) -> None:
            reporter.update("grid", done, total, text)

    tags = {
        "headwater.head": F2R.name,
        "headwater.model": model["uri"],
        "headwater.model_run": model["run_id"],
        "headwater.chosen_on": "oracle",
        "snapshot": snapshot,
    }
    with registry.study(image_set, f"f2r grid (oracle) of v{model['version']}", tags) as run:
        whole = grid(
            head,
            source,
            [sample.kind != "good" for sample in samples],
            masks,
            points=every,
            regallery=_regallery(stored, head) if coreset != "once" else None,
            progress=Shown(),
            done=done,
            told=told,
        )
        asked = set(points)
        inside = tuple(r for r in whole.table if (r["alpha"], r["beta"]) in asked)
        result = GridResult(inside)
        target = home.pictures / image_set / f"f2r-grid-v{model['version']}-{coreset}.png"
        outcome = GridOutcome(result, whole, own, run.run_id, target, len(done), notes)
        title = (
            f"{image_set}: f2r v{model['version']} over alpha and beta, {len(samples)} test images"
        )
        _draw(outcome, f"{title} (oracle)", target)
        told_of = {k: v for k, v in about.items() if k != "masks"}
        run.log_params({**told_of, "own": own, "points": len(inside)})
        run.log_table(result.table, "grid")
        run.log_json(outcome.correlations(), "tables/correlations.json")
        run.log_file(target, "figures")
        run.log_figures(_figures(outcome))
        for name, values in _curves(outcome).items():
            run.log_curve(name, values)
        registry.points(
            image_set,
            run.run_id,
            (
                (
                    f"alpha {r['alpha']:g}, beta {r['beta']:g}",
                    {"alpha": r["alpha"], "beta": r["beta"]},
                    {k: v for k, v in r.items() if k not in ("alpha", "beta")},
                )
                for r in result.table
            ),
            tags,
        )
    progress.unlink(missing_ok=True)
    return outcome


def _read(path: Path) -> list[dict[str, float]]:
    """Return the points of a broken grid; a last line that was cut off is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def _regallery(stored: StoredSamples, head: F2R) -> Callable[[float, float], Tensor]:
    """Return what chooses a coreset of the gallery's size anew at a point."""
    normals = [s for s in stored.readable if s.split == "train" and not s.defective]
    vectors, count = collect_vectors(stored.source(normals), head.layer), len(head.members)

    def choose(alpha: float, beta: float) -> Tensor:
        turned = head.reversed_features(vectors, alpha, beta)
        with torch.no_grad():
            rows = k_center(turned, min(count, len(turned)), seed=head.config.seed).indices
        return vectors[rows].float()

    return choose


def _draw(outcome: GridOutcome, title: str, target: Path) -> None:
    result = outcome.result
    alphas, betas = (np.array(sorted({row[k] for row in result.table})) for k in ("alpha", "beta"))
    maps = {METRICS[metric]: result.heat_map(metric) for metric in outcome.metrics}
    marks = {
        "the model's own (chosen without labels)": outcome.own,
        "plain gallery (1, 1)": (1.0, 1.0),
    }
    grid_heat_maps(maps, alphas, betas, marks, title, target)


def _curves(outcome: GridOutcome) -> dict[str, dict[int, float]]:
    """Return each metric over ten times alpha, a curve a beta."""
    curves: dict[str, dict[int, float]] = {}
    for row in outcome.result.table:
        for metric in outcome.metrics:
            curve = curves.setdefault(f"{metric} over 10 alpha/beta {row['beta']:g}", {})
            curve[round(10 * row["alpha"])] = row[metric]
    return curves


def _figures(outcome: GridOutcome) -> dict[str, float]:
    """Return the run's figures; what was chosen on the test labels is named ``oracle``."""
    figures: dict[str, float] = {}
    table, correlations = outcome.at, outcome.correlations()
    for metric, rows in correlations.items():
        best = outcome.result.best(metric)
        figures[f"oracle.best_{metric}"] = table[best][metric]
        figures[f"oracle.best_{metric}.alpha"], figures[f"oracle.best_{metric}.beta"] = best
        figures[f"own.{metric}"] = table[outcome.own][metric]
        figures[f"plain.{metric}"] = table[1.0, 1.0][metric]
        for name, row in rows.items():
            kind = {"-|alpha-beta|": "minus_difference"}.get(name, name)
            figures[f"spearman.{metric}.{kind}"] = row["rho"]
            figures[f"spearman.{metric}.{kind}.p"] = row["p_value"]
    return figures
