"""Which arithmetic is chosen here."""

from __future__ import annotations

import time

from features.backbones import precision as precision_module


def test_the_precision_is_what_the_hardware_and_a_measurement_say(backbone, monkeypatch):
    monkeypatch.setattr(precision_module, "_BEST", {})
    monkeypatch.setattr(precision_module, "_cpu_has_bfloat16", lambda: False)
    calls = backbone.calls
    assert backbone.best_precision() == "float32"
    monkeypatch.setattr(precision_module, "_cpu_has_bfloat16", lambda: True)
    assert backbone.best_precision() == "float32", "remembered for the process"
    for slower in ("float32", "bfloat16"):
        monkeypatch.setattr(precision_module, "_BEST", {})
        maps = type(backbone).maps

        def slow(self, batch, wanted, precision, slower=slower, maps=maps):
            if precision == slower:
                time.sleep(0.2)
            return maps(self, batch[:1, :, :32, :32], wanted, precision)

        with monkeypatch.context() as patch:
            patch.setattr(type(backbone), "maps", slow)
            assert backbone.best_precision() == ({"float32", "bfloat16"} - {slower}).pop()
    assert backbone.calls == calls
