"""What is asked of a flow and of a training: plain data, sent to Prefect and to Dask workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from flows.extraction.backbone import BackboneRef
from flows.extraction.pair_list import Version, version_at
from flows.extraction.plan import HeadPlan, JobPlan, training_key
from flows.runtime.home import Home
from flows.runtime.resolve import require_set
from flows.runtime.settings import Settings, TrainingSettings
from heads.catalogue import get_head
from headwater.samples import IMAGE, PAIR
from headwater.spec import digest
from storage.store.feature_store import FeatureStore

#: Training settings that do not change what is learnt.
_NO_MATTER = ("workers", "device")
#: Those of out-of-fold scores: of no matter, and unknown to keys, where there are none.
_FOLDS = ("calibrate", "folds")
#: Those that came later: unknown to keys where they are not given.
_LATER = ("target_recall", "costs")
#: Share of the samples that is not trained on; AnoDFDNet splits its pairs 8:2.
HELD_OUT = {IMAGE: 0.1, PAIR: 0.2}


@dataclass(frozen=True)
class GrownFrom:
    """The model that a training grows, instead of learning from all images anew.

    Parameters
    ----------
    model, version
        ``SET.HEAD`` and its number.
    uri
        Where MLflow has it.
    run_id
        Of its training, which kept what it takes to grow.
    snapshot
        That it was trained at.
    growths
        How many growths there are since the last full training, this one counted.
    share
        Of the epochs of a full training, where the head learns by steps; else 0.
    """

    model: str
    version: str
    uri: str
    run_id: str
    snapshot: str
    growths: int
    share: float = 0.0

    def __str__(self) -> str:
        return f"{self.model} version {self.version}"

    def seen(self, seen: str) -> str:
        """Return the digest of what a grown head has seen, beside samples of the digest `seen`."""
        return digest([seen, "grown from", self.run_id, self.share])


@dataclass(frozen=True)
class Request:
    """What a Prefect flow is asked, settled before it begins: plain data, JSON-ready.

    Parameters
    ----------
    settings
        Made whole.
    home, plan
        Where to work, and on what.
    at
        What to train on; None where an extraction comes first.
    known_by
        Train only on images that had arrived by then, nanoseconds UTC.
    already_read
        Files that were read to settle it, for the extraction's report.
    grown
        By head what it grows from; the others are trained in full.
    """

    settings: Settings
    home: Home
    plan: JobPlan
    at: Version | None = None
    known_by: int | None = None
    already_read: int = 0
    grown: Mapping[str, GrownFrom] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping; `from_json` reads it back."""
        return TypeAdapter(Request).dump_python(self, mode="json")

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Request:
        """Rebuild a request from `to_json`'s mapping."""
        return TypeAdapter(cls).validate_python(data)

    def trainings(self, at: Version) -> list[Training]:
        """Return one training a head, all by reference."""
        settings, image_set = self.settings, require_set(self.settings)
        options = settings.training
        if options.held_out is None:
            options = options.model_copy(update={"held_out": HELD_OUT[at.kind]})
        unread = replace(at, snapshots=("",) * len(at.snapshots))
        seeded = bool(options.seeds)

        def own(head: HeadPlan) -> TrainingSettings:
            seed = head.config["seed"] if seeded else options.seed
            return options.model_copy(update={"seed": seed, "seeds": None})

        return [
            Training(
                plan=head,
                image_set=image_set,
                home=self.home,
                at=unread if head.reads_images and at.pairs else at,
                root=Path(self.home.card(image_set).get("root", "")),
                backbone=self.plan.backbone,
                options=own(head),
                known_by=self.known_by,
                seeded=seeded,
                grown_from=self.grown.get(head.head),
            )
            for head in self.plan.heads
        ]


@dataclass(frozen=True)
class Training:
    """All that one training needs, by reference: picklable, small, no arrays.

    Parameters
    ----------
    plan
        The head and what it reads.
    image_set, home
        Where things are.
    at
        What to train and evaluate on.
    root
        Folder that a store's image and mask paths are relative to.
    backbone
        For the serving model; None where all heads of the job read images.
    options
        Training settings.
    known_by
        Train only on images that had arrived by then, nanoseconds UTC.
    parent_run
        MLflow run of the command, which this one's names.
    threads
        Torch threads.
    seeded
        Whether it is one of several that differ by their seed.
    grown_from
        The model that it grows; None where it learns from all images.
    """

    plan: HeadPlan
    image_set: str
    home: Home
    at: Version
    root: Path
    backbone: BackboneRef | None
    options: TrainingSettings
    known_by: int | None = None
    parent_run: str | None = None
    threads: int = 1
    seeded: bool = False
    grown_from: GrownFrom | None = None

    @property
    def folds(self) -> int:
        """How many folds there are at most; 0 where held-out images set the thresholds, if any.

        Images in tiles are as many rows as some sets have images: of them a share is held out.
        """
        wanted = self.options.calibrate == "folds" and not get_head(self.plan.head).labelled
        wanted = wanted and self.plan.spec.tiles is None
        return self.options.folds if wanted else 0

    @property
    def own_folds(self) -> int:
        """How many of them take a training.

        None of an ensemble, whose members have theirs, or of what grows: it has its model's.
        """
        return 0 if self.plan.members or self.grown_from else self.folds

    @property
    def members(self) -> list[Training]:
        """The trainings of an ensemble's members."""
        return [replace(self, plan=plan) for plan in self.plan.members]

    @property
    def snapshot(self) -> str:
        """Of the first side; empty where no store is read."""
        return self.at.snapshots[0]

    @property
    def options_json(self) -> dict[str, Any]:
        """The training settings that keys are made of; the preset is the plan's."""
        later = {k for k in _LATER if getattr(self.options, k) is None}
        return self.options.model_dump(mode="json", exclude={"preset", "seeds", *later})

    def key(self, seen: str) -> str:
        """Return the idempotency key, of samples whose digest is `seen`."""
        left_out = _NO_MATTER if self.folds else (*_NO_MATTER, *_FOLDS)
        matter = {k: v for k, v in self.options_json.items() if k not in left_out}
        if self.grown_from is not None:
            seen = self.grown_from.seen(seen)
        return training_key(self.plan, seen, matter)

    @property
    def seed(self) -> int:
        """The head's own, or that of all."""
        return int(self.plan.config.get("seed", self.options.seed))

    @property
    def called(self) -> str:
        """What it is called among the trainings of a command."""
        return f"{self.plan.head} seed {self.options.seed}" if self.seeded else self.plan.head

    @property
    def cost(self) -> str:
        """Digest of what decides, beside its rows, how long a fit takes."""
        plan = self.plan
        told = {
            "preset": plan.preset,
            "backbone": plan.spec.backbone,
            "layers": [x.name for x in plan.layers],
            "input_size": plan.spec.input_size,
            "epochs": self.options.epochs,
            "device": self.options.device,
            "config": {k: v for k, v in plan.config.items() if k != "seed"},
            **({"grown": True} if self.grown_from else {}),
        }
        return digest(told)


def stored_version(home: Home, image_set: str, snapshot: str | None, *, pairs: bool) -> Version:
    """Return what to train on, from what is stored; parameters and errors as of `version_at`.

    `pairs` says whether it is a set of pairs.
    """
    if pairs:
        return version_at(home, image_set, snapshot)
    store = FeatureStore.open(home.store, image_set, create=False)
    return Version((store.resolve(snapshot),))
