"""Where a registered model comes from: images by content, settings, code, what was before it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from features.images.cache import FileCache
from flows.extraction.pair_list import load_pairs
from flows.extraction.samples import Sample
from flows.runtime.home import Home
from flows.training.record import (
    HELD_OUT,
    LEFT_OUT,
    LINEAGE,
    MEMBERS,
    SAMPLES,
    TEST,
    TRAIN,
    VALIDATION,
)
from flows.use.bundle import model_parts
from flows.use.models.choose import choose_model
from headwater.errors import DataError, HeadwaterError, ModelError
from storage.registry.aliases import ChampionGoneError
from storage.registry.names import as_used
from storage.registry.registry import Registry
from storage.registry.service.in_service import InService
from storage.store.feature_store import FeatureStore

#: Columns of an image's digests: of an image, of a pair.
DIGESTS = ("sha256", "current_sha256", "history_sha256")
#: Parameters that say what features were read, not how the head learnt.
_EXTRACTOR = (
    "backbone", "backbone_options", "weights_sha256", "layers", "input_size", "size", "crop",
    "resize", "range", "roi", "tile", "overlap", "scale", "extractor_precision", "stored_dtype",
    "views",
)  # fmt: skip


def lineage(home: Home, model: str) -> dict[str, Any]:
    """Return where a registered model comes from.

    Parameters
    ----------
    home
        Where it is registered.
    model
        ``SET.HEAD``, ``SET.HEAD/VERSION`` or ``SET.HEAD@ALIAS``.

    Returns
    -------
    dict
        JSON-ready: ``model, version, aliases, created, run_id``; ``data`` (set, snapshot, digest of
        images and labels, ``known_by``); ``images``, how many were what to it, and ``samples``, a
        row each; ``extractor``, ``settings`` and ``seed`` as used; ``code`` and ``versions``;
        ``machine``; ``validation``: known defects, how many of which kinds, their digest and what
        they chose; ``parents``: the versions that had the aliases before it, the model that it
        reproduces, of an ensemble its ``members``, as far as known; ``notes``. Of models from
        before, ``samples`` are those of the snapshot, and ``notes`` say so.

    Raises
    ------
    ModelError
        Where there is no such model, or its run was deleted.
    """
    notes = []
    try:
        registry, row = find_model(home, model)
    except ChampionGoneError as error:
        if model_parts(model)[1] is None:
            raise  # what was in service: its copies are in no head's versions
        # Which one answers is for people to say; what it came from may be looked at all the same.
        registry, row = find_model(home, model, "latest")
        notes.append(f"{error.culprit}: this is the newest, version {row['version']}")
    facts = registry.facts(row["run_id"])
    if facts is None:
        raise ModelError(
            f"the run of {row['model']} version {row['version']} was deleted",
            expected="the run that trained it: what is known is there",
            remedy=f"headwater compare {model_parts(model)[0]} lists the others",
        )
    tags = facts[1]
    params = as_used(facts[0], row["metrics"].get("fit_epochs"))
    kept = registry.artifact_json(row["run_id"], LINEAGE) or {}
    samples = registry.artifact_json(row["run_id"], f"tables/{SAMPLES}.json")
    if samples is None:
        samples = _of_snapshot(home, model_parts(model)[0], tags)
        notes.append("its run kept no list of images: those of its snapshot are listed")
    joined = registry.artifact_json(row["run_id"], MEMBERS)
    settings = {k: v for k, v in params.items() if k not in (*_EXTRACTOR, "seed", "known_by")}
    return {
        "model": row["model"],
        "version": row["version"],
        "aliases": row["aliases"],
        "created": row["created"],
        "run_id": row["run_id"],
        "data": {
            "image_set": model_parts(model)[0],
            "snapshot": row["snapshot"],
            **({"history_snapshot": s} if (s := row["history_snapshot"]) else {}),
            "known_by": tags.get("known_by"),
            "digest": tags.get("data_digest"),
        },
        "images": dict(Counter(one["role"] for one in samples)),
        "extractor": {
            "extractor_id": row["extractor_id"],
            "store_extractor": tags.get("store_extractor"),
            **{k: params[k] for k in _EXTRACTOR if k in params},
        },
        "settings": settings,
        "seed": params.get("seed"),
        "code": tags.get("code"),
        "versions": {
            k.removeprefix("version."): v for k, v in tags.items() if k.startswith("version.")
        },
        "machine": kept.get("machine"),
        "validation": kept.get("validation"),
        "parents": {
            "before": json.loads(tags.get("headwater.before", "null")),
            "reproduces": tags.get("reproduces"),
            **({"grown_from": grown["from"]} if (grown := kept.get("growth")) else {}),
            **({"members": joined} if joined else {}),
        },
        "notes": notes,
        "samples": samples,
    }


def find_model(
    home: Home, model: str, otherwise: str | None = None
) -> tuple[Registry, dict[str, Any]]:
    """Return the registry and its row of a model, named as `lineage` takes it.

    `otherwise` is the version where none is named.
    """
    image_set, head, version = model_parts(model)
    registry = Registry(home.root, home.tracking_url)
    return registry, choose_model(registry, image_set, head, version or otherwise)


def _of_snapshot(home: Home, image_set: str, tags: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the images of the snapshot that a run names, as `samples_of` would."""
    try:
        if tags.get("pairs"):
            found: Sequence[Sample] = load_pairs(home, image_set, tags["pairs"]).samples
        else:
            store = FeatureStore.open(home.store, image_set, create=False)
            rows = store.table(tags["snapshot"]).images()
            found = [Sample.of(row, Path()) for row in rows]
    except (HeadwaterError, KeyError):
        return []
    made = []
    for s in found:
        role = TRAIN if not s.defective else LEFT_OUT
        role = {"test": TEST, "val": VALIDATION}.get(s.split, role)
        digests = dict(zip(DIGESTS[1:] if s.is_pair else DIGESTS, s.contents, strict=False))
        key = "key" if s.is_pair else "path"
        made.append({key: s.key, **digests, "split": s.split, "kind": s.kind, "role": role})
    return made


