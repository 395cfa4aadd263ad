"""Which images are held out."""

import pytest

from heads.training.splits import split_held_out
from headwater.errors import DataError


def test_the_held_out_split_is_stable_as_images_arrive() -> None:
    ids = [f"{i:064x}" for i in range(400)]
    _, held = split_held_out(ids)
    assert 20 <= len(held) <= 60
    chosen = {ids[r] for r in held}
    few, later = ids[100:300], ids + [f"new{i}" for i in range(300)]
    assert {few[r] for r in split_held_out(few)[1]} == chosen & set(few)
    assert {later[r] for r in split_held_out(later)[1]} & set(ids) == chosen
    # Views stay with their image, whatever the order.
    train_rows, held_rows = split_held_out(ids[::-1] + ids)
    assert sorted(train_rows + held_rows) == list(range(800))
    assert {(ids[::-1] + ids)[r] for r in held_rows} == chosen
    assert len(held_rows) == 2 * len(chosen)


@pytest.mark.parametrize(("count", "expected"), [(2, 1), (3, 1), (4, 2), (5, 2)])
def test_few_images_are_split_so_that_both_sides_have_some(count: int, expected: int) -> None:
    train_rows, held = split_held_out([f"i{k}" for k in range(count)])
    assert (len(train_rows), len(held)) == (count - expected, expected)


def test_one_image_cannot_be_split() -> None:
    with pytest.raises(DataError, match="1 normal image"):
        split_held_out(["a", "a"])
