"""`headwater store ...` as a data engineer types it, on a small set with a weight file."""

import datetime as dt
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import flows.repair as repairing
from features.backbones import load_backbone
from flows.cli import main
from flows.training import without_features
from headwater.errors import StoreError
from headwater.spec import ExtractorSpec, LayerSpec, ViewSpec
from storage.engine import fetch_chunks, submit
from storage.maintenance import inspect, log
from storage.purge import purge
from storage.store import FeatureStore
from storage.upkeep import gc, verify
from tests.storekit import LAYERS, OPTIONS, SPEC, contents, expected, extract, image

HEADS = ("--heads", "patchcore", "--set", 'patchcore.nodes=["layer1"]')


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file(timm.create_model("resnet18").state_dict(), path)
    return path


class Desk:
    """A home, a set of ten images, and the command."""

    def __init__(self, folder, weights, monkeypatch, capsys):
        self.folder, self.images, self.home = folder, folder / "images", folder / "home"
        self.monkeypatch, self.capsys = monkeypatch, capsys
        monkeypatch.setenv("HEADWATER_HOME", str(self.home))
        monkeypatch.setenv("HEADWATER_WEIGHTS", str(weights))
        for i in range(10):
            self.draw(i)

    def draw(self, i):
        """Make image `i`."""
        path = self.images / "train/good" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(i)
        Image.fromarray(rng.integers(0, 255, (48, 48, 3), dtype=np.uint8)).save(path)
        return path

    def __call__(self, *arguments, status=0):
        """Run the command in this process; return what it printed."""
        self.monkeypatch.setattr(sys, "argv", ["headwater", *map(str, arguments)])
        try:
            main()
            ended = 0
        except SystemExit as done:
            ended = done.code or 0
        said = self.capsys.readouterr()
        assert ended == status, said.out + said.err
        assert "Traceback" not in said.err
        return said.out + said.err if status else said.out

    def extract(self):
        images = ("--images", self.images, "--size", 48, "--precision", "float32")
        return json.loads(self("extract", "s", *images, *HEADS, "--json"))

    @property
    def store(self):
        return FeatureStore.open(self.home / "store", "s", create=False)


@pytest.fixture
def desk(tmp_path, weights, monkeypatch, capsys):
    made = Desk(tmp_path, weights, monkeypatch, capsys)
    made.extract()
    return made