def learnt_from(home: Home, image_set: str, images: Sequence[str]) -> list[dict[str, Any]]:
    """Return which registered models of a set learnt from some images, by SHA-256.

    A row a model, the newest first: ``model``, ``version``, ``aliases``, ``in_service`` (whether it
    is), ``images`` (of how many of them), and ``known``: False where its run kept no list, so that
    nobody can tell.
    """
    registry, wanted = Registry(home.root, home.tracking_url), set(images)
    serves = InService(registry, image_set)
    try:
        champion = serves.champion() or {}
    except ModelError:  # it is gone, and which one is to answer is another matter
        champion = {}
    found = []
    for row in registry.leaderboard(image_set):
        table = registry.artifact_json(row["run_id"], f"tables/{SAMPLES}.json")
        learnt = {
            r.get("sha256") for r in table or [] if r["role"] in (TRAIN, HELD_OUT, VALIDATION)
        }
        if table is None or learnt & wanted:
            same = (row["model"], str(row["version"])) == (
                champion.get("model"),
                str(champion.get("version")),
            )
            about = {k: row[k] for k in ("model", "version", "aliases")}
            count = {"images": len(learnt & wanted), "known": table is not None}
            found.append({**about, "in_service": same, **count})
    return found


def whether_in(home: Home, found: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Return what an image file was to a model: by its bytes, and by its decoded pixels.

    A picture that was saved anew has other bytes and the same pixels. Those of the model's images
    are known as far as this home remembers their files (`features.images.cache`).

    Returns
    -------
    dict
        ``file``, ``sha256``, ``pixels`` (their digest; empty where it is no image), ``learnt``
        (whether the model has learnt from it, or was chosen by it), ``rows``, those of `lineage`'s
        samples that are it, each with ``matched``: ``bytes`` or ``pixels``; ``unknown``: of how
        many of the model's images the pixels are not known.

    Raises
    ------
    DataError
        Where there is no such file.
    """
    with FileCache(None) as reading:
        (facts,) = reading.facts([str(file.absolute())])
    if not facts.sha256:
        raise DataError(f"{file}: {facts.reason}", expected="an image file")
    own = {sha for one in found["samples"] for k in DIGESTS if (sha := one.get(k))}
    known: dict[str, str] = {}
    if home.file_cache.is_file():
        with FileCache(home.file_cache) as remembered:
            known = remembered.pixels_of(own)
    same = {sha for sha, pixels in known.items() if facts.pixels and pixels == facts.pixels}
    rows = []
    for one in found["samples"]:
        digests = {one.get(k) for k in DIGESTS}
        if facts.sha256 in digests:
            rows.append({**one, "matched": "bytes"})
        elif digests & same:
            rows.append({**one, "matched": "pixels"})
    chose = (found.get("validation") or {}).get("chose")
    return {
        "file": str(file),
        "sha256": facts.sha256,
        "pixels": facts.pixels,
        "learnt": any(
            one["role"] in (TRAIN, HELD_OUT) or (one["role"] == VALIDATION and chose)
            for one in rows
        ),
        "rows": rows,
        "unknown": len(own - known.keys() - {facts.sha256}),
    }
