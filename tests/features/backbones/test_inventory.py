"""What a net has to offer, and what is said of a node that it lacks."""

from __future__ import annotations

import pytest
import torch

from headwater.errors import ConfigError, LayerError
from tests.features.nets import layers


def test_missing_nodes_are_named_with_their_neighbours(backbone):
    with pytest.raises(LayerError, match=r"no node 'layer9'[\s\S]*layer1, layer2, layer3, layer4"):
        backbone.check_weights(layers("layer9"))
    with pytest.raises(LayerError, match=r"near it:.*layer3\.0\.conv1"):
        backbone.maps(torch.zeros(1, 3, 64, 64), layers("layer3.0.conv9"))
    with pytest.raises(LayerError, match="no map"):
        backbone.shapes(layers("fc"), (64, 64))
    with pytest.raises(LayerError, match="cannot be summed"):
        backbone.shapes(layers("layer2+layer3~sum"), (64, 64))
    with pytest.raises(LayerError, match="no final norm"):
        backbone.shapes(layers("layer3~norm"), (64, 64))
    with pytest.raises(ConfigError, match="odd"):
        backbone.shapes(layers("layer3~mean2"), (64, 64))
