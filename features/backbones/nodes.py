"""A net run as far as is asked: outputs by module name, and which weights they depend on."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headwater.errors import LayerError
from headwater.spec import LayerSpec


class _ReachedError(Exception):
    """Ends a forward when all that was asked has been seen."""


@dataclass
class _Watch:
    wanted: frozenset[str]
    got: dict[str, Tensor]


@dataclass(frozen=True)
class Visit:
    """How a module took part in one whole forward: number of runs, last output's shape or None."""

    runs: int
    shape: tuple[int, ...] | None


@dataclass(frozen=True)
class Dependencies:
    """What a node's output depends on: names of parameters and buffers, and of modules that ran."""

    tensors: frozenset[str]
    modules: frozenset[str]


class Nodes:
    """Gives the outputs of a net's modules and runs nothing behind the last one asked for.

    Threads may share it: what is being watched belongs to the calling thread.

    Parameters
    ----------
    net
        In evaluation mode.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self._modules: dict[str, nn.Module] = {
            k: v for k, v in net.named_modules(remove_duplicate=False) if k
        }
        self._hooked: set[str] = set()
        self._lock = threading.Lock()
        self._here = threading.local()

    @property
    def names(self) -> list[str]:
        """Names of all modules, in the order in which the net holds them."""
        return list(self._modules)

    def hook(self, nodes: Iterable[str]) -> None:
        """Prepare `run` for these nodes; call it before threads share the net."""
        with self._lock:
            for node in set(nodes) - self._hooked:
                self._modules[node].register_forward_hook(partial(self._seen, node))
                self._hooked.add(node)

    def run(self, x: Tensor, nodes: Iterable[str]) -> dict[str, Tensor]:
        """Return the float32 outputs of `nodes` as the modules give them.

        Parameters
        ----------
        x
            Input of the net.
        nodes
            Module names, each of which runs once in a forward.
        """
        wanted = frozenset(nodes)
        self.hook(wanted)
        watch = _Watch(wanted, {})
        self._here.watch = watch
        try:
            self.net(x)
        except _ReachedError:
            pass
        finally:
            self._here.watch = None
        if len(watch.got) < len(wanted):
            lacking = ", ".join(sorted(wanted - set(watch.got)))
            raise LayerError(f"node {lacking} does not run", expected="a module the forward uses")
        return watch.got

    def _seen(self, node: str, module: nn.Module, args: Any, output: Any) -> None:
        watch: _Watch | None = getattr(self._here, "watch", None)
        if watch is None:
            return
        if node not in watch.wanted or node in watch.got:
            return
        if not isinstance(output, Tensor):
            raise LayerError(f"node {node} gives a {type(output).__name__}", expected="a tensor")
        last = len(watch.got) + 1 == len(watch.wanted)
        kept = output.float()
        # What follows may write into this tensor (in-place activations, `x += shortcut`).
        watch.got[node] = kept.clone() if kept is output and not last else kept
        if last:
            raise _ReachedError

    def survey(self, x: Tensor) -> dict[str, Visit]:
        """Run the whole net once and return how every module took part."""
        runs: dict[str, int] = {}
        shapes: dict[str, tuple[int, ...] | None] = {}

        def see(name: str, module: nn.Module, args: Any, output: Any) -> None:
            runs[name] = runs.get(name, 0) + 1
            shapes[name] = tuple(output.shape) if isinstance(output, Tensor) else None

        with self._lock:
            handles = [
                m.register_forward_hook(partial(see, name)) for name, m in self._modules.items()
            ]
            try:
                with torch.no_grad():
                    self.net(x)
            finally:
                for handle in handles:
                    handle.remove()
        return {k: Visit(n, shapes[k]) for k, n in runs.items()}

    def dependencies(self, x: Tensor, nodes: Iterable[str]) -> dict[str, Dependencies]:
        """Return what each node's output depends on, found by one forward.

        Parameters are found in the autograd graph, whatever the code between. Of the buffers those
        count that hold numbers (not counters or index tables), are part of the net's state, and
        belong to a module that ran and whose parameters matter, or that has none.
        """
        thread, ran = threading.get_ident(), []

        def note(name: str, module: nn.Module, args: Any, output: Any) -> None:
            if threading.get_ident() == thread:
                ran.append(name)

        with self._lock:
            handles = [
                # In front of the hook that may end the forward.
                m.register_forward_hook(partial(note, name), prepend=True)
                for name, m in self._modules.items()
            ]
        try:
            with torch.enable_grad():
                got = self.run(x, nodes)
        finally:
            with self._lock:
                for handle in handles:
                    handle.remove()
        names = {id(p): k for k, p in self.net.named_parameters()}
        state = self.net.state_dict()
        result = {}
        for node, output in got.items():
            before = frozenset(ran[: ran.index(node) + 1])
            parameters = {names[i] for i in _leaves(output) if i in names}
            buffers = set()
            for name in before:
                module = self._modules[name]
                own = {f"{name}.{k}" for k, _ in module.named_parameters(recurse=False)}
                if own and not own & parameters:
                    continue
                buffers |= {
                    f"{name}.{k}"
                    for k, b in module.named_buffers(recurse=False)
                    if f"{name}.{k}" in state and b.is_floating_point()
                }
            result[node] = Dependencies(frozenset(parameters | buffers), before)
        return result

    def foreign(self, keys: Iterable[str], of: Iterable[Dependencies]) -> list[str]:
        """Return those `keys`, unknown to the net, that name a part of a module in use.

        A file of a deeper or otherwise different net gives itself away so: by a
        ``layer1.2.conv1.weight`` where the net's ``layer1`` ends at 1.
        """
        used: set[str] = set()
        for dependencies in of:
            used |= dependencies.modules
            for key in dependencies.tensors:
                parts = key.split(".")
                used |= {".".join(parts[:n]) for n in range(1, len(parts))}
        found = []
        for key in keys:
            parts = key.split(".")
            at = next(
                (n for n in range(len(parts) - 1, 0, -1) if ".".join(parts[:n]) in self._modules), 0
            )
            parent = ".".join(parts[:at])
            # Index tables and masks in older files are attributes of the module all the same.
            if parent in used and not hasattr(self._modules[parent], parts[at]):
                found.append(key)
        return found


def _leaves(output: Tensor) -> set[int]:
    """Return the ids of the tensors that `output` was computed from and that take gradients."""
    todo, seen, leaves = [output.grad_fn], set(), set()
    while todo:
        step = todo.pop()
        if step is None or step in seen:
            continue
        seen.add(step)
        variable = getattr(step, "variable", None)
        if variable is not None:
            leaves.add(id(variable))
        todo += [following for following, _ in step.next_functions]
    return leaves


def to_map(
    output: Tensor, input_size: tuple[int, int], prefix: int, channels_last: bool
) -> Tensor | None:
    """Turn a module's output into maps ``[B, C, h, w]``, or None where it is none.

    Parameters
    ----------
    output
        ``[B, C, h, w]``, ``[B, h, w, C]`` or tokens ``[B, prefix + h * w, C]``.
    input_size
        ``(height, width)`` of the net's input; tells grids from channels.
    prefix
        Number of tokens of the net (class, registers) that are no patches.
    channels_last
        Whether the net, by its own account, has channels last; where the sizes leave it open.
    """
    if output.ndim == 4:
        first = _grid(tuple(output.shape[2:]), input_size)
        last = _grid(tuple(output.shape[1:3]), input_size)
        if last and (channels_last or not first):
            return output.permute(0, 3, 1, 2)
        return output if first else None
    if output.ndim == 3:
        # Some modules of such a net (the patch embedding) have no class token yet. Which have, the
        # number of tokens tells: what is left must fill the image, first by whole square patches.
        fits: list[tuple[bool, int, tuple[int, int]]] = []
        for skip in {prefix: None, 0: None}:
            n = output.shape[1] - skip
            if n <= 0:
                continue
            stride = (input_size[0] * input_size[1] / n) ** 0.5
            grid = (round(input_size[0] / stride), round(input_size[1] / stride))
            if grid[0] * grid[1] == n and _grid(grid, input_size):
                exact = input_size[0] * grid[1] == input_size[1] * grid[0]
                fits.append((not exact, len(fits), grid))
        if fits:
            grid = min(fits)[2]
            return (
                output[:, output.shape[1] - grid[0] * grid[1] :].transpose(1, 2).unflatten(2, grid)
            )
    return None


def _grid(shape: tuple[int, ...], input_size: tuple[int, int]) -> bool:
    """Whether a grid of this shape can cover an input of this size with one stride."""
    height, width = input_size
    if min(shape) < 1 or shape[0] > height or shape[1] > width:
        return False
    stride = max(height / shape[0], width / shape[1])
    # Valid padding and odd sizes make grids a position or two smaller.
    return all(abs(n - s / stride) <= 2 for n, s in zip(shape, input_size, strict=True))


def combine(layer: LayerSpec, maps: list[Tensor]) -> Tensor:
    """Pool and fuse the maps of a layer's nodes as `LayerSpec` says."""
    if layer.pooling:
        kind, kernel, stride = layer.pooling
        # "mean" leaves the border out of the count and keeps the size; "avg" counts it as zeros.
        maps = [
            F.avg_pool2d(m, kernel, stride, padding=kernel // 2, count_include_pad=kind == "avg")
            for m in maps
        ]
    size = maps[0].shape[-2:]
    maps = [
        m
        if m.shape[-2:] == size
        else F.interpolate(m, size=size, mode="bilinear", align_corners=False)
        for m in maps
    ]
    if len(maps) == 1:
        return maps[0].contiguous()
    if layer.fuse == "concat":
        return torch.cat([m.contiguous() for m in maps], dim=1)
    return torch.stack(maps).sum(dim=0)