def features(store):
    """Return every stored map: ``{(extractor, layer, sha256, view): values}``."""
    found = {}
    for extractor in store.extractors():
        for name, layer in extractor.layers.items():
            reader = store.reader(extractor.spec, (layer,), missing="skip")
            batch = reader.read(0, len(reader))[name]
            for i, (sha, view) in enumerate(zip(reader.ids, reader.views, strict=True)):
                found[extractor.spec.id, name, sha, view] = batch[i].numpy()
    return found


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def damage(store, spec_id, layer, rows):
    """Flip a bit of these rows in the chunk files on the disk."""
    extractor = store.extractor(spec_id)
    maps = extractor.maps(layer)
    for row in rows:
        (chunk,) = maps.chunks(store.root().store, [row // maps.rows])
        want, at = chunk.tobytes(), row % maps.rows * maps.row_bytes + 3
        for path in (Path(store.location) / store.image_set / "chunks").iterdir():
            data = bytearray(path.read_bytes())
            if data == want:
                data[at] ^= 0x40
                path.write_bytes(data)


@pytest.fixture
def calls(monkeypatch):
    """Count the images that repairs take through the backbone."""
    seen = []
    real = repairing.open_backbone

    def watched(*arguments):
        backbone, precision = real(*arguments)
        maps = backbone.maps

        def counted(x, *more):
            seen.append(len(x))
            return maps(x, *more)

        monkeypatch.setattr(backbone, "maps", counted)
        return backbone, precision

    monkeypatch.setattr(repairing, "open_backbone", watched)
    return seen


def test_repair_computes_just_what_is_damaged(desk, calls):
    whole = features(desk.store)
    (extractor,) = desk.store.extractors()
    (layer,) = extractor.layers
    damage(desk.store, extractor.spec.id, layer, [4])
    path = desk.store.table().path[4]
    said = desk("store", "verify", "s", status=3)
    assert f"layer {layer}, image {path}" in said
    assert said.count("damaged:") == 1
    assert "repaired: 1 maps" in desk("store", "verify", "s", "--repair")
    assert calls == [1]
    assert "all is well" in desk("store", "verify", "s")
    assert same(features(desk.store), whole)
    assert calls == [1]


def test_an_image_damaged_in_two_layers_is_seen_once(desk, calls):
    desk("extract", "s", "--size", 48, "--precision", "float32", "--heads", "patchcore",
         "--set", 'patchcore.nodes=["layer2"]')  # fmt: skip
    whole = features(desk.store)
    (extractor,) = desk.store.extractors()
    assert len(extractor.layers) == 2
    for layer in extractor.layers:
        damage(desk.store, extractor.spec.id, layer, [7])
    said = json.loads(desk("store", "verify", "s", "--repair", "--json"))
    assert (said["repaired"], len(said["damage"]), said["ok"]) == (2, 2, True)
    assert calls == [1]
    assert same(features(desk.store), whole)


def test_a_damaged_image_whose_file_is_gone_is_named_and_given_up(desk, calls):
    (extractor,) = desk.store.extractors()
    (layer,) = extractor.layers
    damage(desk.store, extractor.spec.id, layer, [2, 3])
    gone = desk.images / desk.store.table().path[2]
    content = gone.read_bytes()
    gone.unlink()
    said = desk("store", "verify", "s", "--repair", status=3)
    assert f"not repaired: {gone}" in said
    assert "repaired: 1 maps" in said
    # What is left is sound; the image leaves with the next scan, or is computed once it is back.
    assert "all is well" in desk("store", "verify", "s")
    gone.write_bytes(content)
    assert desk.extract()["computed"] == 1
    assert verify(desk.store).rows == 10


def test_views_are_repaired_as_they_were_made(desk, calls, weights):
    backbone = load_backbone("resnet18", weights)
    (plain,) = desk.store.extractors()
    spec = ExtractorSpec(**{**plain.spec.__dict__, "views": ViewSpec(2, 30.0)})
    layer = LayerSpec.parse("layer1")
    rows = desk.store.table().images()
    jobs = [
        repairing.Job(r.sha256, desk.images / r.path, view) for r in rows[:4] for view in (1, 2)
    ]
    for block in repairing.extract(jobs, backbone, spec, (layer,)):
        desk.store.write(spec, [(j.sha256, j.view) for j in block.jobs], block.maps)
    whole = features(desk.store)
    damage(desk.store, spec.id, "layer1", [5])
    said = desk("store", "verify", "s", status=3)
    assert "view 2: checksum differs" in said
    desk("store", "verify", "s", "--repair")
    assert calls == [1]
    assert same(features(desk.store), whole)


def test_a_layer_whose_own_columns_are_damaged_is_computed_anew(desk, calls):
    whole = features(desk.store)
    (extractor,) = desk.store.extractors()
    (layer,) = extractor.layers
    key = f"features/{extractor.spec.id}/{layer}/statistics/c/0/0/0"
    (raw,) = submit(fetch_chunks(desk.store.root().store, [key])).result()
    want = bytes(raw)
    chunks = Path(desk.store.location) / "s" / "chunks"
    (path,) = [p for p in chunks.iterdir() if p.read_bytes() == want]
    data = bytearray(want)
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    said = desk("store", "verify", "s", status=3)
    assert f"layer {layer} of extractor {extractor.spec.id}, all images" in said
    assert "repaired: 10 maps" in desk("store", "verify", "s", "--repair")
    assert sum(calls) == 10
    assert "all is well" in desk("store", "verify", "s")
    assert same(features(desk.store), whole)


def test_only_the_newest_snapshot_is_repaired(desk):
    old = desk.store.snapshot
    desk.draw(77)
    desk.extract()
    assert "--repair at" in desk("store", "verify", "s", "--repair", "--snapshot", old, status=2)


def test_damage_beyond_repair_is_named(tmp_path):
    store = FeatureStore.open(tmp_path, "bolts", options=OPTIONS)
    extract(store, [image(i) for i in range(40)], block=40)
    (raw,) = submit(fetch_chunks(store.root().store, ["images/sha256/c/0/0"])).result()
    chunks = Path(store.location) / "bolts" / "chunks"
    (path,) = [p for p in chunks.iterdir() if p.read_bytes() == bytes(raw)]
    path.write_bytes(path.read_bytes()[:20])
    store = FeatureStore.open(tmp_path, "bolts", options=OPTIONS)
    (problem,) = verify(store).problems
    assert problem.startswith("the image table cannot be read: images/sha256 cannot be read")
    assert "\n" not in problem
    with pytest.raises(StoreError, match="images/sha256 cannot be read"):
        extract(store, [image(50)])


def test_looking_neither_makes_a_home_nor_needs_to_write_in_one(desk, tmp_path):
    nowhere = tmp_path / "nowhere"
    assert "no image sets" in desk("store", "ls", "--home", nowhere)
    assert "does not exist" in desk("store", "inspect", "s", "--home", nowhere, status=2)
    assert not nowhere.exists()
    seal = tmp_path / "sealed"
    seal.mkdir()
    for flags in (["--bind", desk.home, seal], ["-o", "remount,ro,bind", seal]):
        done = subprocess.run(["mount", *map(str, flags)], capture_output=True, check=False)
        if done.returncode:
            pytest.skip("nothing can be mounted read-only here")
    try:
        for command in ("ls", "log s", "inspect s", "verify s", f"diff s {desk.store.snapshot}"):
            name, *more = command.split()
            desk("store", name, *more, "--home", seal)
        desk("store", "export", "s", tmp_path / "copy", "--home", seal)
        assert "Read-only file system" in desk("store", "tag", "s", "a", "--home", seal, status=2)
        assert "Read-only file system" in desk("store", "gc", "s", "--home", seal, status=2)
    finally:
        subprocess.run(["umount", str(seal)], check=False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("inspect", "nope"), "'nope'"),
        (("inspect", "a.b"), "image set name 'a.b'"),
        (("diff", "s", "nope"), "snapshot 'nope' does not exist"),
        (("verify", "s", "--snapshot", "nope"), "snapshot 'nope' does not exist"),
        (("tag", "s", "a/b"), "tag 'a/b'"),
        (("tag", "s", "nope", "--delete"), "tag 'nope'"),
        (("gc", "s", "--older-than", "soon"), "age 'soon'"),
        (("gc", "s", "--older-than", "-3d"), "age '-3d'"),
        (("export", "s", "."), "export target . exists"),
        (("drift", "s", "--since", "nope"), "snapshot 'nope' does not exist"),
    ],
)
def test_mistakes_are_explained(desk, arguments, said):
    assert said in desk("store", *arguments, status=2)


