"""The smallest sensible instance of each head, for the contract tests.

A new head adds one entry; `test_contract.py` and its like do the rest. Keep a training under a
second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from heads.catalogue import get_head, make_config
from heads.contract import Batch, FeatureSource, Head, Shape
from heads.flow.flow_head import FlowHead
from heads.training.sources import TensorSource
from tests.heads.pairs.tiny import pair_source


@dataclass(frozen=True)
class Tiny:
    """A head's tiny instance.

    Parameters
    ----------
    config
        Settings over the head's defaults.
    shapes
        Maps per layer; odd channel numbers and maps that are not square are worth having.
    map_size
        Of the anomaly maps.
    rows
        Training images.
    views
        Views per image that the head trains on beside the plain one.
    source
        Makes the training source from (rows, seed) where `structured` does not do (pairs, labels).
    switches
        Other values of settings, each of which must change the scores and no structure. For those
        that change structure `test_switches.py` has a table of its own.
    """

    config: dict[str, Any]
    shapes: dict[str, Shape]
    map_size: tuple[int, int] = (16, 16)
    rows: int = 12
    views: int = 0
    source: Callable[[int, int], FeatureSource] | None = None
    switches: dict[str, Any] = field(default_factory=dict)

    def data(self, seed: int = 0, rows: int | None = None) -> FeatureSource:
        """Return `rows` normal images' features."""
        count = rows or self.rows
        if self.source is not None:
            return self.source(count, seed)
        return structured(self.shapes, count, seed, self.views)


def structured(shapes: dict[str, Shape], rows: int, seed: int, views: int = 0) -> TensorSource:
    """Return positive, correlated maps, as a ReLU backbone's are."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.Generator().manual_seed(1234)  # the same law for every seed
    total = rows * (1 + views)
    maps = {}
    for name, (c, h, w) in shapes.items():
        mix = torch.randn(c, max(1, c // 2), generator=mixing)
        hidden = torch.randn(total, max(1, c // 2), h, w, generator=generator)
        noise = torch.randn(total, c, h, w, generator=generator)
        maps[name] = torch.nn.functional.softplus(
            torch.einsum("ck,bkhw->bchw", mix, hidden) + 0.3 * noise
        )
    ids = [f"{seed}-{i}" for i in range(rows) for _ in range(1 + views)]
    return TensorSource(maps, ids, [v for _ in range(rows) for v in range(1 + views)])


def build(name: str, **settings: Any) -> Head:
    """Return the head's tiny instance, not fitted."""
    tiny = TINY[name]
    config = make_config(name, {**tiny.config, **settings})
    return get_head(name)(config, tiny.shapes, tiny.map_size)


def shake(module: nn.Module, size: float = 0.3) -> nn.Module:
    """Move every weight away from its start, so that nothing is nearly the identity."""
    generator = torch.Generator().manual_seed(7)
    for p in module.parameters():
        p.data.add_(size * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return module


def check_log_determinant(head: FlowHead, batch: Batch, rows: Sequence[int]) -> Tensor:
    """Compare `latent`'s log-determinant of these rows with autograd's; return it, ``[B]``."""
    _, claimed = head.latent(batch)
    for row in rows:
        inputs = [x[row : row + 1] for x in head.inputs(batch)]
        sizes, shapes = [x.numel() for x in inputs], [x.shape for x in inputs]

        def latent(flat: Tensor, sizes: list[int] = sizes, shapes: list[Any] = shapes) -> Tensor:
            maps = [x.view(shape) for x, shape in zip(flat.split(sizes), shapes, strict=True)]
            return torch.cat([z.flatten() for z in head.latent_of(maps)[0]])

        flat = torch.cat([x.flatten() for x in inputs])
        jacobian = torch.autograd.functional.jacobian(latent, flat, vectorize=True)
        assert jacobian.shape == (len(flat), len(flat))
        truth = torch.linalg.slogdet(jacobian)[1]
        torch.testing.assert_close(claimed[row], truth, rtol=1e-8, atol=1e-8)
    return claimed


PYRAMID = {"n": (6, 4, 6), "n@0.5": (6, 2, 3), "n@0.25": (6, 1, 2)}
PAIR_LEVELS = {"one": (3, 4, 6), "two": (5, 2, 3)}
CROSS_SCALE = {"hidden": 8, "kernels": (3, 5), "epochs": 12, "lr": 5e-3, "batch_size": 5}

STAGES = {"s1": (6, 6, 4), "s2": (8, 3, 2), "s3": (9, 2, 2)}
MULTI_SCALE = {"position_channels": 4, "kernel": 3, "warmup_epochs": 0.0, "lr": 5e-3}
MULTI_SCALE |= {"blocks": (1, 2, 2), "epochs": 8, "batch_size": 5}
BRIEF = {"lr": 5e-3, "epochs": 8, "batch_size": 5}

TINY: dict[str, Tiny] = {
    "cs_flow": Tiny(CROSS_SCALE, PYRAMID),
    "csa_flow": Tiny({**CROSS_SCALE, "reduction": 4, "standardise": True}, PYRAMID),
    "pair_diff": Tiny(
        {
            "layers": 1, "heads": 2, "embedding": 8, "mlp": 8, "width": 4, "epochs": 4, "lr": 5e-3,
        },
        PAIR_LEVELS,
        source=lambda rows, seed: pair_source(PAIR_LEVELS, rows, seed),
    ),
    "pair_flow": Tiny(
        {"steps": 2, "epochs": 10, "batch_size": 6, "lr": 5e-3},
        PAIR_LEVELS,
        source=lambda rows, seed: pair_source(PAIR_LEVELS, rows, seed, changed=False),
    ),
    "gca_flow": Tiny({**MULTI_SCALE, "expansion": 2}, STAGES),
    "ms_flow": Tiny({**MULTI_SCALE, "standardise": True}, STAGES),
    # of the first layer all channels are read, of the others seven
    "fast_flow": Tiny({**BRIEF, "steps": 3, "channels": 7}, STAGES),
    "dual_flow": Tiny({**BRIEF, "layers": 2, "standardise": True}, {"m": (7, 4, 3)}),
    "patchcore": Tiny({"ratio": 0.5}, {"m": (7, 4, 3)}, switches={
        "ratio": 0.2, "limit": 5, "projection": 2, "sigma": 0.0,
    }),
    "padim": Tiny({"channels": 5}, {"m": (7, 4, 3)}, switches={"ridge": 1.0, "sigma": 0.0}),
    "subspace": Tiny({}, {"m": (7, 4, 3)}, switches={"variance": 0.5, "sigma": 0.5}),
    "f2r": Tiny(
        # gamma 1: at the paper's 0.001 the other losses may cost likelihood
        {
            "steps": 2, "epochs": 16, "batch_size": 5, "lr": 5e-3, "ratio": 0.5, "views": 1,
            "gamma": 1.0, "factorize": "always",
        },
        {"m": (7, 4, 3)},
        views=1,
    ),
}  # fmt: skip
