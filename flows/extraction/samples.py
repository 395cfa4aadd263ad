"""What is learnt from and judged: a sample is one image, or two of the same place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from features.images.crops import source_of
from features.images.pairs import CHANGED
from heads.contract import Head
from heads.pairs.source import Pair
from headwater.errors import DataError
from headwater.samples import ACCEPTED as ACCEPTED
from headwater.samples import HELD as HELD
from headwater.samples import REJECTED as REJECTED
from headwater.samples import REMOVED as REMOVED
from headwater.samples import UNLEARNT as UNLEARNT
from headwater.spec import digest
from storage.store.table import ImageRow


@dataclass(frozen=True, slots=True)
class Sample:
    """One image, or a pair: now and before.

    Parameters
    ----------
    key
        Path of the image as its store has it; ``<split>/<name>`` of a pair.
    split
        ``train``, ``test``, or ``val`` of known defects that may choose.
    kind
        ``good`` or the kind of defect; of a pair ``good``, ``changed``, or ``unlabelled`` where
        there is no mask.
    contents
        SHA-256 of each image.
    paths
        Absolute path of each image.
    mask
        Absolute path of what is to be found, if there is one.
    label
        What the mask is known by: SHA-256 of a pair's, path of an image's as its store has it.
    size
        Height and width of an image, to which its mask is scaled; of a pair a mask of another size
        goes to the net's input as it is.
    group
        What an image is one of; see `features.images.records.Candidate`.
    review
        What was said of a normal: ``accepted``, ``rejected`` (it is none), ``held`` (nobody has
        said yet), or nothing; of any image that it was ``removed``.
    """

    key: str
    split: str
    kind: str
    contents: tuple[str, ...]
    paths: tuple[Path, ...]
    mask: Path | None = None
    label: str = ""
    size: tuple[int, int] | None = None
    group: str = ""
    review: str = ""

    @classmethod
    def of(cls, row: ImageRow, root: Path, group: str = "") -> Sample:
        """Return the image of a store's row; `root` is what its paths are relative to."""
        mask = root / row.mask if row.mask else None
        place = (root / row.path,)
        size = (row.height, row.width)
        return cls(row.path, row.split, row.kind, (row.sha256,), place, mask, row.mask, size, group)

    @property
    def id(self) -> str:
        """Content identity of the image or of the pair, as of the source that holds it."""
        return self.pair.id if self.is_pair else self.contents[0]

    @property
    def is_pair(self) -> bool:
        """Whether it is two images."""
        return len(self.contents) == 2

    @property
    def defective(self) -> bool | None:
        """The truth: whether there is something to be found; None where that is not known."""
        if self.is_pair and self.kind == UNLABELLED:
            return None
        return self.kind != "good"

    @property
    def source(self) -> str:
        """Key of the pair that this one was cut out of, empty where it is whole."""
        return source_of(self.key) if self.is_pair else ""

    @property
    def pair(self) -> Pair:
        """As `heads.pairs.source.PairSource` joins it."""
        current, history = self.contents
        return Pair(self.key, current, history, self.source)

    def seen(self) -> list[str]:
        """Return what a training sees of it; what it is one of decides what it is held with."""
        cut = [self.source or self.group] if self.source or self.group else []
        said = [self.review] if self.review else []
        return [*self.contents, self.split, self.kind, self.label, *cut, *said]


#: Samples without which nothing is trained: two to learn from, two to hold out.
AT_LEAST = 4
#: Kind of a pair without a mask: nobody said whether anything changed.
UNLABELLED = "unlabelled"


def reviewed(
    samples: Sequence[Sample], reviews: Mapping[str, Mapping[str, str]]
) -> Sequence[Sample]:
    """Return the samples with what was said of them (`flows.runtime.home.Home.reviews`)."""
    if not reviews:
        return samples

    def said(s: Sample) -> str:
        found = reviews[s.id]["said"] if s.id in reviews else ""
        return found if s.split == "train" or found == REMOVED else ""

    return [replace(s, review=what) if (what := said(s)) else s for s in samples]


def digest_of(samples: Sequence[Sample]) -> str:
    """Return a digest of which contents there are, split and labelled how.

    What waits for a review is not there yet: what came beside it trains what it would without. What
    was removed is not there any more, also before the next extraction takes it out of the store.
    """
    absent = (HELD, REMOVED)
    return digest(sorted(sample.seen() for sample in samples if sample.review not in absent))


def usable(
    head: type[Head], image_set: str, samples: Sequence[Sample], *, when: str = ""
) -> list[Sample]:
    """Return the training samples that a head may learn from.

    A head that learns from masks takes those that have one; any other takes those in which there is
    nothing to be found, as far as is known. Defects and changes never reach it.

    Parameters
    ----------
    head, image_set, samples
        Who is to learn from what.
    when
        What holds for the samples, for the message.

    Raises
    ------
    DataError
        Where there are too few.
    """
    train = [s for s in samples if s.split == "train" and s.review not in UNLEARNT]
    if head.labelled:
        found = [s for s in train if s.mask is not None]
        if len(found) < AT_LEAST or not any(s.defective for s in found):
            marked = sum(bool(s.defective) for s in found)
            raise DataError(
                f"{image_set}: {head.name} has {len(found)} training pair(s) with a mask, "
                f"{marked} of them changed",
                expected=f"at least {AT_LEAST}, and some that show what is to be found",
                remedy="put masks into train/mask (black where nothing changed), or train "
                "pair_flow, which needs none",
            )
        return found
    found = [s for s in train if not s.defective]
    if len(found) >= AT_LEAST:
        return found
    if head.pairs:
        raise DataError(
            f"{image_set}: {len(found)} of {len(train)} training pairs are unchanged; {head.name} "
            "learns from unchanged pairs alone",
            expected=f"at least {AT_LEAST} pairs without a mask, or with a black one",
            remedy="headwater pairs cut DIR OUT cuts unchanged crops out of labelled pairs; run "
            f"OUT as a set of its own. Or leave {head.name} out of --heads",
        )
    raise DataError(
        f"{image_set}: {len(found)} normal image(s) to train on{when}",
        expected=f"at least {AT_LEAST}",
        remedy="give a later --known-by" if when else "add normal images and run again",
    )


def what_is_left_out(head: type[Head], samples: Sequence[Sample]) -> list[str]:
    """Return sentences on training pairs that a head leaves out or takes on trust."""
    rejected = sum(s.split == "train" and s.review == REJECTED for s in samples)
    said = [f"{rejected} normal(s) that were rejected are left out"] if rejected else []
    train = [s for s in samples if s.split == "train" and s.is_pair]
    bare = sum(s.mask is None for s in train)
    if head.labelled:
        return said + [f"{head.name}: {bare} training pair(s) without a mask left out"] * bool(bare)
    changed = sum(s.kind == CHANGED for s in train)
    said += [f"{head.name}: {changed} changed training pair(s) left out"] if changed else []
    if bare:
        said.append(f"{head.name}: {bare} training pair(s) have no mask and count as unchanged")
    return said
