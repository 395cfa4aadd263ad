"""Taking models and sets out of MLflow, with their artifacts, so that aliases stay true."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

from headwater.errors import StoreError
from storage.registry.client import MlflowException, told
from storage.registry.place import local_path
from storage.registry.registry import Registry

# After the import that sets MLflow's environment.
from mlflow.entities import ViewType  # isort: skip
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository  # isort: skip
from mlflow.utils import get_results_from_paginated_fn  # isort: skip

#: Tag of a run whose model was deleted: the version's number.
_DELETED = "headwater.model_deleted"


def delete_version(registry: Registry, row: Mapping[str, Any]) -> None:
    """Delete one version of a registered model, its files and what MLflow says of it.

    The alias ``challenger`` goes to the newest version that is left, as a training would set it;
    other aliases of the version go with it. A model without versions goes, too. The run stays,
    with a tag that says that its model was deleted.

    Parameters
    ----------
    row
        Of `Registry.leaderboard`, or of `remains`: then MLflow has deleted the version already.
    """
    check_writable(registry)
    client, name = registry.client, row["model"]
    with told():
        run = registry.find_run(row["run_id"])
        address = row.get("address")
        if address is None:
            address = client.get_model_version_download_uri(name, row["version"])
            client.delete_model_version(name, row["version"])
        left = registry._versions(name)
        if not left:
            with contextlib.suppress(MlflowException):  # gone already
                client.delete_registered_model(name)
        elif "challenger" not in left[0].aliases:
            client.set_registered_model_alias(name, "challenger", left[0].version)
        if run is not None:
            if run.info.lifecycle_stage == "active":  # a deleted run takes no tags
                client.set_tag(row["run_id"], _DELETED, str(row["version"]))
            # A version in a database does not say which of MLflow's models it is; its run does.
            if model_id := run.data.tags.get("headwater.model_id"):
                with contextlib.suppress(MlflowException):  # gone already
                    client.delete_logged_model(model_id)
        _delete_artifacts(registry, address)


def remains(registry: Registry, image_set: str, head: str = "") -> list[dict[str, Any]]:
    """Return what is left of versions that MLflow itself has deleted, as `delete_version` takes it.

    Its client and its pages take the version alone: the model's files, MLflow's entry of them and
    the tag of the store's snapshot stay, and no other version becomes the challenger.

    Parameters
    ----------
    image_set, head
        Whose; without a head those of all.

    Returns
    -------
    list of dict
        ``model, head, version, run_id, aliases`` and ``address``, of the files; by model, the
        newest first.
    """
    if registry.local and not registry.database.exists():
        return []
    client, found = registry.client, []
    with told():
        if (place := client.get_experiment_by_name(image_set)) is None:
            return []
        known = {
            (name, str(version.version))
            for name, _ in registry._models(image_set)
            for version in registry._versions(name)
        }
        for run in _all(client.search_runs, place.experiment_id, run_view_type=ViewType.ALL):
            tags = run.data.tags
            name, version = tags.get("headwater.model", ""), tags.get("headwater.version", "")
            if not version or (name, version) in known or _DELETED in tags:
                continue
            if head and tags.get("headwater.head") != head:
                continue
            try:
                model = client.get_logged_model(tags.get("headwater.model_id", ""))
            except MlflowException:
                continue  # taken as well
            row = {"model": name, "head": tags["headwater.head"], "version": version}
            row |= {"run_id": run.info.run_id, "address": model.artifact_location}
            found.append({**row, "aliases": []})
    return sorted(found, key=lambda row: (row["model"], -int(row["version"])))


def delete_set(registry: Registry, image_set: str) -> None:
    """Delete all models and runs of an image set, and their artifacts.

    In a database they are gone for good; a server keeps them, as deleted, until ``mlflow gc``.
    """
    if registry.local and not registry.database.exists():
        return
    check_writable(registry)
    client = registry.client
    with told():
        found = client.get_experiment_by_name(image_set)
        models: list[str] = []
        if found is not None:
            models = [m.model_id for m in _all(client.search_logged_models, found.experiment_id)]
    for row in registry.leaderboard(image_set):
        delete_version(registry, row)
    if found is None:
        return
    with told():
        runs = _all(client.search_runs, found.experiment_id, run_view_type=ViewType.ALL)
        if found.lifecycle_stage != "deleted":
            client.delete_experiment(found.experiment_id)
        store = client._tracking_client.store
        if hasattr(store, "_hard_delete_experiment"):  # as `mlflow gc` does
            for model_id in models:
                store._hard_delete_logged_model(model_id)
            for run in runs:
                store._hard_delete_run(run.info.run_id)
            store._hard_delete_experiment(found.experiment_id)
        _delete_artifacts(registry, found.artifact_location)


def _all(search: Callable[..., Any], experiment: str, **more: Any) -> list[Any]:
    return get_results_from_paginated_fn(
        lambda count, token: search([experiment], max_results=count, page_token=token, **more), 100
    )


def check_writable(registry: Registry) -> None:
    """Raise `StoreError` where the home cannot be written: a copy of its database would be."""
    registry.ready()
    if not registry.writable:
        raise StoreError(
            f"{registry.database} cannot be written",
            expected="a home that this user may write to",
            remedy="see to its rights, or to how it is mounted",
        )


def _delete_artifacts(registry: Registry, address: str) -> None:
    path = local_path(address)
    if path is not None:
        # MLflow's own deleting takes a % in a path for a quoted character.
        shutil.rmtree(path, ignore_errors=True)
        if path.name == "artifacts" and path.parent.exists() and not any(path.parent.iterdir()):
            path.parent.rmdir()
        return
    try:
        get_artifact_repository(address, registry.uri).delete_artifacts()
    except (MlflowException, NotImplementedError, OSError) as error:
        raise StoreError(
            f"the artifacts at {address} cannot be deleted: {str(error).splitlines()[0]}",
            expected="a place that this user may delete from",
            remedy="delete them with the tools of that place; MLflow knows of them no more",
        ) from error
