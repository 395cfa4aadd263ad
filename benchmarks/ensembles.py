"""What an ensemble is worth: its members alone, and joined in several ways, on ../shared/data.

    python -m benchmarks.ensembles --data ../shared/data [--cache DIR] [--out results.jsonl] \
        [--sets glassfiber_layup_512,magnetic_tile] [--backbones tf_efficientnet_lite0,resnet18] \
        [--heads patchcore,padim,cs_flow] [--seeds 0,1,2] [--set cs_flow.epochs=10]
    python -m benchmarks.ensembles --table results.jsonl

Each head, preset ``small``, learns from all normal training images; its thresholds and its scale
are set by out-of-fold scores, as a training sets them (5 % promised). Of ``magnetic_tile`` the set
is a seeded part of 120 normals, 96 defects and 96 good test images. A row is a set, backbone, seed
and head; those of ``ensemble`` say their members and how these were joined:

- ``mean``: the product's way, the mean of scores by mean and deviation of the normals';
- ``robust``: the same by median and median absolute deviation;
- ``largest``: the largest of the members' instead of the mean;
- ``soft``: the mean of the inverse hyperbolic sine, which lets no member outvote the others.

The last three are of image scores alone. The table has means over seeds.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import verdicts
from benchmarks.backbones import load
from benchmarks.machine import machine, tell
from benchmarks.scoring import PART
from benchmarks.sweep import mean_and_spread, options, parsed
from features.images.masks import read_mask
from features.images.preprocess import mask_to_input
from features.images.scan import scan_mvtec
from flows.runtime.values import assignments
from heads.catalogue import get_head, make_config
from heads.contract import Head, NullProgress, TrainOptions
from heads.ensemble import Ensemble, EnsembleConfig, join_out_of_fold
from heads.judging.calibration import calibrate_out_of_fold
from heads.judging.metrics import auroc, evaluate
from heads.training.kept import rounded
from heads.training.out_of_fold import FoldByFold, OutOfFold, score_source

OPTIONS = TrainOptions(device="cpu")
FIGURES = {
    "image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO",
    "recall": "recall", "false_positive_rate": "false positives",
}  # fmt: skip
Scores = np.ndarray


def _by(middle: Scores, scale: Scores, apart: Scores) -> Scores:
    return (apart - middle) / np.maximum(scale, 1e-12)


def _mean(normal: Scores, apart: Scores) -> Scores:
    return _by(normal.mean(0), normal.std(0), apart)


def _robust(normal: Scores, apart: Scores) -> Scores:
    middle = np.median(normal, 0)
    return _by(middle, 1.4826 * np.median(np.abs(normal - middle), 0), apart)


#: From scores of normals, and any, ``[N, K]`` both, to the joined ones ``[N]`` of the latter.
WAYS: dict[str, Callable[[Scores, Scores], Scores]] = {
    "mean": lambda normal, apart: _mean(normal, apart).mean(1),
    "robust": lambda normal, apart: _robust(normal, apart).mean(1),
    "largest": lambda normal, apart: _mean(normal, apart).max(1),
    "soft": lambda normal, apart: np.arcsinh(_mean(normal, apart)).mean(1),
}


def learnt(name: str, source: Any, folds: Any, seed: int, own: Mapping[str, Any], side: int) -> Any:
    """Return a head of all normals and its out-of-fold scores."""
    config = make_config(name, {"seed": seed, **own}, "small")

    def build() -> Head:
        return get_head(name)(config, source.shapes, (side, side))

    apart = FoldByFold(build, source, folds).all(OPTIONS, NullProgress())
    head = build()
    head.fit(source, source.subset([]), OPTIONS, NullProgress())
    if apart.parts is not None:
        head.rule.settle(apart.parts)  # type: ignore[attr-defined]
    return head.eval(), rounded(apart)


def joined(heads: Sequence[Head], apart: Sequence[OutOfFold]) -> tuple[Ensemble, OutOfFold]:
    """Return the ensemble of trained heads, and its out-of-fold scores."""
    told = tuple(
        {"head": one.name, "config": vars(one.config), "layers": list(one.shapes)} for one in heads
    )
    shapes = {name: shape for one in heads for name, shape in one.shapes.items()}
    made = Ensemble(EnsembleConfig(members=told), shapes, heads[0].map_size)
    made.adopt(heads)
    return made, join_out_of_fold(made, apart)


def measure(
    images: verdicts.Images, masks: Sequence[Any], names: Sequence[str], seed: int,
    settings: Mapping[str, Mapping[str, Any]], side: int,
) -> Iterable[dict[str, Any]]:  # fmt: skip
    """Yield a row a head, and a row a way of joining two or more of them."""
    train = np.flatnonzero(images.train).tolist()
    tested = np.flatnonzero(~images.train).tolist()
    truth = images.defective[tested]
    heads: list[Head] = []
    normal: list[OutOfFold] = []
    found: list[Scores] = []

    def judged(head: Head, apart: OutOfFold, source: Any, **about: Any) -> dict[str, Any]:
        scores, maps = score_source(head, source)
        limits = calibrate_out_of_fold(apart.scores, None, {}, target_fpr=verdicts.PROMISED)
        figures = evaluate(scores, maps, truth, masks, threshold=limits.threshold)
        told = {k: round(float(figures[k]), 4) for k in FIGURES}
        found.append(scores)
        return {"head": head.name, "seed": seed, **about, **told}

    for name in names:
        source = images.source(name, train)
        folds = verdicts.folds_of(source, name)
        head, apart = learnt(name, source, folds, seed, settings.get(name, {}), side)
        heads.append(head)
        normal.append(apart)
        yield judged(head, apart, images.source(name, tested), members=name, way="alone")
    # All that they read together.
    every = {x for name in names for x in images.layers[name]}
    whole = verdicts.Images(
        images.names, images.train, images.defective, images.maps, {"all": sorted(every)}
    ).source("all", tested)
    alone = list(found)
    for count in range(2, len(names) + 1):
        for chosen in itertools.combinations(range(len(names)), count):
            made, apart = joined([heads[i] for i in chosen], [normal[i] for i in chosen])
            said = "+".join(names[i] for i in chosen)
            yield judged(made, apart, whole, members=said, way="mean")
            own = np.stack([_ordered(normal[i], apart.images) for i in chosen], 1).astype(float)
            test = np.stack([alone[i] for i in chosen], 1).astype(float)
            for way, join in WAYS.items():
                value = round(float(auroc(join(own, test), truth)), 4)
                assert way != "mean" or np.allclose(join(own, test), found[-1], atol=1e-4)
                if way != "mean":
                    yield {
                        "head": "ensemble", "seed": seed, "members": said, "way": way,
                        "image_auroc": value,
                    }  # fmt: skip


def _ordered(apart: OutOfFold, images: Sequence[str]) -> Scores:
    at = {image: i for i, image in enumerate(apart.images)}
    return apart.scores[[at[image] for image in images]]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the Markdown tables: members and ensembles, then ways of joining."""
    cells: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault(
            (row["set"], row["backbone"], row["members"], row["way"]), []
        ).append(row)  # fmt: skip
    lines = [
        "| set, backbone | members | seeds | " + " | ".join(FIGURES.values()) + " |",
        "|---|---|---:|" + "---:|" * len(FIGURES),
    ]
    for (image_set, backbone, members, way), found in cells.items():
        if way in ("alone", "mean"):
            told = " | ".join(mean_and_spread(found, figure) for figure in FIGURES)
            names = ", ".join(f"`{name}`" for name in members.split("+"))
            lines.append(f"| `{image_set}`, {backbone} | {names} | {len(found)} | {told} |")
    lines += ["", *_regrets(cells), ""]
    lines.append("| set, backbone | members | " + " | ".join(f"`{way}`" for way in WAYS) + " |")
    lines.append("|---|---|" + "---:|" * len(WAYS))
    total: dict[str, list[float]] = {way: [] for way in WAYS}
    for image_set, backbone, members, way in cells:
        if way == "mean":
            told = []
            for other in WAYS:
                own = cells[image_set, backbone, members, other]
                value = statistics.mean(row["image_auroc"] for row in own)
                total[other].append(value)
                told.append(f"{value:.3f}")
            names = ", ".join(f"`{name}`" for name in members.split("+"))
            lines.append(f"| `{image_set}`, {backbone} | {names} | {' | '.join(told)} |")
    means = " | ".join(f"{statistics.mean(total[way]):.3f}" for way in WAYS)
    return "\n".join([*lines, f"| mean | | {means} |"])


