"""Which images make a pair: the list that joins the two sides of a set of pairs, by version.

The sides are image sets like any other, ``SET.current`` and ``SET.history``; their tables know
each image once and say nothing of pairs. The list is kept beside the stores, in a file of the home
named by its content, and every extraction notes which snapshots of the sides it goes with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from features.images.pairs import PairScan
from flows.extraction.samples import UNLABELLED, Sample
from flows.runtime.home import Home
from headwater.errors import DataError, SnapshotError
from headwater.files import write_text
from headwater.samples import IMAGE, PAIR, SampleKind
from headwater.spec import SIDES, digest
from storage.store.feature_store import FeatureStore
from storage.store.layout import side_name
from storage.store.table import Selection, Table, sha_names
from storage.upkeep.history import log, tags

#: What is kept of a pair.
_FIELDS = ("key", "split", "kind", *SIDES, "current_path", "history_path", "mask", "mask_sha256")


@dataclass(frozen=True)
class PairList:
    """The pairs of a set at one moment; on disk their paths are relative to `root`."""

    root: Path
    samples: tuple[Sample, ...]

    @classmethod
    def of(cls, found: PairScan) -> PairList:
        """Return the list of what a scan found."""
        samples = [
            Sample(
                p.key,
                p.split,
                UNLABELLED if p.mask is None else p.current.kind,
                (p.current.sha256, p.history.sha256),
                (p.current.path, p.history.path),
                p.mask,
                p.mask_sha256,
            )
            for p in found.pairs
        ]
        return cls(found.root, tuple(samples))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping; `from_json` reads it back."""

        def below(path: Path) -> str:
            inside = path.is_relative_to(self.root)
            return (path.relative_to(self.root) if inside else path).as_posix()

        rows = [
            (s.key, s.split, s.kind, *s.contents, *map(below, s.paths))
            + (below(s.mask) if s.mask else "", s.label)
            for s in self.samples
        ]
        pairs = [dict(zip(_FIELDS, row, strict=True)) for row in rows]
        return {"root": str(self.root), "pairs": pairs}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PairList:
        """Rebuild a list from `to_json`'s mapping."""
        root, samples = Path(data["root"]), []
        for entry in data["pairs"]:
            key, split, kind, *sides, mask, label = (entry[name] for name in _FIELDS)
            paths = tuple(root / path for path in sides[2:])
            where = root / mask if mask else None
            samples.append(Sample(key, split, kind, tuple(sides[:2]), paths, where, label))
        return cls(root, tuple(samples))

    def present(self, tables: Sequence[Table], known_by: int | None = None) -> list[Sample]:
        """Return the pairs whose images are in the sides' tables, and had arrived by then."""
        chosen = Selection(known_by=known_by)
        here = [set(sha_names(table.sha[table.rows(chosen)])) for table in tables]
        return [
            s
            for s in self.samples
            if all(sha in known for sha, known in zip(s.contents, here, strict=True))
        ]


# --- kept in the home ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Version:
    """What a training stands on: the snapshot of each side and, of pairs, the list joining them.

    Parameters
    ----------
    snapshots
        One a side, current before history; empty texts where nothing was extracted.
    pairs
        Digest of the list; empty for a set of images.
    at
        When it was noted.
    """

    snapshots: tuple[str, ...] = ()
    pairs: str = ""
    at: str = ""

    @property
    def kind(self) -> SampleKind:
        """What its samples are."""
        return PAIR if self.pairs else IMAGE

    def to_json(self) -> dict[str, str]:
        """Return a JSON-ready mapping; `from_json` reads it back."""
        return {
            "pairs": self.pairs,
            **dict(zip(SIDES, self.snapshots, strict=False)),
            "at": self.at,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, str]) -> Version:
        """Rebuild a version from `to_json`'s mapping."""
        snapshots = tuple(data[side] for side in SIDES if side in data)
        return cls(snapshots, data["pairs"], data["at"])


