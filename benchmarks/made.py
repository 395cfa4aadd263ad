"""Whether made defects rank rules and heads as real ones do.

    python -m benchmarks.made --data ../shared/data [--cache DIR] [--out results.jsonl] \
        [--sets glassfiber_layup_512,magnetic_tile] [--backbones tf_efficientnet_lite0] \
        [--heads patchcore,padim,fast_flow,cs_flow] [--seeds 0,1,2] [--made 60]
    python -m benchmarks.made --table results.jsonl

As `benchmarks.scoring`: a head learns from the normals without one fold, which scales the pooled
rule. Defects are made in the pictures of that fold, by the seed. A row is a set, backbone, head,
seed and rule, with the image AUROC of real test images, and that of made defects against the fold.

A row more tells what a few real defects would choose (`score: validation`): 100 times five of the
test's are drawn, choose a rule against the fold, and the rest is ranked by it.

The tables have Spearman's rank correlation of real and made: over the rules of a head, and over the
heads of a set by its default rule, means over seeds first; and what is lost to the best rule by
`pooled`, by the one that made defects would choose, and by the one that known defects choose.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks import scoring, verdicts
from benchmarks.machine import machine, tell
from benchmarks.sweep import options, parsed
from features.backbones.backbone import Backbone
from features.extract import Job, extract
from features.images.made.defects import made_defects
from features.images.pixels import sha256_of, write_image
from heads.catalogue import get_head, make_config
from heads.contract import NullProgress
from heads.judging.known import best_rule
from heads.judging.metrics import auroc
from heads.judging.rules import RULES, RuledHead
from heads.training.out_of_fold import score_source
from heads.training.sources import TensorSource
from headwater.spec import LayerSpec

#: Real defects that choose a rule, and how often they are drawn.
KNOWN, DRAWS = 5, 100


def features_of_made(
    normals: Sequence[Path], count: int, seed: int, net: Backbone, layers: Sequence[str], side: int
) -> dict[str, torch.Tensor]:
    """Return the maps of as many made defects, by layer."""
    spec = net.default_spec(side, precision="float32")
    wanted = tuple(LayerSpec.parse(name) for name in layers)
    with tempfile.TemporaryDirectory() as folder:
        files = [
            write_image(made.image, Path(folder) / f"{i:04}.png")
            for i, made in enumerate(made_defects(normals, count, seed))
        ]
        jobs = [Job(sha256_of(file), file) for file in files]
        blocks = list(extract(jobs, net, spec, wanted))
    return {x: torch.cat([torch.from_numpy(b.maps[x]) for b in blocks]) for x in layers}


def measure(
    images: verdicts.Images, name: str, seed: int, most: int, side: int, net: Backbone, count: int
) -> Iterable[dict[str, Any]]:
    """Yield a row a rule."""
    normals = images.source(name, np.flatnonzero(images.train).tolist())
    test = images.source(name, np.flatnonzero(~images.train).tolist())
    truth = images.defective[~images.train]
    left, held = scoring.split(normals, seed, most if "flow" in name else 0)
    apart = normals.subset(held)
    files = [Path(path) for path in apart.ids]
    maps = features_of_made(files, count, seed, net, images.layers[name], side)
    made = TensorSource(maps, [f"made {i}" for i in range(count)])
    heads: list[RuledHead] = []
    for score in ("paper", "max"):
        config = make_config(name, {"seed": seed, "score": score}, "small")
        heads.append(get_head(name)(config, normals.shapes, (side, side)))  # type: ignore[arg-type]
    learnt, other = heads
    learnt.fit(normals.subset(left), normals.subset([]), scoring.OPTIONS, NullProgress())
    other.load_state_dict(learnt.state_dict())
    learnt.eval(), other.eval()
    of_fold = scoring.maps_of(other, apart)
    found = {}
    for what, source in (("real", test), ("made", made), ("fold", apart)):
        published, _ = score_source(learnt, source)
        own = scoring.maps_of(other, source), of_fold
        found[what] = scoring.by_rules(*own, published, other.config.top_share)
    drawn = np.arange(len(held) + count) >= len(held)
    for rule in RULES:
        both = np.concatenate([found["fold"][rule], found["made"][rule]])
        yield {
            "head": name, "seed": seed, "rule": rule, "made": count, "held": len(held),
            "real_auroc": round(auroc(found["real"][rule], truth), 4),
            "made_auroc": round(auroc(both, drawn), 4),
        }  # fmt: skip
    yield {"head": name, "seed": seed, "known": KNOWN, **by_known(found, truth, seed)}


def by_known(
    found: Mapping[str, Mapping[str, np.ndarray]], truth: np.ndarray, seed: int
) -> dict[str, Any]:
    """Return the mean image AUROC on the rest by the rule that known defects choose, and others."""
    rng, defects = np.random.default_rng(seed), np.flatnonzero(truth)
    rules = ["pooled", *(rule for rule in RULES if rule not in ("paper", "pooled"))]
    told: dict[str, list[float]] = {"chosen": [], "pooled": [], "best": []}
    for _ in range(DRAWS):
        known = rng.choice(defects, KNOWN, replace=False)
        rest = np.setdiff1d(np.arange(len(truth)), known)
        normals, own = found["fold"], {rule: found["real"][rule][known] for rule in rules}
        name, _ = best_rule({rule: normals[rule] for rule in rules}, own)
        areas = {rule: auroc(found["real"][rule][rest], truth[rest]) for rule in rules}
        told["chosen"].append(areas[name])
        told["pooled"].append(areas["pooled"])
        told["best"].append(max(areas.values()))
    return {f"{what}_auroc": round(statistics.mean(own), 4) for what, own in told.items()}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the Markdown tables: real / made by rule, and over heads."""
    keys = sorted({(row["set"], row["backbone"], row["head"]) for row in rows})
    lines = [
        "| set | head | seeds | "
        + " | ".join(f"`{r}`" for r in RULES)
        + " | Spearman, rules | lost: `pooled` | by made | by known |",
        "|---|---|---:|" + "---:|" * (len(RULES) + 4),
    ]
    over: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for key in keys:
        own = [row for row in rows if (row["set"], row["backbone"], row["head"]) == key]
        found = {
            rule: tuple(
                statistics.mean(row[f"{what}_auroc"] for row in own if row.get("rule") == rule)
                for what in ("real", "made")
            )
            for rule in RULES
        }
        best = max(real for real, _ in found.values())
        made = max(made for _, made in found.values())
        # Of rules that made defects rank alike the mean.
        by_made = statistics.mean(r for r, m in found.values() if m == made)
        known = [row["best_auroc"] - row["chosen_auroc"] for row in own if "known" in row]
        told = " | ".join(f"{real:.3f} / {drawn:.3f}" for real, drawn in found.values())
        lost = f"{best - found['pooled'][0]:.3f} | {best - by_made:.3f} | "
        lost += f"{statistics.mean(known):.3f}" if known else "–"
        seeds = len({row["seed"] for row in own})
        ranks = _spearman([*found.values()])
        lines.append(f"| `{key[0]}` | `{key[2]}` | {seeds} | {told} | {ranks} | {lost} |")
        over.setdefault(key[:2], []).append(found["pooled"])
    lines += ["", "| set | backbone | heads | Spearman, heads by `pooled` |", "|---|---|---:|---:|"]
    for (image_set, net), pairs in sorted(over.items()):
        lines.append(f"| `{image_set}` | {net} | {len(pairs)} | {_spearman(pairs)} |")
    return "\n".join(lines)


