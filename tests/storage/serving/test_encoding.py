"""Images and maps as text."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from headwater.errors import ImageError
from storage.serving.encoding import decode_base64, decode_map, encode_image, encode_map
from tests.storage.serving.conftest import IMAGES


def test_images_are_taken_as_base64_and_nothing_else():
    png = base64.b64decode(encode_image(IMAGES[0]))
    for form in (png, encode_image(IMAGES[0]), "data:image/png;base64," + encode_image(IMAGES[0])):
        assert decode_base64(form, "x") == png
    file = io.BytesIO()
    Image.new("L", (20, 20)).save(file, "JPEG")
    folded = base64.encodebytes(file.getvalue()).decode()
    assert decode_base64(folded, "x") == file.getvalue()
    for bad in (None, 3, "é", "a b c!"):
        with pytest.raises(ImageError, match="base64"):
            decode_base64(bad, "x")


def test_maps_come_back():
    flat = np.full((4, 5), 2.5, np.float32)
    row = {"map": encode_map(flat), "map_low": 2.5, "map_high": 2.5}
    assert np.array_equal(decode_map(row), flat)
    with pytest.raises(ImageError, match="without a map"):
        decode_map({"map": ""})
