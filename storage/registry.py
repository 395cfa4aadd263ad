"""The model registry: MLflow on SQLite below the home, or a server by configuration.

One MLflow experiment an image set, one run a training (nested under the run of the command that
asked for it), one registered model ``SET.HEAD`` a head. Nothing here reads features or trains.
"""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from headwater.errors import ConfigError, HeadwaterError, ModelError, StoreError
from storage.registry_facts import (
    FeatureStoreSource,
    ImageSetDataset,
    is_alive,
    process_tags,
    profile,
    user,
    versions,
)
from storage.registry_mlflow import (
    MlflowClient,
    MlflowException,
    database_uri,
    mlflow,
    prepare_database,
)
from storage.registry_run import EPOCH, Run, log_params

# After the import that sets MLflow's environment.
from mlflow.entities import DatasetInput, InputTag  # isort: skip
from mlflow.entities import Run as MlflowRun  # isort: skip

_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql")
#: Figures of a run that are columns of their own, not metrics of the detector.
_COSTS = ("seconds", "peak_mb", "score_seconds_per_image")


class Registry:
    """Runs and models of image sets, kept by MLflow.

    Nothing is created before it is needed: reading from a home without results says "none".

    Parameters
    ----------
    home
        Folder of all state; ``mlflow.db`` and ``mlartifacts`` lie in it.
    tracking_url
        Instead of the SQLite file: an MLflow server ``http(s)://...`` (its own artifact store is
        used then) or a database URL.

    Raises
    ------
    ConfigError
        For a URL that is neither.

    Examples
    --------
    >>> import tempfile
    >>> Registry(tempfile.mkdtemp()).leaderboard("bottles")
    []
    """

    def __init__(self, home: Path | str, tracking_url: str | None = None) -> None:
        self.home = Path(home).absolute()
        self.database = self.home / "mlflow.db"
        self.uri = tracking_url or database_uri(self.database)
        scheme = urlparse(self.uri).scheme.split("+")[0]
        if scheme not in _SCHEMES:
            raise ConfigError(
                f"MLflow tracking URL {self.uri!r}",
                expected="http(s)://HOST:PORT, sqlite:///FILE or postgresql://...",
            )
        self._server = scheme in ("http", "https")
        if scheme == "sqlite":
            self.database = Path(unquote(self.uri.removeprefix("sqlite:///"))).absolute()
            self.uri = database_uri(self.database)
        self._local = scheme == "sqlite"
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
            if self._local:
                prepare_database(self.database)
            elif self._server:
                self._ask_server()
            self._cached = MlflowClient(self.uri, self.uri)
        return self._cached

    def _ask_server(self) -> None:
        """Fail in seconds where MLflow's own client would try for minutes."""
        try:
            with urllib.request.urlopen(self.uri.rstrip("/") + "/health", timeout=10) as answer:
                answer.read(64)
        except urllib.error.HTTPError:
            return  # Something answers; whether it is MLflow, the first call will tell.
        except (OSError, ValueError) as error:
            raise StoreError(
                f"no MLflow server answers at {self.uri}: {error}",
                expected="a running `mlflow server`",
                remedy="start it, or leave the tracking URL out to use the home's own database",
            ) from error

    @property
    def _empty(self) -> bool:
        return self._local and not self.database.exists()

    # -- writing ---------------------------------------------------------------------------------

    @contextmanager
    def parent(self, image_set: str, snapshot: str = "") -> Iterator[str]:
        """Yield the id of a run that the trainings of one command are nested under.

        On leaving, trainings below it whose process died are marked KILLED.
        """
        with _told():
            self.reap(image_set)
            now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
            run_id = self._create(
                image_set, f"run {now}", {"headwater.kind": "command", "snapshot": snapshot}
            )
        status = "FINISHED"
        try:
            yield run_id
        except BaseException as error:
            status = "FAILED" if isinstance(error, Exception) else "KILLED"
            raise
        finally:
            try:
                self.client.set_terminated(run_id, status)
                self.reap(image_set)
            except MlflowException as error:
                if status == "FINISHED":
                    raise StoreError(f"run {run_id} cannot be ended: {error}") from error

    def start(
        self,
        image_set: str,
        head: str,
        key: str,
        *,
        parent_run: str | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        images: Iterable[Any] = (),
        store: str = "",
    ) -> Run:
        """Begin the run of one training; use it as a context manager.

        Parameters
        ----------
        image_set, head
            What is trained; the registered model is ``SET.HEAD``.
        key
            Idempotency key that `find_finished` looks for.
        parent_run
            Run id from `parent`.
        params
            Configuration, logged as parameters.
        tags
            At least ``snapshot`` and ``extractor_id``.
        images
            The image table at the snapshot (rows with ``split`` and ``kind``), for the data set's
            profile.
        store
            Location of the feature store, for the data set's source.

        Raises
        ------
        StoreError
            Where MLflow refuses.
        """
        tags, params = dict(tags or {}), dict(params or {})
        name = model_name(image_set, head)
        with _told():
            self.reap(image_set, key)
            own = {
                "headwater.kind": "training",
                "headwater.head": head,
                "headwater.key": key,
                "headwater.model": name,
                **versions(),
                **tags,
            }
            if parent_run:
                own["mlflow.parentRunId"] = parent_run
            run_id = self._create(image_set, head, own)
            client = self.client
            log_params(client, run_id, params)
            dataset = ImageSetDataset(
                image_set, FeatureStoreSource(store, tags.get("snapshot", "")), profile(images)
            )
            entity = dataset._to_mlflow_entity()
            context = [InputTag("mlflow.data.context", "training, evaluation")]
            client.log_inputs(run_id, [DatasetInput(entity, context)])
            model = client.create_logged_model(
                self._experiment(image_set), head, run_id, model_type="anomaly detector"
            )
            client.set_tag(run_id, "headwater.model_id", model.model_id)
            self._registered(name, image_set, head)
        about = {"image_set": image_set, "head": head, "key": key, **tags}
        about["backbone"] = str(params.get("backbone", ""))
        about["weights"] = str(params.get("weights_sha256", ""))
        about = {k: v[:5000] for k, v in about.items()}
        return Run(client, run_id, model.model_id, name, (dataset.name, dataset.digest), about)

    def _create(self, image_set: str, name: str, tags: Mapping[str, str]) -> str:
        every = {
            **process_tags(),
            "mlflow.user": user(),
            "mlflow.source.name": "headwater",
            "mlflow.source.type": "LOCAL",
            **{k: v[:5000] for k, v in tags.items()},
        }
        made = self.client.create_run(self._experiment(image_set), tags=every, run_name=name)
        return str(made.info.run_id)

    def _experiment(self, image_set: str, create: bool = True) -> str:
        """Return the id of the set's experiment, made where there is none."""
        found = self.client.get_experiment_by_name(image_set)
        if found is None:
            if not create:
                return ""
            # A server keeps artifacts in its own place.
            place = None if self._server else (self.home / "mlartifacts" / image_set).as_uri()
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

    def _registered(self, name: str, image_set: str, head: str) -> None:
        try:
            self.client.get_registered_model(name)
        except MlflowException:
            try:
                self.client.create_registered_model(name, {"image_set": image_set, "head": head})
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise

    def reap(self, image_set: str, key: str | None = None) -> list[str]:
        """Mark runs KILLED whose process is gone; return their ids.

        A process on another machine cannot be seen from here: its run is marked only where the
        same training (`key`) begins again. Should it live after all, it ends its run as usual.
        """
        with _told():
            place = "" if self._empty else self._experiment(image_set, create=False)
            if not place:
                return []
            gone = []
            for run in self._search(place, "attributes.status = 'RUNNING'"):
                tags = run.data.tags
                alive = is_alive(tags)
                same = key is not None and tags.get("headwater.key") == key
                if alive is False or (alive is None and same):
                    self.client.set_tag(run.info.run_id, "headwater.error", "the process is gone")
                    self.client.set_terminated(run.info.run_id, "KILLED")
                    model_id = tags.get("headwater.model_id")
                    if model_id and "headwater.version" not in tags:
                        self.client.finalize_logged_model(model_id, "FAILED")
                    gone.append(run.info.run_id)
            return gone

    # -- reading ---------------------------------------------------------------------------------

    def _search(self, experiment: str, query: str) -> Iterator[MlflowRun]:
        token = None
        while True:
            page = self.client.search_runs(
                [experiment], query, order_by=["attributes.start_time DESC"], page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    def find_finished(self, image_set: str, head: str, key: str) -> dict[str, Any] | None:
        """Return the newest finished training with this key, as a row of `leaderboard`, or None."""
        if self._empty:
            return None
        with _told():
            place = self._experiment(image_set, create=False)
            if not place:
                return None
            query = f"tags.`headwater.key` = '{key}' AND attributes.status = 'FINISHED'"
            for run in self._search(place, query):
                version = run.data.tags.get("headwater.version")
                if version and run.data.tags.get("headwater.head") == head:
                    try:
                        found = self.client.get_model_version(model_name(image_set, head), version)
                    except MlflowException:
                        continue  # Somebody deleted the model: the training is to be done again.
                    return _row(found, run, head)
        return None

    def leaderboard(self, image_set: str, *, newest_only: bool = False) -> list[dict[str, Any]]:
        """Return the set's registered models, best image AUROC first.

        Parameters
        ----------
        newest_only
            Only the newest version of each head.

        Returns
        -------
        list of dict
            JSON-ready, each with ``head, version, model, run_id, snapshot, extractor_id, backbone,
            weights, aliases, metrics, seconds, peak_mb, created``. `metrics` holds the final
            figures alone; what was not measured is absent, `seconds` and `peak_mb` None.
        """
        if self._empty:
            return []
        with _told():
            rows = []
            for name, head in self._models(image_set):
                found = self._versions(name)
                for version in found[:1] if newest_only else found:
                    rows.append(_row(version, self._run(version.run_id), head))
        return sorted(rows, key=lambda r: -r["metrics"].get("image_auroc", -1.0))

    def _models(self, image_set: str = "") -> list[tuple[str, str]]:
        """Return ``(registered name, head)`` of the set's models, by name."""
        token, found = None, []
        while True:
            page = self.client.search_registered_models(max_results=500, page_token=token)
            for model in page:
                head = model.tags.get("head")
                if head and image_set in ("", model.tags.get("image_set")):
                    found.append((model.name, head))
            token = page.token
            if not token:
                return sorted(found)

    def _versions(self, name: str) -> list[Any]:
        """Return all versions of a registered model, newest first."""
        found = list(self.client.search_model_versions(f"name = '{name}'", max_results=10000))
        aliases = self.client.get_registered_model(name).aliases
        for version in found:
            # A search leaves the aliases out.
            version._aliases = sorted(a for a, v in aliases.items() if v == version.version)
        return sorted(found, key=lambda v: -int(v.version))

    def _run(self, run_id: str) -> MlflowRun | None:
        try:
            return self.client.get_run(run_id)
        except MlflowException:
            return None  # Deleted for good; the model itself still stands.

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
            Where there is none; it lists those there are.
        """
        with _told():
            models = [] if self._empty else self._models()
            name = model_name(image_set, head)
            found = self._versions(name) if (name, head) in models else []
            if not found:
                raise ModelError(
                    f"no model of head {head!r} for image set {image_set!r}",
                    expected="one of " + ", ".join(n for n, _ in models) if models else "",
                    remedy=f"headwater run {image_set} --images DIR --heads {head}",
                )
            wanted = str(version).removeprefix("v") if version is not None else None
            chosen = None
            if wanted in (None, "latest"):
                champion = [v for v in found if "champion" in v.aliases and wanted is None]
                chosen = (champion or found)[0]
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
            return _row(chosen, self._run(chosen.run_id), head)

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
                artifact_uri=source, tracking_uri=self.uri, registry_uri=self.uri
            )
        except (MlflowException, OSError) as error:
            raise ModelError(
                f"model {uri} cannot be fetched: {str(error).splitlines()[0]}",
                remedy="headwater compare SET lists what is registered",
            ) from error
        return Path(found)

    def pictures(self, run_id: str) -> list[str]:
        """Return local paths of a run's heat-map sheets; fetched below the home from a server."""
        with _told():
            paths = [a.path for a in self.client.list_artifacts(run_id, "figures")]
            paths = [p for p in paths if Path(p).name.startswith("heat-maps")]
            if not self._server:
                root = urlparse(self.client.get_run(run_id).info.artifact_uri)
                if root.scheme in ("", "file"):
                    return [str(Path(unquote(root.path)) / p) for p in paths]
            folder = self.home / "pictures" / run_id
            folder.mkdir(parents=True, exist_ok=True)
            return [self.client.download_artifacts(run_id, p, str(folder)) for p in paths]

    def ui_command(self, port: int = 5000) -> list[str]:
        """Return the command that opens the MLflow UI on this machine alone.

        Raises
        ------
        ConfigError
            Where a server is configured: it is its own UI.
        """
        if self._server:
            raise ConfigError(
                f"the results are on {self.uri}", remedy="open that address in a browser"
            )
        if self._local:
            prepare_database(self.database)
        place = (self.home / "mlartifacts").as_uri()
        options = ["--backend-store-uri", self.uri, "--default-artifact-root", place]
        options += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        return [sys.executable, "-m", "mlflow", "ui", *options]


def model_name(image_set: str, head: str) -> str:
    """Return the registered model's name, ``SET.HEAD``, with what MLflow allows in names."""
    name = f"{image_set}.{head}"
    if any(c in name for c in "/:'\"%") or not image_set or not head:
        raise ConfigError(
            f"model name {name!r}", expected="an image set and a head without / : quotes or %"
        )
    return name


def _row(version: Any, run: MlflowRun | None, head: str) -> dict[str, Any]:
    """Return what is told of a registered model; tags of the version stand in for a lost run."""
    figures = dict(run.data.metrics) if run else {}
    costs = {k: figures.pop(k, None) for k in _COSTS}
    params = run.data.params if run else {}
    return {
        "head": head,
        "version": str(version.version),
        "model": version.name,
        "uri": f"models:/{version.name}/{version.version}",
        "run_id": version.run_id,
        "snapshot": version.tags.get("snapshot", ""),
        "extractor_id": version.tags.get("extractor_id", ""),
        "backbone": version.tags.get("backbone") or params.get("backbone", ""),
        "weights": version.tags.get("weights", ""),
        "aliases": sorted(version.aliases),
        "metrics": {k: v for k, v in sorted(figures.items()) if not k.startswith(EPOCH)},
        **costs,
        "created": datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).isoformat(
            timespec="seconds"
        ),
    }


@contextmanager
def _told() -> Iterator[None]:
    """Turn MLflow's errors into one of ours with its first line."""
    try:
        yield
    except HeadwaterError:
        raise
    except MlflowException as error:
        raise StoreError(
            f"MLflow: {str(error).splitlines()[0]}",
            remedy="see to the MLflow server, or to the database and disk of the home",
        ) from error
