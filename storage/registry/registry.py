"""The model registry: MLflow on SQLite below the home, or a server by configuration.

One MLflow experiment an image set, one run a training (nested under the run of the command that
asked for it), one registered model ``SET.HEAD`` a head. Nothing here reads features or trains.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from mlflow.entities import DatasetInput, InputTag

from headwater.errors import StoreError
from storage.registry.client import MlflowException
from storage.registry.facts import image_set_dataset, is_alive, process_tags, user, versions
from storage.registry.read import RegistryReader, model_name, told
from storage.registry.runs import Run, RunLog, ask_again

__all__ = ["Registry", "Run", "model_name"]


class Registry(RegistryReader):
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

    @contextmanager
    def parent(self, image_set: str, snapshot: str = "") -> Iterator[str]:
        """Yield the id of a run that the trainings of one command are nested under.

        On leaving, trainings below it whose process died are marked KILLED.
        """
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
        tags = {"headwater.kind": "command", "snapshot": snapshot}
        with self._open(image_set, f"run {now}", tags) as run_id:
            yield run_id

    @contextmanager
    def study(self, image_set: str, name: str, tags: Mapping[str, str]) -> Iterator[RunLog]:
        """Yield a run without a model: something found out about models that are there.

        Parameters
        ----------
        image_set
            Whose experiment it belongs to.
        name
            Of the run.
        tags
            What it is about; ``headwater.kind`` is ``study``.
        """
        with self._open(image_set, name, {"headwater.kind": "study", **tags}) as run_id:
            yield RunLog(self.client, run_id)

    def points(
        self,
        image_set: str,
        parent_run: str,
        rows: Iterable[tuple[str, Mapping[str, Any], Mapping[str, float]]],
        tags: Mapping[str, str],
    ) -> None:
        """Log finished runs below a study, one each ``(name, parameters, figures)``."""
        with told():
            for name, params, figures in rows:
                own = {"headwater.kind": "point", "mlflow.parentRunId": parent_run, **tags}
                log = RunLog(self.client, self._create(image_set, name, own))
                log.log_params(params)
                log.log_figures(figures)
                self.client.set_terminated(log.run_id, "FINISHED")

    @contextmanager
    def _open(self, image_set: str, name: str, tags: Mapping[str, str]) -> Iterator[str]:
        with told():
            self.reap(image_set)
            run_id = self._create(image_set, name, tags)
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
        with told():
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
            RunLog(client, run_id).log_params(params)
            dataset = image_set_dataset(image_set, store, tags.get("snapshot", ""), images)
            context = [InputTag("mlflow.data.context", "training, evaluation")]
            ask_again(lambda: client.log_inputs(run_id, [DatasetInput(dataset, context)]))
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
        client = self.client
        if not self.writable:
            raise StoreError(
                f"{self.database} cannot be written: no run is kept",
                expected="a home that this user may write to",
                remedy="copy the home, and give the copy with --home",
            )
        made = client.create_run(self._experiment(image_set), tags=every, run_name=name)
        return str(made.info.run_id)

    def _registered(self, name: str, image_set: str, head: str) -> None:
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
        with told():
            gone = []
            for run in self._search(image_set, "attributes.status = 'RUNNING'"):
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

    def in_use(self, image_set: str, tag: str = "snapshot") -> set[str]:
        """Return the snapshots that runs under way read: what must not expire beneath them.

        Runs over pairs read two: those of the history side are under the tag ``history_snapshot``.
        """
        self.reap(image_set)
        with told():
            running = self._search(image_set, "attributes.status = 'RUNNING'")
            return {run.data.tags.get(tag, "") for run in running} - {""}
