"""Share of a training's time that is spent waiting for the store.

    python -m benchmarks.waiting --images DIR --weights FILE [--heads ms_flow,cs_flow] [--epochs 3]

The reader keeps nothing resident, so that every batch comes from the store's files.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from features.backbones.backbone import load_backbone
from features.extract import Job, extract
from features.images.scan import scan_mvtec
from heads.catalogue import get_head, make_config
from heads.contract import Batch, NullProgress, TrainOptions
from storage.store.feature_store import FeatureStore
from storage.store.table import ImageRow, Selection


class TimedSource:
    """Passes a reader through and adds up the seconds that its consumer waited."""

    def __init__(self, source: Any) -> None:
        self._source, self.waited = source, 0.0

    def __getattr__(self, name: str) -> Any:
        """Return the reader's own attribute."""
        return getattr(self._source, name)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._source)

    def batches(self, *arguments: Any, **options: Any) -> Iterator[Batch]:
        """Yield the reader's batches, timing each wait."""
        found = self._source.batches(*arguments, **options)
        while True:
            began = time.perf_counter()
            batch = next(found, None)
            self.waited += time.perf_counter() - began
            if batch is None:
                return
            yield batch


def main() -> None:
    """Measure and print one JSON line a head."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--heads", default="ms_flow,cs_flow")
    parser.add_argument("--epochs", type=int, default=3)
    a = parser.parse_args()
    about = machine()
    backbone = load_backbone("resnet18", a.weights)
    spec = backbone.default_spec(resize=(256, 256))
    records = [r for r in scan_mvtec(a.images).records if r.split == "train"]
    for head in a.heads.split(","):
        config = make_config(head, {}, "small")
        layers = get_head(head).needs(config, backbone.info, (256, 256)).layers
        with tempfile.TemporaryDirectory() as folder:
            store = FeatureStore.open(folder, "bench")
            for block in extract([Job(r.sha256, r.path) for r in records], backbone, spec, layers):
                rows = [ImageRow(j.sha256, j.path.name) for j in block.jobs]
                keys = [(j.sha256, j.view) for j in block.jobs]
                store.write(spec, keys, block.maps, images=rows)
            source = TimedSource(store.reader(spec, layers, Selection(split="train"), memory=0))
            model = get_head(head)(config, source.shapes, spec.input_size)
            held = source.subset([0, 1])
            began = time.perf_counter()
            model.fit(source, held, TrainOptions(epochs=a.epochs), NullProgress())
            total = time.perf_counter() - began
        row = {"head": head, "seconds": round(total, 2), "waited": round(source.waited, 3)}
        print(json.dumps({**row, "share": round(source.waited / total, 4), **about}), flush=True)


if __name__ == "__main__":
    main()