def test_purging_gives_up_removed_images_and_nothing_that_is_referred_to(desk):
    before = features(desk.store)
    desk("store", "tag", "s", "audit")
    for i in (0, 1, 2):
        (desk.images / "train/good" / f"{i}.png").unlink()
    desk.extract()
    now = features(desk.store)
    assert len(now) == 7
    gc = ("store", "gc", "s", "--older-than", "0", "--grace", "0", "--purge-removed")
    said = desk(*gc)
    assert "would give up 3 maps of 3 removed images" in said
    assert log(desk.store)[0].message.startswith("sync")
    assert "gave up 3 maps" in desk(*gc, "--delete")
    store = desk.store
    assert same(features(store), now)
    assert verify(store).ok
    assert verify(store).rows == 7
    assert verify(store, "audit").rows == 10
    assert verify(store, "audit").ok
    # A second time there is nothing to do, and an image that comes back is computed again.
    at = store.snapshot
    assert "gave up 0 maps" in desk(*gc, "--delete")
    assert desk.store.snapshot == at
    desk.draw(1)
    assert desk.extract()["computed"] == 1
    back = features(desk.store)
    assert len(back) == 8
    assert all(np.array_equal(before[k], v) for k, v in back.items())


def test_a_training_knows_which_images_of_its_view_have_no_features(desk):
    moment = time.time_ns()
    (desk.images / "train/good/0.png").unlink()
    desk.extract()
    (extractor,) = desk.store.extractors()
    plan = SimpleNamespace(spec=extractor.spec, layers=tuple(extractor.layers.values()))

    def lacking(known_by):
        job = SimpleNamespace(plan=plan, known_by=known_by, snapshot=desk.store.snapshot)
        return without_features(job, desk.store)

    assert lacking(None) == lacking(moment) == []
    purge(desk.store, older_than=dt.timedelta(0), dry_run=False)
    assert lacking(None) == []
    assert lacking(moment) == ["train/good/0.png"]


