"""A small net with weights that are not its initial ones, for tests of backbones."""

from __future__ import annotations

import torch

from headwater.spec import LayerSpec

NET = "resnet10t"


def layers(*names: str) -> tuple[LayerSpec, ...]:
    return tuple(LayerSpec.parse(n) for n in names)


def state_of(name: str = NET, **options: object) -> dict[str, torch.Tensor]:
    import timm

    torch.manual_seed(1)
    net = timm.create_model(name, pretrained=False, **options)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            # Away from the initial values, so that forgetting one shows.
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return {k: v.contiguous() for k, v in net.state_dict().items()}
