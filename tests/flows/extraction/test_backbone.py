"""Which arithmetic a set's features are in, once and for all."""

from types import SimpleNamespace

from flows.extraction.backbone import settle_precision
from flows.runtime.home import Home


def test_the_first_arithmetic_of_a_set_is_that_of_commands_that_name_none(tmp_path):
    home = Home.at(tmp_path / "home")
    net = SimpleNamespace(name="n", weights_id="w", best_precision=lambda: "bfloat16")
    assert settle_precision(net, "float32", home, "given") == "float32"
    assert settle_precision(net, "auto", home, "given") == "float32"
    assert settle_precision(net, "bfloat16", home, "given") == "bfloat16"  # asked for, this time
    assert settle_precision(net, "auto", home, "given") == "float32"
    assert settle_precision(net, "auto", home, "measured") == "bfloat16"
    assert settle_precision(net, "float32", home, "measured") == "float32"
    assert settle_precision(net, "auto", home, "measured") == "bfloat16"
