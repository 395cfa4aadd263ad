"""What is remembered of files: nothing unchanged is read twice."""

from __future__ import annotations

import io
import os
import time
import tracemalloc

from PIL import Image

from features.images.scan import ScanOptions, scan_folders, scan_mvtec
from tests.features.imagekit import noise, save


def test_unchanged_files_are_not_read_again(tiny_set, tmp_path):
    cache = tmp_path / "cache" / "files.db"
    (tiny_set / "train/good/broken.png").write_bytes(b"no image")
    first = scan_mvtec(tiny_set, ScanOptions(cache=cache))
    assert first.hashed == 17
    again = scan_mvtec(tiny_set, ScanOptions(cache=cache))
    assert again.hashed == 0
    assert again.records == first.records
    assert again.broken == first.broken
    assert len(again.broken) == 1

    changed = tiny_set / "train/good/000.png"
    status = changed.stat()
    save(changed, noise(1, (32, 40, 3)))
    os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    (tiny_set / "test/good/001.png").rename(tiny_set / "test/good/009.png")
    third = scan_mvtec(tiny_set, ScanOptions(cache=cache))
    assert third.hashed == 2
    assert scan_mvtec(tiny_set, ScanOptions(cache=cache, rehash=True)).hashed == 17


def test_a_damaged_cache_is_begun_anew(tiny_set, tmp_path):
    cache = tmp_path / "files.db"
    cache.write_bytes(b"SQLite format 3\0" + b"rubbish" * 999)
    assert scan_mvtec(tiny_set, ScanOptions(cache=cache)).hashed == 16
    assert scan_mvtec(tiny_set, ScanOptions(cache=cache)).hashed == 0


def test_rescan_of_many_files_takes_seconds_and_little_memory(tmp_path):
    cache, folder = tmp_path / "c.db", tmp_path / "many"
    folder.mkdir()
    data = io.BytesIO()
    Image.fromarray(noise(0, (8, 8, 3))).save(data, "BMP")
    head, body = data.getvalue()[:54], bytearray(data.getvalue()[54:])
    count = 1500
    for i in range(count):
        body[:4] = i.to_bytes(4, "little")
        (folder / f"{i}.bmp").write_bytes(head + body)
    assert scan_folders(folder, options=ScanOptions(cache=cache)).hashed == count
    start = time.process_time()
    assert scan_folders(folder, options=ScanOptions(cache=cache)).hashed == 0
    took = time.process_time() - start
    tracemalloc.start()
    result = scan_folders(folder, options=ScanOptions(cache=cache))
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(result.records) == count
    assert took * 100_000 / count < 60, "100,000 files would take more than a minute"
    assert peak < 3 * kept
