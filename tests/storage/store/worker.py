"""A process of its own that extracts: ``worker.py LOCATION FIRST STOP [BLOCK]``."""

from __future__ import annotations

import sys

from storage.store.feature_store import FeatureStore
from tests.storage.storekit import OPTIONS, extract, image


def main() -> None:
    location, first, stop = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    block = int(sys.argv[4]) if len(sys.argv) > 4 else 3
    store = FeatureStore.open(location, "bolts", options=OPTIONS)
    print("open", flush=True)
    images = [image(i) for i in range(first, stop)]
    print(extract(store, images, block=block, complete=False), flush=True)


if __name__ == "__main__":
    main()
