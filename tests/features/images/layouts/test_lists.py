"""Lists of images, csv and parquet, and manifests of Amazon Lookout for Vision."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from features.images.layouts import lookout
from features.images.masks import read_mask
from features.images.scan import ScanOptions, scan_images
from headwater.errors import DataError
from tests.features.imagekit import noise, save
from tests.features.images.layouts.test_folders import images, mask, told


def table(path: Path, *rows: dict[str, object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_a_csv_says_what_each_image_is(tmp_path):
    images(tmp_path, "a.png", "b.png", "sub/c.png", "d.png", "e.png", "f.png")
    mask(tmp_path / "m/d.png", 4)
    file = table(
        tmp_path / "set.csv",
        {"Path": "a.png", "label": "good", "split": "train", "mask": ""},
        {"Path": "b.png", "label": "0", "split": "val"},
        {"Path": "sub/c.png", "label": "OK", "split": "test"},
        {"Path": "d.png", "label": "scratch", "split": "test", "mask": "m/d.png"},
        {"Path": "e.png", "label": "1", "split": ""},
        {"Path": "f.png", "label": "", "split": "train"},
        {"Path": "a.png", "label": "good", "split": "train"},
        {"Path": "gone.png", "label": "good", "split": "train"},
    )
    result = scan_images(file)
    assert result.layout == "list"
    assert told(result) == {
        "a.png": ("train", "good", []),
        "b.png": ("train", "good", []),
        "sub/c.png": ("test", "good", []),
        "d.png": ("test", "scratch", [4]),
        "e.png": ("test", "defective", []),
    }
    assert [(b.path.name, b.reason) for b in result.broken] == [
        ("gone.png", "set.csv, row 9: no such file")
    ]
    assert result.left_out.counts == {
        "rows without a label": 1,
        "rows of files that are listed before": 1,
    }


def test_a_parquet_file_is_read_as_a_csv(tmp_path):
    pandas = pytest.importorskip("pandas")
    images(tmp_path / "photos", *(f"{i}.png" for i in range(4)))
    frame = {
        "image": [f"{i}.png" for i in range(4)],
        "label": [False, False, True, None],
        "weight": [1.5] * 4,
    }
    pandas.DataFrame(frame).to_parquet(tmp_path / "set.parquet")
    result = scan_images(tmp_path / "set.parquet", root=tmp_path / "photos")
    kinds = {name: kind for name, (_, kind, _) in told(result).items()}
    assert kinds == {"0.png": "good", "1.png": "good", "2.png": "defective"}
    # Nobody split them: one of the two normal ones is tested.
    assert sorted(split for split, kind, _ in told(result).values() if kind == "good") == [
        "test",
        "train",
    ]


def test_a_group_stays_together_and_one_that_is_torn_is_reported(tmp_path):
    names = [f"{i}.png" for i in range(60)]
    images(tmp_path, *names, "bad.png")
    rows = [{"path": n, "label": "ok", "group": f"part{int(n[:-4]) // 6}"} for n in names]
    file = table(tmp_path / "set.csv", *rows, {"path": "bad.png", "label": "ng", "group": ""})
    result = scan_images(file)
    tested = {r.path.stem for r in result.records if r.split == "test" and r.is_normal}
    parts = {int(stem) // 6 for stem in tested}
    assert 1 <= len(parts) < 10
    assert len(tested) == 6 * len(parts)
    assert result.problems == []
    torn = [{**row, "split": "test" if n % 2 else "train"} for n, row in enumerate(rows)]
    result = scan_images(table(tmp_path / "torn.csv", *torn))
    assert "10 groups are in train and in test" in result.problems[0]


def test_a_list_never_leads_out_of_its_root(tmp_path):
    root = tmp_path / "set"
    images(root, "a.png")
    images(tmp_path, "secret.png")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "door").symlink_to(tmp_path)
    paths = ["a.png", "../secret.png", str(tmp_path / "secret.png"), "link.png", "door/secret.png"]
    file = table(root / "set.csv", *({"path": p} for p in paths))
    result = scan_images(file)
    assert [r.path.name for r in result.records] == ["a.png"]
    assert [b.reason.split(": ")[1][:10] for b in result.broken] == ["it is outs"] * 4
    assert "no column label" in result.notes[0]
    followed = scan_images(file, options=ScanOptions(links="anywhere"))
    assert [b.path.name for b in followed.broken] == ["secret.png", "secret.png"]
    assert len(followed.broken) == 2


def test_mistakes_in_a_list_are_told_with_their_row(tmp_path):
    images(tmp_path, "a.png")
    with pytest.raises(DataError, match="no column of paths among name, label"):
        scan_images(table(tmp_path / "1.csv", {"name": "a.png", "label": "ok"}))
    with pytest.raises(DataError, match=r"2\.csv, row 2: split 'dev'"):
        scan_images(table(tmp_path / "2.csv", {"path": "a.png", "label": "ok", "split": "dev"}))
    with pytest.raises(DataError, match=r"row 2: label '\.\./x'"):
        scan_images(table(tmp_path / "3.csv", {"path": "a.png", "label": "../x"}))
    (tmp_path / "4.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"4\.csv: "):
        scan_images(tmp_path / "4.csv")
    (tmp_path / "5.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"5\.parquet: "):
        scan_images(tmp_path / "5.parquet")
    (tmp_path / "6.csv").write_text("")
    with pytest.raises(DataError, match="no column of paths"):
        scan_images(tmp_path / "6.csv")
    (tmp_path / "semicolons.csv").write_text("path;label\na.png;ok\n", "utf-8-sig")
    assert len(scan_images(tmp_path / "semicolons.csv").records) == 1


# --- Amazon Lookout for Vision --------------------------------------------------------------------

#: As the service's own example has it: the numbers are those of the map, not of any palette.
MAP = {
    "0": {"class-name": "BACKGROUND", "hex-color": "#ffffff", "confidence": 0.0},
    "1": {"class-name": "scratch", "hex-color": "#2ca02c", "confidence": 0.0},
    "2": {"class-name": "dent", "hex-color": "#1f77b4", "confidence": 0.0},
}


def line(source: str, kind: str, mask: str = "", colours=MAP) -> dict[str, object]:
    made: dict[str, object] = {
        "source-ref": source,
        "anomaly-label": int(kind == "anomaly"),
        "anomaly-label-metadata": {
            "class-name": kind,
            "type": "groundtruth/image-classification",
            "confidence": 1,
            "human-annotated": "yes",
        },
    }
    if mask:
        made["anomaly-mask-ref"] = mask
        made["anomaly-mask-ref-metadata"] = {
            "internal-color-map": colours,
            "type": "groundtruth/semantic-segmentation",
        }
    return made


def manifest(path: Path, *lines: dict[str, object] | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines)
    path.write_text(text + "\n")
    return path


def palette_mask(path: Path, *parts: tuple[str, slice], transparent: bool = False) -> Path:
    """A palette PNG whose palette is in another order than the map; 24 x 20 pixels."""
    colours = ["#1f77b4", "#ffffff", "#2ca02c", "#123456"]
    pixels = np.full((20, 24), 1, np.uint8)
    for colour, columns in parts:
        pixels[:, columns] = colours.index(colour)
    image = Image.fromarray(pixels).convert("P")
    image.putpalette(b"".join(bytes.fromhex(c[1:]) for c in colours))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **({"transparency": 1} if transparent else {}))
    return path


def test_kinds_go_by_the_maps_colours_and_several_may_be_in_one_mask(tmp_path, monkeypatch):
    images(tmp_path, "n.png", "a.png", "b.png", "c.png", "d.png")
    palette_mask(tmp_path / "a_m.png", ("#2ca02c", slice(2, 4)))
    palette_mask(
        tmp_path / "b_m.png", ("#1f77b4", slice(5, 6)), ("#2ca02c", slice(0, 1)), transparent=True
    )
    palette_mask(tmp_path / "c_m.png", ("#123456", slice(0, 3)))
    palette_mask(tmp_path / "d_m.png")
    file = manifest(
        tmp_path / "train.manifest",
        line("n.png", "normal"),
        *(line(f"{n}.png", "anomaly", f"{n}_m.png") for n in "abcd"),
    )
    result = scan_images(file, kept=tmp_path / "home")
    assert result.layout == "lookout"
    got = told(result)
    assert got["a.png"] == ("test", "scratch", [2, 3])
    assert got["b.png"] == ("test", "scratch+dent", [0, 5])
    # Of a colour that the map does not name nobody knows what it is; d's mask was forgotten.
    assert (got["c.png"], got["d.png"]) == (
        ("test", "defective", []),
        ("test", "defective", []),
    )
    text = "\n".join(result.problems)
    assert "#123456" in text
    assert "line 4" in text
    assert "d_m.png" in text
    assert "nothing is marked" in text
    # What was made once is not decoded again, and is found again where it lay.
    read: list[str] = []
    decode = lookout.read_colours
    monkeypatch.setattr(lookout, "read_colours", lambda p: read.append(p.name) or decode(p))
    again = scan_images(file, kept=tmp_path / "home")
    assert told(again)["b.png"] == got["b.png"]
    assert [r.mask for r in again.records] == [r.mask for r in result.records]
    assert read == ["c_m.png"]


def test_a_train_and_a_test_manifest_below_a_root(tmp_path):
    # As the service's export script lays them out: datasets/, train/images/KEY, train/masks/KEY.
    root = tmp_path / "export"
    far = "s3://bucket/lookout/export"
    images(root, "train/images/n/0.png", "train/images/n/1.png", "train/images/a/0.png")
    images(root, "test/images/n/0.png", "test/images/a/0.png")
    palette_mask(root / "test/masks/a/0.png", ("#2ca02c", slice(7, 8)))
    train = manifest(
        root / "datasets/train.manifest",
        line(f"{far}/train/images/n/0.png", "normal"),
        line(f"{far}/train/images/n/1.png", "normal"),
        line(f"{far}/train/images/a/0.png", "anomaly"),
    )
    test = manifest(
        root / "datasets/test.manifest",
        line(f"{far}/test/images/n/0.png", "normal"),
        line(f"{far}/test/images/a/0.png", "anomaly", f"{far}/test/masks/a/0.png"),
    )
    result = scan_images(train, root=root, test=test, kept=tmp_path / "home")
    assert told(result) == {
        "train/images/n/0.png": ("train", "good", []),
        "train/images/n/1.png": ("train", "good", []),
        "train/images/a/0.png": ("test", "defective", []),
        "test/images/n/0.png": ("test", "good", []),
        "test/images/a/0.png": ("test", "scratch", [7]),
    }
    assert any("1 defective images of train.manifest are tested" in n for n in result.notes)
    assert result.broken == []
    # Copies without their folders: n/0.png and a/0.png would be one file, and neither is taken.
    flat = tmp_path / "flat"
    images(flat, "0.png", "1.png")
    with pytest.raises(DataError, match="not found below"):
        scan_images(train, root=flat, kept=tmp_path / "home")


def test_one_manifest_is_split_by_content(tmp_path):
    images(tmp_path, *(f"{i}.png" for i in range(30)), "a.png")
    lines = [line(f"{i}.png", "normal") for i in range(30)]
    file = manifest(tmp_path / "all.manifest", *lines, line("a.png", "anomaly"))
    tested = {p for p, (split, kind, _) in told(scan_images(file)).items() if split == "test"}
    assert 3 <= len(tested) <= 12
    assert "a.png" in tested
    manifest(file, *reversed(lines[:20]), line("a.png", "anomaly"))
    fewer = {p for p, (split, _, _) in told(scan_images(file)).items() if split == "test"}
    assert fewer == {p for p in tested if p == "a.png" or int(p[:-4]) < 20}
    # Without anomalies there is nothing to test.
    manifest(file, *lines)
    assert {split for split, _, _ in told(scan_images(file)).values()} == {"train"}


def test_what_is_no_line_of_a_manifest_is_set_aside_by_its_number(tmp_path):
    images(tmp_path, "a.png", "b.png")
    own = {"source-ref": "b.png", "auto-label": 11, "auto-label-metadata": {
        "class-name": "normal", "type": "groundtruth/image-classification"}}  # fmt: skip
    deep = '{"source-ref": "x", "y": ' + "[" * 100_000 + "]" * 100_000 + "}"
    odd = line("a.png", "anomaly", "m.png", {"1": {"class-name": "dent", "hex-color": "green"}})
    file = manifest(
        tmp_path / "m.manifest", line("a.png", "normal"), own, "{", "[1]", deep, odd,
        {"source-ref": "a.png"}, line("../b.png", "normal"), line("gs://x/y.png", "normal"),
        line("a.png", "normal"),
    )  # fmt: skip
    result = scan_images(file)
    assert set(told(result)) == {"a.png", "b.png"}
    places = [str(b.path).rpartition(", ")[2] for b in result.broken]
    assert places[:4] == ["line 3", "line 4", "line 5", "line 6"]
    assert [b.reason.split(": ")[-1][:14] for b in result.broken[4:]] == [
        "it is outside ".strip().ljust(14)[:14],
        "gs:// is not r",
    ]
    assert result.left_out.counts == {
        "lines without a label": 1,
        "lines of images that are listed before": 1,
    }
    with pytest.raises(DataError, match="no line with a label"):
        scan_images(manifest(tmp_path / "e.manifest", {"source-ref": "a.png"}))


def test_a_normal_image_whose_mask_marks_something_is_set_aside(tmp_path):
    images(tmp_path, "a.png", "b.png")
    palette_mask(tmp_path / "m.png", ("#2ca02c", slice(2, 4)))
    file = manifest(
        tmp_path / "m.manifest", line("a.png", "normal"), line("b.png", "normal", "m.png")
    )
    result = scan_images(file, kept=tmp_path / "home")
    assert set(told(result)) == {"a.png"}
    assert "given as normal" in result.broken[0].reason


def test_images_on_s3_need_somebody_who_fetches_them(tmp_path):
    save(tmp_path / "copies/x.png", noise(77))
    address = "s3://shop/k/x.png"
    file = manifest(tmp_path / "m.manifest", line(address, "normal"))
    with pytest.raises(DataError, match="--root DIR"):
        scan_images(file)
    asked: list[str] = []

    def fetch(addresses):
        asked.extend(addresses)
        return {address: tmp_path / "copies/x.png"}

    result = scan_images(file, fetch=fetch, kept=tmp_path / "copies")
    assert asked == [address]
    # What is told relative to the home travels with it.
    assert result.root == tmp_path / "copies"
    assert [r.path for r in result.records] == [tmp_path / "copies/x.png"]
    assert not read_mask(mask(tmp_path / "blank.png", None)).any()
