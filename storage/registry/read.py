"""Where the results are kept and how to read them; `storage.registry.registry` adds the writing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlparse

from mlflow.entities import Run as MlflowRun
from mlflow.utils import get_results_from_paginated_fn
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from headwater.addresses import bare
from headwater.errors import ConfigError, ModelError
from headwater.text import one_of
from storage.registry.aliases import champion_of, remember
from storage.registry.client import MlflowClient, MlflowException, database_uri, mlflow, told
from storage.registry.facts import process_tags
from storage.registry.names import model_name, row_of
from storage.registry.place import open_database
from storage.registry.runs import SHEETS
from storage.registry.servers import ask, for_mlflow

_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql")
#: Experiments of commands, and of a set's grids: a set's own holds its trainings alone.
COMMANDS, GRIDS = "headwater commands", "{0} grids"


class RegistryReader:
    """The reading half of `storage.registry.registry.Registry`, which see."""

    def __init__(self, home: Path | str, tracking_url: str | None = None) -> None:
        self.home = Path(home).absolute()
        tracking_url = bare(tracking_url) if tracking_url else None
        #: What a user calls it: the URL that was given, without its password, or the home.
        self.place = tracking_url or str(self.home)
        self.database = self.home / "mlflow.db"
        scheme = urlparse(tracking_url).scheme.split("+")[0] if tracking_url else "sqlite"
        if scheme not in _SCHEMES:
            raise ConfigError(
                f"MLflow tracking URL {tracking_url!r}",
                expected="http(s)://HOST:PORT, sqlite:///FILE or postgresql://...",
            )
        self._server, self._local = scheme in ("http", "https"), scheme == "sqlite"
        if tracking_url and self._local:
            self.database = _database_of(tracking_url)
        #: Whether the database is the home's own: then its addresses go with the home.
        self._own = self.database == self.home / "mlflow.db"
        self._uri = tracking_url if tracking_url and not self._local else ""
        #: Whether runs can be written; a home that cannot is looked at through a copy.
        self.writable = True
        #: Where new sets' artifacts go: below the home, or where HEADWATER_ARTIFACTS says (S3).
        self.artifacts = os.environ.get("HEADWATER_ARTIFACTS", "").rstrip("/") or (
            (self.home / "mlartifacts").as_uri()
        )
        self._cached: MlflowClient | None = None

    @property
    def client(self) -> MlflowClient:
        """The MLflow client; the database is created or upgraded before it is first used.

        Raises
        ------
        StoreError
            Where the database cannot be used or no server answers.
        """
        if self._cached is None:
            uri = self.ready()
            if not self._local:
                ask(self.uri)
            self._cached = MlflowClient(uri, uri)
        return self._cached

    @property
    def uri(self) -> str:
        """MLflow's tracking URI, bare; a database that is there is in order, for this place."""
        return database_uri(self.database) if self._empty else self._settled()

    @property
    def address(self) -> str:
        """The same for MLflow itself: with what `uri` hides, so never to be shown."""
        return self.uri if self._local else for_mlflow(self._uri)

    def ready(self) -> str:
        """Return `address`, the database made or brought in order where needed."""
        return self._settled() if self._local else for_mlflow(self._uri)

    def _settled(self) -> str:
        if not self._uri:
            home = self.home if self._own else None
            self._uri, self.writable = open_database(self.database, home)
        return self._uri

    @property
    def local(self) -> bool:
        """Whether the results are in an SQLite file."""
        return self._local

    @property
    def on_server(self) -> bool:
        """Whether an MLflow server keeps the results, and shows them itself."""
        return self._server

    def experiments(self) -> dict[str, str]:
        """Return the ids of the experiments of image sets, by the sets' names."""
        if self._empty:
            return {}
        with told():
            every = get_results_from_paginated_fn(
                lambda count, token: self.client.search_experiments(
                    max_results=count, page_token=token
                ),
                500,
            )
        return {e.name: e.experiment_id for e in sorted(every, key=lambda e: e.name) if _of_set(e)}

    @property
    def _empty(self) -> bool:
        return self._local and not self.database.exists()

    def _experiment(self, image_set: str, create: bool = True) -> str:
        """Return the id of the set's experiment, made where there is none."""
        found = self.client.get_experiment_by_name(image_set)
        if found is None:
            if not create:
                return ""
            # A server keeps artifacts in its own place.
            place = None if self._server else f"{self.artifacts}/{quote(image_set)}"
            try:
                return str(self.client.create_experiment(image_set, place))
            except MlflowException:
                # Made by another process in between.
                found = self.client.get_experiment_by_name(image_set)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _search(self, image_set: str, query: str) -> list[MlflowRun]:
        """Return the set's runs that fit, newest first; nothing is made where there is nothing."""
        place = "" if self._empty else self._experiment(image_set, create=False)
        if not place:
            return []
        order = ["attributes.start_time DESC"]
        return get_results_from_paginated_fn(
            lambda count, token: self.client.search_runs(
                [place], query, max_results=count, order_by=order, page_token=token
            ),
            1000,
        )

    def trainings_of(self, image_set: str, command: str) -> list[MlflowRun]:
        """Return the runs of a command's trainings, oldest first."""
        return self._search(image_set, f"tags.`headwater.command_run` = '{command}'")[::-1]

    def find_finished(self, image_set: str, head: str, key: str) -> dict[str, Any] | None:
        """Return the newest finished training with this key, as a row of `leaderboard`, or None."""
        with told():
            query = f"tags.`headwater.key` = '{key}' AND attributes.status = 'FINISHED'"
            for run in self._search(image_set, query):
                version = run.data.tags.get("headwater.version")
                if version and run.data.tags.get("headwater.head") == head:
                    try:
                        found = self.client.get_model_version(model_name(image_set, head), version)
                    except MlflowException:
                        continue  # Somebody deleted the model: the training is to be done again.
                    return row_of(found, run, head)
        return None

    def trained_at(self, image_set: str, snapshot: str) -> list[tuple[str, dict[str, str]]]:
        """Return ``HEAD-vVERSION`` and tags of the models that were trained at a snapshot."""
        with told():
            found = [
                run.data.tags for run in self._search(image_set, f"tags.snapshot = '{snapshot}'")
            ]
        named = [(t, t.get("headwater.version")) for t in found]
        return [(f"{t['headwater.head']}-v{version}", dict(t)) for t, version in named if version]

    def last_fit(self, head: str, cost: str) -> dict[str, Any] | None:
        """Return ``image_set, rows, seconds`` of the newest such fit on this machine.

        None where there is none, in any set. `cost` is the tag that its run has.
        """
        here = process_tags()["headwater.host"]
        query = f"tags.`headwater.head` = '{head}' AND attributes.status = 'FINISHED'"
        query += f" AND tags.`headwater.cost` = '{cost}'"
        for image_set in self.experiments():
            for run in self._search(image_set, f"{query} AND tags.`headwater.host` = '{here}'"):
                rows, seconds = run.data.params.get("train_rows"), run.data.metrics.get("seconds")
                if seconds and rows and int(rows):
                    return {"image_set": image_set, "rows": int(rows), "seconds": seconds}
        return None

    def leaderboard(self, image_set: str, most: int | None = None) -> list[dict[str, Any]]:
        """Return the set's registered models, best image AUROC first.

        Parameters
        ----------
        most
            Only so many versions of each head, the newest.

        Returns
        -------
        list of dict
            JSON-ready, each with ``head, version, model, run_id, snapshot, history_snapshot (of
            pairs), extractor_id, backbone, weights, aliases, metrics, seconds, peak_mb, created``.
            `metrics` holds the final figures alone; what was not measured is absent, `seconds` and
            `peak_mb` None.
        """
        return [row for row, _ in self.board(image_set, most)]

    def board(
        self, image_set: str, most: int | None = None
    ) -> list[tuple[dict[str, Any], MlflowRun | None]]:
        """Return `leaderboard`'s rows, each with the run that trained it; None where it is gone.

        A run that was deleted but not yet for good is there, and says so (`is_deleted`).
        """
        if self._empty:
            return []
        with told():
            found = [
                (version, self.find_run(version.run_id), head)
                for name, head in self._models(image_set)
                for version in self._versions(name)[:most]
            ]
        rows = [(row_of(*one), one[1]) for one in found]
        return sorted(rows, key=lambda r: -r[0]["metrics"].get("image_auroc", -1.0))

    def no_models(self, image_set: str) -> dict[str, str]:
        """Return the parts of an error: that a set has no model, and which sets have some."""
        with told():
            every = [] if self._empty else self._models()
        sets = sorted({name.removesuffix(f".{head}") for name, head in every})
        return {
            "culprit": f"no models of image set {image_set!r} in {self.place}",
            "expected": one_of(sets, image_set) or "at least one registered model",
            "remedy": f"headwater run {image_set} --images DIR (or --pairs DIR)",
        }

    def _models(self, image_set: str = "") -> list[tuple[str, str]]:
        """Return ``(registered name, head)`` of the set's models, by name."""
        every = get_results_from_paginated_fn(
            lambda count, token: self.client.search_registered_models(
                None, count, page_token=token
            ),
            500,
        )
        return sorted(
            (model.name, model.tags["head"])
            for model in every
            if model.tags.get("head") and image_set in ("", model.tags.get("image_set"))
        )

    def _versions(self, name: str) -> list[Any]:
        """Return all versions of a registered model, newest first."""
        found = list(self.client.search_model_versions(f"name = '{name}'", max_results=10000))
        model = self.client.get_registered_model(name)
        if self.writable:
            remember(self.client, model)
        for version in found:
            # A search leaves the aliases out.
            version._aliases = sorted(a for a, v in model.aliases.items() if v == version.version)
        return sorted(found, key=lambda v: -int(v.version))

    def find_run(self, run_id: str) -> MlflowRun | None:
        """Return a run, also a deleted one; None where it is gone."""
        try:
            return self.client.get_run(run_id)
        except MlflowException:
            return None  # Deleted for good; the model itself still stands.

    def facts(self, run_id: str) -> tuple[dict[str, str], dict[str, str]] | None:
        """Return a run's parameters and tags, also of a deleted one; None where it is gone."""
        with told():
            run = self.find_run(run_id)
        if run is None:
            return None
        return dict(run.data.params), dict(run.data.tags)

    def get_model(
        self, image_set: str, head: str, version: str | int | None = None
    ) -> dict[str, Any]:
        """Return one registered model as a row of `leaderboard`, with its ``uri``.

        Parameters
        ----------
        version
            Version number, alias, or ``latest``. None is the champion where one is set and the
            newest otherwise.

        Raises
        ------
        ModelError
            Where there is none; it lists those there are. Where none is named and the champion's
            version was deleted.
        """
        with told():
            models = [] if self._empty else self._models(image_set)
            name = model_name(image_set, head)
            found = self._versions(name) if (name, head) in models else []
            if not models:
                remedy = f"headwater run {image_set} --images DIR --heads {head}"
                raise ModelError(**{**self.no_models(image_set), "remedy": remedy})
            if not found:
                raise ModelError(
                    f"no model of head {head!r} for image set {image_set!r}",
                    expected="one of " + ", ".join(n for n, _ in models),
                    remedy=f"headwater run {image_set} --images DIR --heads {head}",
                )
            wanted = str(version).removeprefix("v") if version is not None else None
            chosen = None
            if wanted in (None, "latest"):
                chosen = found[0]
            if wanted is None:
                tags = self.client.get_registered_model(name).tags
                chosen = champion_of(name, found, tags) or chosen
            for one in found:
                if wanted is not None and (wanted == str(one.version) or wanted in one.aliases):
                    chosen = one
            if chosen is None:
                numbers = ", ".join(str(v.version) for v in found)
                aliases = sorted({a for v in found for a in v.aliases})
                raise ModelError(
                    f"{name} has no version {version!r}",
                    expected=f"one of {numbers}, {', '.join([*aliases, 'latest'])}",
                )
            return row_of(chosen, self.find_run(chosen.run_id), head)

    def download(self, uri: str) -> Path:
        """Return the folder of a model ``models:/NAME/VERSION``, fetched where it is elsewhere.

        Raises
        ------
        ModelError
            Where there is none.
        """
        parts = uri.removeprefix("models:/").split("/")
        if not uri.startswith("models:/") or len(parts) != 2:
            raise ModelError(f"model URI {uri!r}", expected="models:/SET.HEAD/VERSION")
        try:
            source = self.client.get_model_version_download_uri(parts[0], parts[1])
            found = mlflow.artifacts.download_artifacts(
                artifact_uri=source, tracking_uri=self.address, registry_uri=self.address
            )
        except (MlflowException, OSError) as error:
            raise ModelError(
                f"model {uri} cannot be fetched: {' '.join(str(error).split())[:300]}",
                remedy="headwater compare SET lists what is registered",
            ) from error
        return Path(found)

    def sheets(self, run_id: str) -> list[str]:
        """Return the artifacts of a run that are sheets of maps."""
        with told():
            paths = [a.path for a in self.client.list_artifacts(run_id, "figures")]
            return [p for p in paths if Path(p).name.startswith(SHEETS)]

    def pictures(self, run_id: str) -> list[str]:
        """Return local paths of a run's sheets of maps; fetched below the home from a server."""
        return self.fetched(run_id, self.sheets(run_id))

    def fetched(self, run_id: str, paths: list[str]) -> list[str]:
        """Return local paths of artifacts of a run."""
        with told():
            place = self.client.get_run(run_id).info.artifact_uri
            if not self._server and is_local_uri(place):
                # They lie here; MLflow's download would copy them to a temporary folder.
                return [str(Path(local_file_uri_to_path(place)) / p) for p in paths]
            folder = self.home / "pictures" / run_id
            folder.mkdir(parents=True, exist_ok=True)
            return [self.client.download_artifacts(run_id, p, str(folder)) for p in paths]


def _database_of(url: str) -> Path:
    """Return the file of an SQLite address, read as SQLAlchemy reads it."""
    path = url.partition(":///")[2].partition("?")[0].removeprefix("file:")
    literal = Path(path).absolute()
    # A percent sign that was not quoted, where there is such a file.
    return literal if literal.exists() else Path(unquote(path)).absolute()


def _of_set(experiment: Any) -> bool:
    """Tell image sets' experiments from others that a server or a database may hold."""
    # A set's name has no space in it.
    return experiment.name != "Default" and " " not in experiment.name
