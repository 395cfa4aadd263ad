"""One head's training as an MLflow run: figures, pictures, tables, the registered model."""

from __future__ import annotations

import json
import math
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from mlflow.entities import LoggedModelOutput, Metric, Param
from mlflow.models import Model

from headwater.addresses import hidden
from headwater.errors import ModelError, StoreError
from headwater.text import csv_text
from storage.registry.client import MlflowClient, MlflowException
from storage.registry.describe import (
    MODEL_LIMIT,
    NOTE,
    RUN_LIMIT,
    route,
    run_page,
    training,
    version_page,
)
from storage.registry.names import EPOCH, logged

#: Parameters that a description tells, and what it calls them.
_FACTS = {
    "members": "members",
    "backbone": "backbone",
    "layers": "layers",
    "input_size": "pixels",
    "crop": "crop",
    "roi": "region",
    "preset": "preset",
    "seed": "seed",
    "epochs": "epochs",
    "device": "device",
    "train_images": "images learnt",
    "held_out_images": "images held out",
    "test_images": "images tested",
    "known_by": "images known by",
}
#: What the files of sheets of maps are called.
SHEETS = ("heat-maps", "change-maps")


def metric_name(name: str) -> str:
    """Return `name` with what MLflow allows in names: letters, digits and ``_-. /:``.

    Examples
    --------
    >>> metric_name("loss [nats]")
    'loss _nats_'
    """
    return re.sub(r"[^A-Za-z0-9_\-. /:]", "_", name)


def _metric(key: str, value: float, step: int, **ties: str) -> Metric:
    return Metric(metric_name(key), float(value), int(time.time() * 1000), step, **ties)


