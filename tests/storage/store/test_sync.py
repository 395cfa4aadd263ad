"""What a scan changes in the table: removed, renamed, replaced, relabelled, back again."""

from __future__ import annotations

from dataclasses import replace

from tests.storage.storekit import contents, expected, extract, image


def test_added_removed_replaced_renamed_relabelled(store):
    images = [image(i) for i in range(10)]
    extract(store, images)
    now = images[3:]  # 0, 1, 2 go
    now[0] = image("new 3", path=now[0].path)  # replaced under the same name
    now[1] = replace(now[1], path="train/good/renamed.png")
    now[2] = replace(now[2], split="test", kind="scratch", mask="m.png")
    now += [image(100), image(101)]
    report = store.sync(now)
    assert report.counts == {
        "added": 2, "returned": 0, "removed": 3, "renamed": 1, "replaced": 1, "relabelled": 1,
        "unchanged": 4,
    }  # fmt: skip
    assert report.renamed == ((images[4].path, "train/good/renamed.png"),)
    assert report.replaced == (images[3].path,)
    assert extract(store, now) == 3 * 2  # two added, one replaced, two layers each
    assert contents(store) == expected(now)
    assert sorted(store.table().images(), key=str) == sorted(now, key=str)


def test_an_image_that_comes_back_is_not_computed_again(store):
    images = [image(i) for i in range(6)]
    extract(store, images)
    extract(store, images[2:])
    report = store.sync(images)
    assert set(report.returned) == {i.path for i in images[:2]}
    assert extract(store, images) == 0
    assert contents(store) == expected(images)
