"""Lanes: the same maps whatever runs beside them."""

from __future__ import annotations

import threading

import pytest
import torch

from tests.features.nets import layers


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_maps_do_not_depend_on_the_company_or_the_threads(backbone, precision):
    images = torch.randn(11, 3, 64, 64)
    wanted = layers("layer2", "layer3@0.5")
    whole = backbone.maps(images, wanted, precision)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        turned = backbone.maps(images.flip(0), wanted, precision)
        torch.set_num_threads(1)
        single = backbone.maps(images[3:4], wanted, precision)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    for name, maps in whole.items():
        assert torch.equal(maps, turned[name].flip(0))
        assert torch.equal(maps[3:4], single[name])


def test_threads_share_a_backbone(backbone):
    x = torch.randn(4, 3, 64, 64)
    want = {n: backbone.maps(x, layers(n))[n] for n in ("layer1", "layer2", "layer3")}
    wrong = []

    def work(name: str) -> None:
        for _ in range(5):
            if not torch.equal(backbone.maps(x, layers(name))[name], want[name]):
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(n,)) for n in want]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
