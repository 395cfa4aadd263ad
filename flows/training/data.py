"""What a training reads: the samples of a set at one version, and their features."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from features.images.pixels import read_image, sha256_of
from features.images.places.regions import Looked, Regions
from features.images.preprocess import mask_to_input, preprocess
from features.images.records import ImageRecord
from features.images.sources import ImageSource, PairMasks
from flows.extraction.pair_list import PairList, Version, load_pairs
from flows.extraction.regions import regions_of
from flows.extraction.samples import REMOVED, Sample, digest_of, reviewed, usable
from flows.runtime.home import Home
from flows.training.trainings import Training
from heads.catalogue import get_head
from heads.contract import FeatureSource
from heads.pairs.source import PairSource
from heads.training.folds import Folds, assign_folds, looks_of, natural
from heads.training.out_of_fold import leaves_out
from heads.training.sources import LookedSource, TileSource
from heads.training.splits import split_held_out
from headwater.errors import ConfigError, DataError, LayerError
from headwater.spec import SIDES, ExtractorSpec, LayerSpec, digest
from headwater.tiles import part_of
from storage.store.feature_store import FeatureStore
from storage.store.layout import side_name
from storage.store.table import Selection, moment_of, sha_names
from storage.upkeep.history import tag


def samples_at(
    home: Home, image_set: str, at: Version, root: Path, known_by: int | None = None
) -> tuple[list[FeatureStore], PairList | None, Sequence[Sample]]:
    """Return the stores of a set's sides, the list that joins them, and the samples at a version.

    Parameters
    ----------
    root
        Folder that a store's paths are relative to.
    known_by
        Only images that had arrived by then, nanoseconds UTC.
    """
    pairs = load_pairs(home, image_set, at.pairs) if at.pairs else None
    names = [side_name(image_set, s) for s in SIDES] if at.pairs else [image_set]
    stores = [
        FeatureStore.open(home.store, name, create=False)
        for name, snapshot in zip(names, at.snapshots, strict=True)
        if snapshot
    ]
    tables = [s.table(when) for s, when in zip(stores, at.snapshots, strict=False)]
    found: Sequence[Sample]
    if pairs is None:
        (table,) = tables
        rows = table.images(table.rows(Selection(known_by=known_by)))
        groups = home.groups(image_set)
        found = [Sample.of(row, root, groups.get(row.sha256, "")) for row in rows]
    else:
        found = pairs.present(tables, known_by) if tables else pairs.samples
    return stores, pairs, reviewed(found, home.reviews(image_set))


class StoredSamples:
    """The samples of a set at one version, and the features of either side.

    Cheap, but for the image tables; features are opened when they are asked for.

    Parameters
    ----------
    home, image_set, at
        Which set, and when.
    spec, layers
        Which features; of a specification of images, the images themselves.
    root
        Folder that a store's paths are relative to.
    known_by
        Only images that had arrived by then, nanoseconds UTC.
    """

    def __init__(
        self,
        home: Home,
        image_set: str,
        at: Version,
        spec: ExtractorSpec,
        layers: tuple[LayerSpec, ...],
        root: Path,
        known_by: int | None = None,
    ) -> None:
        self.home, self.at, self.spec, self.layers = home, at, spec, layers
        self.kind = at.kind
        self.select = Selection(known_by=known_by)
        self.stores, self.pairs, self.all = samples_at(home, image_set, at, root, known_by)

    @functools.cached_property
    def sides(self) -> list[Any]:
        """The features of each side, or the images where no store is read."""
        if not self.stores:
            prepare = functools.partial(preprocess, spec=self.spec)
            # One source for all: an image of several pairs is one row.
            source = ImageSource(_records(self.all), prepare, self.spec.input_size)
            return [self._looked(source, self.spec)] * len(self.at.snapshots)
        return self.readers(self.spec)

    def readers(self, spec: ExtractorSpec) -> list[Any]:
        """Return the features of each side as made by `spec`."""
        return [
            self._looked(store.reader(spec, self.layers, self.select, at, missing="skip"), spec)
            for store, at in zip(self.stores, self.at.snapshots, strict=True)
        ]

    def _looked(self, source: Any, spec: ExtractorSpec) -> Any:
        """Return a source that also says what of each image is looked at, where that is not all."""
        where = Looked(spec, self.size_of, self.regions)
        found = LookedSource(source, where) if where.partly else source
        if spec.tiles is None:
            return found
        return TileSource(found, [part_of(row, spec) for row in source.views])

    @functools.cached_property
    def regions(self) -> Regions:
        """The regions of interest that the features were made with."""
        return regions_of(self.spec, self.home)

    @functools.cached_property
    def _sizes(self) -> dict[str, tuple[int, int]]:
        # Of images that no store has there are none: then they say their size themselves.
        tables = [s.table(at) for s, at in zip(self.stores, self.at.snapshots, strict=False)]
        found: dict[str, tuple[int, int]] = {}
        for table in tables:
            sides = zip(table.height.tolist(), table.width.tolist(), strict=True)
            found |= dict(zip(sha_names(table.sha), sides, strict=True))
        return found

    def size_of(self, sha256: str) -> tuple[int, int]:
        """Return height and width of an image, pixels."""
        if not self.stores and sha256 not in self._sizes:
            paths = {r.sha256: r.path for r in _records(self.all)}
            self._sizes[sha256] = read_image(paths[sha256]).shape[:2]  # type: ignore[assignment]
        return self._sizes[sha256]

    @functools.cached_property
    def readable(self) -> list[Sample]:
        """The samples all of whose images have features: in the store's order, pairs in theirs."""
        rows = [self._rows_of(side) for side in self.sides]
        found = [
            s
            for s in self.all
            if all(sha in have for sha, have in zip(s.contents, rows, strict=True))
        ]
        if self.pairs is not None:
            return found
        return sorted(found, key=lambda s: rows[0][s.contents[0]][0])

    def _rows_of(self, source: Any) -> dict[str, list[int]]:
        """Return the rows of each image that has all it should, tiles in order of their number."""
        found: dict[str, dict[int, int]] = {}
        every = source.parts if self.spec.tiles is not None else [0] * len(source)
        for row, (sha, part) in enumerate(zip(source.ids, every, strict=True)):
            found.setdefault(sha, {})[part] = row
        if self.spec.tiles is None:
            return {sha: list(have.values()) for sha, have in found.items()}
        where = Looked(self.spec, self.size_of, self.regions)
        wanted = {sha: where.parts(sha) for sha in found}
        return {
            sha: [have[part] for part in wanted[sha]]
            for sha, have in found.items()
            if all(part in have for part in wanted[sha])
        }

    @functools.cached_property
    def lacking(self) -> list[str]:
        """Keys of the samples that lack a layer and are left out.

        An extraction was cut off, a file could not be read, or the features of removed images,
        which belong to a view of the past, were purged.
        """
        with contextlib.suppress(LayerError):
            have = set(self.readable)
            return sorted(s.key for s in self.all if s not in have)
        return []

    @property
    def test(self) -> list[Sample]:
        """The samples to judge by."""
        return [s for s in self.readable if s.split == "test" and s.review != REMOVED]

    @property
    def known(self) -> list[Sample]:
        """The known defects, to choose by: neither learnt from nor tested."""
        known = [s for s in self.readable if s.split == "val" and s.defective]
        return [s for s in known if s.review != REMOVED]

    def source(self, samples: Sequence[Sample], *, labelled: bool = False) -> Any:
        """Return a source of these samples, with their masks where `labelled`.

        The tiles of an image follow each other.
        """
        if self.pairs is None:
            rows = self._rows_of(self.sides[0])
            return self.sides[0].subset([row for s in samples for row in rows[s.contents[0]]])
        prepare = functools.partial(mask_to_input, spec=self.spec)
        masks = PairMasks([(s.key, s.mask) for s in samples], prepare) if labelled else None
        current, history = self.sides
        return PairSource(current, history, [s.pair for s in samples], masks)

    def check_files(self, samples: Sequence[Sample], *, masks: bool) -> None:
        """Raise `DataError` for a file of pairs whose content is not the one that was scanned.

        Images that were scanned into a store need none of this: their features are there.
        """
        files: dict[Path, str] = {}
        for s in samples if self.pairs is not None else ():
            if not self.stores:
                files |= dict(zip(s.paths, s.contents, strict=True))
            if masks and s.mask is not None:
                files[s.mask] = s.label
        for path, sha in files.items():
            same = False
            with contextlib.suppress(OSError):
                same = sha256_of(path) == sha
            if not same:
                raise DataError(
                    f"{path} is gone, or not what it was when it was scanned",
                    expected=f"content {sha[:12]}",
                    remedy="put it back, or run again with --pairs to take the new one",
                )


