"""Which images make a pair: the list that joins the two sides of a set of pairs, by version.

The sides are image sets like any other, ``SET.current`` and ``SET.history``; their tables know
each image once and say nothing of pairs. The list is kept beside the stores, in a file of the home
named by its content, and every extraction notes which snapshots of the sides it goes with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from features.images.crops import source_of
from features.images.pairs import CHANGED, PairScan
from flows.runtime.home import Home
from heads.contract import Head
from headwater.errors import DataError, SnapshotError
from headwater.files import write_text
from headwater.spec import SIDES, digest
from storage.store.feature_store import FeatureStore
from storage.store.layout import side_name
from storage.store.table import Selection, Table, sha_names
from storage.upkeep.history import log, tags

#: Pairs without which nothing is trained: two to learn from, two to hold out.
AT_LEAST = 4
UNLABELLED = "unlabelled"


@dataclass(frozen=True)
class PairRow:
    """One pair of a list.

    Parameters
    ----------
    key
        ``<split>/<name>``.
    split
        ``train`` or ``test``.
    kind
        ``good``, ``changed``, or ``unlabelled`` where there is no mask.
    current, history
        SHA-256 of the images.
    current_path, history_path, mask
        Absolute paths.
    mask_sha256
        Of the mask's bytes, empty without one.
    """

    key: str
    split: str
    kind: str
    current: str
    history: str
    current_path: Path
    history_path: Path
    mask: Path | None = None
    mask_sha256: str = ""

    @property
    def source(self) -> str:
        """Key of the pair that this one was cut out of, empty where it is whole."""
        return source_of(self.key)

    @property
    def is_normal(self) -> bool:
        """Whether nothing changed, as far as is known."""
        return self.kind != CHANGED


@dataclass(frozen=True)
class PairList:
    """The pairs of a set at one moment; paths are kept relative to `root`."""

    root: Path
    rows: tuple[PairRow, ...]

    @classmethod
    def of(cls, found: PairScan) -> PairList:
        """Return the list of what a scan found."""
        rows = [
            PairRow(
                p.key,
                p.split,
                UNLABELLED if p.mask is None else p.current.kind,
                p.current.sha256,
                p.history.sha256,
                p.current.path,
                p.history.path,
                p.mask,
                p.mask_sha256,
            )
            for p in found.pairs
        ]
        return cls(found.root, tuple(rows))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping; `from_json` reads it back."""

        def below(path: Path | None) -> str:
            if path is None:
                return ""
            return (
                path.relative_to(self.root) if path.is_relative_to(self.root) else path
            ).as_posix()

        names = ("current_path", "history_path", "mask")
        return {
            "root": str(self.root),
            "pairs": [{**vars(r), **{n: below(getattr(r, n)) for n in names}} for r in self.rows],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PairList:
        """Rebuild a list from `to_json`'s mapping."""
        root = Path(data["root"])
        rows = []
        for entry in data["pairs"]:
            paths = {n: root / entry[n] for n in ("current_path", "history_path")}
            mask = root / entry["mask"] if entry["mask"] else None
            rows.append(PairRow(**{**entry, **paths, "mask": mask}))
        return cls(root, tuple(rows))


def pairs_digest(rows: Sequence[PairRow]) -> str:
    """Return a digest of which contents are paired, split and labelled how; paths do not matter.

    But that a pair is a crop does, and of what: it decides what is held out with it.
    """

    def seen(r: PairRow) -> list[str]:
        cut = [r.source] if r.source else []
        return [r.current, r.history, r.split, r.kind, r.mask_sha256, *cut]

    return digest(sorted(map(seen, rows)))


# --- kept in the home ----------------------------------------------------------------------------


@dataclass(frozen=True)
class PairVersion:
    """A list and the snapshots of the two sides it goes with; empty where nothing was extracted."""

    pairs: str
    current: str = ""
    history: str = ""
    at: str = ""


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
    return PairList.from_json(data)


def note_version(home: Home, image_set: str, version: PairVersion) -> None:
    """Remember that a list goes with these snapshots; nothing where the newest says so already."""
    known = versions(home, image_set)
    new = PairVersion(version.pairs, version.current, version.history, _now())
    if known and (known[-1].pairs, known[-1].current, known[-1].history) == (
        new.pairs,
        new.current,
        new.history,
    ):
        return
    path = _folder(home, image_set) / "versions.json"
    write_text(path, json.dumps([vars(v) for v in [*known, new]], indent=1))


def versions(home: Home, image_set: str) -> list[PairVersion]:
    """Return what `note_version` remembers, oldest first."""
    path = _folder(home, image_set) / "versions.json"
    return [PairVersion(**v) for v in json.loads(path.read_text())] if path.exists() else []


def version_at(home: Home, image_set: str, snapshot: str | None = None) -> PairVersion:
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
    if not known[-1].current:
        if snapshot is None:
            return known[-1]
        raise SnapshotError(f"{image_set} has no snapshots: no features were extracted")
    stores = [FeatureStore.open(home.store, side_name(image_set, s), create=False) for s in SIDES]
    if snapshot is None:
        return PairVersion(known[-1].pairs, stores[0].snapshot, stores[1].snapshot, known[-1].at)
    named = [tags(s).get(snapshot) for s in stores]
    for side, store in enumerate(stores):
        history = [entry.snapshot for entry in log(store)]
        at = named[side] or snapshot
        if at not in history:
            continue
        # The list that was in force: the newest noted at this snapshot or at one before it.
        older = set(history[history.index(at) :])
        noted = [v for v in known if (v.current, v.history)[side] in older]
        if not noted:
            break
        both = [noted[-1].current, noted[-1].history]
        for k in (0, 1):
            both[k] = named[k] or both[k]
        both[side] = at
        return PairVersion(noted[-1].pairs, both[0], both[1], noted[-1].at)
    raise SnapshotError(
        f"{image_set}: no pairs at snapshot {snapshot!r}",
        expected="a tag, or a snapshot of one of the sides, as "
        f"`headwater store log {side_name(image_set, SIDES[0])}` lists them",
    )


def _folder(home: Home, image_set: str) -> Path:
    return home.root / "pairs" / image_set


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# --- what of it can be used ----------------------------------------------------------------------


def present(
    rows: Sequence[PairRow], tables: Sequence[Table], known_by: int | None = None
) -> list[PairRow]:
    """Return the pairs both of whose images are in the sides' tables, and had arrived by then."""
    here = []
    for table in tables:
        here.append(set(sha_names(table.sha[table.rows(Selection(known_by=known_by))])))
    return [r for r in rows if r.current in here[0] and r.history in here[1]]


def usable(head: type[Head], image_set: str, rows: Sequence[PairRow]) -> list[PairRow]:
    """Return the training pairs that a head may learn from.

    A head that learns from masks takes those that have one; any other takes those in which nothing
    changed. Changed pairs never reach it.

    Raises
    ------
    DataError
        Where there are too few.
    """
    train = [r for r in rows if r.split == "train"]
    if head.labelled:
        found = [r for r in train if r.mask is not None]
        if len(found) < AT_LEAST or not any(r.kind == CHANGED for r in found):
            marked = sum(r.kind == CHANGED for r in found)
            raise DataError(
                f"{image_set}: {head.name} has {len(found)} training pair(s) with a mask, "
                f"{marked} of them changed",
                expected=f"at least {AT_LEAST}, and some that show what is to be found",
                remedy="put masks into train/mask (black where nothing changed), or train "
                "pair_flow, which needs none",
            )
        return found
    found = [r for r in train if r.is_normal]
    if len(found) < AT_LEAST:
        raise DataError(
            f"{image_set}: {len(found)} of {len(train)} training pairs are unchanged; {head.name} "
            "learns from unchanged pairs alone",
            expected=f"at least {AT_LEAST} pairs without a mask, or with a black one",
            remedy="headwater pairs cut DIR OUT cuts unchanged crops out of labelled pairs; run "
            f"OUT as a set of its own. Or leave {head.name} out of --heads",
        )
    return found


def what_is_left_out(head: type[Head], rows: Sequence[PairRow]) -> list[str]:
    """Return sentences on training pairs that a head leaves out or takes on trust."""
    train = [r for r in rows if r.split == "train"]
    bare = sum(r.mask is None for r in train)
    if head.labelled:
        return [f"{head.name}: {bare} training pair(s) without a mask left out"] if bare else []
    changed = sum(not r.is_normal for r in train)
    said = [f"{head.name}: {changed} changed training pair(s) left out"] if changed else []
    if bare:
        said.append(f"{head.name}: {bare} training pair(s) have no mask and count as unchanged")
    return said
