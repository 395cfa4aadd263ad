"""A year of a set that retrains by itself: weekly batches, hidden defects, drift, a bad batch.

    python -m benchmarks.year --data ../shared/data [--head subspace] [--weeks 52] [--out FILE]
        [--picture FILE.png] [--seed 0]

The images are those of magnetic_tile. It begins with 60 normals and a locked test of 60 normals and
12 of each kind of defect. Each week 12 images come as normal: some of them are defects that
somebody overlooked. From week 18 to 34 the light slowly changes, by 12 % in all, and stays so; the
camera of week 26 is out of focus. In week 40 a kind of defect is not made any more: it leaves the
test, which is locked anew. What the guard holds somebody settles every fourth week, without a
mistake. The champion is judged by image AUROC on 60 normals and on defects of all kinds that nobody
has ever seen, in the light of week 0 and in that of the week.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter
from sklearn.metrics import roc_auc_score

import headwater
from benchmarks.machine import machine, tell
from features.images.pixels import read_image
from flows.retraining.locked import lock
from flows.use.models.lineage import lineage

#: Images at the beginning, of a week, and of the tests.
_BEGIN, _WEEK, _LOCKED, _OWN = 60, 12, 60, 60
_OF_A_KIND = 12
#: Weeks: of the drift, of the bad batch, when a kind is not made any more; how often one looks.
_DRIFT, _BAD, _GONE, _LOOKS = (18, 34), 26, 40, 4
#: How much brighter it is after the drift.
_BRIGHTER = 0.12


@dataclass
class World:
    """What the cameras see: all of it is drawn by a seed before the year begins."""

    normals: list[Path]
    defects: dict[str, list[Path]]
    rng: np.random.Generator

    @classmethod
    def of(cls, folder: Path, seed: int) -> World:
        """Return the images of a set in MVTec layout, in the order that a seed gives them."""
        rng = np.random.default_rng(seed)
        normals = sorted((folder / "train/good").iterdir()) + sorted(
            (folder / "test/good").iterdir()
        )
        kinds = sorted(p.name for p in (folder / "test").iterdir() if p.name != "good")
        shuffled = {k: sorted((folder / "test" / k).iterdir()) for k in kinds}
        for files in (normals, *shuffled.values()):
            rng.shuffle(files)  # type: ignore[arg-type]
        return cls(normals, shuffled, rng)

    def take(self, count: int, kind: str = "good") -> list[Path]:
        """Return so many images that nobody has seen."""
        pool = self.normals if kind == "good" else self.defects[kind]
        return [pool.pop() for _ in range(min(count, len(pool)))]


def light(week: int) -> float:
    """Return how bright it is in a week, against the first."""
    begin, end = _DRIFT
    return 1 + _BRIGHTER * min(max((week - begin) / (end - begin), 0), 1)


def seen(file: Path, week: int) -> Image.Image:
    """Return an image as the camera sees it in a week."""
    picture = Image.open(file).convert("L")
    if week == _BAD:
        picture = picture.filter(ImageFilter.GaussianBlur(2.5))
    return picture.point(lambda value: min(255, round(value * light(week))))


def put(files: list[Path], folder: Path, week: int) -> list[Path]:
    """Write images into a folder of the set, as the camera sees them in a week."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for file in files:
        target = folder / f"w{week:02}-{file.parent.name}-{file.stem}.png"
        seen(file, week).save(target)
        made.append(target)
    return made


def auroc(detector: Any, good: list[Path], bad: list[Path], week: int) -> float:
    """Return the image AUROC of a model on images in the light of a week."""
    with tempfile.TemporaryDirectory() as folder:
        files = put(good + bad, Path(folder), week)
        scores = [detector.predict(read_image(file)).score for file in files]
    return float(roc_auc_score([0] * len(good) + [1] * len(bad), scores))


