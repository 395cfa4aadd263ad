"""Made defects are the same for every model, lie where it looks, and are counted as it says."""

import numpy as np
import pytest
from skimage import data

from features.images.made.defects import KINDS, made_defects
from flows.use.models.made import made_recall, part_seen
from headwater.errors import DataError
from headwater.spec import ExtractorSpec

NORMALS = [data.brick()[:96, i * 60 : i * 60 + 128] for i in range(4)]


class Says:
    """Calls what differs from the normals by more than so many pixels."""

    own_regions, region = False, None

    def __init__(self, more=0, **spec):
        self.spec = ExtractorSpec("net", "0" * 64, **{"resize": (32, 32), **spec})
        self.more, self.seen = more, []

    def predict(self, images, rois=None):
        self.seen += list(images)
        return [self.one(image) for image in images]

    def one(self, image):
        changed = min(int((image != normal).sum()) for normal in NORMALS)
        return type("Prediction", (), {"score": changed, "threshold": self.more})()


def test_what_is_called_is_counted_by_kind_and_the_normals_too():
    wise, blind, wild = Says(), Says(10**9), Says(-1)
    told = []
    found = made_recall(wise, NORMALS, 13, 4, each=lambda *one: told.append(one))
    assert (found.recall, found.made, found.normals) == (1.0, 13, (0, 4))
    assert found.kinds == {k: (3, 3) if i < 3 else (2, 2) for i, k in enumerate(KINDS)}
    assert [n for n, _, _ in told] == list(range(13))
    for (_, one, _), same in zip(told, made_defects(NORMALS, 13, 4), strict=True):
        assert np.array_equal(one.image, same.image)
    assert made_recall(blind, NORMALS, 13, 4).recall == 0
    assert made_recall(wild, NORMALS, 13, 4).normals == (4, 4)
    assert all(np.array_equal(a, b) for a, b in zip(wise.seen, blind.seen, strict=True))
    some = made_recall(Says(300), NORMALS, 13, 4)
    assert 0 < some.found < 13
    assert some.to_json()["made_recall"] == some.found / 13
    with pytest.raises(DataError, match="no normal"):
        made_recall(wise, [], 3, 0)


def test_defects_lie_in_what_a_crop_leaves_and_in_the_region():
    model = Says(crop=(16, 16))
    seen = part_seen(96, 128, model.spec)
    assert np.argwhere(seen).min(0).tolist() == [24, 32]
    assert np.argwhere(seen).max(0).tolist() == [71, 95]
    model.region = np.zeros((96, 128), bool)
    model.region[:, :64] = True
    made_recall(model, NORMALS[:1], 10, 1)
    for image in model.seen[:10]:
        rows, columns = np.nonzero(image != NORMALS[0])
        assert 24 <= rows.min() <= rows.max() <= 71
        assert 32 <= columns.min() <= columns.max() <= 63
    assert part_seen(96, 128, ExtractorSpec("net", "0" * 64, resize=(32, 32))).all()
    wide = part_seen(96, 128, ExtractorSpec("n", "0" * 64, resize=(32, 32), fitting="crop"))
    assert 97 >= wide.all(0).sum() >= 96
    assert part_seen(96, 128, ExtractorSpec("n", "0" * 64, resize=(32, 32), fitting="fit")).all()
