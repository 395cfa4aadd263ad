"""Retraining of one set: from new images to a champion that is no worse than the one before.

Each step finds what was done before, so that a retraining that was killed goes on where it was and
one that is asked for twice does nothing the second time: features are in the store, trainings in
MLflow, holds among the reviews, judgements in the history of the model in service.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.extraction.pair_list import Version
from flows.extraction.report import ExtractionReport
from flows.extraction.samples import HELD
from flows.retraining.gate import Judgement
from flows.retraining.guard import Guarded, guard, unseen
from flows.retraining.judging import Bench, choose
from flows.retraining.locked import lock, locked_test
from flows.runtime.home import Home
from flows.runtime.resolve import require_set
from flows.runtime.settings import Settings, TrainingSettings, changed
from flows.training.record import LINEAGE
from flows.training.results import TrainOutcome
from flows.training.trainings import Request
from flows.use.models.card import keep_card
from headwater.errors import StoreError
from headwater.files import locked
from storage.registry.registry import Registry
from storage.registry.service.in_service import InService
from storage.store.feature_store import FeatureStore
from storage.store.table import ImageRow

if TYPE_CHECKING:
    from flows.runtime.console import Reporter

#: Options of a training that belong to the machine, not to the model.
_OF_MACHINE = ("device", "workers", "preset", "seeds", "held_out")


@dataclass
class Retrained:
    """What a retraining did.

    Parameters
    ----------
    image_set
        Name of the set.
    what
        ``nothing new``, ``promoted``, ``kept`` (the champion stays) or ``held`` (all new images
        wait, and there is nothing to learn from).
    champion
        In service now, as ``SET.HEAD version N``; empty where nothing is.
    why
        In a line.
    guarded
        What the guard said of the new images.
    judged
        What the gate said of each challenger.
    failures
        Heads that could not be trained, and why.
    set_aside
        Files that could not be used, as ``(path, reason)``.
    trained
        By head, in words: what it grew from, or why it was trained in full where it might have.
    """

    image_set: str
    what: str
    champion: str = ""
    why: str = ""
    guarded: Guarded = field(default_factory=Guarded)
    judged: list[Judgement] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    set_aside: list[tuple[str, str]] = field(default_factory=list)
    trained: dict[str, str] = field(default_factory=dict)

    @property
    def status(self) -> int:
        """Exit status: 3 where somebody has to look at something."""
        return 3 if self.guarded.waiting or self.failures or self.set_aside else 0

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        told = asdict(self) | {"judged": [one.to_json() for one in self.judged]}
        return told | {"status": self.status}


@contextmanager
def alone(home: Home, image_set: str, reporter: Reporter) -> Iterator[None]:
    """Hold the set's lock of retrainings: others of the set wait, and a killed one frees it."""
    folder = home.root / "locked"
    folder.mkdir(parents=True, exist_ok=True)
    file, work = folder / f"{image_set}.lock", f"retraining of {image_set}"
    with ExitStack() as held:
        try:
            held.enter_context(locked(file, 0.5, work=work))
        except StoreError:
            reporter.line(
                f"{image_set}: another retraining of it is under way; waiting for its end"
            )
            held.enter_context(locked(file, work=work))
        yield


def as_champion(
    settings: Settings, registry: Registry, champion: Mapping[str, Any] | None
) -> Settings:
    """Return the settings with the champion's head, and how it was trained, where none are given.

    A challenger differs from the champion by its images alone unless it is told more.
    """
    if settings.heads or champion is None:
        return settings
    kept = registry.artifact_json(champion["run_id"], LINEAGE)
    if kept is None:
        return changed(settings, {"heads": {champion["head"]: {}}})
    plan, options = kept["training"]["plan"], kept["training"]["options"]
    own = plan["members"] or [plan]
    heads = {
        one["head"]: {
            "preset": one["preset"],
            **{k: v for k, v in one["config"].items() if k != "seed"},
        }
        for one in own
    }
    more: dict[str, Any] = {"heads": heads}
    if plan["members"]:
        more["combine"] = tuple(heads)
    given = settings.training.model_fields_set
    whole = TrainingSettings.model_validate({k: v for k, v in options.items() if v is not None})
    for name in TrainingSettings.model_fields:
        if name in options and name not in (*_OF_MACHINE, *given):
            more[f"training.{name}"] = getattr(whole, name)
    return changed(settings, more)