def save_pairs(home: Home, image_set: str, pairs: PairList) -> str:
    """Write a list under the digest of its content, which is returned; it may be there already."""
    name = digest(pairs.to_json())
    path = _folder(home, image_set) / f"{name}.json"
    if not path.exists():
        write_text(path, json.dumps(pairs.to_json(), indent=0))
    return name


def load_pairs(home: Home, image_set: str, name: str) -> PairList:
    """Return a list by its digest; `DataError` where it is not there or was changed."""
    path = _folder(home, image_set) / f"{name}.json"
    try:
        data = json.loads(path.read_text())
        whole = digest(data) == name
    except (OSError, ValueError):
        whole = False
    if not whole:
        raise DataError(
            f"{path}: the list of pairs is missing or was changed",
            expected="the file as an extraction wrote it",
            remedy=f"headwater extract {image_set} --pairs DIR writes it again",
        )
    root = Path(home.card(image_set).get("root", ""))
    if not Path(data["root"]).is_dir() and root.is_dir():
        # The images were moved since; files are checked by their contents where they are read.
        data = {**data, "root": str(root)}
    return PairList.from_json(data)


def note_version(home: Home, image_set: str, version: Version) -> None:
    """Remember that a list goes with these snapshots; nothing where the newest says so already."""
    known = versions(home, image_set)
    new = replace(version, at=datetime.now(UTC).isoformat(timespec="seconds"))
    if known and replace(known[-1], at=new.at) == new:
        return
    path = _folder(home, image_set) / "versions.json"
    write_text(path, json.dumps([v.to_json() for v in [*known, new]], indent=1))


def versions(home: Home, image_set: str) -> list[Version]:
    """Return what `note_version` remembers, oldest first."""
    path = _folder(home, image_set) / "versions.json"
    return [Version.from_json(v) for v in json.loads(path.read_text())] if path.exists() else []


def version_at(home: Home, image_set: str, snapshot: str | None = None) -> Version:
    """Return the list, and the snapshots of both sides, to train on.

    Parameters
    ----------
    snapshot
        A tag that both sides have (``model-HEAD-vN``), or a snapshot id of either side: the list
        is the one of that time. Without it the newest list and the newest snapshots.

    Raises
    ------
    SnapshotError
        Where the set was never extracted, or no version belongs to the snapshot.
    """
    known = versions(home, image_set)
    if not known:
        raise SnapshotError(
            f"{image_set}: no pairs were extracted",
            expected="a set of pairs that was extracted before",
            remedy=f"headwater run {image_set} --pairs DIR",
        )
    if not known[-1].snapshots[0]:
        if snapshot is None:
            return known[-1]
        raise SnapshotError(f"{image_set} has no snapshots: no features were extracted")
    stores = [FeatureStore.open(home.store, side_name(image_set, s), create=False) for s in SIDES]
    if snapshot is None:
        return replace(known[-1], snapshots=tuple(store.snapshot for store in stores))
    named = [tags(s).get(snapshot) for s in stores]
    for side, store in enumerate(stores):
        history = [entry.snapshot for entry in log(store)]
        at = named[side] or snapshot
        if at not in history:
            continue
        # The list that was in force: the newest noted at this snapshot or at one before it.
        older = set(history[history.index(at) :])
        noted = [v for v in known if v.snapshots[side] in older]
        if not noted:
            break
        both = [name or then for name, then in zip(named, noted[-1].snapshots, strict=True)]
        both[side] = at
        return replace(noted[-1], snapshots=tuple(both))
    raise SnapshotError(
        f"{image_set}: no pairs at snapshot {snapshot!r}",
        expected="a tag, or a snapshot of one of the sides, as "
        f"`headwater store log {side_name(image_set, SIDES[0])}` lists them",
    )


def _folder(home: Home, image_set: str) -> Path:
    return home.root / "pairs" / image_set
