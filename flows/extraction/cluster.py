"""The same extraction on a Dask cluster: workers take blocks, the driver commits.

Workers write through forks of one Icechunk session and send back facts, never maps. A lost
worker's block is done again by another, as Dask does with any task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from features.backbones.backbone import Backbone, load_backbone
from features.extract import Job, extract
from flows.runtime.dask import cores, dask_client
from headwater.spec import seed_of_untrained
from storage.store.distributed import Ticket, Written, allocate, commit_blocks, write_block

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from distributed import Client

    from features.images.records import ImageRecord
    from flows.extraction.extract import Extracted, ExtractionReport
    from flows.extraction.plan import ExtractionPlan
    from flows.runtime.console import Reporter
    from flows.runtime.settings import Settings
    from storage.store.extractors import Plan, PlanTask
    from storage.store.feature_store import FeatureStore
    from storage.store.table import ImageRow

#: One backbone a worker process, kept between blocks.
_LOADED: dict[tuple[Any, ...], Backbone] = {}


@dataclass(frozen=True)
class BackboneRef:
    """What a worker needs to load the same backbone."""

    name: str
    weights: str | None
    options: tuple[tuple[str, Any], ...]
    untrained_seed: int | None = None

    def load(self) -> Backbone:
        """Load it, once a process."""
        key = (self.name, self.weights, self.options, self.untrained_seed)
        if key not in _LOADED:
            _LOADED.clear()
            _LOADED[key] = load_backbone(
                self.name,
                Path(self.weights) if self.weights else None,
                options=dict(self.options),
                untrained_seed=self.untrained_seed,
            )
        return _LOADED[key]


@dataclass(frozen=True)
class BlockDone:
    """What a worker says of its block."""

    number: int
    written: Written | None
    failed: tuple[tuple[str, str], ...]
    calls: int


def extract_block(
    ref: BackboneRef, ticket: Ticket, paths: Mapping[str, str], batch: int, threads: int
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
    """
    torch.set_num_threads(threads)
    backbone = ref.load()
    before = backbone.calls
    jobs = [Job(sha, Path(paths[sha]), view) for sha, view in ticket.keys]
    keys: list[tuple[str, int]] = []
    parts: dict[str, list[Any]] = {}
    failed: list[tuple[str, str]] = []
    for block in extract(jobs, backbone, ticket.spec, ticket.layers, batch=batch):
        failed += [(str(job.path), reason) for job, reason in block.failed]
        keys += [(job.sha256, job.view) for job in block.jobs]
        for name, maps in block.maps.items():
            parts.setdefault(name, []).append(torch.as_tensor(maps))
    written = None
    if keys:
        written = write_block(ticket, keys, {k: torch.cat(v) for k, v in parts.items()})
    return BlockDone(ticket.number, written, tuple(failed), backbone.calls - before)


def extract_task(
    client: Client,
    store: FeatureStore,
    ref: BackboneRef,
    task: PlanTask,
    spec: Any,
    shapes: Mapping[str, tuple[int, int, int]],
    paths: Mapping[str, str],
    rows: Mapping[str, ImageRow],
    *,
    batch: int,
    block_bytes: int,
    threads: int,
    commit_every: int,
    on_block: Callable[[BlockDone], None],
) -> int:
    """Extract one plan task on the cluster; return the number of commits.

    Blocks are committed in groups of `commit_every` as they come in, so that a killed driver
    loses at most one group.
    """
    from distributed import as_completed

    known = {sha: rows[sha].path for sha, _ in task.keys}
    tickets = allocate(store, spec, shapes, task.keys, about_bytes=block_bytes, names=known)
    futures = [
        client.submit(
            extract_block,
            ref,
            ticket,
            {sha: paths[sha] for sha, _ in ticket.keys},
            batch,
            threads,
            pure=False,
            key=f"extract-{spec.id}-{ticket.number}-{id(tickets)}",
        )
        for ticket in tickets
    ]
    waiting: list[Written] = []
    commits = 0
    for future in as_completed(futures, loop=client.loop):
        done: BlockDone = future.result()
        on_block(done)
        if done.written is not None:
            waiting.append(done.written)
        future.release()
        if len(waiting) >= commit_every:
            commits += _commit(store, waiting, rows)
            waiting = []
    return commits + _commit(store, waiting, rows)


def extract_on_cluster(
    settings: Settings,
    store: FeatureStore,
    reporter: Reporter,
    backbone: Backbone,
    plan: ExtractionPlan,
    missing: Plan,
    records: Mapping[str, ImageRecord],
    rows: Mapping[str, ImageRow],
    report: ExtractionReport,
    done: Extracted,
) -> None:
    """Compute what is missing on Dask workers; the driver commits."""
    workers = settings.extraction.workers or cores()
    ref = BackboneRef(
        backbone.name,
        str(backbone.weights_path) if backbone.weights_path else None,
        tuple(sorted(settings.backbone.options.items())),
        seed_of_untrained(backbone.weights_id),
    )
    paths = {sha: str(record.path) for sha, record in records.items()}

    def on_block(block: BlockDone) -> None:
        report.set_aside += list(block.failed)
        if block.written is not None:
            done.count(block.written.crc32, len(block.written.keys))
        done.backbone_calls += block.calls
        reporter.update("features", done.computed, missing.todo, f"{workers} workers")

    with dask_client(workers, settings.dask.scheduler) as client:
        for task in missing.tasks:
            done.commits += extract_task(
                client,
                store,
                ref,
                task,
                plan.spec,
                backbone.shapes(task.layers, plan.spec.input_size),
                paths,
                rows,
                batch=settings.extraction.batch,
                block_bytes=settings.extraction.block_mb * 2**20,
                threads=max(1, cores() // workers),
                commit_every=workers,
                on_block=on_block,
            )


def _commit(store: FeatureStore, blocks: Sequence[Written], rows: Mapping[str, ImageRow]) -> int:
    if not blocks:
        return 0
    images: Iterable[ImageRow] = [rows[sha] for block in blocks for sha, _ in block.keys]
    commit_blocks(store, blocks, images)
    return 1