def _records(samples: Sequence[Sample]) -> list[ImageRecord]:
    found: dict[str, Path] = {}
    for s in samples:
        for sha, path in zip(s.contents, s.paths, strict=True):
            found.setdefault(sha, path)
    # Only path and content are read of these.
    return [ImageRecord(path, sha, "train", "good", None, 0, 0, 0) for sha, path in found.items()]


class TrainingData(StoredSamples):
    """What one training reads.

    Raises
    ------
    ConfigError
        For a point in time with a head that reads images, which no store dates.
    """

    def __init__(self, training: Training) -> None:
        plan = training.plan
        if plan.reads_images and training.known_by is not None:
            raise ConfigError(
                f"--known-by with {plan.head} that learns its own encoder",
                expected="a head that reads stored features: only the store knows arrivals",
            )
        self.training, self.head = training, get_head(plan.head)
        super().__init__(
            training.home,
            training.image_set,
            training.at,
            plan.spec,
            plan.layers,
            training.root,
            training.known_by,
        )

    def key(self) -> str:
        """Return the idempotency key; see `flows.extraction.plan.training_key`.

        Two versions with the same images and labels give the same key, so extracting for another
        head does not make a finished training look stale.
        """
        seen = digest_of(self.all)
        if self.lacking:
            # The same images with all their features are another training.
            seen = digest([seen, self.lacking])
        return self.training.key(seen)

    def tags(self) -> dict[str, str]:
        """Return the run's tags that say what was read."""
        tags = dict(zip(("snapshot", "history_snapshot"), self.at.snapshots, strict=False))
        tags["data_digest"] = digest_of(self.all)
        if self.training.known_by is not None:
            tags["known_by"] = moment_of(self.training.known_by)
        return tags | ({"pairs": self.at.pairs} if self.at.pairs else {})

    @functools.cached_property
    def learnt(self) -> list[Sample]:
        """The samples that a head may learn from, their files checked.

        Raises
        ------
        DataError
            With too few samples, or files that are not what they were when they were scanned.
        """
        training = self.training
        when = " that had arrived by then" if training.known_by is not None else ""
        samples = usable(self.head, training.image_set, self.readable, when=when)
        self.check_files(samples, masks=self.head.labelled)
        return samples

    def sources(self) -> tuple[FeatureSource, FeatureSource]:
        """Return what to train on (views included) and what is held out (plain only).

        Raises
        ------
        DataError
            As of `learnt`.
        """
        source = self.source(self.learnt, labelled=self.head.labelled)
        held_out = self.training.options.held_out
        assert held_out is not None
        if self.pairs is not None:
            return source.split(held_out)
        train_rows, held_rows = split_held_out(source.ids, held_out, 2)
        return self._with_views(source.subset(train_rows)), source.subset(held_rows)

    def normals(self) -> Any:
        """Return all that a head may learn from, views included; raises as `learnt` does."""
        return self._with_views(self.source(self.learnt))

    def _with_views(self, train: Any) -> Any:
        """Return plain images and their views, where the head learns from such."""
        if self.training.plan.view_spec is None:
            return train
        (views,) = self.readers(self.training.plan.view_spec)
        kept = set(train.ids)
        rows = [i for i, sha in enumerate(views.ids) if sha in kept]
        return train.concat([train, views.subset(rows)])

    def folds(self, source: Any) -> Folds:
        """Return the folds of `normals`: of groups, or of neighbours by name or by arrival."""
        plain = [row for row, view in enumerate(source.views) if view == 0]
        row_of = {source.ids[row]: row for row in reversed(plain)}
        images = list(row_of)[::-1]
        if self.pairs is not None:
            known = {p.id: (p.key, p.current, p.source) for p in source.pairs}
        else:
            known = {s.contents[0]: (s.key, s.contents[0], s.group) for s in self.learnt}
        names = [natural(known[image][0]) for image in images]
        orders: dict[str, list[Any]] = {"file order": names}
        if self.stores:
            table = self.stores[0].table(self.at.snapshots[0])
            arrived = table.added_at[table.find([known[image][1] for image in images])].tolist()
            orders["order of arrival"] = list(zip(arrived, names, strict=True))
        return assign_folds(
            images,
            orders,
            groups=[known[image][2] for image in images],
            looks=looks_of(source, [row_of[image] for image in images]),
            count=self.training.options.folds,
            alone=leaves_out(self.head, source),
        )

    def keep(self, name: str) -> None:
        """Tag the snapshots: retention must never remove what a registered model refers to."""
        for store, at in zip(self.stores, self.at.snapshots, strict=False):
            tag(store, name, at)

    def notes(self) -> list[str]:
        """Return a sentence on the samples that lack features, if there are any."""
        if not self.lacking:
            return []
        training = self.training
        cure = (
            "--snapshot trains on the store as it was then"
            if training.known_by is not None
            else f"`headwater extract {training.image_set}` computes them"
        )
        return [
            f"{training.plan.head}: {len(self.lacking)} {self.kind.name}(s) without stored "
            f"features were left out, such as {self.lacking[0]}; {cure}"
        ]
