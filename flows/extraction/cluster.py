"""The same on a Dask cluster: workers take blocks, the driver commits.

Workers write through forks of one Icechunk session and send back facts, never maps. A lost
worker's block is done again by another, as Dask does with any task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from features.extract import Job, extract
from features.images.places.regions import Regions
from flows.extraction.backbone import BackboneRef
from flows.runtime.dask import cores, dask_client
from storage.store.distributed import Ticket, Written, allocate, commit_blocks, write_block

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distributed import Client

    from flows.extraction.fill import Gap
    from flows.runtime.console import Reporter
    from flows.runtime.settings import ExtractionSettings
    from storage.store.extractors import PlanTask


@dataclass(frozen=True)
class BlockDone:
    """What a worker says of its block."""

    written: Written | None
    failed: tuple[tuple[str, str], ...]
    calls: int


def extract_block(
    ref: BackboneRef,
    ticket: Ticket,
    paths: Mapping[str, str],
    batch: int,
    threads: int,
    regions: Regions = Regions(),
) -> BlockDone:
    """Compute one ticket's features and write them into its fork; run by a Dask worker.

    Parameters
    ----------
    ref
        The backbone.
    ticket
        Which images, layers and rows.
    paths
        ``{sha256: file}``.
    batch
        Images a backbone call.
    threads
        Torch threads of this worker.
    regions
        Where images are looked at.
    """
    torch.set_num_threads(threads)
    backbone = ref.kept()
    before = backbone.calls
    jobs = [Job(sha, Path(paths[sha]), view, regions.of(sha)) for sha, view in ticket.keys]
    keys: list[tuple[str, int]] = []
    blocks: dict[str, list[Any]] = {}
    failed: list[tuple[str, str]] = []
    for block in extract(jobs, backbone, ticket.spec, ticket.layers, batch=batch):
        failed += [(str(job.path), reason) for job, reason in block.failed]
        keys += [(job.sha256, job.view) for job in block.jobs]
        for name, maps in block.maps.items():
            blocks.setdefault(name, []).append(torch.as_tensor(maps))
    written = None
    if keys:
        written = write_block(ticket, keys, {k: torch.cat(v) for k, v in blocks.items()})
    return BlockDone(written, tuple(failed), backbone.calls - before)


def fill_on_cluster(
    gap: Gap,
    ref: BackboneRef,
    options: ExtractionSettings,
    scheduler: str | None,
    reporter: Reporter,
    scratch: Path,
) -> None:
    """Compute what is missing on Dask workers and commit it here.

    Blocks are committed in groups, one a worker, as they come in, so that a killed driver loses at
    most one group.
    """
    workers = options.workers or cores()
    with dask_client(workers, scheduler, scratch) as client:
        for work in gap.missing.tasks:
            waiting: list[Written] = []
            for block in _computed(client, gap, ref, work, options, max(1, cores() // workers)):
                gap.set_aside(block.failed)
                gap.done.backbone_calls += block.calls
                if block.written is not None:
                    gap.done.count(block.written.crc32, len(block.written.keys))
                    waiting.append(block.written)
                reporter.update(
                    "features", gap.done.computed, gap.missing.todo, f"{workers} workers"
                )
                if len(waiting) >= workers:
                    _commit(gap, waiting)
                    waiting = []
            _commit(gap, waiting)


def _computed(
    client: Client,
    gap: Gap,
    ref: BackboneRef,
    work: PlanTask,
    options: ExtractionSettings,
    threads: int,
) -> Iterator[BlockDone]:
    """Yield what workers say of the blocks of one task, as they are done."""
    from distributed import as_completed

    spec = gap.plan.spec
    tickets = allocate(
        gap.store,
        spec,
        ref.kept().shapes(work.layers, spec.input_size),
        work.keys,
        about_bytes=options.block_mb * 2**20,
        names={sha: gap.rows[sha].path for sha, _ in work.keys},
    )
    futures = [
        client.submit(
            extract_block,
            ref,
            ticket,
            {sha: str(gap.path(sha)) for sha, _ in ticket.keys},
            options.batch,
            threads,
            gap.regions,
            pure=False,
            key=f"extract-{spec.id}-{ticket.number}-{id(tickets)}",
        )
        for ticket in tickets
    ]
    for future in as_completed(futures, loop=client.loop):
        yield future.result()
        future.release()


def _commit(gap: Gap, blocks: Sequence[Written]) -> None:
    if blocks:
        images = [gap.rows[sha] for block in blocks for sha, _ in block.keys]
        commit_blocks(gap.store, blocks, images)
        gap.done.commits += 1
