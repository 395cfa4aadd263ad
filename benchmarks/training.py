"""Training from the store against the same training with the backbone run in every epoch.

    python -m benchmarks.training --images DIR --weights FILE [--head cs_flow] [--epochs 10]

Both trainings use the same head, seed, batch order, threads and the same images; the second reads,
decodes, preprocesses and runs the backbone for every batch of every epoch, as tools without a
feature store do. The time of the extraction is counted with the store's side.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.machine import machine
from features.backbones.backbone import Backbone, load_backbone
from features.extract import Job, extract
from features.images.pixels import read_image
from features.images.preprocess import preprocess
from features.images.scan import scan_mvtec
from heads.catalogue import get_head, make_config
from heads.contract import Batch, NullProgress, TrainOptions
from headwater.spec import ExtractorSpec, LayerSpec
from storage.store.feature_store import FeatureStore
from storage.store.table import ImageRow, Selection


class LiveSource:
    """A `FeatureSource` that runs the backbone for every batch."""

    def __init__(
        self, paths: list[Path], ids: list[str], backbone: Backbone, spec: ExtractorSpec,
        layers: tuple[LayerSpec, ...],
    ) -> None:  # fmt: skip
        self.paths, self.ids, self.backbone = paths, ids, backbone
        self.spec, self.layers = spec, layers
        self.views = [0] * len(paths)
        self.shapes = backbone.shapes(layers, spec.input_size)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    def _rows(self, rows: list[int]) -> Batch:
        images = torch.stack([preprocess(read_image(self.paths[i]), self.spec) for i in rows])
        with torch.no_grad():
            return dict(self.backbone.maps(images, self.layers, self.spec.precision))

    def read(self, start: int, stop: int) -> Batch:
        """Return the features of images ``start:stop``."""
        return self._rows(list(range(start, stop)))

    def batches(
        self, size: int, *, seed: int | None = None, drop_last: bool = False
    ) -> Iterator[Batch]:
        """Yield batches, the backbone run for each."""
        order = list(range(len(self)))
        if seed is not None:
            order = torch.randperm(
                len(self), generator=torch.Generator().manual_seed(seed)
            ).tolist()
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            if drop_last and len(rows) < size:
                return
            yield {**self._rows(rows), "_rows": torch.tensor(rows)}


def measure(images: Path, weights: Path, backbone_name: str, head: str, epochs: int) -> dict:
    """Return seconds of both trainings and their ratio."""
    backbone = load_backbone(backbone_name, weights)
    spec = backbone.default_spec(resize=(256, 256))
    config = make_config(head, {}, "small")
    layers = get_head(head).needs(config, backbone.info, (256, 256)).layers
    records = [r for r in scan_mvtec(images).records if r.split == "train"]
    options = TrainOptions(epochs=epochs)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        store = FeatureStore.open(folder, "bench")
        rows = {r.sha256: ImageRow(r.sha256, r.path.name, r.split, r.kind, "", r.width, r.height)
                for r in records}  # fmt: skip
        for block in extract([Job(r.sha256, r.path) for r in records], backbone, spec, layers):
            keys = [(j.sha256, j.view) for j in block.jobs]
            store.write(spec, keys, block.maps, images=[rows[s] for s, _ in keys])
        extraction = time.perf_counter() - began
        source = store.reader(spec, layers, Selection(split="train"))
        began = time.perf_counter()
        get_head(head)(config, source.shapes, spec.input_size).fit(
            source, source.subset([0, 1]), options, NullProgress()
        )
        from_store = time.perf_counter() - began
        paths = {r.sha256: r.path for r in records}
        live = LiveSource([paths[s] for s in source.ids], source.ids, backbone, spec, layers)
        held = LiveSource(live.paths[:2], live.ids[:2], backbone, spec, layers)
        began = time.perf_counter()
        get_head(head)(config, live.shapes, spec.input_size).fit(
            live, held, options, NullProgress()
        )
        from_images = time.perf_counter() - began
    return {
        "head": head, "backbone": backbone_name, "set": images.name, "images": len(records),
        "epochs": epochs, "extraction_s": round(extraction, 2),
        "training_from_store_s": round(from_store, 2),
        "training_with_backbone_s": round(from_images, 2),
        "ratio_training": round(from_images / from_store, 2),
        "ratio_with_extraction": round(from_images / (from_store + extraction), 2),
    }  # fmt: skip


def main() -> None:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--head", default="cs_flow")
    parser.add_argument("--epochs", type=int, default=10)
    a = parser.parse_args()
    before = machine()
    print(json.dumps({**measure(a.images, a.weights, a.backbone, a.head, a.epochs), **before}))


if __name__ == "__main__":
    main()