def _regrets(cells: Mapping[tuple[str, ...], list[dict[str, Any]]]) -> list[str]:
    """Return a table of how far each head and ensemble is below the best one of a set and net."""
    shown = ("image_auroc", "aupro")
    lost: dict[tuple[str, str], list[float]] = {}
    places = dict.fromkeys(key[:2] for key in cells)
    for place, figure in itertools.product(places, shown):
        means = {
            members: statistics.mean(row[figure] for row in found)
            for (*at, members, way), found in cells.items()
            if tuple(at) == place and way in ("alone", "mean")
        }
        for members, mean in means.items():
            lost.setdefault((members, figure), []).append(max(means.values()) - mean)
    lines = ["| members | " + " | ".join(
        f"{FIGURES[f]} below the best of a row, {how}" for f in shown for how in ("worst", "mean")
    ) + " |", "|---|" + "---:|" * 2 * len(shown)]  # fmt: skip
    for members in dict.fromkeys(members for members, _ in lost):
        values = [how(lost[members, figure]) for figure in shown for how in (max, statistics.mean)]
        names = ", ".join(f"`{name}`" for name in members.split("+"))
        lines.append(f"| {names} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    return lines


def masks_of(data: verdicts.Path, image_set: str, backbone: str, side: int) -> list[Any]:
    """Return the masks of the set's test images as the net sees them."""
    spec = load(backbone, data).default_spec(side, precision="float32")
    records = verdicts.chosen(scan_mvtec(data / "images" / image_set).records, **PART)
    return [
        mask_to_input(read_mask(r.mask), spec) if r.mask
        else np.zeros((side, side), bool) if r.is_normal else None
        for r in records if r.split == "test"
    ]  # fmt: skip


def main() -> None:
    """Measure and print one JSON line a set, backbone, seed, head and way of joining."""
    parser = options(
        __doc__,
        "glassfiber_layup_512,magnetic_tile",
        "tf_efficientnet_lite0,resnet18",
        "patchcore,padim,cs_flow",
    )
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--set", action="append", default=[], metavar="HEAD.KEY=VALUE")
    parser.add_argument("--cache", type=verdicts.Path, help="keep features between calls")
    a = parsed(parser, table)
    about, heads, side = machine(), a.heads.split(","), (a.size, a.size)
    settings: dict[str, dict[str, Any]] = {}
    for key, value in assignments(a.set).items():
        head, _, name = key.partition(".")
        settings.setdefault(head, {})[name] = value
    for seed in map(int, a.seeds.split(",")):
        for image_set in a.sets.split(","):
            for backbone in a.backbones.split(","):
                data = a.data.resolve()
                images = verdicts.load_images(
                    data, image_set, backbone, heads, a.cache, side, PART
                )  # fmt: skip
                masks = masks_of(data, image_set, backbone, a.size)
                for row in measure(images, masks, heads, seed, settings, a.size):
                    told = {"set": image_set, "backbone": backbone, **row, "settings": settings}
                    tell({**told, **about}, a.out)


if __name__ == "__main__":
    main()
