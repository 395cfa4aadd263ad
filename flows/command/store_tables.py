"""What the commands of `headwater store` print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flows.runtime.console import counted, err, out, size

if TYPE_CHECKING:
    from features.images.records import BrokenImage
    from storage.upkeep.collect import GcReport
    from storage.upkeep.purge import PurgeReport
    from storage.upkeep.verify import VerifyReport


def show_verify(
    report: VerifyReport, repair: bool, repaired: int, broken: Sequence[BrokenImage]
) -> None:
    """Print what was read, found damaged and, with `repair`, mended or not."""
    out.print(f"read {report.rows:,} maps, {size(report.bytes)}, at {report.snapshot}")
    for problem in report.problems:
        out.print(f"problem: {problem}", style="red", markup=False)
    for damage in report.damage[:50]:
        out.print(f"damaged: {damage}", markup=False)
    if len(report.damage) > 50:
        out.print(f"and {len(report.damage) - 50} more (--json lists all)")
    removed = sum(d.removed for d in report.damage)
    if repaired:
        out.print(f"repaired: {counted(repaired, 'map')} computed again")
    if repair and removed:
        out.print(f"given up: {counted(removed, 'damaged map')} of removed images")
    for one in broken:
        err.print(f"not repaired: {one.path}: {one.reason}", markup=False)
    if (rest := len(report.damage) - removed) and not repair:
        these = "just these" if rest > 1 else "just this one"
        out.print(f"{counted(rest, 'damaged map')}; --repair computes {these} again")
    if removed and not repair:
        out.print(
            f"{counted(removed, 'damaged map')} of removed images: not needed and not to be had "
            "again; --repair gives up just these, gc --purge-removed all of removed images"
        )
    if report.ok:
        out.print("all is well")


def show_gc(report: GcReport, purged: PurgeReport | None) -> None:
    """Print what expired, or would, and what was purged before."""
    if purged:
        would = "would give up" if purged.dry_run else "gave up"
        out.print(
            f"{would} {counted(purged.maps, 'map')} of {counted(purged.images, 'removed image')}: "
            f"{size(purged.bytes)} once the snapshots from before have expired"
        )
        if purged.shared_bytes:
            out.print(f"{size(purged.shared_bytes)} more lie in chunks that other images share")
    would = "would expire" if report.dry_run else "expired"
    out.print(f"{would} {counted(len(report.expired), 'snapshot')}, freeing {size(report.bytes)}")
    if report.kept:
        out.print(
            f"{len(report.kept)} old ones stay: newest, tagged, of a registered model, or in use"
        )
    if report.dry_run:
        out.print("nothing was changed; --delete does it")


def minute(iso: str) -> str:
    """Return an ISO time, which is UTC, as people read it: day, hour and minute."""
    return iso[:16].replace("T", " ")


def percent(share: float) -> str:
    """Return a coverage; what is not complete never reads as 100 %."""
    return f"{min(int(100 * share), 99) if share < 1 else 100} %"
