"""What people say of pictures that the model in service judged, and what comes of it.

A false alarm may train: its picture is put among the normal images and waits for a review. A defect
never trains: it goes to the known defects, which choose, or, a fixed share by its bytes, to the
test images for the next lock. What was put there is taken out again with the answer, unless a model
has learnt from it.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.extraction.samples import HELD
from flows.retraining.locked import locked_test
from flows.runtime.home import Home
from flows.serving.intake import Place, Split, check_kind, place_of, put
from flows.serving.kept import Kept
from flows.serving.said import DEFECT, OK, UNSURE, Said
from flows.training.record import HELD_OUT, SAMPLES, TRAIN, VALIDATION
from headwater.errors import DataError, HeadwaterError
from headwater.files import locked, read_regular
from headwater.text import shown
from storage.registry.facts import user
from storage.registry.registry import Registry

#: Kind of a defect that nobody has named.
UNNAMED = "defective"
#: Who holds a picture for a review.
_WHO = "feedback"


@dataclass(frozen=True)
class Heard:
    """What became of what somebody said.

    Parameters
    ----------
    image_set, sha256
        Of which picture.
    answers
        What the model had said of it, newest first, as it is kept now.
    put
        Where the picture is among the set's images because of it; empty where it is not.
    waits
        Whether it waits there for a review.
    notes
        What was not done, and what to do.
    """

    image_set: str
    sha256: str
    answers: list[Said]
    put: str = ""
    waits: bool = False
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return it JSON-ready, safe to show."""
        first = self.answers[0]
        return {
            "set": self.image_set,
            "sha256": self.sha256,
            "ids": [one.id for one in self.answers],
            "name": shown(first.name),
            "verdict": first.verdict,
            "answer": first.answer,
            "by": shown(first.answered_by),
            "when": first.answered_at,
            "put": shown(self.put),
            "waits_for_review": self.waits,
            "notes": [shown(note) for note in self.notes],
        }


