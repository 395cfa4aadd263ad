"""`headwater grid`: F²R's factors on a registered model, one MLflow run, resumable."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.extraction.extract import extract_set
from flows.extraction.plan import plan_job
from flows.pictures.grid import grid_heat_maps
from flows.runtime.console import Reporter
from flows.runtime.home import Home
from flows.runtime.settings import Settings
from flows.training.train import train_head
from flows.training.trainings import Request
from flows.use.grid import run_grid
from flows.use.report.gather import grids_of
from heads.gallery.f2r_grid import POINTS
from storage.registry.registry import Registry

SOME = ((0.0, 1.0), (1.0, 1.0), (0.5, 0.5), (1.0, 0.2), (1.2, 1.2))


class Stops(Reporter):
    """Breaks the grid off once a point is done."""

    def update(self, name: str, done: int, total: int, text: str = "") -> None:
        if name == "grid" and done == 2:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def home(tiles):
    """A home with one registered f2r model, trained here: no cluster is needed for that."""
    settings = Settings.model_validate(
        {
            "image_set": "tiles",
            "images": tiles / "images",
            "backbone": {"name": "resnet18", "weights": tiles / "resnet18.safetensors"},
            "extraction": {"size": 64},
            "heads": {"f2r": {"steps": 2, "ratio": 0.05, "factorize": "always"}},
            "training": {"epochs": 1, "preset": "small", "calibrate": "quick"},
        }
    )
    place = Home.at(tiles / "grid-home")
    place.prepare_environment()
    at = extract_set(settings, place, Reporter(quiet=True)).version
    (training,) = Request(settings, place, plan_job(settings, place)).trainings(at)
    train_head(training)
    return place


def test_a_grid_is_one_run_and_goes_on_where_it_was_broken_off(home):
    quiet = Reporter(quiet=True)
    with pytest.raises(KeyboardInterrupt):
        run_grid(home, "tiles", Stops(quiet=True), points=SOME)
    got = run_grid(home, "tiles", quiet, points=SOME)
    whole = run_grid(home, "tiles", quiet, points=SOME)
    assert (got.resumed, whole.resumed) == (2, 0)
    assert got.result == whole.result
    assert got.result.chosen_on == "oracle"
    assert [(r["alpha"], r["beta"]) for r in got.result.table] == list(SOME)

    client = Registry(home.root).client
    run = client.get_run(got.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["headwater.chosen_on"] == "oracle"
    best = max(r["pixel_auroc"] for r in got.result.table)
    assert run.data.metrics["oracle.best_pixel_auroc"] == pytest.approx(best)
    assert {"spearman.pixel_auroc.alpha", "spearman.image_auroc.minus_difference"} <= set(
        run.data.metrics
    )
    # A page about the set shows the newest grid of a model.
    (shown,) = grids_of(Registry(home.root), "tiles")
    assert shown["points"] == [*whole.result.table]
    assert tuple(shown["own"]) == whole.own
    assert shown["name"] == "tiles.f2r v1"
    names = [k for k in run.data.metrics if "best" in k]
    assert names
    assert all(k.startswith("oracle.") for k in names)
    table = json.loads(Path(client.download_artifacts(got.run_id, "tables/grid.json")).read_text())
    assert table == list(got.result.table)
    assert client.download_artifacts(got.run_id, "tables/correlations.json")
    with Image.open(client.download_artifacts(got.run_id, f"figures/{got.picture.name}")) as shown:
        assert shown.width > 900
    place = run.info.experiment_id
    assert client.get_experiment(place).name == "tiles grids", "the set's own holds its trainings"
    below = client.search_runs([place], f"tags.`headwater.grid_run` = '{got.run_id}'")
    assert len(below) == len(SOME)
    (best_beta,) = {r["beta"] for r in got.result.table if r["alpha"] == 1.2}
    name = f"pixel_auroc over 10 alpha/beta {best_beta:g}"
    curve = {m.step: m.value for m in client.get_metric_history(got.run_id, name)}
    assert curve[12] == pytest.approx(got.at[1.2, best_beta]["pixel_auroc"])
    assert got.picture.name in run.data.tags["mlflow.note.content"]
    assert {r.data.params["alpha"] for r in below} == {"0.0", "0.5", "1.0", "1.2"}


def test_the_models_own_point_is_scored_as_its_evaluation_was(home):
    (row,) = Registry(home.root).leaderboard("tiles")
    got = run_grid(home, "tiles", Reporter(quiet=True), points=SOME)
    own = (row["metrics"]["fit_alpha"], row["metrics"]["fit_beta"])
    assert got.own == pytest.approx(own)
    client = Registry(home.root).client
    assert len(client.get_metric_history(row["run_id"], "epoch/held_out_nll")) == 1
    figures = client.get_run(got.run_id).data.metrics
    for name in ("image_auroc", "pixel_auroc"):
        assert figures[f"own.{name}"] == pytest.approx(row["metrics"][name], abs=1e-3)
    # and nothing was registered by the grids
    assert len(Registry(home.root).leaderboard("tiles")) == 1


def test_the_exact_protocol_chooses_a_coreset_at_every_point(home):
    quiet = Reporter(quiet=True)
    once = run_grid(home, "tiles", quiet, points=SOME)
    anew = run_grid(home, "tiles", quiet, points=SOME, coreset="per_point")
    assert once.result.table != anew.result.table


def test_a_set_without_the_model_is_named(tmp_path, here):
    said = here("grid", "nothing", "--home", tmp_path, status=2)
    assert "no models of image set 'nothing'" in said
    assert "headwater run nothing --images DIR --heads f2r" in said
    assert len(POINTS) == 169


def test_the_command_prints_what_is_worth_reading(home, here):
    told = json.loads(here("grid", "tiles", "--every", 6, "--json", "--home", home.root))
    assert told["chosen_on"] == "oracle"
    assert [(r["alpha"], r["beta"]) for r in told["table"]] == [
        (a, b) for a in (0.0, 0.6, 1.2) for b in (0.0, 0.6, 1.2)
    ]
    names = {r["point"] for r in told["points"]}
    assert {"plain gallery (1, 1)", "the model's own", "oracle: best pixel AUROC"} <= names
    assert set(told["correlations"]["pixel_auroc"]) == {"alpha", "beta", "-|alpha-beta|"}


def test_the_picture_marks_the_points(tmp_path):
    alphas = betas = np.round(np.arange(0, 1.25, 0.1), 1)
    values = 0.8 + 0.1 * alphas[:, None] - 0.05 * (alphas[:, None] - betas) ** 2
    marks = {"the model's own (chosen without labels)": (0.8, 0.9), "plain gallery": (1.0, 1.0)}
    path = grid_heat_maps(
        {"image AUROC": values, "pixel AUROC": values**2}, alphas, betas, marks, "a set",
        tmp_path / "grid.png",
    )  # fmt: skip
    with Image.open(path) as shown:
        assert np.asarray(shown.convert("RGB")).std() > 20
