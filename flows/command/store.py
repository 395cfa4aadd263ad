"""`headwater store`: the feature store of a set, for people who look after it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from flows.command.options import (
    SET_ASIDE,
    JsonOption,
    SetArgument,
    SnapshotOption,
    command_group,
    takes,
)
from flows.command.store_tables import minute, percent
from flows.runtime.console import Reporter, err, out, size, table
from flows.runtime.given import Given
from headwater.errors import ConfigError, HeadwaterError

if TYPE_CHECKING:
    from features.images.records import BrokenImage
    from flows.runtime.home import Home
    from flows.runtime.settings import Settings
    from storage.store.feature_store import FeatureStore

commands = command_group("Look after the feature store of an image set.")


def _places(given: Given, *, write: bool = False) -> tuple[FeatureStore, Settings, Home]:
    settings, home = given.open(sides=True, write=write)
    from flows.runtime.resolve import require_set
    from storage.store.feature_store import FeatureStore
    from storage.store.layout import side_name, side_of

    name = require_set(settings)
    current, history = side_name(name, "current"), side_name(name, "history")
    if not side_of(name)[1] and home.card(name).get("pairs"):
        raise ConfigError(
            f"{name} is a set of pairs", expected=f"one of its sides, {current} or {history}"
        )
    return FeatureStore.open(home.store, name, create=False), settings, home


def _open(given: Given, *, write: bool = False) -> FeatureStore:
    return _places(given, write=write)[0]


def _json(value: Any) -> None:
    out.print_json(data=value, default=str)


@commands.command()
@takes("store")
def ls(given: Given, json_: JsonOption = False) -> None:
    """List the image sets of the store."""
    _, place = given.open(write=False)
    from storage.store.engine import list_sets
    from storage.store.feature_store import FeatureStore
    from storage.upkeep.contents import inspect

    rows: list[dict[str, Any]] = []
    broken: dict[str, HeadwaterError] = {}
    for name in list_sets(place.store):
        try:
            facts = inspect(FeatureStore.open(place.store, name, create=False))
        except HeadwaterError as error:
            broken[name] = error
            continue
        told = ("image_set", "images", "snapshot", "written_at", "extractors", "bytes")
        rows.append({k: facts[k] for k in told} | {"extractors": len(facts["extractors"])})
    if json_:
        _json(rows)
    elif rows:
        columns = ["image set", "images", "extractors", "features", "snapshot", "written (UTC)"]
        cells = [
            [r["image_set"], r["images"], r["extractors"], size(r["bytes"]), r["snapshot"],
             minute(r["written_at"])]
            for r in rows
        ]  # fmt: skip
        out.print(table(columns, cells, whole=("image set", "snapshot")))
    elif not broken:
        out.print(f"no image sets in {place.store}", markup=False)
    for name, why in broken.items():
        err.print(f"cannot be read: {name}: {why}", markup=False)
    raise typer.Exit(SET_ASIDE if broken else 0)


@commands.command()
@takes("store")
def log(
    image_set: SetArgument,
    given: Given,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many.")] = None,
    json_: JsonOption = False,
) -> None:
    """List the snapshots of a set, newest first."""
    opened = _open(given)
    from storage.upkeep.history import log as entries_of

    entries = entries_of(opened, limit)
    if json_:
        _json([dataclasses.asdict(e) for e in entries])
        return
    rows = [
        [e.snapshot, f"{e.written_at:%Y-%m-%d %H:%M:%S}", "\n".join(e.tags), e.message]
        for e in entries
    ]
    columns = ["snapshot", "written (UTC)", "tags", "what"]
    out.print(table(columns, rows, whole=("snapshot", "tags")))


@commands.command()
@takes("store")
def inspect(
    image_set: SetArgument, given: Given, snapshot: SnapshotOption = None, json_: JsonOption = False
) -> None:
    """Show what a set's store holds: images, extractors, layers, shapes, coverage, bytes."""
    opened = _open(given)
    from storage.upkeep.contents import inspect as facts_of

    facts = facts_of(opened, snapshot)
    if json_:
        _json(facts)
        return
    tags = f"  tags: {escape(', '.join(facts['tags']))}" if facts["tags"] else ""
    kinds = escape(", ".join(f"{n} {kind}" for kind, n in facts["kinds"].items()))
    written = minute(facts["written_at"])
    out.print(f"[bold]{facts['image_set']}[/] at {facts['snapshot']} ({written} UTC){tags}")
    out.print(
        f"{facts['images']} images: {kinds or 'none yet'}; "
        f"{facts['removed']} removed ones remembered"
    )
    for extractor in facts["extractors"]:
        spec = extractor["extractor"]
        height, width = spec["crop"] or spec["resize"]
        views = f", {extractor['views']} views" if extractor["views"] else ""
        out.print(
            f"\n[bold]extractor {extractor['id']}[/]  {spec['backbone']} "
            f"({spec['weights'][:12]}), {height}x{width} px, {spec['precision']}{views}\n"
            f"made {minute(extractor['created'])} UTC by headwater {extractor['headwater']}"
        )
        rows = [
            [
                layer["name"],
                "x".join(map(str, layer["shape"])),
                layer["dtype"],
                layer["rows"],
                percent(layer["coverage"]),
                size(layer["bytes"]),
                size(layer["stored_bytes"]),
                f"{layer['compression']} {layer['ratio']:.2f}x" * (layer["compression"] != "none"),
            ]
            for layer in extractor["layers"]
        ]
        columns = ["layer", "shape", "dtype", "rows", "cover", "bytes", "on disk", ""]
        out.print(table(columns, rows))