class Feedback:
    """What people say of a set's pictures.

    Parameters
    ----------
    home, image_set
        Whose.
    kept
        What the model said; opened where none is given.
    """

    def __init__(self, home: Home, image_set: str, kept: Kept | None = None) -> None:
        self.home, self.image_set = home, image_set
        self.kept = kept or Kept(home, image_set)

    def say(
        self,
        image: str,
        answer: str = "",
        *,
        by: str = "",
        take_back: bool = False,
        content: bytes | None = None,
    ) -> Heard:
        """Keep what somebody says of a picture, and do what follows.

        Parameters
        ----------
        image
            The number of an answer, or the beginning of the picture's digest. Never a path.
        answer
            ``ok``, ``defect``, ``defect:KIND`` or ``unsure``.
        by
            Who says so; by default the user of this process.
        take_back
            Instead of an answer: what was said does not hold.
        content
            The picture, where it is at hand; else the one that was kept.

        Raises
        ------
        DataError
            Where the model was never asked about it, or the answer is none.
        """
        if content is not None:
            image = hashlib.sha256(content).hexdigest()
        if take_back == bool(answer):
            raise DataError(
                f"feedback of {image[:100]}: {'an answer and' if answer else 'no answer, nor'} "
                "taking it back",
                expected="ok, defect, defect:KIND or unsure; or to take back what was said",
            )
        answer = answer and _checked(answer)
        folder = self.home.root / "served"
        if not folder.is_dir() or not (found := self.kept.find(image)):
            raise self._unknown(image)
        # One at a time: what one puts there the next one must see.
        with locked(folder / f"{self.image_set}.lock", 60, work="feedback"):
            found = self.kept.find(image) or found
            who = by or user()
            if take_back:
                return self._take_back(found, who)
            return self._say(found, answer, who, content)

    # --- within ----------------------------------------------------------------------------------

    def _say(self, found: list[Said], answer: str, who: str, content: bytes | None) -> Heard:
        row, notes, waits = found[0], list[str](), False
        wanted, mine = self._wanted(found, answer), row.put
        content = content or self._content(row)
        if mine and wanted != self._wanted(found, row.answer):
            if stays := self._take_out(row):
                return self._heard(row, answer, who, mine, notes=[stays])
            mine = ""
        place: Place | None = None
        if wanted is not None:
            try:
                place = self._place(row, answer, content, wanted)
            except HeadwaterError as error:
                notes.append("; ".join(filter(None, (error.culprit, error.remedy))))
        if place is not None and place.there and place.key != mine:
            notes.append(f"it is among the set's images already: {place.key}")
        elif place is not None and content is not None:
            mine = place.key
            # Before it is there: what is begun can be found and taken back.
            self.kept.answer(row.sha256, answer, who, mine)
            waits = wanted == ("train", "good") and self._hold(row, mine, who)
            try:
                put(place, content)
            except DataError as error:
                notes.append("; ".join(filter(None, (error.culprit, error.expected))))
                mine = ""
        return self._heard(row, answer, who, mine, waits=waits, notes=notes)

    def _heard(
        self,
        row: Said,
        answer: str,
        who: str,
        put: str,
        *,
        waits: bool = False,
        notes: list[str],
    ) -> Heard:
        """Keep an answer, where it is not kept so already; return what became of it."""
        (now, *_) = self.kept.find(row.sha256)
        if (now.answer, now.answered_by, now.put) != (answer, who, put):
            self.kept.answer(row.sha256, answer, who, put)
        found = self.kept.find(row.sha256)
        return Heard(self.image_set, row.sha256, found, put, waits, notes)

    def _content(self, row: Said) -> bytes | None:
        """Return a picture that was kept, or that an answer put among the set's images."""
        found = self.kept.picture(row.sha256)
        if found is None and row.put:
            with contextlib.suppress(OSError):
                found = read_regular(self._root() / row.put)
        whole = found is not None and hashlib.sha256(found).hexdigest() == row.sha256
        return found if whole else None

    def _place(
        self, row: Said, answer: str, content: bytes | None, wanted: tuple[Split, str]
    ) -> Place:
        if content is None:
            raise DataError(
                f"the picture {row.sha256[:12]} was not kept",
                remedy=f"headwater feedback {self.image_set} FILE {answer}, with its file, puts it "
                "among the set's images",
            )
        return place_of(self.home, self.image_set, content, *wanted)

    def _take_back(self, found: list[Said], who: str) -> Heard:
        row = found[0]
        if not row.answer:
            raise DataError(
                f"nobody has said anything of {row.sha256[:12]}",
                expected="a picture with an answer",
            )
        stays = self._take_out(row) if row.put else ""
        notes = [stays] if stays else []
        return self._heard(row, "", who, row.put if stays else "", notes=notes)

    def _wanted(self, found: list[Said], answer: str) -> tuple[Split, str] | None:
        """Return as what the picture goes among the set's images; None where it does not."""
        if answer == OK:
            # What the model passed teaches it nothing.
            return ("train", "good") if any(one.flagged for one in found) else None
        if answer == UNSURE:
            return None
        kind = answer.partition(":")[2] or UNNAMED
        # Hashed again, so that the choice says nothing about others made by content.
        drawn = hashlib.sha256(f"feedback {found[0].sha256}".encode()).hexdigest()
        tested = int(drawn[:8], 16) < self.kept.rule.test_share * 2**32
        return ("test" if tested else "val"), kind

    def _hold(self, row: Said, key: str, who: str) -> bool:
        """Have a picture wait for a review, before it is there; whether it does."""
        known = self.home.reviews(self.image_set).get(row.sha256)
        if known is not None and known["said"] != HELD:
            return False
        when = datetime.now(UTC).isoformat(timespec="seconds")
        why = (
            f"{row.model} version {row.version} calls it anomalous in service, {who} says it is ok"
        )
        about: dict[str, Any] = {"said": HELD, "who": _WHO, "when": when, "path": key, "why": why}
        about |= {"score": row.score, "p_value": row.p_value}
        self.home.add_reviews(self.image_set, {row.sha256: about})
        return True

    def _take_out(self, row: Said) -> str:
        """Take out what an answer put among the set's images; return why it stays, if it does."""
        if by := self._learnt(row.sha256):
            return (
                f"{row.put} stays among the set's images: {by}; "
                f"headwater remove {self.image_set} {row.sha256[:12]} takes it out of them"
            )
        file = self._root() / row.put
        # The name is a digest of ours; the folder is the set's.
        if file.stem == row.sha256:
            with contextlib.suppress(FileNotFoundError):
                file.unlink()
        known = self.home.reviews(self.image_set).get(row.sha256, {})
        if known.get("said") == HELD and known.get("who") == _WHO:
            self.home.add_reviews(self.image_set, {row.sha256: {}})
        return ""

    def _learnt(self, sha256: str) -> str:
        """Return who has learnt from a picture, chosen by it or is judged on it; empty for none."""
        test = locked_test(self.home, self.image_set)
        if test is not None and sha256 in test.images:
            return "it is in the locked test"
        registry = Registry(self.home.root, self.home.tracking_url)
        for model in registry.leaderboard(self.image_set):
            for one in registry.artifact_json(model["run_id"], f"tables/{SAMPLES}.json") or ():
                if one.get("sha256") == sha256 and one["role"] in (TRAIN, HELD_OUT, VALIDATION):
                    return f"{model['model']} version {model['version']} has learnt from it"
        return ""

    def _root(self) -> Path:
        return Path(self.home.card(self.image_set).get("images") or "").resolve()

    def _unknown(self, image: str) -> DataError:
        return DataError(
            f"{image[:100]}: the model in service of {self.image_set} was not asked about it, or "
            "what it said is not kept",
            expected="the number of an answer, 8 digits or more of a picture's digest, or its file",
            remedy=f"headwater predict {self.image_set} IMAGE --keep asks it",
        )


def _checked(answer: str) -> str:
    """Return an answer; raise `DataError` where it is none."""
    if answer in (OK, UNSURE, DEFECT):
        return answer
    word, colon, kind = answer.partition(":")
    if word == DEFECT and colon:
        return f"{DEFECT}:{check_kind(kind)}"
    raise DataError(f"answer {answer[:100]!r}", expected="ok, defect, defect:KIND or unsure")