class RunLog:
    """What may be logged to a run that is open: parameters, figures, tables, files.

    Parameters
    ----------
    client
        MLflow client.
    run_id
        The run.
    """

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client, self.run_id = client, run_id

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters, JSON where they are not text."""
        entries = []
        for name, value in params.items():
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            text = text if len(text) <= 6000 else text[:5997] + "..."
            entries.append(Param(metric_name(name), text))
        self._client.log_batch(self.run_id, params=entries, synchronous=True)

    def log_figures(self, figures: Mapping[str, float], **ties: str) -> None:
        """Log figures of the whole run; those that are not finite are left out.

        `ties` are the model and the data set that they belong to, as `mlflow.entities.Metric` has
        them.
        """
        batch = [_metric(k, v, 0, **ties) for k, v in figures.items() if math.isfinite(v)]
        self._client.log_batch(self.run_id, metrics=batch, synchronous=True)

    def log_curve(self, name: str, values: Mapping[int, float]) -> None:
        """Log a figure at several steps, which MLflow draws as a line."""
        batch = [_metric(name, value, step) for step, value in sorted(values.items())]
        self._client.log_batch(self.run_id, metrics=batch, synchronous=True)

    def log_table(self, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        """Log rows as ``tables/NAME.csv`` (for people) and ``tables/NAME.json`` (for programs)."""
        self._client.log_text(self.run_id, csv_text(rows), f"tables/{name}.csv")
        whole = json.dumps([dict(r) for r in rows], indent=1, allow_nan=False, default=str)
        self._client.log_text(self.run_id, whole, f"tables/{name}.json")

    def log_json(self, value: Any, path: str) -> None:
        """Log a JSON-ready value as the artifact `path`."""
        self._client.log_dict(self.run_id, value, path)

    def log_file(self, path: Path, folder: str = "") -> None:
        """Log a file as an artifact below `folder`."""
        self._client.log_artifact(self.run_id, str(path), folder or None)


#: Figures of epochs are sent when so many wait, or so many seconds after the last ones.
_FLUSH_COUNT = 250
_FLUSH_SECONDS = 5.0


class Run(RunLog):
    """A run that `Registry.start` began; a context manager that ends it one way or the other.

    Leaving the block by an error marks the run FAILED (KILLED for an interrupt) and keeps the
    error's text as the tag ``headwater.error``.

    Parameters
    ----------
    client
        MLflow client.
    run_id, model_id
        Of the run and of the MLflow model that it makes.
    model_name
        Registered model that `register` adds a version to.
    dataset
        ``(name, digest)`` that final figures are tied to.
    tags
        Tags of the model version.
    """

    def __init__(
        self,
        client: MlflowClient,
        run_id: str,
        model_id: str,
        model_name: str,
        dataset: tuple[str, str],
        tags: Mapping[str, str],
    ) -> None:
        super().__init__(client, run_id)
        self.model_id = model_id
        self.model_name, self._dataset, self._tags = model_name, dataset, dict(tags)
        self.version = ""
        #: What descriptions tell of the training: a fact's name to its value.
        self.facts: dict[str, str] = {}
        #: Called when a version was registered.
        self.when_registered: Callable[[], None] = lambda: None
        self._notes: list[str] = []
        self._metrics: dict[str, float] = {}
        self._pictures: list[str] = []
        self._waiting: list[Metric] = []
        self._flushed = time.monotonic()
        self._lock = threading.Lock()

    def __enter__(self) -> Run:
        return self

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters, JSON where they are not text; descriptions tell some of them."""
        super().log_params(params)
        self.tell_params(params)

    def tell_params(self, params: Mapping[str, Any]) -> None:
        """Keep, for descriptions, those parameters that are told there."""
        found = {text: str(params[key]) for key, text in _FACTS.items() if params.get(key)}
        self.facts |= {k: v for k, v in found.items() if v != "none"}

    def metric(self, name: str, value: float, epoch: int) -> None:
        """Take a figure of one epoch; sent in batches. Shown as ``epoch/NAME``."""
        metric = _metric(EPOCH + name, value, epoch)
        with self._lock:
            self._waiting.append(metric)
            due = len(self._waiting) >= _FLUSH_COUNT
        if due or time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Send the figures that wait."""
        with self._lock:
            batch, self._waiting = self._waiting, []
            self._flushed = time.monotonic()
        self._client.log_batch(self.run_id, metrics=batch, synchronous=True)

    def finish(self, metrics: Mapping[str, float], **figures: float) -> None:
        """Log the final figures, tied to the model and to the data set.

        Parameters
        ----------
        metrics
            ``image_auroc``, ``recall``... by their short names (`storage.registry.names`); values
            that are not finite are left out.
        figures
            Beside them: ``seconds``, ``peak_mb``...
        """
        self.flush()
        name, digest = self._dataset
        ties = {"model_id": self.model_id, "dataset_name": name, "dataset_digest": digest}
        self._metrics = dict(metrics)
        self.log_figures({**logged(metrics), **figures}, **ties)

    def tell(self, notes: Sequence[str], **facts: str) -> None:
        """Keep what one has to know to read the figures: as a tag, and for the descriptions."""
        self._notes = list(notes)
        self.facts |= {name.replace("_", " "): text for name, text in facts.items()}
        if notes:
            text = "; ".join(notes)[:5000]
            self._client.set_tag(self.run_id, "headwater.notes", text)
            self._tags["notes"] = text

    def log_file(self, path: Path, folder: str = "") -> None:
        """Log a file as an artifact below `folder`; sheets of maps are shown in descriptions."""
        super().log_file(path, folder)
        if path.name.startswith(SHEETS):
            self._pictures.append(f"{folder}/{path.name}".lstrip("/"))

    def register(self, folder: Path) -> str:
        """Upload an MLflow model that `storage.serving` wrote; return its version.

        The new version gets the alias ``challenger``; ``champion`` is set by promotion alone.

        Raises
        ------
        ModelError
            Where `folder` holds no MLflow model.
        StoreError
            Where MLflow refuses.
        """
        if not (folder / "MLmodel").is_file():
            raise ModelError(
                f"{folder} holds no MLflow model",
                expected="what storage.serving.save.save_model wrote",
            )
        for cache in folder.rglob("__pycache__"):
            shutil.rmtree(cache, ignore_errors=True)
        model = read_model(folder / "MLmodel")
        model.run_id, model.model_id, model.model_uuid = self.run_id, self.model_id, self.model_id
        place = self._client.get_logged_model(self.model_id).artifact_location
        model.artifact_path = place
        model.save(str(folder / "MLmodel"))
        try:
            self._remember_before()
            self._client.log_model_artifacts(self.model_id, str(folder))
            self._client.finalize_logged_model(self.model_id, "READY")
            self._client.log_outputs(self.run_id, [LoggedModelOutput(self.model_id, step=0)])
            made = self._client.create_model_version(
                self.model_name,
                # Not models:/ID, which a database store looks up at MLflow's global tracking URI.
                place,
                self.run_id,
                tags=self._tags,
                model_id=self.model_id,
                await_creation_for=60,
            )
            self.version = str(made.version)
            linked = json.dumps([{"name": self.model_name, "version": self.version}])
            self._client.set_logged_model_tags(self.model_id, {"mlflow.modelVersions": linked})
            self._point_challenger()
            self._describe()
            # Last: with this tag the training counts as done.
            self._client.set_tag(self.run_id, "headwater.version", self.version)
        except (MlflowException, OSError) as error:
            raise StoreError(
                f"model {self.model_name} cannot be registered: {str(error).splitlines()[0]}",
                remedy="see to the MLflow server or the disk; run again, the training is kept",
            ) from error
        self.when_registered()
        return self.version

    def _describe(self) -> None:
        """Describe the run, the model that it made and its version, by what is known by now."""
        client, place = self._client, self._client.get_run(self.run_id).info.experiment_id
        run = {
            "the training": run_page(place, self.run_id),
            "its curves": run_page(place, self.run_id, "model-metrics"),
            "its tables and pictures": run_page(place, self.run_id, "artifacts"),
        }
        model = {
            f"version {self.version} of {self.model_name}": version_page(
                self.model_name, self.version
            ),
            "all versions": route(f"models/{self.model_name}"),
            "the set": route(f"experiments/{place}/runs"),
        }

        def told(links: Mapping[str, str], limit: int) -> str:
            return training(
                metrics=self._metrics,
                facts=self.facts,
                notes=self._notes,
                pictures=self._pictures,
                run_id=self.run_id,
                links=links,
                limit=limit,
            )

        own = {text: to for text, to in model.items() if not text.startswith("version ")}
        text = told({**run, **own}, MODEL_LIMIT)
        client.update_model_version(self.model_name, self.version, text)
        client.set_tag(self.run_id, NOTE, told(model, RUN_LIMIT))
        client.set_logged_model_tags(self.model_id, {NOTE: told({**run, **model}, RUN_LIMIT)})

    def _remember_before(self) -> None:
        """Keep which versions had the aliases when this one came: what it is measured against."""
        aliases = self._client.get_registered_model(self.model_name).aliases
        text = json.dumps({name: str(aliases[name]) for name in sorted(aliases)})
        self._client.set_tag(self.run_id, "headwater.before", text)

    def _point_challenger(self) -> None:
        """Give the newest version the alias, also where others register at the same moment."""

        def point() -> None:
            while True:
                found = self._client.search_model_versions(f"name = '{self.model_name}'")
                newest = str(max(int(v.version) for v in found))
                aliases = self._client.get_registered_model(self.model_name).aliases
                if str(aliases.get("challenger")) == newest:
                    return
                self._client.set_registered_model_alias(self.model_name, "challenger", newest)

        ask_again(point)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.flush()
            if error is None:
                self._client.set_terminated(self.run_id, "FINISHED")
                return
            text = (str(error) or type(error).__name__).strip()
            self._client.set_tag(self.run_id, "headwater.error", hidden(text)[:5000])
            stopped = not isinstance(error, Exception)
            self._client.set_terminated(self.run_id, "KILLED" if stopped else "FAILED")
            if not self.version:
                self._client.finalize_logged_model(self.model_id, "FAILED")
        except MlflowException as trouble:
            if error is None:
                raise StoreError(
                    f"run {self.run_id} cannot be ended: {str(trouble).splitlines()[0]}",
                    remedy="see to the MLflow server or the disk",
                ) from trouble
            # The error that ended the run is the one to tell; the run is reaped later.
            error.add_note(f"and MLflow could not be told: {str(trouble).splitlines()[0]}")


def read_model(path: Path) -> Model:
    """Read an ``MLmodel`` file; MLflow's own reading unquotes what follows a % in its path."""
    return Model.from_dict(yaml.safe_load(path.read_text()))


def ask_again(call: Callable[[], None], most: int = 8) -> None:
    """Call what MLflow may refuse because another did the same at that moment.

    It looks whether a row is there and makes it if not, in two steps: of several at once all find
    none, and all but one are refused. When they ask again they find it.
    """
    for tries in range(1, most):
        try:
            return call()
        except MlflowException:
            time.sleep(0.05 * tries)
    return call()