@commands.command()
@takes("store")
def diff(
    image_set: SetArgument,
    given: Given,
    a: Annotated[str, typer.Argument(metavar="A", help="Snapshot id or tag.")],
    b: Annotated[
        str | None,
        typer.Argument(metavar="B", help=r"Snapshot id or tag. \[default: the newest]"),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Name what changed from snapshot A to snapshot B."""
    opened = _open(given)
    from storage.upkeep.contents import diff as diff_of

    found = diff_of(opened, a, b)
    if json_:
        _json(dataclasses.asdict(found))
        return
    out.print(f"{found.old} -> {found.new}", markup=False)
    for sign, what, names in (
        ("+", "added", found.added),
        ("-", "removed", found.removed),
        ("~", "relabelled", found.relabelled),
        (">", "renamed", [f"{old} -> {new}" for old, new in found.renamed]),
        ("+", "layers added", found.layers_added),
        ("-", "layers removed", found.layers_removed),
    ):
        if names:
            out.print(f"{what}: {len(names)}")
            for name in names[:200]:
                out.print(f"  {sign} {name}", markup=False)
            if len(names) > 200:
                out.print(f"  and {len(names) - 200} more (--json lists all)")
    for layer, count in found.rows.items():
        out.print(f"rows of {layer}: {count:+d}", markup=False)
    if not any((found.added, found.removed, found.relabelled, found.renamed, found.rows)):
        out.print("no difference")


@commands.command()
@takes("store", "repair")
def verify(
    image_set: SetArgument,
    given: Given,
    snapshot: SnapshotOption = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Compute what is damaged again, and just that.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Read every feature again; name damage by image and layer. Exit status 3 if there is any."""
    opened, merged, place = _places(given, write=repair)
    if repair and opened.resolve(snapshot) != opened.snapshot:
        raise ConfigError(
            f"--repair at {snapshot}",
            expected="the newest snapshot: older ones never change",
            remedy="leave --snapshot out; what is damaged and still in use shows there, too",
        )
    from flows.command.store_tables import show_verify
    from storage.upkeep.verify import verify as verify_store

    with Reporter(quiet=json_).live() as reporter:
        report = verify_store(
            opened, snapshot, progress=lambda done, total: reporter.update("verify", done, total)
        )
    repaired = 0
    broken: list[BrokenImage] = []
    if repair and report.damage:
        from flows.extraction.repair import repair as repair_store

        with Reporter(quiet=json_).live() as reporter:
            repaired, broken = repair_store(merged, place, opened, report.damage, reporter)
    whole = not report.problems and (not report.damage or (repair and not broken))
    if json_:
        facts = {**dataclasses.asdict(report), "repaired": repaired, "ok": whole}
        facts["not_repaired"] = [{"path": str(b.path), "reason": b.reason} for b in broken]
        _json(facts)
    else:
        show_verify(report, repair, repaired, broken)
    raise typer.Exit(0 if whole else SET_ASIDE)


@commands.command()
@takes("store")
def tag(
    image_set: SetArgument,
    given: Given,
    name: Annotated[str, typer.Argument(metavar="TAG", help="The name; it never moves.")],
    snapshot: SnapshotOption = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete the tag instead.")] = False,
) -> None:
    """Give a snapshot a name that keeps it from expiring."""
    opened = _open(given, write=True)
    from storage.upkeep import history as maintenance

    if delete:
        maintenance.untag(opened, name)
        out.print(f"deleted tag {name}", markup=False)
        return
    out.print(f"{name} -> {maintenance.tag(opened, name, snapshot)}", markup=False)


@commands.command()
@takes("store", "models")
def gc(
    image_set: SetArgument,
    given: Given,
    older_than: Annotated[
        str, typer.Option(help="Age of snapshots that expire: 30d, 12h.")
    ] = "30d",
    grace: Annotated[
        str, typer.Option(help="Unreachable data younger than this stays: a writer may need it.")
    ] = "1d",
    delete: Annotated[
        bool, typer.Option("--delete", help="Do it. Without this nothing is changed.")
    ] = False,
    purge_removed: Annotated[
        bool,
        typer.Option(
            "--purge-removed",
            help="Also give up the features of images that were removed longer ago than that.",
        ),
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Expire old snapshots and free their space; never those that a tag or a model refers to."""
    opened, _, place = _places(given, write=True)
    from flows.command.store_tables import show_gc
    from flows.use.upkeep import collect, parse_age

    done = collect(
        place,
        opened,
        older_than=parse_age(older_than),
        grace=parse_age(grace),
        purge_removed=purge_removed,
        delete=delete,
    )
    if json_:
        purged = {"purged": dataclasses.asdict(done.purged)} if done.purged else {}
        _json(dataclasses.asdict(done.snapshots) | purged)
        return
    show_gc(done.snapshots, done.purged)


@commands.command()
@takes("store")
def export(
    image_set: SetArgument,
    given: Given,
    target: Annotated[
        str,
        typer.Argument(metavar="TARGET", help="Folder, or s3://bucket/prefix with --as-store."),
    ],
    snapshot: SnapshotOption = None,
    as_store: Annotated[
        bool, typer.Option("--as-store", help="A Headwater store instead of a plain Zarr folder.")
    ] = False,
) -> None:
    """Copy one snapshot to a plain Zarr v3 folder, or to another store."""
    opened = _open(given)
    from storage.upkeep.export import export as export_store

    count = export_store(opened, target, snapshot, plain=not as_store)
    out.print(f"wrote {size(count)} to {target}", markup=False)


@commands.command()
@takes("store")
def drift(
    image_set: SetArgument,
    given: Given,
    since: Annotated[str, typer.Option(help="Snapshot or tag: its images are the reference.")],
    picture: Annotated[
        Path | None, typer.Option("--out", help=r"PNG to write. \[default: in home]")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Compare the images that came after a snapshot with those that were there, layer by layer."""
    opened, _, place = _places(given, write=picture is None)
    from flows.use.drift import report_drift

    target = picture or place.pictures / image_set / "drift.png"
    facts, lines = report_drift(opened, since, target)
    if json_:
        _json(facts)
        return
    for line in lines:
        out.print(line, markup=False)
