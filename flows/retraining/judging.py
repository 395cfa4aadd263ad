"""Champion and challengers on the locked test: from what their runs kept, else asked anew."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.retraining.gate import (
    Answer,
    Answers,
    Check,
    Judgement,
    checks_of,
    first_check,
    limit_check,
    made_check,
)
from flows.retraining.locked import LockedTest
from flows.runtime.home import Home
from flows.runtime.sections import RetrainSettings
from flows.use.models.made import made_recall
from flows.use.predict import ask, regions_beside
from headwater.errors import DataError, ModelError
from storage.registry.registry import Registry
from storage.serving.detector import Detector
from storage.store.feature_store import FeatureStore

#: Made defects that stand in for known ones.
MADE = 50
#: Images that time and memory are measured on.
_TIMED = 20
#: What measures a model in a process of its own: its memory is then its own, too.
_MEASURE = """
import json, resource, statistics, sys, time
from pathlib import Path
from features.images.pixels import read_image
from storage.registry.registry import Registry
from storage.serving.detector import Detector
home, tracking, uri, *files = json.loads(sys.stdin.read())
detector = Detector.load(uri, Registry(home, tracking))
pixels = [read_image(Path(f)) for f in files]
took = []
for one in [pixels[0], pixels[0], *pixels]:
    began = time.perf_counter()
    detector.predict([one])
    took.append(time.perf_counter() - began)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
peak /= 1e6 if sys.platform == "darwin" else 1e3
print(json.dumps([1e3 * statistics.median(took[2:]), peak]))
"""


class Bench:
    """Judges the models of a set on its locked test.

    Parameters
    ----------
    home, image_set
        Whose.
    locked
        The images.
    margins
        Of the gate.
    """

    def __init__(
        self, home: Home, image_set: str, locked: LockedTest, margins: RetrainSettings
    ) -> None:
        self.home, self.image_set, self.locked, self.margins = home, image_set, locked, margins
        self.registry = Registry(home.root, home.tracking_url)
        self.root = Path(home.card(image_set).get("root", ""))
        self._paths: dict[str, str] | None = None

    def judge(self, champion: Mapping[str, Any] | None, row: Mapping[str, Any]) -> Judgement:
        """Return what the gate says of a challenger.

        Parameters
        ----------
        champion
            Row of the model in service, None where nothing is.
        row
            Of the challenger, from `Registry.get_model`.

        Raises
        ------
        DataError
            Where images of the locked test are gone that have to be asked anew.
        """
        about = (row["model"], str(row["version"]), row["head"])
        checks = list(self._limits(row))
        if champion is None:
            return Judgement(*about, "", [first_check(self.answers(row)), *checks])
        old, new = self.answers(champion), self.answers(row)
        made = checks_of(old, new, self.margins)
        if not any(a.kind != "good" for a in old.values()):
            made.append(self._made(champion, row))
        return Judgement(
            *about, f"{champion['model']} version {champion['version']}", made + checks
        )

    def answers(self, row: Mapping[str, Any]) -> Answers:
        """Return what a model says of the locked test.

        Its training kept what it said of the test images of its time; others it is asked.
        """
        kept = self.registry.sample_table(row["run_id"]) or []
        found = {
            r["sha256"]: Answer(
                self.locked.images[r["sha256"]], r["score"], r["verdict"] != "normal"
            )
            for r in kept
            if r.get("sha256") in self.locked.images
        }
        lacking = [sha for sha in self.locked.images if sha not in found]
        if lacking:
            detector = Detector.load(row["uri"], self.registry)
            for sha in lacking:
                got = ask(detector, self._file(sha))
                kind = self.locked.images[sha]
                found[sha] = Answer(kind, got.score, got.score > got.threshold)
        return found

    def _made(self, champion: Mapping[str, Any], row: Mapping[str, Any]) -> Check:
        """Return the check of made defects, in normals of the locked test."""
        files = [self._file(sha) for sha, kind in self.locked.images.items() if kind == "good"]
        if not files:
            return Check("recall of made defects", None, "the locked test has no normals")
        loaded = [Detector.load(one["uri"], self.registry) for one in (champion, row)]
        before, after = (
            made_recall(one, files, MADE, rois=regions_beside(one, files)).recall for one in loaded
        )
        return made_check(before, after, MADE, self.margins.recall_margin)

    def _limits(self, row: Mapping[str, Any]) -> list[Check]:
        """Return the checks of time and memory, where there are limits."""
        limits = {"ms": self.margins.max_ms, "MB": self.margins.max_mb}
        if not any(limits.values()):
            return []
        files = [str(self._file(sha)) for sha in list(self.locked.images)[:_TIMED]]
        asked = [str(self.home.root), self.home.tracking_url, row["uri"], *files]
        done = subprocess.run(
            [sys.executable, "-c", _MEASURE],
            input=json.dumps(asked), capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            said = done.stderr.strip().splitlines()[-1:] or ["nothing"]
            raise ModelError(
                f"{row['model']} version {row['version']} cannot be timed: {said[0]}",
                expected="a model that answers in a process of its own",
            )
        took = dict(zip(limits, json.loads(done.stdout.splitlines()[-1]), strict=True))
        named = {"ms": "time an image", "MB": "memory"}
        return [limit_check(named[u], took[u], most, u) for u, most in limits.items() if most]

    def _file(self, sha: str) -> Path:
        """Return the file of an image of the locked test."""
        if self._paths is None:
            store = FeatureStore.open(self.home.store, self.image_set, create=False)
            self._paths = {row.sha256: row.path for row in store.table().images()}
        path = self.root / self._paths.get(sha, "")
        if sha not in self._paths or not path.is_file():
            raise DataError(
                f"{self.image_set}: {path if sha in self._paths else sha[:12]} of the locked test "
                "is gone",
                expected="the images that champion and challengers are judged on",
                remedy=f"put it back, or headwater lock {self.image_set} takes the test images "
                "that are there",
            )
        return path


def choose(
    judged: Sequence[Judgement], champion_head: str, known: Mapping[str, float]
) -> Judgement | None:
    """Return which of the challengers that passed goes in service; None where none did.

    The test has no say in it: the one that known defects rank best where they tell, else the
    champion's own head, else the first that was asked for.

    Parameters
    ----------
    known
        By ``MODEL/VERSION`` its image AUROC over known defects, of those that have one.
    """
    passed = [j for j in judged if j.passed]
    if not passed:
        return None

    def rank(one: Judgement) -> tuple[float, bool, int]:
        told = known.get(f"{one.model}/{one.version}", 0.0) if len(known) == len(judged) else 0.0
        return -told, one.head != champion_head, judged.index(one)

    return min(passed, key=rank)
