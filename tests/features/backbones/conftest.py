"""The small net with weights from a file, loaded once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from features.backbones.backbone import load_backbone
from tests.features.nets import NET, state_of


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """A weight file of the small net."""
    path = tmp_path_factory.mktemp("weights") / f"{NET}.whole.safetensors"
    save_file(state_of(), path)
    return path


@pytest.fixture(scope="session")
def backbone(weights):
    return load_backbone(NET, weights)


@pytest.fixture(scope="module")
def batch() -> torch.Tensor:
    return torch.randn(5, 3, 64, 96, generator=torch.Generator().manual_seed(0))
