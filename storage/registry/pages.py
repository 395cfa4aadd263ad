"""What MLflow's pages show of a set's results: descriptions and saved views, written anew.

Everything here repeats what runs and models hold: it is written after each training and when the
pages are opened, and may be written at any time. What a user wrote beside it stays.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from storage.registry.client import MlflowException, told
from storage.registry.describe import (
    MODEL_LIMIT,
    NOTE,
    RUN_LIMIT,
    SET_LIMIT,
    board,
    headline,
    joined,
    merged,
    picture,
    plain,
    route,
    run_page,
    table,
)
from storage.registry.names import short
from storage.registry.read import RegistryReader, model_name
from storage.registry.runs import ask_again
from storage.registry.views import FIGURES, GRID, QUERY, all_views, grid_views

#: Rows of the tables; older versions are in MLflow's own list.
_MOST = 12
_HOW = (
    "Figures are the last epoch's, exact, on the test images; thresholds come from held-out normal "
    "images. What was chosen on test labels is named oracle. `headwater compare {0}` prints this "
    "table, `headwater predict {0} FILE` asks a model."
)


def show_set(registry: RegistryReader, image_set: str) -> None:
    """Describe a set's experiment and its registered models, and give it its saved views."""
    place = registry.experiments().get(image_set)
    if place is None:
        return
    with told():
        rows = registry.leaderboard(image_set, most=_MOST)
        for head in sorted({row["head"] for row in rows}):
            versions = [row for row in rows if row["head"] == head]
            _show_model(
                registry, place, image_set, sorted(versions, key=lambda r: -int(r["version"]))
            )
        client = registry.client
        tags = client.get_experiment(place).tags
        made = {
            # Other versions of MLflow than 3.17 tell by it which pages to show.
            "mlflow.experimentKind": "custom_model_development",
            "mlflow.experiment.primaryMetric.name": "image_auroc",
            NOTE: merged(tags.get(NOTE, ""), _about_set(registry, place, image_set, rows)),
            **all_views(),
        }
        for name, value in made.items():
            if tags.get(name) != value and len(value) <= SET_LIMIT:
                _tag(client, place, name, value)


def _tag(client: Any, place: str, name: str, value: str) -> None:
    """Set a tag of an experiment, also where another sets its first value at the same moment."""
    ask_again(lambda: client.set_experiment_tag(place, name, value))


def show_sets(registry: RegistryReader) -> None:
    """Do as `show_set` for all sets."""
    for image_set in registry.experiments():
        show_set(registry, image_set)


def _about_set(
    registry: RegistryReader, place: str, image_set: str, rows: Sequence[Mapping[str, Any]]
) -> str:
    runs = f"experiments/{place}/runs"
    links = {
        "figures of all trainings": route(runs, **{QUERY: FIGURES}),
        "curves": route(runs, compareRunsMode="CHART", **{QUERY: FIGURES}),
        "models": route(f"experiments/{place}/models"),
    }
    newest = {row["head"]: row for row in sorted(rows, key=lambda row: int(row["version"]))}
    shown = [row for row in rows if newest[row["head"]] is row]
    parts = [f"Nothing is trained on {plain(image_set)} yet.", joined(links)]
    if shown:
        best = shown[0]
        leads = f" leads the newest of {len(newest)} heads" if len(newest) > 1 else ""
        figures = headline(best["metrics"]) or "nothing to test on"
        parts[0] = f"{best['head']} v{best['version']}{leads}: {figures}"
        parts += [_data_of(registry, best["run_id"])]
        parts += [board(shown, lambda row: f"{row['head']} v{row['version']}")]
        sheets = registry.sheets(best["run_id"])
        parts += [f"Of {best['head']} v{best['version']}:"] if sheets else []
        parts += [picture(best["run_id"], path) for path in sheets]
    return "\n\n".join([*filter(None, parts), _HOW.format(plain(image_set))])


