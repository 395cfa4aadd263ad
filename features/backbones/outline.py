"""What a net is like before any weights are at hand: its stages, its parameters, what it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from features.backbones.backbone import Backbone
from features.backbones.inventory import native_size, whole_patches
from features.backbones.network import build_net
from headwater.errors import ConfigError
from headwater.spec import DEFAULT_SIZE, LayerSpec

#: What stands for the weights of a net that has none.
NO_WEIGHTS = "none"


@dataclass(frozen=True)
class Outline:
    """A net without numbers.

    Parameters
    ----------
    backbone
        Its `info` and `shapes` are the net's; its maps hold nothing.
    parameters
        Number of them, of the whole net.
    size
        ``(height, width)`` in pixels: the default size where the net takes it, else one near it
        of whole patches, else what it was made for.
    """

    backbone: Backbone
    parameters: int
    size: tuple[int, int]


def outline(name: str, options: Mapping[str, Any] | None = None) -> Outline:
    """Return what a net is like, without computing: it is built on torch's ``meta`` device.

    The few nets that compute while they are built, or by what they have computed, are built truly,
    with random weights.

    Parameters
    ----------
    name
        timm model name.
    options
        As of `load_backbone`.

    Raises
    ------
    ConfigError
        An unknown model or option.

    Examples
    --------
    >>> net = outline("resnet10t")
    >>> net.backbone.info.strides, net.parameters, net.size
    ((2, 4, 8, 16, 32), 5435488, (256, 256))
    """
    options = dict(options or {})
    try:
        with torch.device("meta"):
            net = build_net(name, options)
        return _outlined(net, name, options, "meta")
    # Numbers that are asked for are an error of no particular kind; a real mistake comes again.
    except Exception:
        return _outlined(build_net(name, options), name, options, "cpu")


def _outlined(net: nn.Module, name: str, options: dict[str, Any], device: str) -> Outline:
    backbone = Backbone(net, name, NO_WEIGHTS, options, device=device)
    parameters = sum(p.numel() for p in net.parameters())
    usual = (DEFAULT_SIZE, DEFAULT_SIZE)
    last = tuple(LayerSpec((stage,)) for stage in backbone.info.stages[-1:])
    for size in (usual, whole_patches(net, usual)):
        try:
            if size and backbone.shapes(last, size):
                return Outline(backbone, parameters, size)
        except ConfigError:
            continue
    return Outline(backbone, parameters, native_size(net))
