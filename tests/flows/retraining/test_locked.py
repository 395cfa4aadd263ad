"""What judges models is locked by contents, and a damaged lock is no empty one."""

import shutil

import pytest

from flows.retraining.locked import lock, locked_test
from flows.use.delete import plan_deletion
from headwater.errors import DataError


def test_a_lock_holds_what_was_there_and_is_renewed_by_hand_alone(small):
    small.run()
    assert locked_test(small.home, "s") is None
    first, before = lock(small.home, "s", "Ada")
    assert (first.kinds, first.who, before) == ({"good": 2, "x": 1}, "Ada", None)
    small.draw(31, "test/x")
    small.run()
    assert locked_test(small.home, "s") == first
    second, before = lock(small.home, "s")
    assert (second.kinds, before) == ({"good": 2, "x": 2}, first)
    assert second.digest != first.digest
    file = small.home.root / "locked/s.json"
    for damage in ("{", "[]", '{"images": {}}'):
        file.write_text(damage)
        with pytest.raises(DataError, match="headwater lock s locks anew"):
            locked_test(small.home, "s")
    assert lock(small.home, "s")[0].images == second.images
    plan_deletion(small.home, "s").run()
    assert not file.exists()


def test_a_set_without_test_images_has_nothing_to_lock(small):
    shutil.rmtree(small.images / "test")
    small.run()
    with pytest.raises(DataError, match="no test images to lock"):
        lock(small.home, "s")
