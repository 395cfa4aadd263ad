"""A manifest that is not as it was saved is refused by one error, whatever was done to it."""

import copy
import json
import math
import random
import shutil

import pytest

from headwater.errors import ModelError
from storage.serving.detector import Detector
from storage.serving.manifest import MANIFEST, UNSEALED, read_manifest, seal_of

#: What a value may become.
JUNK = [None, True, -1, 0, 3, 1e9, -0.5, 10**30, "", "x", "\ud800", [], {}, [[1]], [None], {"a": 1}]
#: Text that JSON or Python's reading of it has, and no model.
TEXTS = ["NaN", "Infinity", "-Infinity", "1e999", "[" * 50_000, "1" * 5000, '{"a":' * 50_000]


@pytest.fixture(scope="module")
def manifest(every):
    folder = every["patchcore"][1] / "artifacts"
    return json.loads((folder / MANIFEST).read_text())


def places(value, path=()):
    """Yield the paths of all values inside."""
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield (*path, key)
            yield from places(value[key], (*path, key))


def mutated(manifest, draw):
    """Return a manifest with one to three values replaced, taken out, doubled or renamed."""
    made = copy.deepcopy(manifest)
    for _ in range(draw.randint(1, 3)):
        *way, last = draw.choice(list(places(made)))
        holder = made
        for key in way:
            holder = holder[key]
        how = draw.random()
        if how < 0.6:
            holder[last] = copy.deepcopy(draw.choice(JUNK))
        elif how < 0.8:
            del holder[last]
        elif isinstance(holder, dict):
            holder[f"{last}_"] = holder.pop(last)
        else:
            holder.append(holder[last])
    return made


def unsealed(manifest):
    """Return it as models of before have it."""
    old = copy.deepcopy(manifest) | {"format_version": UNSEALED}
    del old["sha256"][MANIFEST]
    return old


def read(text):
    return read_manifest(text if isinstance(text, bytes) else text.encode(errors="replace"), "m")


def test_every_change_of_a_sealed_manifest_is_seen(manifest):
    assert manifest["format_version"] > UNSEALED
    assert read(json.dumps(manifest)) == manifest
    draw = random.Random(0)
    for _ in range(400):
        other = mutated(manifest, draw)
        if json.dumps(other) == json.dumps(manifest):
            continue
        with pytest.raises(ModelError):
            read(json.dumps(other))
    threshold = copy.deepcopy(manifest)
    threshold["calibration"]["threshold"] = 1e9
    with pytest.raises(ModelError, match="its hash is another"):
        read(json.dumps(threshold))
    # A head reads its layers in the order of its shapes, so that order is part of it.
    turned = dict(reversed(manifest.items()))
    with pytest.raises(ModelError, match="its hash is another"):
        read(json.dumps(turned))


def test_what_is_no_manifest_at_all(manifest):
    text = json.dumps(manifest)
    whole = text.replace(repr(manifest["calibration"]["threshold"]), "HERE", 1)
    assert whole != text
    for bad in ["", "[]", "3", "null", text[:-1], text * 2, text.encode("utf-16"), b"\xff" + b"{}"]:
        with pytest.raises(ModelError):
            read(bad)
    for junk in TEXTS:
        with pytest.raises(ModelError):
            read(whole.replace("HERE", junk))
    draw = random.Random(1)
    for _ in range(300):
        data = bytearray(text.encode())
        at = draw.randrange(len(data))
        data[at] ^= 1 << draw.randrange(8)
        with pytest.raises(ModelError):
            read(bytes(data))


def test_one_of_before_opens_or_is_refused_by_the_same_error(manifest):
    old = unsealed(manifest)
    assert read(json.dumps(old)) == old
    draw, opened = random.Random(2), 0
    for _ in range(600):
        try:
            got = read(json.dumps(mutated(old, draw)))
        except ModelError:
            continue
        opened += 1
        numbers = [got["calibration"][k] for k in ("threshold", "target_fpr", "attained_fpr")]
        assert all(isinstance(n, int | float) and math.isfinite(n) for n in numbers)
        assert all(
            0 < side <= 1 << 16 for shape in got["head"]["shapes"].values() for side in shape
        )
    assert opened > 20  # values that nobody can check: names, facts, other thresholds
    # Of a newer version, and with a hash that is not its own.
    for change in ({"format_version": 3}, {"format_version": 2}, {"format_version": True}):
        with pytest.raises(ModelError):
            read(json.dumps(old | change))
    sealed = old | {"sha256": {**old["sha256"], MANIFEST: "0" * 64}}
    with pytest.raises(ModelError, match="hash"):
        read(json.dumps(sealed))


@pytest.mark.parametrize(
    ("way", "value"),
    [
        (("spec", "backbone"), "resnet999"),
        (("spec", "resize"), [0, -3]),
        (("spec",), {}),
        (("layers",), ["layer9"]),
        (("head", "name"), "no_such_head"),
        (("head", "config"), {"ratio": "x"}),
        (("head", "shapes"), {"layer1": [3, 3, 3]}),
        (("head", "shapes"), {"layer1~mean3": [60_000, 60_000, 60_000]}),
        (("calibration", "scores"), [2.0, "x"]),
        (("region",), "no base64!"),
    ],
)
def test_what_does_not_fit_together_is_the_same_error(every, manifest, way, value, tmp_path):
    shutil.copytree(every["patchcore"][1] / "artifacts", tmp_path / "m")
    other = unsealed(manifest)
    holder = other
    for key in way[:-1]:
        holder = holder[key]
    holder[way[-1]] = value
    for made in (other, other | {"format_version": 2}):
        if made["format_version"] == 2:  # whoever can write can seal
            made["sha256"] = {**made["sha256"], MANIFEST: seal_of(made)}
        (tmp_path / "m" / MANIFEST).write_text(json.dumps(made))
        with pytest.raises(ModelError):
            Detector.load(tmp_path / "m", device="cpu")
