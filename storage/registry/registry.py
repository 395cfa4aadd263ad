"""The model registry: MLflow on SQLite below the home, or a server by configuration.

One MLflow experiment an image set, one run a training, one registered model ``SET.HEAD`` a head.
Nothing here reads features or trains.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow.entities import DatasetInput, InputTag

from headwater.errors import ModelError, StoreError
from headwater.samples import IMAGE, PAIR
from storage.registry.client import MlflowException, mlflow, told
from storage.registry.facts import image_set_dataset, is_alive, process_tags, user, versions
from storage.registry.pages import describe_command, describe_grid, show_set
from storage.registry.read import COMMANDS, GRIDS, RegistryReader, model_name
from storage.registry.runs import Run, RunLog, ask_again

#: Characters of a snapshot in a run's name.
_SHORT = 8

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
        """Yield the id of the run of one command, which its trainings name in a tag.

        It lies in an experiment of its own: among a set's trainings it would be a row without
        figures, and nested under it they would be hidden. On leaving, trainings whose process died
        are marked KILLED.
        """
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
        tags = {"headwater.kind": "command", "image_set": image_set, "snapshot": snapshot}
        with self._open(image_set, f"{image_set} {now}", tags, COMMANDS) as run_id:
            yield run_id

    @contextmanager
    def study(self, image_set: str, name: str, tags: Mapping[str, str]) -> Iterator[RunLog]:
        """Yield a run without a model: something found out about models that are there.

        Parameters
        ----------
        image_set
            What it is about; it lies in the experiment ``SET grids``.
        name
            Of the run.
        tags
            What it is about; ``headwater.kind`` is ``study``.
        """
        own = {"headwater.kind": "study", **tags}
        with self._open(image_set, name, own, GRIDS.format(image_set)) as run_id:
            yield RunLog(self.client, run_id)

    def watched(self, image_set: str) -> RunLog:
        """Return the run that holds a set's figures in service, a step a day; made if absent.

        It lies with the set's studies: among its trainings it would be a row that was never
        trained. It has ended from the first: who writes a day writes it whole.
        """
        place = GRIDS.format(image_set)
        with told():
            found = self._search(place, "tags.`headwater.kind` = 'watch'")
            if found:
                return RunLog(self.client, found[0].info.run_id)
            tags = {"headwater.kind": "watch", "image_set": image_set}
            made = RunLog(self.client, self._create(place, f"{image_set} in service", tags))
            self.client.set_terminated(made.run_id, "FINISHED")
            return made

    def points(
        self,
        image_set: str,
        parent_run: str,
        rows: Iterable[tuple[str, Mapping[str, Any], Mapping[str, float]]],
        tags: Mapping[str, str],
    ) -> None:
        """Log the finished runs of a study, one each ``(name, parameters, figures)``.

        They lie with the study in the experiment ``SET grids``: 169 of them would fill the first
        page of the set's.
        """
        place = GRIDS.format(image_set)
        with told():
            for name, params, figures in rows:
                own = {"headwater.kind": "point", "headwater.grid_run": parent_run, **tags}
                log = RunLog(self.client, self._create(place, name, own))
                log.log_params(params)
                log.log_figures(figures)
                self.client.set_terminated(log.run_id, "FINISHED")
            describe_grid(self, image_set, parent_run, self._experiment(place))

    def artifact(self, run_id: str, path: str) -> Path | None:
        """Return the local path of a run's artifact; None where it has none of that path."""
        with told():
            known = self.client.list_artifacts(run_id, path.rpartition("/")[0] or None)
        if path not in {one.path for one in known}:
            return None
        return Path(self.fetched(run_id, [path])[0])

    def artifact_json(self, run_id: str, path: str) -> Any:
        """Return what a run's JSON artifact holds; None where it has none of that path."""
        file = self.artifact(run_id, path)
        return None if file is None else json.loads(file.read_text())

    def sample_table(self, run_id: str) -> list[dict[str, Any]] | None:
        """Return a run's rows of test samples, images or pairs; None where it has none."""
        for kind in (IMAGE, PAIR):
            if rows := self.artifact_json(run_id, f"tables/{kind.name}s.json"):
                return rows
        return None

    def attach(self, run_id: str, text: str, name: str) -> None:
        """Keep a text as an artifact of a run that may have ended long ago."""
        with told():
            self.client.log_text(run_id, text, name)

    def model_file(self, uri: str, name: str) -> Path:
        """Return the local path of one file of a model ``models:/NAME/VERSION``.

        Raises
        ------
        ModelError
            Where the model or the file is not there.
        """
        model, version = uri.removeprefix("models:/").split("/")
        try:
            source = self.client.get_model_version_download_uri(model, version)
            found = mlflow.artifacts.download_artifacts(
                artifact_uri=f"{source.rstrip('/')}/{name}", tracking_uri=self.address
            )
        except (MlflowException, OSError) as error:
            raise ModelError(
                f"{name} of {uri} cannot be fetched: {' '.join(str(error).split())[:300]}",
                remedy="headwater compare SET lists what is registered",
            ) from error
        return Path(found)

    def studies(self, image_set: str) -> list[tuple[str, dict[str, str], dict[str, str]]]:
        """Return run id, parameters and tags of a set's finished studies, newest first."""
        query = "tags.`headwater.kind` = 'study' AND attributes.status = 'FINISHED'"
        with told():
            found = self._search(GRIDS.format(image_set), query)
        return [(run.info.run_id, dict(run.data.params), dict(run.data.tags)) for run in found]

    @contextmanager
    def _open(
        self, image_set: str, name: str, tags: Mapping[str, str], place: str = ""
    ) -> Iterator[str]:
        with told():
            self.reap(image_set)
            run_id = self._create(place or image_set, name, tags)
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
                if place == COMMANDS:
                    describe_command(self, image_set, run_id)
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
        summary: str = "",
    ) -> Run:
        """Begin the run of one training; use it as a context manager.

        Parameters
        ----------
        image_set, head
            What is trained; the registered model is ``SET.HEAD``.
        key
            Idempotency key that `find_finished` looks for.
        parent_run
            Run id from `parent`; the run names it in the tag ``headwater.command_run``.
        params
            Configuration, logged as parameters.
        tags
            At least ``snapshot`` and ``extractor_id``.
        images
            The image table at the snapshot (rows with ``split`` and ``kind``), for the data set's
            profile.
        store
            Location of the feature store, for the data set's source.
        summary
            What the head is, for the registered model's description.

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
                own["headwater.command_run"] = parent_run
            backbone = str(params.get("backbone", ""))
            named = (head, backbone, tags.get("snapshot", "")[:_SHORT])
            run_id = self._create(image_set, " ".join(filter(None, named)), own)
            client = self.client
            RunLog(client, run_id).log_params(params)
            dataset = image_set_dataset(image_set, store, tags, images)
            context = [InputTag("mlflow.data.context", "training, evaluation")]
            ask_again(lambda: client.log_inputs(run_id, [DatasetInput(dataset, context)]))
            model = client.create_logged_model(
                self._experiment(image_set), head, run_id, model_type="anomaly detector"
            )
            client.set_tag(run_id, "headwater.model_id", model.model_id)
            self._registered(name, {"image_set": image_set, "head": head, "summary": summary})
        about = {"image_set": image_set, "head": head, "key": key, **tags}
        about["backbone"] = backbone
        about["weights"] = str(params.get("weights_sha256", ""))
        about = {k: v[:5000] for k, v in about.items()}
        made = Run(client, run_id, model.model_id, name, (dataset.name, dataset.digest), about)
        made.tell_params(params)
        made.facts |= {"snapshot": tags.get("snapshot", ""), "data": tags.get("data_digest", "")}
        made.when_registered = lambda: show_set(self, image_set)
        return made

    def _create(self, place: str, name: str, tags: Mapping[str, str]) -> str:
        """Make a run in the experiment of this name; return its id."""
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
        made = client.create_run(self._experiment(place), tags=every, run_name=name)
        return str(made.info.run_id)

    def _registered(self, name: str, tags: Mapping[str, str]) -> None:
        try:
            self.client.create_registered_model(name, dict(tags))
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
            for run in self._running(image_set):
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
            return {run.data.tags.get(tag, "") for run in self._running(image_set)} - {""}

    def _running(self, image_set: str) -> list[Any]:
        """Return the runs under way of a set: trainings, studies and commands."""
        running = "attributes.status = 'RUNNING'"
        own = [self._search(name, running) for name in (image_set, GRIDS.format(image_set))]
        commands = self._search(COMMANDS, running)
        own.append([run for run in commands if run.data.tags.get("image_set") == image_set])
        return [run for found in own for run in found]