def _spearman(pairs: Sequence[tuple[float, float]]) -> str:
    real, made = zip(*pairs, strict=True)
    if len(set(real)) < 2 or len(set(made)) < 2:
        return "–"
    return f"{spearmanr(real, made).statistic:+.2f}"


def main() -> None:
    """Measure and print one JSON line a set, backbone, head, seed and rule."""
    parser = options(
        __doc__,
        "glassfiber_layup_512,magnetic_tile",
        "tf_efficientnet_lite0",
        "patchcore,padim,fast_flow,cs_flow",
    )
    parser.add_argument("--most", type=int, default=64, help="normals a flow head learns from")
    parser.add_argument("--made", type=int, default=60, help="made defects a fold")
    parser.add_argument("--cache", type=Path, help="keep features between calls")
    a = parsed(parser, table)
    about, heads = machine(), a.heads.split(",")
    for backbone in a.backbones.split(","):
        side, net = 224 if backbone.startswith("vit") else 256, verdicts.load(backbone, a.data)
        for seed in map(int, a.seeds.split(",")):
            for image_set in a.sets.split(","):
                images = verdicts.load_images(
                    a.data.resolve(), image_set, backbone, heads, a.cache, (side, side),
                    scoring.PART,
                )  # fmt: skip
                for head in heads:
                    for row in measure(images, head, seed, a.most, side, net, a.made):
                        tell({"set": image_set, "backbone": backbone, **row, **about}, a.out)


if __name__ == "__main__":
    main()
