"""Images to blocks of stored features: decoding and backbone side by side in every lane."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from features.backbones.backbone import Backbone
from features.backbones.lanes import lane_count
from features.images.depth import levels
from features.images.pixels import decode_image
from features.images.places.regions import read_region
from features.images.places.tiles import row_of
from features.images.preprocess import blanked, preprocess
from headwater.errors import ConfigError, HeadwaterError, ImageError
from headwater.files import read_regular
from headwater.spec import ExtractorSpec, LayerSpec
from headwater.tiles import MOST_ROWS


@dataclass(frozen=True, slots=True)
class Job:
    """One row of features to compute: an image, or by `view` another row of it.

    Which those are, tiles and augmented views, the specification says (`headwater.tiles`). Of an
    image with a region of interest, a mask's file, nothing else is looked at.
    """

    sha256: str
    path: Path
    view: int = 0
    region: Path | None = None


@dataclass
class FeatureBlock:
    """Features of consecutive jobs.

    Parameters
    ----------
    jobs
        Those that succeeded; row i of every array is ``jobs[i]``.
    maps
        ``{layer.name: [n, C, H, W]}`` in the stored dtype. Values beyond its range are infinite,
        so that the store can name them. bfloat16, which numpy lacks, is its bits as uint16.
    failed
        Jobs whose image could not be used, with the reason.
    """

    jobs: list[Job]
    maps: dict[str, np.ndarray]
    failed: list[tuple[Job, str]] = field(default_factory=list)


def extract(
    jobs: Sequence[Job],
    backbone: Backbone,
    spec: ExtractorSpec,
    layers: Sequence[LayerSpec],
    *,
    batch: int | None = None,
    block_bytes: int = 64 << 20,
) -> Iterator[FeatureBlock]:
    """Compute features in blocks, in the order of the jobs.

    Every lane (see `lanes`) takes a batch from file to stored dtype, so that one decodes
    while others compute and no core waits. Two blocks and the batches in hand are in memory.
    A file whose bytes are no longer those of the job's hash fails, as unreadable ones do. Where
    images are seen in tiles, one is decoded once for all of its jobs that follow each other.

    Parameters
    ----------
    jobs
        What to compute.
    backbone
        Whose weights were checked for `layers`.
    spec
        Preprocessing, precision, stored dtype and, for jobs with ``view > 0``, the views.
    layers
        What to store.
    batch
        Images a lane takes at a time; by default what the backbone sees at once.
    block_bytes
        About how large a block is.

    Raises
    ------
    ConfigError
        A specification that is not this backbone's, or views asked of a specification without.

    Examples
    --------
    >>> from features.backbones.backbone import load_backbone
    >>> from features.images.scan import scan_mvtec
    >>> backbone = load_backbone("resnet10t", untrained_seed=0)
    >>> jobs = [Job(r.sha256, r.path) for r in scan_mvtec(Path("leather")).records]
    >>> spec, layers = backbone.default_spec(64, precision="float32"), [LayerSpec(("layer2",))]
    >>> [block.maps["layer2"].shape for block in extract(jobs, backbone, spec, layers)]
    [(13, 128, 8, 8)]
    """
    layers = tuple(layers)
    _check(jobs, backbone, spec)
    shapes = backbone.shapes(layers, spec.input_size)
    dtype: torch.dtype = getattr(torch, spec.dtype)
    row_bytes = sum(c * h * w for c, h, w in shapes.values()) * dtype.itemsize
    rows = max(1, block_bytes // row_bytes)
    if rows > 64:
        rows -= rows % 64  # a block is then whole chunks of the store, but for the smallest maps
    batch = max(1, min(batch or backbone.batch_size(spec.input_size), rows))
    ahead = max(2 * lane_count(), -(-rows // batch))
    pictures = _Pictures(spec)

    def run(some: Sequence[Job]) -> _Done:
        good, images, failed = [], [], []
        for job in some:
            try:
                images.append(_load(job, spec, pictures))
                good.append(job)
            except HeadwaterError as error:
                failed.append((job, error.culprit.removeprefix(f"{job.path}: ")))
        if not good:
            return good, {}, failed
        maps = backbone.maps(torch.stack(images), layers, spec.precision)
        # Values too large become infinite here; a clamp would hide them.
        return good, {k: _numpy(v.to("cpu", dtype)) for k, v in maps.items()}, failed

    block = _Collector(shapes, _numpy(torch.empty(0, dtype=dtype)).dtype, rows)
    pool = backbone.lanes()
    queue: deque[Future] = deque()
    starts = iter(range(0, len(jobs), batch))
    try:
        while True:
            while len(queue) < ahead and (start := next(starts, None)) is not None:
                queue.append(pool.submit(run, jobs[start : start + batch]))
            if not queue:
                break
            yield from block.add(*queue.popleft().result())
        yield from block.rest()
    finally:
        for future in queue:
            future.cancel()
        wait(queue)


_Done = tuple[list[Job], dict[str, np.ndarray], list[tuple[Job, str]]]


class _Collector:
    """Gathers batches into blocks of a fixed number of rows.

    By numpy: torch would spread each copy over all cores, whose threads then spin for a while and
    take from the lanes what a fifth of the backbone costs.
    """

    def __init__(self, shapes: dict[str, tuple[int, int, int]], dtype: np.dtype, rows: int) -> None:
        self.shapes, self.dtype, self.rows = shapes, dtype, rows
        self._begin()

    def _begin(self) -> None:
        self.jobs: list[Job] = []
        self.failed: list[tuple[Job, str]] = []
        self.maps: dict[str, np.ndarray] = {}

    def add(
        self, jobs: list[Job], maps: dict[str, np.ndarray], failed: list[tuple[Job, str]]
    ) -> Iterator[FeatureBlock]:
        self.failed += failed
        taken = 0
        while taken < len(jobs):
            if not self.maps:
                self.maps = {
                    k: np.empty((self.rows, *s), self.dtype) for k, s in self.shapes.items()
                }
            at = len(self.jobs)
            n = min(self.rows - at, len(jobs) - taken)
            for k, v in maps.items():
                self.maps[k][at : at + n] = v[taken : taken + n]
            self.jobs += jobs[taken : taken + n]
            taken += n
            if len(self.jobs) == self.rows:
                yield from self.rest()

    def rest(self) -> Iterator[FeatureBlock]:
        if self.jobs or self.failed:
            n = len(self.jobs)
            maps = {
                k: self.maps[k][:n] if n else np.empty((0, *s), self.dtype)
                for k, s in self.shapes.items()
            }
            block = FeatureBlock(self.jobs, maps, self.failed)
            self._begin()
            yield block


def _load(job: Job, spec: ExtractorSpec, pictures: _Pictures) -> Tensor:
    return preprocess(row_of(pictures(job), job.sha256, job.view, spec), spec)


class _Pictures:
    """Decoded images, blank where they are not looked at; those seen in tiles are kept a while.

    Lanes that want tiles of the same image wait for the one that decodes it.
    """

    def __init__(self, spec: ExtractorSpec) -> None:
        self.spec = spec
        # The last ones, one a lane and the next: of large images few are at work at a time.
        self.most = lane_count() + 1
        self._kept: OrderedDict[tuple[str, Path | None], Future[np.ndarray]] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, job: Job) -> np.ndarray:
        """Return a job's image; raises `ImageError`."""
        if self.spec.tiles is None:
            return _decoded(job, self.spec)
        key = job.sha256, job.region
        with self._lock:
            found = self._kept.get(key)
            mine = found is None
            if found is None:
                while len(self._kept) >= self.most:
                    self._kept.popitem(last=False)
                found = self._kept[key] = Future()
        if mine:
            try:
                found.set_result(_decoded(job, self.spec))
            except BaseException as error:
                found.set_exception(error)
        return found.result()