def _data_of(registry: RegistryReader, run_id: str) -> str:
    """Return how many images a training had to learn from and to test on, by kind."""
    try:
        inputs = registry.client.get_run(run_id).inputs
        found = next(iter(inputs.dataset_inputs if inputs else ()))
        counts = json.loads(found.dataset.profile or "")
        snapshot = json.loads(found.dataset.source)["snapshot"]
    except (MlflowException, ValueError, KeyError, StopIteration):
        return ""  # a run that was deleted, or made without
    kinds = [f"{plain(name)}: {count}" for name, count in counts.items() if name != "images"]
    return f"{counts.get('images', 0)} images at snapshot `{snapshot}`: " + ", ".join(kinds)


def _show_model(
    registry: RegistryReader, place: str, image_set: str, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Describe a registered model by its versions, newest first."""
    name = model_name(image_set, rows[0]["head"])
    client = registry.client
    found = client.get_registered_model(name)
    runs = route(f"experiments/{place}/runs", **{QUERY: FIGURES})
    parts = [f"v{rows[0]['version']}: {headline(rows[0]['metrics'])}"]
    parts += [plain(found.tags.get("summary", ""))]
    parts += [joined({f"all trainings of {plain(image_set)}": runs})]
    parts += [board(rows, lambda row: f"version {row['version']}")]
    if len(rows) == _MOST:
        parts.append("Older versions, if there are any, are in the list.")
    text = merged(found.description or "", "\n\n".join(filter(None, parts)))
    if text != found.description and len(text) <= MODEL_LIMIT:
        client.update_registered_model(name, text)


def describe_command(registry: RegistryReader, image_set: str, run_id: str) -> None:
    """List the trainings of a command in its run's description."""
    with told():
        found = registry.trainings_of(image_set, run_id)
        rows = [
            [
                joined(
                    {plain(run.info.run_name): run_page(run.info.experiment_id, run.info.run_id)}
                ),
                run.info.status.lower(),
                headline(short(run.data.metrics))
                or plain(run.data.tags.get("headwater.error", "")),
            ]
            for run in found
        ]
        text = f"One command on the image set **{plain(image_set)}**, and what it trained.\n\n"
        text += table(["training", "", ""], rows) if rows else "It trained nothing."
        client = registry.client
        client.set_tag(run_id, NOTE, text[:RUN_LIMIT])
        about = "The commands that trained models: a run each, which lists its trainings."
        _tag(client, client.get_run(run_id).info.experiment_id, NOTE, about)


def describe_grid(registry: RegistryReader, image_set: str, run_id: str, place: str) -> None:
    """Show a grid's picture on its run, and its points, in experiment `place`, as contours."""
    with told():
        client = registry.client
        for name, value in grid_views().items():
            _tag(client, place, name, value)
        points = route(f"experiments/{place}/runs", compareRunsMode="CHART", **{QUERY: GRID})
        about = client.get_run(run_id).data.tags
        links = {"the points as contours (MLflow shows 100 until more are loaded)": points}
        links["curves over alpha"] = run_page(place, run_id, "model-metrics")
        if about.get("headwater.model_run"):
            own = registry.experiments().get(image_set, place)
            links["the training of the model"] = run_page(own, about["headwater.model_run"])
        shown = [a.path for a in client.list_artifacts(run_id, "figures")]
        text = [
            "The model's figures at each point of alpha and beta. The best points were chosen on "
            "the test labels: an **oracle**, no result. Nothing was retrained.",
            joined(links),
            *(picture(run_id, path) for path in shown),
        ]
        client.set_tag(run_id, NOTE, "\n\n".join(text)[:RUN_LIMIT])
        _tag(
            client,
            place,
            NOTE,
            f"Grids over alpha and beta of models of {plain(image_set)}, an oracle: a run a grid, "
            "and one a point, whose tag `headwater.grid_run` names the grid.",
        )
