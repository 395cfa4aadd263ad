"""Parameters and multiply-accumulates per image of every head at its paper's shapes.

    python -m benchmarks.head_costs [--json] [--head NAME ...]

Nothing is computed: heads and backbones are built on torch's `meta` device and PyTorch's own
`FlopCounterMode` counts the convolutions and matrix products of one image's way to its latents (two
floating-point operations are one multiply-accumulate). A backbone counts up to the last node read.
What a gallery adds, positions x members x channels, depends on the images and is not in the table.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from heads.catalogue import all_heads, get_head, make_config
from heads.contract import Head, Reference
from heads.flow.flow_head import FlowHead
from heads.pairs.source import CURRENT, HISTORY
from heads.parts.elementary import Permute
from headwater.spec import LayerSpec


@dataclass(frozen=True)
class Case:
    """One head at its paper's shapes.

    Parameters
    ----------
    reference
        Backbone, size and maps, as the head declares them.
    paper
        The published figure, as published.
    """

    reference: Reference
    paper: str = ""

    @property
    def layers(self) -> list[LayerSpec]:
        """The layers read."""
        return [LayerSpec.parse(name) for name in self.reference.shapes]

    @property
    def last(self) -> str:
        """The last node read."""
        return self.layers[-1].nodes[-1]

    @property
    def scales(self) -> list[float]:
        """Image scales that the backbone runs at."""
        return sorted({layer.scale for layer in self.layers}, reverse=True)


PAPERS = {
    "cs_flow": "275.2 M, 62.3 G (DNFAD, table 4)",
    "csa_flow": "none given",
    "dual_flow": "82.3 M, 45.8 G (table 4)",
    "f2r": "80.72 M, 43.27 G with backbone (table 6)",
    "fast_flow": "41.3 M (its own); 82.63 M, 46.25 G with backbone (F2R, table 6)",
    "gca_flow": "532 MiB (figure 6)",
    "ms_flow": "401 MiB (GCAFlow, figure 6)",
    "pair_diff": "none given",
    "pair_flow": "ours",
    "patchcore": "24.86 M, 9.23 G (F2R, table 6)",
    "padim": "24.86 M, 9.23 G (F2R, table 6)",
}


def cases() -> dict[str, Case]:
    """Return the heads that say what they are measured at."""
    return {
        name: Case(head.reference, PAPERS.get(name, "none given"))
        for name, head in all_heads().items()
        if head.reference is not None
    }


@dataclass(frozen=True)
class Cost:
    """What a head costs; counts are of one image.

    Parameters
    ----------
    parameters, macs
        Trainable parameters and multiply-accumulates of the head.
    mib
        Trainable weights and permutations in float32, the permutations as FrEIA saves them: two
        CxC matrices each. (Ours are saved as C integers.)
    backbone_parameters, backbone_macs
        Of the backbone up to the last node.
    paper
        The published figure.
    """

    parameters: int
    macs: int
    mib: float
    backbone_parameters: int
    backbone_macs: int
    paper: str


def counted(work: Callable[[], Any]) -> int:
    """Return the multiply-accumulates of `work`."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() // 2


class _ReachedError(Exception):
    """The last node has run."""


@contextlib.contextmanager
def _watched(net: nn.Module, last: str, seen: dict[str, int]) -> Iterator[None]:
    """Note the parameters of all modules that run, and stop behind `last`."""

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, _: Any) -> None:
            seen[name] = sum(p.numel() for p in module.parameters(recurse=False))

        return hook

    def stop(*_: Any) -> None:
        raise _ReachedError

    hooks = [m.register_forward_pre_hook(note(n)) for n, m in net.named_modules()]
    hooks.append(net.get_submodule(last).register_forward_hook(stop))
    try:
        yield
    except _ReachedError:
        pass
    finally:
        for hook in hooks:
            hook.remove()


def backbone_cost(case: Case) -> tuple[int, int]:
    """Return parameters and multiply-accumulates of the backbone up to its last node."""
    if not case.reference.backbone:
        return 0, 0
    with torch.device("meta"):
        net = timm.create_model(case.reference.backbone, pretrained=False).eval()
        seen: dict[str, int] = {}

        def run() -> None:
            for scale in case.scales:
                side = round(case.reference.pixels * scale)
                with _watched(net, case.last, seen):
                    net(torch.empty(1, 3, side, side))

        macs = counted(run)
    return sum(seen.values()), macs


def _way_to_scores(head: Head, batch: dict[str, Tensor]) -> None:
    """Do what scoring does up to the latents (or the logits)."""
    if head.name == "pair_diff":
        sides = (CURRENT, HISTORY)
        head.logits({f"{s}{k}": v for s in sides for k, v in batch.items()})  # type: ignore[operator]
    elif isinstance(head, FlowHead):
        z, _ = head.latent(batch)
        if head.name == "f2r":  # it scores what it maps back
            head.reverse(z)


def cost(name: str) -> Cost:
    """Return what a head costs at its paper's shapes."""
    case = cases()[name]
    at = case.reference
    config = make_config(name, at.settings)
    # F2R works out matrices on the processor while it is built, which `meta` does not allow.
    with FakeTensorMode() if name == "f2r" else torch.device("meta"):
        head = get_head(name)(config, at.shapes, (at.pixels, at.pixels)).eval()
        batch = {k: torch.empty(1, *s) for k, s in at.shapes.items()}
        with torch.no_grad():
            _way_to_scores(head, batch)  # what a head works out once is no image's cost
        macs = counted(lambda: _way_to_scores(head, batch))
    permutations = sum(2 * m.channels**2 for m in head.modules() if isinstance(m, Permute))
    if name in ("gca_flow", "ms_flow"):
        # FrEIA's permutation in front of the fusion is saved as indices.
        permutations -= sum(2 * s[0] ** 2 for s in at.shapes.values())
    parameters = head.parameters_count()
    return Cost(
        parameters,
        macs,
        (parameters + permutations) * 4 / 2**20,
        *backbone_cost(case),
        case.paper,
    )


def table(costs: dict[str, Cost]) -> str:
    """Return the costs as a Markdown table."""
    rows = [
        "| head | input | parameters | weights + permutations | MACs | backbone | MACs | paper |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for name, c in costs.items():
        at = cases()[name].reference
        where = f"{at.backbone or 'own encoder'}, {at.pixels} px"
        rows.append(
            f"| `{name}` | {where} | {c.parameters / 1e6:.2f} M | {c.mib:.1f} MiB "
            f"| {c.macs / 1e9:.2f} G | {c.backbone_parameters / 1e6:.2f} M "
            f"| {c.backbone_macs / 1e9:.2f} G | {c.paper} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Print the table of all registered heads (or those named)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--head", nargs="+", default=list(all_heads()))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    known = cases()
    missing = [n for n in options.head if n not in known]
    costs = {n: cost(n) for n in options.head if n in known}
    if options.json:
        print(json.dumps({n: asdict(c) for n, c in costs.items()}, indent=1))
    else:
        print(table(costs))
    if missing:
        print(f"no paper's shapes are known here for: {', '.join(missing)}")


if __name__ == "__main__":
    main()