def images_at(asked: Request, at: Version) -> list[ImageRow]:
    """Return the images of a version of the set's store."""
    store = FeatureStore.open(asked.home.store, require_set(asked.settings), create=False)
    return list(store.table(at.snapshots[0]).images())


def watch_over(
    settings: Settings, home: Home, rows: Sequence[ImageRow], reporter: Reporter
) -> Guarded:
    """Ask the guard about what is new since the champion; without one there is none to ask."""
    image_set = require_set(settings)
    champion = InService(Registry(home.root, home.tracking_url), image_set).champion()
    if champion is None:
        return Guarded(notes=["nothing is in service yet: no guard was asked about the images"])
    new = unseen(home, image_set, champion, rows)
    root = Path(home.card(image_set).get("root", ""))
    found = guard(home, image_set, champion, new, root, settings.retrain, reporter)
    held = {sha for sha, said in home.reviews(image_set).items() if said["said"] == HELD}
    return replace(found, waiting=sorted(row.path for row in rows if row.sha256 in held))


def decide(
    settings: Settings,
    home: Home,
    outcomes: Sequence[TrainOutcome],
    reporter: Reporter,
    *,
    again: bool = False,
) -> tuple[str, str, list[Judgement]]:
    """Judge what was trained against the champion; put the one in service that may go there.

    Parameters
    ----------
    outcomes
        Trained or found.
    again
        Judge also what was judged, or was in service, before.

    Returns
    -------
    tuple
        ``what`` and ``why`` as of `Retrained`, and the judgements.
    """
    image_set = require_set(settings)
    registry = Registry(home.root, home.tracking_url)
    service = InService(registry, image_set)
    champion = service.champion()
    test = locked_test(home, image_set)
    if test is None:
        test, _ = lock(home, image_set)
        reporter.line(f"{image_set}: locked its {len(test.images)} test images to judge models on")
    before = set() if again else service.judged(test.digest)
    if champion is not None:
        before |= {(champion["model"], str(champion["version"]))}
    todo = [o for o in outcomes if (o.model, str(o.version)) not in before]
    if not todo:
        return "nothing new", "", []
    bench, judged = Bench(home, image_set, test, settings.retrain), []
    rows = {}
    for done, one in enumerate(todo):
        reporter.update("gate", done, len(todo), f"{one.head} v{one.version}")
        row = registry.get_model(image_set, one.head, one.version)
        rows[one.head, str(one.version)] = row
        judged.append(bench.judge(champion, row))
    known = {
        f"{o.model}/{o.version}": o.metrics["val_image_auroc"]
        for o in todo
        if "val_image_auroc" in o.metrics
    }
    chosen = choose(judged, "" if champion is None else champion["head"], known)
    told: dict[str, Any] = {"judged": [(j.model, j.version) for j in judged], "test": test.digest}
    if chosen is None:
        why = " / ".join(f"{j.head} v{j.version}: {j.why}" for j in judged)
        service.keep(why, who="retrain", more=told)
        return "kept", why, judged
    why = "the first model"
    if champion is not None:
        why = f"no worse than {chosen.champion} on {len(test.images)} locked test images: "
        why += str(chosen.checks[0])
    # A tag of MLflow's holds 5000 characters.
    told["checks"] = [str(check)[:150] for check in chosen.checks][:8]
    service.promote(rows[chosen.head, chosen.version], why, "retrain", more=told)
    keep_card(home, image_set, test.images, reporter.line)
    return "promoted", why, judged


def closing(
    asked: Request,
    report: ExtractionReport,
    guarded: Guarded,
    decided: tuple[str, str, list[Judgement]],
    failures: Sequence[tuple[str, BaseException]],
    trained: Mapping[str, str],
) -> Retrained:
    """Return what a retraining did, as it ends; `trained` as of `Retrained`."""
    image_set, home = require_set(asked.settings), asked.home
    what, why, judged = decided
    champion = InService(Registry(home.root, home.tracking_url), image_set).champion()
    if guarded.held and what == "nothing new":
        what, why = "held", guarded.batch or "all that is new waits for a review"
    return Retrained(
        image_set,
        what,
        "" if champion is None else f"{champion['model']} version {champion['version']}",
        why,
        guarded,
        judged,
        [(head, str(error)) for head, error in failures],
        list(report.set_aside),
        dict(trained) if judged else {},
    )
