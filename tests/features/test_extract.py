"""Images to blocks: in order, the same whatever is beside them, without the broken ones."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import features.extract as module
from features.backbones.backbone import load_backbone
from features.extract import Job, extract
from features.images.pixels import read_image, sha256_of
from features.images.places.tiles import row_of
from features.images.preprocess import make_view, preprocess
from features.images.scan import scan_mvtec
from heads.training.arithmetic import running
from headwater.errors import ConfigError
from headwater.spec import LayerSpec, TileSpec, ViewSpec
from headwater.tiles import box_of

LAYERS = (LayerSpec(("layer1",)), LayerSpec(("layer2",), 0.5))


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("resnet10t", untrained_seed=0)


@pytest.fixture
def spec(backbone):
    return backbone.default_spec((64, 64), precision="float32")


@pytest.fixture
def jobs(tiny_set):
    return [Job(r.sha256, r.path) for r in scan_mvtec(tiny_set).records]


def together(blocks, layer: LayerSpec) -> np.ndarray:
    return np.concatenate([b.maps[layer.name] for b in blocks])


def test_blocks_hold_what_the_backbone_gives_in_the_order_of_the_jobs(backbone, spec, jobs):
    for place, mode in ((3, "L"), (4, "I;16")):
        path = jobs[place].path.with_name(f"grey{place}.png")
        pixels = read_image(jobs[place].path)[..., 0]
        Image.fromarray(pixels if mode == "L" else pixels.astype(np.uint16) * 257).save(path)
        jobs[place] = Job(sha256_of(path), path)
    per_row = sum(c * h * w for c, h, w in backbone.shapes(LAYERS, (64, 64)).values()) * 2
    blocks = list(extract(jobs, backbone, spec, LAYERS, batch=3, block_bytes=5 * per_row))
    assert [len(b.jobs) for b in blocks] == [5, 5, 3]
    assert [j for b in blocks for j in b.jobs] == jobs
    assert not [b for b in blocks if b.failed]
    images = torch.stack([preprocess(read_image(j.path), spec) for j in jobs])
    want = backbone.maps(images, LAYERS)
    for layer in LAYERS:
        got = together(blocks, layer)
        assert got.dtype == np.float16
        assert np.array_equal(got, want[layer.name].half().numpy())


@pytest.fixture
def four_lanes():
    """Lanes of four threads, however many the machine has."""
    with running(torch.device("cpu"), 4):
        yield


def test_a_row_is_the_same_whatever_is_extracted_with_it(backbone, jobs, four_lanes):
    for precision in ("float32", "bfloat16"):
        spec = backbone.default_spec((64, 64), precision=precision, dtype="float32")
        whole = together(extract(jobs, backbone, spec, LAYERS), LAYERS[1])
        for part, options in ((jobs[4:5], {}), (jobs[::-1], {"batch": 7})):
            rows = together(extract(part, backbone, spec, LAYERS[1:], **options), LAYERS[1])
            for job, row in zip(part, rows, strict=True):
                assert np.array_equal(row, whole[jobs.index(job)])


def test_views(backbone, spec, jobs):
    views = ViewSpec(count=2, rotation=20)
    spec = backbone.default_spec((64, 64), precision="float32", views=views)
    wanted = [Job(j.sha256, j.path, k) for j in jobs[:2] for k in (1, 2)]
    got = together(extract(wanted, backbone, spec, LAYERS[:1]), LAYERS[0])
    images = [make_view(read_image(j.path), j.sha256, j.view, views) for j in wanted]
    want = backbone.maps(torch.stack([preprocess(i, spec) for i in images]), LAYERS[:1])
    assert np.array_equal(got, want["layer1"].half().numpy())
    with pytest.raises(ConfigError, match="view 3"):
        list(extract([Job(jobs[0].sha256, jobs[0].path, 3)], backbone, spec, LAYERS))


def test_broken_images_fail_alone(backbone, spec, jobs):
    jobs[0].path.write_bytes(b"no image")
    jobs[5].path.unlink()
    jobs[6].path.write_bytes(jobs[7].path.read_bytes())
    cut = jobs[12].path.read_bytes()[:-300]
    jobs[12].path.write_bytes(cut)
    jobs[12] = Job(sha256_of(jobs[12].path), jobs[12].path)
    blocks = list(extract(jobs, backbone, spec, LAYERS, batch=2))
    failed = {job.path: reason for b in blocks for job, reason in b.failed}
    assert list(failed) == [jobs[i].path for i in (0, 5, 6, 12)]
    assert "changed" in failed[jobs[0].path]
    assert "No such file" in failed[jobs[5].path]
    assert "changed" in failed[jobs[6].path]
    assert "truncated" in failed[jobs[12].path]
    rest = [j for j in jobs if j.path not in failed]
    assert [j for b in blocks for j in b.jobs] == rest
    want = together(extract(rest, backbone, spec, LAYERS), LAYERS[0])
    assert np.array_equal(together(blocks, LAYERS[0]), want)

    only = list(extract(jobs[:1], backbone, spec, LAYERS))
    assert len(only) == 1
    assert only[0].maps["layer1"].shape[0] == 0
    assert len(only[0].failed) == 1
    assert list(extract([], backbone, spec, LAYERS)) == []


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_values_beyond_the_stored_range_become_infinite(backbone, jobs, dtype, monkeypatch):
    spec = backbone.default_spec((64, 64), precision="float32", dtype=dtype)
    maps = backbone.maps

    def loud(*args):
        return {k: v * 1e6 for k, v in maps(*args).items()}

    monkeypatch.setattr(backbone, "maps", loud)
    (block,) = extract(jobs[:2], backbone, spec, LAYERS[:1])
    got = block.maps["layer1"]
    if dtype == "bfloat16":
        assert got.dtype == np.uint16
        got = torch.from_numpy(got.view(np.int16)).view(torch.bfloat16).float().numpy()
    assert np.isinf(got).any() == (dtype == "float16")
    assert np.nanmax(got) > 65504


def test_another_backbones_specification_is_refused(backbone, spec, jobs):
    other = load_backbone("resnet10t", untrained_seed=1)
    with pytest.raises(ConfigError, match="the specification is of"):
        list(extract(jobs, other, spec, LAYERS))


def test_decoding_goes_on_while_the_backbone_computes_with_little_in_memory(
    backbone, spec, jobs, monkeypatch, four_lanes
):
    load, lock = module._load, threading.Lock()
    started, loading, computing, overlaps = [], set(), set(), []

    def slow_load(*given):
        me = threading.get_ident()
        with lock:
            started.append(given[0])
            loading.add(me)
            overlaps.append(bool(computing))
        time.sleep(0.01)
        with lock:
            loading.discard(me)
        return load(*given)

    def slow_maps(batch, layers, precision):
        me = threading.get_ident()
        with lock:
            computing.add(me)
        time.sleep(0.01)
        with lock:
            computing.discard(me)
        return {"layer1": torch.zeros(len(batch), 64, 16, 16)}

    monkeypatch.setattr(module, "_load", slow_load)
    monkeypatch.setattr(backbone, "maps", slow_maps)
    many = jobs[:6] * 10
    row = 2 * 64 * 16 * 16
    blocks = extract(many, backbone, spec, LAYERS[:1], batch=1, block_bytes=8 * row)
    next(blocks)
    time.sleep(0.5)  # a slow consumer
    assert 8 < len(started) <= 8 + 8 + 4, "ran ahead of the consumer without bound, or not at all"
    assert sum(len(b.jobs) for b in blocks) == len(many) - 8
    assert sum(overlaps) > len(many) / 4


def test_tiles_are_what_their_place_shows_and_their_image_is_decoded_once(
    backbone, spec, jobs, monkeypatch, four_lanes
):
    spec, decoded = replace(spec, tiles=TileSpec(20, 4)), []
    real = module.decode_image
    monkeypatch.setattr(
        module,
        "decode_image",
        lambda data, name, **k: decoded.append(name) or real(data, name, **k),
    )
    rows = [Job(j.sha256, j.path, part) for j in jobs[:3] for part in range(1, 7)]  # of 32x40
    whole = together(extract(rows, backbone, spec, LAYERS[:1], batch=2), LAYERS[0])
    assert sorted(decoded) == sorted(str(j.path) for j in jobs[:3])
    for row, job in zip(whole, rows, strict=True):
        box = box_of(32, 40, spec.tiles, job.view)
        tile = preprocess(read_image(job.path)[box.inside], spec)
        assert np.array_equal(row, backbone.maps(tile[None], LAYERS[:1])["layer1"][0].half())
    alone = together(extract(rows[7:8], backbone, spec, LAYERS[:1]), LAYERS[0])
    assert np.array_equal(alone[0], whole[7])
    (block,) = extract([Job(jobs[0].sha256, jobs[0].path, 7)], backbone, spec, LAYERS[:1])
    assert "part 7 of an image of 32x40 pixels" in block.failed[0][1]


def test_a_tile_is_turned_as_an_image_of_its_own(spec, jobs):
    spec = replace(spec, tiles=TileSpec(20, 4), views=ViewSpec(count=2))
    image = read_image(jobs[0].path)
    one, other = (row_of(image, "ab" * 32, number, spec) for number in (3, 4))  # of tile 1
    tile = image[:20, :20]
    assert np.array_equal(one, make_view(tile, "ab" * 32 + "#1", 1, spec.views))
    assert np.array_equal(other, make_view(tile, "ab" * 32 + "#1", 2, spec.views))


def test_nothing_is_at_work_after_leaving_early(backbone, spec, jobs):
    blocks = extract(jobs * 20, backbone, spec, LAYERS, batch=1, block_bytes=1)
    next(blocks)
    blocks.close()
    calls = backbone.calls
    time.sleep(0.2)
    assert backbone.calls == calls < len(jobs) * 20
