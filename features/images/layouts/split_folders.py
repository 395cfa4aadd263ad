"""Folders ``train/good`` and ``test/KIND``, masks in a tree of their own: MVTec AD and its kin.

- MVTec AD: ``train/good``, ``test/KIND``, ``ground_truth/KIND/NAME_mask.png``;
- MVTec LOCO AD: ``validation/good`` too, and ``ground_truth/KIND/NAME/*.png``, a file a defect;
- MVTec AD 2: ``test_public/KIND`` with ``test_public/ground_truth/KIND``; ``test_private`` and
  ``test_private_mixed`` have no labels;
- BTAD: ``train/ok``, ``test/ok``, ``test/ko``, ``ground_truth/ko/NAME.png``.

In any of them ``val/KIND`` and ``validation/KIND`` are known defects, to choose by. Their masks are
``val/ground_truth/KIND/NAME.png``, or those of ``ground_truth/KIND`` that no test image has.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from features.images.folders import Walker
from features.images.layouts.plain import subfolders
from features.images.layouts.reading import Masks, Reading, is_good, match
from features.images.layouts.validation import known_defects, unused
from features.images.records import Candidate

#: Folders of known defects.
_KNOWN = ("validation", "val")


@dataclass(frozen=True)
class SplitFolders:
    """A reader of such a tree.

    Parameters
    ----------
    good
        Names that the folder of normal training images may have.
    test, truth
        The folder of test images, and that of masks.
    unlabelled
        Folders of test images of which nobody says what they are.
    """

    good: tuple[str, ...] = ("good",)
    test: str = "test"
    truth: str = "ground_truth"
    unlabelled: tuple[str, ...] = ()

    def fits(self, place: Path) -> bool:
        """Whether the folder of normal training images is there, and that of test images if any."""
        trained = any((place / "train" / good).is_dir() for good in self.good)
        return trained and (self.test == "test" or (place / self.test).is_dir())

    def read(self, reading: Reading) -> list[Candidate]:
        """List training images, known defects and test images, these two with their masks."""
        root, told = reading.place, reading.result
        walker = reading.walker(root, "images")
        tests, masks = self._tests(walker, root / self.test, reading)
        found = self._normal(walker, root / "train", reading)
        # Published sets have normal images for training in `validation/good`.
        for name in _KNOWN:
            trained = self.good if name == "validation" else ()
            masks = {kind: marks.rest() for kind, marks in masks.items()}
            found += known_defects(reading, walker, root / name, trained=trained, shared=masks)
        unused(reading, masks)
        late = str(root / "validation") + "/"
        if count := sum(c.split == "train" and c.path.startswith(late) for c in found):
            told.notes.append(
                f"validation/: {count} normal images are trained on with those of train/; of all "
                "of them a share is held out for the threshold"
            )
        for name in self.unlabelled:
            if (root / name).is_dir():
                count = sum(1 for _ in walker.files(root / name))
                told.left_out.add(f"images without a label in {name}/", str(root / name), count)
        return found + tests

    def _normal(self, walker: Walker, place: Path, reading: Reading) -> list[Candidate]:
        """List the normal images of ``train``; count what lies beside them."""
        found: list[Candidate] = []
        for sub in walker.subfolders(place) if place.is_dir() else ():
            files = walker.files(sub)
            if sub.name in self.good:
                found += [Candidate(p, "train", "good") for p in files]
            elif count := sum(1 for _ in files):
                what = f"images in {place.name}/{sub.name}/ (only normal ones are trained on)"
                reading.result.left_out.add(what, str(sub), count)
        return found

    def _tests(
        self, walker: Walker, place: Path, reading: Reading
    ) -> tuple[list[Candidate], dict[str, Masks]]:
        """List the test images, the defective ones with their masks; and all masks, by kind."""
        found: list[Candidate] = []
        rest: dict[str, Masks] = {}
        told, truth = reading.result, reading.place / self.truth
        kinds = walker.subfolders(place) if place.is_dir() else []
        masked = {s.name: s for s in walker.subfolders(truth)} if truth.is_dir() else {}
        for sub in kinds:
            if sub == truth:
                continue
            if is_good(sub.name) or sub.name in self.good:
                if sub.name not in self.good:
                    told.notes.append(f"{sub} is taken for normal by its name")
                found += [Candidate(p, "test", "good") for p in walker.files(sub)]
                continue
            images = [Candidate(p, "test", sub.name) for p in walker.files(sub)]
            if marks := masked.pop(sub.name, None):
                rest[sub.name] = Masks(marks, walker.masks(marks))
                match(images, sub, rest[sub.name], told)
            found += images
        known = {s.name for name in _KNOWN for s in subfolders(reading.place / name)}
        for name, sub in masked.items():
            if name in known and not is_good(name):
                rest[name] = Masks(sub, walker.masks(sub))
            elif count := sum(1 for _ in walker.masks(sub)):
                why = "masks of normal images" if is_good(name) else f"masks of no image ({name}/)"
                told.left_out.add(why, str(sub), count)
        return found, rest
