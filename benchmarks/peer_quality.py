"""How well heads see defects, beside their counterparts in a public library.

    python -m benchmarks.peer_quality --peer-python /path/to/venv/bin/python \
        [--sets glassfiber_layup_512,magnetic_tile] [--backbones resnet18,mobilenetv2_100] \
        [--heads patchcore,fast_flow,padim] [--seeds 0,1,2] [--out results.jsonl]
    python -m benchmarks.peer_quality --table results.jsonl

Both sides learn from the same images at 256 px with the same weights, layers, batch and epochs, and
else each as it does by default: ours as `headwater run` trains (thresholds and pooled scores from
out-of-fold normals, never from the test), theirs as `../shared/tools/anomalib_peer.py` runs it; the
last epoch on both sides. Of a large set a seeded part is taken (`MOST_NORMALS`, `MOST_DEFECTS`,
`MOST_GOOD`). Their maps are judged by masks brought to the map's size, ours at the masks' own
resolution, so that only the image AUROC is compared to the third digit.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import machine, run_apart, tell
from benchmarks.peers import HERE, PAIRINGS, surroundings
from benchmarks.quality import BACKBONES, run
from benchmarks.sweep import mean_and_spread, options, parsed
from benchmarks.verdicts import chosen
from features.images.scan import scan_mvtec

SIZE, BATCH = 256, 8
#: Epochs of the flow heads: where the curves of both sides are flat on the smaller set.
EPOCHS = 20
MOST_NORMALS, MOST_DEFECTS, MOST_GOOD = 150, 96, 96


def part_of(data: Path, image_set: str, out: Path) -> Path:
    """Copy the set's images, of a large one a seeded part, and all masks."""
    source = data / "images" / image_set
    for record in chosen(scan_mvtec(source).records, MOST_NORMALS, MOST_DEFECTS, MOST_GOOD):
        path = Path(record.path)
        copy = out / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    shutil.copytree(source / "ground_truth", out / "ground_truth")
    return out


def ours(data: Path, images: Path, case: dict[str, Any]) -> dict[str, Any]:
    """Return our figures of a head."""
    pairing = PAIRINGS[case["head"]]
    settings = dict(pairing.settings) | ({"batch_size": BATCH} if pairing.epochs > 1 else {})
    training = {"epochs": EPOCHS} if pairing.epochs > 1 else {}
    with tempfile.TemporaryDirectory(prefix="headwater-peer-") as home:
        rows = run(
            data, case["set"], case["backbone"], {case["head"]: settings}, case["seed"], SIZE,
            Path(home), training, images,
        )  # fmt: skip
    return rows[0]


def theirs(data: Path, images: Path, case: dict[str, Any], python: Path) -> dict[str, Any]:
    """Return the counterpart's figures."""
    pairing, weights = PAIRINGS[case["head"]], BACKBONES[case["backbone"]]["file"]
    command = [
        str(python), str(data.parent / "tools" / "anomalib_peer.py"), "--model", pairing.peer,
        "--backbone", case["backbone"], "--weights", str(data / "weights" / weights),
        "--data", str(images), "--size", str(SIZE), "--batch", str(BATCH),
        "--epochs", str(EPOCHS if pairing.epochs > 1 else 1), "--seed", str(case["seed"]),
    ]  # fmt: skip
    return run_apart(command, HERE, **surroundings(pairing.peer))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the Markdown table: mean and deviation over seeds, and by how much ours is above."""
    lines = [
        "| set, backbone | head | seeds | image AUROC, ours | theirs | ours above by | "
        "AUPRO, ours | theirs |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for key in sorted({(r["set"], r["backbone"], r["head"]) for r in rows}):
        found = [r for r in rows if (r["set"], r["backbone"], r["head"]) == key]
        above = statistics.mean(r["image_auroc"] - r["peer_image_auroc"] for r in found)
        figures = [
            mean_and_spread(found, x)
            for x in ("image_auroc", "peer_image_auroc", "aupro", "peer_aupro")
        ]
        lines.append(
            f"| `{key[0]}`, {key[1]} | `{key[2]}` | {len(found)} | {figures[0]} | {figures[1]} | "
            f"{above:+.3f} | {figures[2]} | {figures[3]} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print one JSON line a set, backbone, head and seed."""
    parser = options(
        __doc__ or "", "glassfiber_layup_512,magnetic_tile", "resnet18", "patchcore,fast_flow"
    )
    parser.add_argument("--peer-python", type=Path, required="--table" not in sys.argv)
    a = parsed(parser, table)
    data, about = a.data.resolve(), machine()
    for image_set in a.sets.split(","):
        with tempfile.TemporaryDirectory(prefix="headwater-peer-images-") as folder:
            images = part_of(data, image_set, Path(folder) / image_set)
            for backbone in a.backbones.split(","):
                for head in a.heads.split(","):
                    for seed in map(int, a.seeds.split(",")):
                        case = {
                            "set": image_set, "backbone": backbone, "head": head, "seed": seed
                        }  # fmt: skip
                        own, peer = (
                            ours(data, images, case),
                            theirs(data, images, case, a.peer_python),
                        )
                        if "image_auroc" not in peer:
                            print(json.dumps({**case, "peer": peer})[:2000], file=sys.stderr)
                            continue
                        row = {
                            **case, "epochs": peer["epochs"], "n_train": peer["n_train"],
                            "n_test": peer["n_test"], "image_auroc": own["image_auroc"],
                            "aupro": own["aupro"], "peer_image_auroc": peer["image_auroc"],
                            "peer_aupro": peer["aupro_0.3"], "run_s": own["run_s"],
                            "peer_train_s": peer["train_s"],
                        }  # fmt: skip
                        tell({**row, **about}, a.out)


if __name__ == "__main__":
    main()