def year(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Live the year; return a row a week."""
    world = World.of(args.data / "images/magnetic_tile", args.seed)
    images, kinds = folder / "images", list(world.defects)
    gone = kinds[args.seed % len(kinds)]
    put(world.take(_BEGIN), images / "train/good", 0)
    put(world.take(_LOCKED), images / "test/good", 0)
    own_good = world.take(_OWN)
    own_bad = [p for kind in kinds for p in world.take(_OF_A_KIND, kind)]
    for kind in kinds:
        put(world.take(_OF_A_KIND, kind), images / "test" / kind, 0)
    home = headwater.open(folder / "home", quiet=True)
    service = home.service("tiles")
    bad: set[str] = set()  # names of what is no normal, whatever folder it came in
    rows: list[dict[str, Any]] = []
    version, fresh, same = None, 0.0, 0.0
    for week in range(args.weeks + 1):
        hidden: list[Path] = []
        if week:
            put(world.take(_WEEK), images / "train/good", week)
            living = [k for k in kinds if not (k == gone and week >= _GONE)]
            count = int(world.rng.choice([0, 1, 2], p=[0.5, 0.3, 0.2]))
            for kind in world.rng.choice(living, count):
                hidden += put(world.take(1, str(kind)), images / "train/good", week)
            bad |= {file.name for file in hidden}
        if week == _GONE:
            shutil.rmtree(images / "test" / gone)
            home.extract("tiles", images)
            lock(home.home, "tiles")
        began, cpu = time.perf_counter(), cpu_seconds()
        told = {"images": images, "heads": args.head, "size": args.size} if not week else {}
        done = service.retrain(**told)
        took, cost = time.perf_counter() - began, cpu_seconds() - cpu
        champion = service.champion
        assert champion is not None
        detector = home.detector("tiles")
        if champion["service_version"] != version:
            version = champion["service_version"]
            fresh = auroc(detector, own_good, own_bad, 0)
        same = auroc(detector, own_good, own_bad, 0 if week == _BAD else week)
        held = {Path(one["path"]).name for one in done.guarded.held}
        row = {
            "week": week,
            "what": done.what,
            "champion": version,
            "auroc_first_light": round(fresh, 4),
            "auroc_this_light": round(same, 4),
            "new": done.guarded.new,
            "hidden": len(hidden),
            "hidden_held": len({f.name for f in hidden} & held),
            "held": len(held),
            "batch": done.guarded.batch,
            "waiting": len(done.guarded.waiting),
            "store_mb": round(size_of(folder / "home/store") / 1e6, 1),
            "seconds": round(took, 1),
            "cpu_seconds": round(cost, 1),
        }
        tell(row, args.out)
        rows.append(row)
        if week % _LOOKS == 0 and done.guarded.waiting:
            names = [Path(path).name for path in done.guarded.waiting]
            home.review(
                "tiles",
                accept=[n for n in names if n not in bad and f"w{_BAD:02}-" not in n],
                reject=[n for n in names if n in bad or f"w{_BAD:02}-" in n],
                by="inspector",
            )
    learnt = {Path(r["path"]).name for r in learnt_from(home, champion)}
    home.store("tiles").gc("0", grace="0", purge_removed=True, delete=True)
    end = {
        "end": True,
        "machine": machine(),
        "head": args.head,
        "hidden": len(bad),
        "hidden_learnt": len(bad & learnt),
        "bad_batch_learnt": sum(name.startswith(f"w{_BAD:02}-") for name in learnt),
        "promotions": sum(r["what"] == "promoted" for r in rows),
        "kept": sum(r["what"] == "kept" for r in rows),
        "weeks_with_holds": sum(r["held"] > 0 for r in rows),
        "store_mb_after_gc": round(size_of(folder / "home/store") / 1e6, 1),
    }
    tell(end, args.out)
    return [*rows, end]


def learnt_from(home: Any, champion: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the images that a model has learnt from."""
    found = lineage(home.home, f"{champion['model']}/{champion['version']}")
    return [row for row in found["samples"] if row["role"] in ("train", "held out")]


def cpu_seconds() -> float:
    """Return the processor time of this process and of those that it started and that ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def size_of(folder: Path) -> int:
    """Return the bytes below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """Draw a year: the champion's AUROC, what was held, what was promoted."""
    from flows.pictures.style import plt  # late: matplotlib takes a second

    weeks = [row for row in rows if "week" in row]
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(9, 5.2), sharex=True, height_ratios=[3, 2], constrained_layout=True
    )
    at = [row["week"] for row in weeks]
    above.plot(at, [r["auroc_first_light"] for r in weeks], label="in the light of week 0")
    above.plot(at, [r["auroc_this_light"] for r in weeks], label="in the light of the week")
    promoted = [r for r in weeks if r["what"] == "promoted"]
    above.plot(
        [r["week"] for r in promoted], [r["auroc_this_light"] for r in promoted], "o", ms=4,
        color="black", label="promoted",
    )  # fmt: skip
    above.axvspan(*_DRIFT, alpha=0.12, color="orange", label=f"light +{_BRIGHTER:.0%}")
    above.axvline(_BAD, ls=":", color="crimson", label="out of focus")
    above.axvline(_GONE, ls=":", color="gray", label="a kind leaves the test")
    above.set_ylabel("champion's image AUROC")
    above.legend(fontsize=8, ncols=2)
    below.bar(at, [r["held"] for r in weeks], color="silver", label="held by the guard")
    below.bar(at, [r["hidden"] for r in weeks], width=0.4, color="crimson", label="hidden defects")
    below.bar(
        at, [r["hidden_held"] for r in weeks], width=0.4, color="seagreen", label="of them held"
    )
    below.set(xlabel="week", ylabel="images")
    below.legend(fontsize=8)
    figure.savefig(file, dpi=110)


def main() -> None:
    """Live a year as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--head", default="subspace")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--weeks", type=int, default=52)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="year-") as folder:
        rows = year(args, Path(folder))
    if args.picture:
        draw(rows, args.picture)


if __name__ == "__main__":
    main()