def test_purging_frees_the_chunks_that_hold_nothing_else(tmp_path):
    store = FeatureStore.open(tmp_path, "bolts", options=OPTIONS)
    images = [image(i) for i in range(16)]
    extract(store, images, block=16)
    size = store.extractor(SPEC).maps("layer2").rows
    assert size == 4
    extract(store, images[6:])
    folder = tmp_path / "bolts" / "chunks"
    purged = purge(store, older_than=dt.timedelta(0), dry_run=False)
    rows = store.extractor(SPEC).maps("layer2").row_bytes
    small = store.extractor(SPEC).maps(LAYERS[1].name)
    # Rows 0..3 are a chunk of layer2; 4 and 5 share one; the small layer has one chunk for all.
    assert purged.images == 6
    assert (purged.maps, purged.bytes) == (12, 4 * rows)
    assert purged.shared_bytes == 2 * rows + 6 * small.row_bytes
    before = sum(p.stat().st_size for p in folder.iterdir())
    gc(store, older_than=dt.timedelta(0), grace=dt.timedelta(0), dry_run=False)
    assert before - sum(p.stat().st_size for p in folder.iterdir()) >= 4 * rows
    assert contents(store) == expected(images[6:])
    assert verify(store).ok
    found = inspect(store)["extractors"][0]["layers"]
    assert {x["rows"] for x in found} == {10}
    # Images not removed for long keep their features, whoever asks.
    extract(store, images[8:])
    assert purge(store, older_than=dt.timedelta(days=1), dry_run=False).maps == 0


def test_a_narrow_terminal_shows_every_id_whole(desk):
    pytest.importorskip("pty")
    code = (
        "import fcntl,os,pty,struct,sys,termios\n"
        "pid, fd = pty.fork()\n"
        "command = [sys.executable, '-m', 'flows.cli', *sys.argv[1:]]\n"
        "if pid == 0: os.execv(sys.executable, command)\n"
        "fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack('HHHH', 40, 80, 0, 0))\n"
        "try:\n"
        "    while data := os.read(fd, 65536): os.write(1, data)\n"
        "except OSError: pass\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    snapshot = desk.store.snapshot
    for command in (["ls"], ["log", "s"], ["inspect", "s"]):
        done = subprocess.run(
            [sys.executable, "-c", code, "store", *command],
            env=env, capture_output=True, text=True, check=True, timeout=280,
        )  # fmt: skip
        assert snapshot in done.stdout
        assert "\N{HORIZONTAL ELLIPSIS}" not in done.stdout
        plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", done.stdout)
        assert max(map(len, plain.splitlines())) <= 80


def test_ctrl_c_keeps_what_was_committed_and_says_so(desk):
    for i in range(10, 90):
        desk.draw(i)
    settings = desk.folder / "small.yaml"
    settings.write_text("extraction: {block_mb: 1, batch: 1}\n")
    command = ("extract", "s", "--images", desk.images, "--size", "224", "--config", settings)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    # Where the tests run in a shell's background, Ctrl-C would be ignored by inheritance.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from flows.cli import main; main()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, command), "--heads", "patchcore"],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    # Counting files is cheap: on a busy machine the signal must not come after the end.
    commits = desk.home / "store" / "s" / "snapshots"
    before, deadline = len(list(commits.iterdir())), time.monotonic() + 200
    while len(list(commits.iterdir())) < before + 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    said, _ = child.communicate(timeout=90)
    assert child.returncode == 130, said
    assert "stopped; what was committed is kept" in said
    assert "Traceback" not in said
    assert verify(desk.store).ok
    assert len(desk.store.extractors()) == 2
