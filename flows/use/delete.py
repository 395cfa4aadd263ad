"""Deleting a set, a model or an extractor: what would go, what needs it, and the deed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.use.bundle import model_parts
from flows.use.inventory import folder_size, known_sets, model_place, stores_of
from headwater.errors import ConfigError, DataError
from storage.registry.place import local_path
from storage.registry.registry import Registry
from storage.registry.removal import check_writable, delete_set, delete_version, remains
from storage.registry.service.in_service import InService
from storage.store.engine import is_remote
from storage.store.feature_store import FeatureStore
from storage.store.layout import check_set_name, side_name
from storage.upkeep.contents import inspect
from storage.upkeep.drop import drop_extractor, drop_set
from storage.upkeep.history import tags, untag

if TYPE_CHECKING:
    from flows.runtime.home import Home


@dataclass
class Deletion:
    """What would go, before it does.

    Parameters
    ----------
    target
        In words.
    parts
        ``(what, bytes)``, None where nobody can tell.
    needed
        Why it should stay, a sentence each: champions, trainings under way.
    notes
        What else to know.
    steps
        The deed.
    """

    target: str
    parts: list[tuple[str, int | None]] = field(default_factory=list)
    needed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    steps: list[Callable[[], object]] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """What is freed, as far as is known."""
        return sum(size or 0 for _, size in self.parts)

    def check(self, *, force: bool) -> None:
        """Raise `ConfigError` where something needs it, unless forced."""
        if self.needed and not force:
            raise ConfigError(
                f"{self.target}: " + "; ".join(self.needed),
                expected="nothing that is in use",
                remedy="promote another version first, or --force",
            )

    def run(self) -> None:
        """Delete it: first what refers to things, then the things."""
        for step in self.steps:
            step()


def plan_deletion(home: Home, target: str) -> Deletion:
    """Return what deleting a target would do.

    Parameters
    ----------
    target
        ``SET``; ``SET.HEAD``, all versions, or one, ``SET.HEAD/3``, ``SET.HEAD@challenger``;
        ``SET/EXTRACTOR``, or an extractor's id alone where one set has it.

    Raises
    ------
    DataError
        Where there is no such thing.
    ConfigError
        Where several sets have the extractor.
    """
    registry = Registry(home.root, home.tracking_url)
    sets = known_sets(home)
    models = registry.leaderboard("")
    names = {row["model"]: row["model"].removesuffix(f".{row['head']}") for row in models}
    sets = sorted({*sets, *names.values()})
    if target in sets:
        return _of_set(home, registry, target, models)
    base, _, rest = target.removeprefix("models:/").partition("/")
    # A model whose versions MLflow has deleted is in no row.
    image_set, _, head = base.partition("@")[0].rpartition(".")
    gone = remains(registry, image_set, head) if image_set in sets else []
    if gone or base.partition("@")[0] in names:
        return _of_model(home, registry, target, models, gone)
    if base in sets and rest:
        return _of_extractor(home, registry, base, rest, models)
    having = [name for name in sets if target in _extractors(home, name)]
    if len(having) > 1:
        raise ConfigError(
            f"extractor {target} is in {len(having)} sets",
            expected="one of " + ", ".join(f"{name}/{target}" for name in having),
        )
    if having:
        return _of_extractor(home, registry, having[0], target, models)
    known = ", ".join([*sets, *names]) or "nothing: the home is empty"
    raise DataError(
        f"{target!r} is no set, model or extractor of {home.root}",
        expected=known,
        remedy="headwater home lists what there is; headwater store inspect SET its extractors",
    )


def _of_set(
    home: Home, registry: Registry, image_set: str, models: list[dict[str, Any]]
) -> Deletion:
    check_set_name(image_set)
    made = Deletion(f"set {image_set}")
    stores = stores_of(home, image_set)
    remote = is_remote(home.store)
    for name in stores:
        size = None if remote else folder_size(Path(home.store) / name)
        made.parts.append((f"store {name}, all snapshots", size))
    mine = [row for row in models if row["model"] == f"{image_set}.{row['head']}"]
    for row in mine:
        made.parts.append((_called(row), _size(registry, row)))
        _champion(made, row)
    _in_service(made, registry, image_set, mine)
    artifacts = home.root / "mlartifacts" / image_set
    held = sum(_size(registry, row) or 0 for row in mine)
    if artifacts.is_dir():
        made.parts.append(("artifacts of its runs", max(0, folder_size(artifacts) - held)))
    own = [home.pictures / image_set, home.root / "pairs" / image_set]
    cards = [home.root / "sets" / f"{name}.json" for name in {image_set, *stores}]
    kept = ("groups", "locked", "reviews", "retrained", "hooks")
    cards += [home.root / name / f"{image_set}.json" for name in kept]
    for folder in own:
        if folder.is_dir():
            made.parts.append((f"{folder.parent.name}/{image_set}", folder_size(folder)))
    _under_way(made, registry, image_set)
    if remote and stores:
        made.notes.append(f"the store is on S3 and stays: delete {home.store}/{image_set} there")
    made.notes.append("the images themselves stay where they are")

    def rest() -> None:
        for folder in own:
            shutil.rmtree(folder, ignore_errors=True)
        for card in cards:
            card.unlink(missing_ok=True)

    made.steps += [InService(registry, image_set).drop, lambda: delete_set(registry, image_set)]
    if not remote:
        made.steps += [lambda name=name: drop_set(home.store, name) for name in stores]  # type: ignore[misc]
    made.steps.append(rest)
    return made


def _of_model(
    home: Home,
    registry: Registry,
    target: str,
    models: list[dict[str, Any]],
    gone: list[dict[str, Any]],
) -> Deletion:
    """Plan for versions of a model; `gone` are those that MLflow has deleted (`remains`)."""
    image_set, head, version = model_parts(target)
    mine = [row for row in models if row["model"] == f"{image_set}.{head}"] + gone
    if version is not None:
        number = version.removeprefix("v")
        if number not in {row["version"] for row in gone}:
            number = registry.get_model(image_set, head or "", version)["version"]
        mine = [row for row in mine if row["version"] == number]
    made = Deletion(f"model {target}")
    for row in mine:
        what = " (deleted in MLflow; its files are left)" if row in gone else ""
        made.parts.append((f"{_called(row)}{what}", _size(registry, row)))
        _champion(made, row)
    _in_service(made, registry, image_set, mine)

    def forget(row: dict[str, Any]) -> None:
        InService(registry, image_set).forget(row)
        delete_version(registry, row)
        sides = [image_set, side_name(image_set, "current"), side_name(image_set, "history")]
        for name in [n for n in stores_of(home, image_set) if n in sides]:
            store = FeatureStore.open(home.store, name, create=False)
            label, known = f"model-{row['head']}-v{row['version']}", tags(store)
            # Where MLflow's database was replaced, a version's tag has its run in its name.
            own = f"{label}-{row['run_id'][:8]}"
            if (tag := own if own in known else label) in known:
                untag(store, tag)

    made.steps.append(lambda: check_writable(registry))
    made.steps += [lambda row=row: forget(row) for row in mine]  # type: ignore[misc]
    made.notes.append("its run stays in MLflow, marked; its snapshot may expire (store gc)")
    return made


def _of_extractor(
    home: Home, registry: Registry, image_set: str, extractor: str, models: list[dict[str, Any]]
) -> Deletion:
    made = Deletion(f"extractor {extractor} of {image_set}")
    stores = []
    for name in stores_of(home, image_set):
        store = FeatureStore.open(home.store, name, create=False)
        for facts in inspect(store)["extractors"]:
            if facts["id"] == extractor:
                stores.append(store)
                layers = facts["layers"]
                size = sum(layer["stored_bytes"] for layer in layers)
                made.parts.append((f"{len(layers)} layer(s) in {name}", size))
    if not stores:
        known = ", ".join(sorted(_extractors(home, image_set))) or "none"
        raise DataError(f"{image_set} has no extractor {extractor!r}", expected=f"one of {known}")
    for row in models:
        if row["model"] == f"{image_set}.{row['head']}" and "champion" in row["aliases"]:
            run = registry.find_run(row["run_id"])
            if run is not None and run.data.tags.get("store_extractor") == extractor:
                made.needed.append(f"{_called(row)} is the champion and learnt from it")
    _under_way(made, registry, image_set)
    made.notes.append(
        "snapshots of before keep it: registered models' are tagged; `headwater store gc` frees "
        "what no snapshot holds"
    )
    made.steps += [lambda store=store: drop_extractor(store, extractor) for store in stores]  # type: ignore[misc]
    return made


def _extractors(home: Home, image_set: str) -> set[str]:
    return {
        extractor.spec.id
        for name in stores_of(home, image_set)
        for extractor in FeatureStore.open(home.store, name, create=False).extractors()
    }


def _called(row: dict[str, Any]) -> str:
    aliases = f" ({', '.join(row['aliases'])})" if row["aliases"] else ""
    return f"{row['model']} version {row['version']}{aliases}"


def _size(registry: Registry, row: dict[str, Any]) -> int | None:
    if "address" in row:
        place = local_path(row["address"])
    else:
        place = model_place(registry, row)
    return None if place is None else folder_size(place)


def _champion(made: Deletion, row: dict[str, Any]) -> None:
    if "champion" in row["aliases"]:
        made.needed.append(f"{row['model']} version {row['version']} is the champion")


def _in_service(
    made: Deletion, registry: Registry, image_set: str, rows: list[dict[str, Any]]
) -> None:
    held = InService(registry, image_set).held()
    for row in rows:
        if alias := held.get((row["model"], row["version"])):
            what = "in service" if alias == "champion" else "what `headwater rollback` goes back to"
            made.needed.append(f"{row['model']} version {row['version']} is {what}")


def _under_way(made: Deletion, registry: Registry, image_set: str) -> None:
    if registry.in_use(image_set):
        made.needed.append("a training under way reads it")
