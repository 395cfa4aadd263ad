"""Whether made defects rank rules and heads as real ones do.

    python -m benchmarks.made --data ../shared/data [--cache DIR] [--out results.jsonl] \
        [--sets glassfiber_layup_512,magnetic_tile] [--backbones tf_efficientnet_lite0] \
        [--heads patchcore,padim,fast_flow,cs_flow] [--seeds 0,1,2] [--made 60]
    python -m benchmarks.made --table results.jsonl

As `benchmarks.scoring`: a head learns from the normals without one fold, which scales the pooled
rule. Defects are made in the pictures of that fold, by the seed. A row is a set, backbone, head,
seed and rule, with the image AUROC of real test images, and that of made defects against the fold.

The table has Spearman's rank correlation of the two: over the rules of a head, and over the heads
of a set by its default rule; means over seeds first.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterable, Sequence
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
from heads.judging.metrics import auroc
from heads.judging.rules import RULES, RuledHead
from heads.training.out_of_fold import score_source
from heads.training.sources import TensorSource
from headwater.spec import LayerSpec


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


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the Markdown tables: by rule a head, and over heads."""
    cells: dict[tuple[str, str, str], dict[str, tuple[float, float]]] = {}
    for row in rows:
        key = (row["set"], row["backbone"], row["head"])
        same = [r for r in rows if (r["set"], r["backbone"], r["head"]) == key]
        same = [r for r in same if r["rule"] == row["rule"]]
        means = (statistics.mean(r[f"{what}_auroc"] for r in same) for what in ("real", "made"))
        cells.setdefault(key, {})[row["rule"]] = tuple(means)  # type: ignore[assignment]
    lines = [
        "| set | head | " + " | ".join(f"`{r}`" for r in RULES) + " | Spearman, rules |",
        "|---|---|" + "---:|" * (len(RULES) + 1),
    ]
    over: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for (image_set, net, head), found in sorted(cells.items()):
        told = " | ".join(f"{found[r][0]:.3f} / {found[r][1]:.3f}" for r in RULES)
        lines.append(f"| `{image_set}` | `{head}` | {told} | {_spearman([*found.values()])} |")
        over.setdefault((image_set, net), []).append(found["pooled"])
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
