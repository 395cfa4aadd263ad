"""A region for a whole set that cannot be used is refused with what is wrong with it."""

import numpy as np
import pytest
from PIL import Image

from flows.extraction.regions import check_region
from headwater.errors import DataError
from storage.store.table import ImageRow


def test_a_region_that_cannot_be_used_says_what_to_do(tmp_path):
    row = ImageRow("0" * 64, "train/good/0.png", "train", "good", "", width=64, height=64)
    given = tmp_path / "roi.png"
    given.write_text("no picture")
    with pytest.raises(DataError, match=r"not an image(.|\n)*draw it over one of the images"):
        check_region(given, [row])
    for pixels, said in (
        (np.zeros((64, 64)), "is black.*\n.*\n.*draw it over"),
        (np.full((64, 32), 255), "64x32 pixels and the image 64x64.*\n.*\n.*each shape"),
    ):
        Image.fromarray(pixels.astype(np.uint8)).save(given)
        with pytest.raises(DataError, match=said):
            check_region(given, [row])
    Image.fromarray(np.eye(64, dtype=np.uint8) * 255).save(given)
    assert len(check_region(given, [row])) == 64
