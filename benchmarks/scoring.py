"""How a latent map best becomes an image score: every rule of `score:` on the same maps.

    python -m benchmarks.scoring --data ../shared/data [--cache DIR] [--out results.jsonl] \
        [--sets glassfiber_layup_512,magnetic_tile] [--backbones tf_efficientnet_lite0] \
        [--heads patchcore,padim,fast_flow,cs_flow,ms_flow,gca_flow] [--seeds 0,1,2]
    python -m benchmarks.scoring --table results.jsonl

A head, preset ``small``, learns from the normal training images without one fold (of five blocks of
neighbours, the one with the seed's number), which stands for the out-of-fold normals: its scores
scale the pooled rule. Then every rule scores the test images from the same maps. Flow heads learn
from ``--most`` of the others, drawn by the seed; of ``magnetic_tile`` the set is a seeded part of
120 normals, 96 defects and 96 good test images. A row is a set, backbone, head, seed and rule.

The table has the image AUROC by rule, mean over seeds, and each rule's regret: how far it is
from the best rule of the same row, at worst and on average.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks import verdicts
from benchmarks.machine import machine, tell
from benchmarks.sweep import options, parsed
from heads.catalogue import get_head, make_config
from heads.contract import Head, NullProgress, TrainOptions
from heads.judging.metrics import auroc
from heads.judging.rules import RULES, Rule, RuledHead, rule_of
from heads.training.out_of_fold import score_source
from heads.training.sources import TensorSource

OPTIONS = TrainOptions(device="cpu")
#: Of each part of a large set.
PART = {"normals": 120, "defects": 96, "good": 96}
Maps = list[torch.Tensor]


def split(source: TensorSource, seed: int, most: int) -> tuple[list[int], list[int]]:
    """Return the rows to learn from and those of the fold that is held out."""
    fold_of = verdicts.folds_of(source, "fast_flow").of
    held = [i for i, name in enumerate(source.ids) if fold_of[name] == seed % 5]
    rest = [i for i in range(len(source)) if i not in set(held)]
    return (sorted(random.Random(seed).sample(rest, most)) if 0 < most < len(rest) else rest), held


def maps_of(head: Head, source: TensorSource) -> Maps:
    """Return the maps that the head hands to its rule, ``[N, h_i, w_i]`` a scale."""
    kept: list[Maps] = []
    hook = rule_of(head).register_forward_hook(lambda module, given, out: kept.append(given[0]))
    score_source(head, source)
    hook.remove()
    return [torch.cat(scale) for scale in zip(*kept, strict=True)]


def by_rules(test: Maps, held: Maps, published: np.ndarray, share: float) -> dict[str, np.ndarray]:
    """Return each rule's scores of the test images."""
    found = {"paper": published}
    for name in RULES[1:]:
        rule = Rule(name, share)
        if rule.pooled:
            parts = rule(held)[1]
            assert parts is not None
            rule.settle(parts.numpy())
        found[name] = rule(test)[0].numpy()
    return found


def measure(
    images: verdicts.Images, name: str, seed: int, most: int, side: int
) -> Iterable[dict[str, Any]]:
    """Yield a row a rule."""
    normals = images.source(name, np.flatnonzero(images.train).tolist())
    test = images.source(name, np.flatnonzero(~images.train).tolist())
    truth = images.defective[~images.train]
    left, held = split(normals, seed, most if "flow" in name else 0)
    heads: list[RuledHead] = []
    for score in ("paper", "max"):
        config = make_config(name, {"seed": seed, "score": score}, "small")
        heads.append(get_head(name)(config, normals.shapes, (side, side)))  # type: ignore[arg-type]
    learnt, other = heads
    learnt.fit(normals.subset(left), normals.subset([]), OPTIONS, NullProgress())
    other.load_state_dict(learnt.state_dict())
    learnt.eval(), other.eval()
    published, _ = score_source(learnt, test)
    share = other.config.top_share
    maps = maps_of(other, test), maps_of(other, normals.subset(held))
    for rule, scores in by_rules(*maps, published, share).items():
        yield {
            "head": name, "seed": seed, "rule": rule, "learnt": len(left), "held": len(held),
            "test": len(truth), "image_auroc": auroc(scores, truth),
            "tied": len(scores) - len(np.unique(scores)),
        }  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the Markdown table: means over seeds, then regrets."""
    cells: dict[tuple[str, ...], dict[str, list[float]]] = {}
    seeds: dict[tuple[str, ...], set[int]] = {}
    for row in rows:
        key = (row["set"], row["backbone"], row["head"])
        cells.setdefault(key, {}).setdefault(row["rule"], []).append(row["image_auroc"])
        seeds.setdefault(key, set()).add(row["seed"])
    rules = [r for r in RULES if any(r in found for found in cells.values())]
    lines = [
        "| set | backbone | head | seeds | " + " | ".join(f"`{r}`" for r in rules) + " |",
        "|---|---|---|---:|" + "---:|" * len(rules),
    ]
    lost: dict[str, list[float]] = {r: [] for r in rules}
    for key, found in sorted(cells.items()):
        means = {r: statistics.mean(found[r]) for r in rules}
        best = max(means.values())
        for r in rules:
            lost[r].append(best - means[r])
        told = " | ".join(f"**{m:.3f}**" if m == best else f"{m:.3f}" for m in means.values())
        lines.append(f"| `{key[0]}` | {key[1]} | `{key[2]}` | {len(seeds[key])} | {told} |")
    for what, how in (("at worst", max), ("on average", statistics.mean)):
        told = " | ".join(f"{how(lost[r]):.3f}" for r in rules)
        lines.append(f"| below the best rule, {what} | | | | {told} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print one JSON line a set, backbone, head, seed and rule."""
    parser = options(
        __doc__,
        "glassfiber_layup_512,magnetic_tile",
        "tf_efficientnet_lite0",
        "patchcore,padim,fast_flow,cs_flow,ms_flow,gca_flow",
    )
    parser.add_argument("--most", type=int, default=64, help="normals a flow head learns from")
    parser.add_argument("--cache", type=verdicts.Path, help="keep features between calls")
    a = parsed(parser, table)
    about, heads = machine(), a.heads.split(",")
    for seed in map(int, a.seeds.split(",")):
        for backbone in a.backbones.split(","):
            side = 224 if backbone.startswith("vit") else 256
            for image_set in a.sets.split(","):
                images = verdicts.load_images(
                    a.data.resolve(), image_set, backbone, heads, a.cache, (side, side), PART
                )
                for head in heads:
                    for row in measure(images, head, seed, a.most, side):
                        row["image_auroc"] = round(row["image_auroc"], 4)
                        tell({"set": image_set, "backbone": backbone, **row, **about}, a.out)


if __name__ == "__main__":
    main()
