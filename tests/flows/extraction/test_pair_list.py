"""Sets of pairs: each image is computed once, and the list of pairs belongs to its time."""

import dataclasses
import shutil

import pytest
from PIL import Image

from flows.extraction.extract import extract_set
from flows.extraction.pair_list import PairList, load_pairs, save_pairs, version_at, versions
from flows.extraction.samples import Sample, digest_of
from flows.runtime.home import Home
from headwater.errors import SnapshotError
from tests.flows.setkit import QUIET, make_pairs, pair_settings


def test_each_image_is_computed_once_and_new_pairs_cost_only_themselves(boards, tmp_path):
    more = tmp_path / "more"
    shutil.copytree(boards / "boards", more)
    names = [p for side in ("current", "history") for p in more.glob(f"*/{side}/*.png")]
    distinct = {p.read_bytes() for p in names}
    assert len(distinct) == len(names) - 2  # one template of two pairs, one image on both sides
    home = Home(tmp_path / "home")
    report = extract_set(pair_settings(boards, pairs=more), home, QUIET)
    assert report.computed == len(distinct)
    before = report.version
    make_pairs(more, "train", [0, 30], {30})  # 0 is there already
    (more / "train/history/31.png").write_bytes((more / "train/history/30.png").read_bytes())
    shutil.copy(more / "train/current/30.png", more / "train/current/31.png")
    report = extract_set(pair_settings(boards, pairs=more), home, QUIET)
    assert (report.computed, report.pairs.pairs) == (2, 20)
    # The list belongs to its time: at the old snapshot there were 18 pairs.
    assert len(load_pairs(home, "boards", version_at(home, "boards").pairs).samples) == 20
    for snapshot in before.snapshots:
        assert version_at(home, "boards", snapshot) == versions(home, "boards")[0]
    with pytest.raises(SnapshotError, match="no pairs at snapshot"):
        version_at(home, "boards", "nowhere")
    # What was current becomes history: nothing is computed again.
    rolled = tmp_path / "rolled"
    for side, source in (("current", "current"), ("history", "current"), ("mask", "mask")):
        shutil.copytree(more / "train" / source, rolled / "train" / side)
    assert extract_set(pair_settings(boards, pairs=rolled), home, QUIET).computed == 0
    # Another label is another training, another path is not.
    listed = load_pairs(home, "boards", report.version.pairs)
    Image.new("L", (64, 64)).save(more / "train/mask/30.png")
    report = extract_set(pair_settings(boards, pairs=more), home, QUIET)
    relabelled = load_pairs(home, "boards", report.version.pairs)
    assert digest_of(relabelled.samples) != digest_of(listed.samples)
    cut = [dataclasses.replace(r, key=f"{r.key}@0_0") for r in listed.samples]
    assert digest_of(cut) != digest_of(listed.samples)
    assert cut[0].source == listed.samples[0].key


def test_pairs_are_found_where_their_images_are_now(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    sample = Sample("train/0", "train", "good", ("a", "b"), (old / "c/0.png", old / "h/0.png"))
    home = Home(tmp_path / "home")
    name = save_pairs(home, "boards", PairList(old, (sample,)))
    home.write_card("boards", {"root": str(new)})
    assert load_pairs(home, "boards", name).root == old  # nothing is there: as it was
    old.rename(new)
    found = load_pairs(home, "boards", name)
    assert found.samples[0].paths == (new / "c/0.png", new / "h/0.png")
