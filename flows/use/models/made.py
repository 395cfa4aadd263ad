"""How many made defects a model finds: a smoke test, and what a guard of retrainings asks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from features.images.made.defects import KINDS, MadeDefect, made_defects
from features.images.pixels import read_image, write_image
from features.images.places.regions import region_on
from flows.runtime.home import Home
from flows.training.record import TRAIN
from flows.use.models.lineage import find_model, lineage
from flows.use.predict import regions_beside
from headwater.errors import DataError
from headwater.geometry import Frame, place
from headwater.spec import ExtractorSpec
from storage.serving.detector import Detector

if TYPE_CHECKING:
    from flows.runtime.console import Reporter

Regions = Sequence[NDArray[np.bool_] | None]
#: Pictures at a time: bounds the memory.
_BATCH = 8


@dataclass(frozen=True)
class MadeRecall:
    """What a model says of made defects.

    Parameters
    ----------
    model
        Its name and version; empty for one that is not registered.
    seed
        Of the defects.
    kinds
        By kind ``(found, made)``.
    normals
        ``(called, all)``: of the same pictures without a defect, how many are called anomalous. A
        model that has learnt from them calls fewer of them than of new ones.
    """

    model: str
    seed: int
    kinds: dict[str, tuple[int, int]]
    normals: tuple[int, int]

    @property
    def found(self) -> int:
        """How many made defects are called anomalous."""
        return sum(found for found, _ in self.kinds.values())

    @property
    def made(self) -> int:
        """How many there are."""
        return sum(made for _, made in self.kinds.values())

    @property
    def recall(self) -> float:
        """Share of the made defects that is found."""
        return self.found / self.made

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return {
            "model": self.model,
            "seed": self.seed,
            "made_recall": self.recall,
            "found": self.found,
            "made": self.made,
            "kinds": {
                kind: {"found": found, "made": made} for kind, (found, made) in self.kinds.items()
            },
            "normals": {"called": self.normals[0], "images": self.normals[1]},
        }


def made_recall(
    detector: Detector,
    pictures: Sequence[NDArray[Any] | Path],
    count: int = 50,
    seed: int = 0,
    *,
    kinds: Sequence[str] = KINDS,
    rois: Regions | None = None,
    model: str = "",
    each: Callable[[int, MadeDefect, Any], None] = lambda number, made, got: None,
) -> MadeRecall:
    """Draw defects into normal pictures, where the model looks, and count those that it finds.

    Of one seed and one list of pictures the defects are the same for every model that looks at the
    same parts: two models can be compared.

    Parameters
    ----------
    detector
        A model over single images.
    pictures
        Normal ones: files, or arrays as `features.images.pixels.read_image` gives them.
    count, seed, kinds
        As of `features.images.made.defects.made_defects`.
    rois
        Of models whose images have regions of interest of their own: that of each picture.
    model
        What it is called.
    each
        Told of every defect: its number, what was made, and the model's prediction.

    Raises
    ------
    DataError
        For no pictures, or none with room for a defect where the model looks.
    ModelError
        For a model over pairs.
    """
    seen = _Seen(detector, pictures, rois)
    tally = {kind: [0, 0] for kind in kinds}
    used: dict[int, None] = {}
    series = made_defects(pictures, count, seed, kinds=kinds, rois=seen)
    for start in itertools.count(0, _BATCH):
        some = list(itertools.islice(series, _BATCH))
        if not some:
            break
        own = [seen.own(made.source) for made in some] if detector.own_regions else None
        got = detector.predict([made.image for made in some], rois=own)
        for number, (made, one) in enumerate(zip(some, got, strict=True), start):
            used[made.source] = None
            tally[made.kind][0] += one.score > one.threshold
            tally[made.kind][1] += 1
            each(number, made, one)
    called = 0
    drawn_into = list(used)
    for start in range(0, len(drawn_into), _BATCH):
        batch = drawn_into[start : start + _BATCH]
        own = [seen.own(at) for at in batch] if detector.own_regions else None
        images = [seen.picture(at) for at in batch]
        called += sum(p.score > p.threshold for p in detector.predict(images, rois=own))
    told = {kind: (found, made) for kind, (found, made) in tally.items() if made}
    return MadeRecall(model, seed, told, (called, len(drawn_into)))


class _Seen(Sequence[NDArray[np.bool_] | None]):
    """Of each picture the part that a model looks at, as it is asked for."""

    def __init__(
        self, detector: Detector, pictures: Sequence[NDArray[Any] | Path], rois: Regions | None
    ) -> None:
        self.detector, self.pictures, self.rois = detector, pictures, rois

    def __len__(self) -> int:
        return len(self.pictures)

    def picture(self, at: int) -> NDArray[Any]:
        """Return a picture, read if it is a file."""
        given = self.pictures[at]
        return read_image(given) if isinstance(given, Path) else given

    def own(self, at: int) -> NDArray[np.bool_] | None:
        """Return a picture's own region of interest."""
        return None if self.rois is None else self.rois[at]

    def __getitem__(self, at: Any) -> Any:
        height, width = self.picture(at).shape[:2]
        whole, found = self.detector.region, part_seen(height, width, self.detector.spec)
        if whole is not None:
            found &= region_on(whole, height, width)
        if (own := self.own(at)) is not None:
            found &= own
        return None if found.all() else found