def _decoded(job: Job, spec: ExtractorSpec) -> np.ndarray:
    try:
        data = read_regular(job.path)
    except OSError as error:
        raise ImageError(f"{job.path}: {error.strerror or error}") from error
    if hashlib.sha256(data).hexdigest() != job.sha256:
        raise ImageError(f"{job.path}: its bytes changed since it was scanned")
    image = decode_image(data, str(job.path), known_whole=True)
    if spec.value_range is None:
        image = levels(image, None)
    if job.region is not None:
        image = blanked(image, read_region(job.region, *image.shape[:2]), spec)
    return image


def _numpy(x: Tensor) -> np.ndarray:
    return x.view(torch.uint16).numpy() if x.dtype == torch.bfloat16 else x.numpy()


def _check(jobs: Sequence[Job], backbone: Backbone, spec: ExtractorSpec) -> None:
    ours = (backbone.name, backbone.weights_id, backbone.options)
    if (spec.backbone, spec.weights, spec.options) != ours:
        raise ConfigError(
            f"the specification is of {spec.backbone} with weights {spec.weights[:16]}",
            expected=f"{backbone.name} with {backbone.weights_id[:16]}, the backbone given",
        )
    limit = spec.views.count if spec.views else 0
    if spec.tiles is not None:
        # How many tiles an image has its size decides, which is known when it is read.
        limit = MOST_ROWS
    wrong = next((j for j in jobs if not 0 <= j.view <= limit), None)
    if wrong is not None:
        raise ConfigError(
            f"view {wrong.view} of {wrong.path}",
            expected=f"0 to {limit}, what the specification has",
        )