def part_seen(height: int, width: int, spec: ExtractorSpec) -> NDArray[np.bool_]:
    """Return which pixels of an image are seen, and not cut off, ``[height, width]``.

    Examples
    --------
    >>> spec = ExtractorSpec("resnet18", "untrained:0", resize=(64, 64), crop=(32, 32))
    >>> rows, columns = part_seen(64, 128, spec).nonzero()
    >>> int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())
    (16, 47, 32, 95)
    """
    found = np.ones((height, width), bool)
    if spec.tiles is None:
        where = place(height, width, spec)
        box = Frame((height, width), where.scaled).box(*where.shown)
        found[:] = False
        found[box.top : box.top + box.height, box.left : box.left + box.width] = True
    return found


def made_recall_of(
    home: Home,
    model: str,
    reporter: Reporter,
    *,
    count: int = 50,
    seed: int = 0,
    out: Path | None = None,
) -> MadeRecall:
    """Return how many defects a registered model finds that are drawn into its own normals.

    Parameters
    ----------
    home, model
        As of `flows.use.models.lineage.lineage`.
    reporter
        Told how far it is.
    count, seed
        How many defects, by which seed.
    out
        Folder for the pictures and their masks, named by kind and verdict.

    Raises
    ------
    DataError
        Where none of the images that it learnt from is at hand.
    ModelError
        Where there is no such model, or it is over pairs.
    """
    registry, row = find_model(home, model)
    detector = Detector.load(row["uri"], registry)
    name = f"{row['model']} version {row['version']}"
    root = Path(home.card(row["model"].removesuffix(f".{row['head']}")).get("root", ""))
    learnt = [s for s in lineage(home, model)["samples"] if s["role"] == TRAIN and "path" in s]
    order = np.random.default_rng(seed).permutation(len(learnt)).tolist()
    files = [p for i in order if (p := root / learnt[i]["path"]).is_file()][:count]
    if not files:
        raise DataError(
            f"none of the {len(learnt)} images that {name} learnt from is below {root}",
            expected="the images where they were when they were last extracted",
            remedy="headwater extract SET --images DIR says where they are now",
        )
    rois = regions_beside(detector, files)

    def each(number: int, made: MadeDefect, got: Any) -> None:
        reporter.update("made defects", number + 1, count, made.kind)
        if out is not None:
            found = "found" if got.score > got.threshold else "missed"
            stem = out / f"{number:03}-{made.kind}-{found}"
            write_image(made.image, stem.with_suffix(".png"))
            mask = np.where(made.mask, 255, 0).astype(np.uint8)
            write_image(mask, out / f"{stem.name}_mask.png")

    return made_recall(detector, files, count, seed, rois=rois, model=name, each=each)
