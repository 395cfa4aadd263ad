"""What a net has to offer: nodes, stages, and whether their weights are at hand."""

from __future__ import annotations

import difflib
import threading
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from features.backbones.lanes import in_one
from features.backbones.network import some_of
from features.backbones.nodes import Dependencies, Nodes, Visit, to_map
from headwater.errors import ConfigError, LayerError, WeightsError
from headwater.spec import BackboneInfo, LayerSpec


class Inventory:
    """Knows a net by running it once on a blank image, and says what may be asked of it.

    Parameters
    ----------
    nodes
        The net.
    name, source
        What errors call the net and its weights.
    held
        Tensors that the weight file gave; None where the net is meant to be untrained.
    unknown
        Names in the file that the net does not have.
    device
        Where the net is.
    """

    def __init__(
        self,
        nodes: Nodes,
        name: str,
        source: str,
        held: frozenset[str] | None,
        unknown: Sequence[str],
        device: torch.device,
    ) -> None:
        self._nodes, self._net = nodes, nodes.net
        self._name, self._source, self._device = name, source, device
        self._held, self._unknown = held, unknown
        self._prefix = int(getattr(self._net, "num_prefix_tokens", 0) or 0)
        self._channels_last = str(getattr(self._net, "output_fmt", "")).endswith("NHWC")
        self.native_size = native_size(self._net)
        self._lock = threading.RLock()
        self._visits: dict[str, Visit] = {}
        self._dependencies: dict[str, Dependencies] = {}
        self._checked: set[LayerSpec] = set()
        self._info: BackboneInfo | None = None

    @property
    def info(self) -> BackboneInfo:
        """Stages whose weights are at hand, with channels and strides read from a forward."""
        with self._lock:
            if self._info is None:
                self._info = self._describe()
            return self._info

    def to_map(self, output: Tensor, input_size: tuple[int, int]) -> Tensor | None:
        """Turn a module's output for an input of this size into ``[B, C, h, w]``, or None."""
        return to_map(output, input_size, self._prefix, self._channels_last)

    def needed(self, layers: tuple[LayerSpec, ...]) -> frozenset[str]:
        """Return the names of the tensors that layers depend on."""
        tensors = set().union(*(d.tensors for d in self._of(layers)))
        if any(x.norm for x in layers):
            norm = self._nodes.net.get_submodule("norm")
            tensors |= {f"norm.{k}" for k, _ in norm.named_parameters()}
        return frozenset(tensors)

    def check_weights(self, layers: tuple[LayerSpec, ...]) -> None:
        """See `Backbone.check_weights`."""
        self.check_layers(layers)
        if self._held is None:
            return
        lacking = sorted(self.needed(layers) - self._held)
        if lacking:
            raise WeightsError(
                f"weights of {self._name} ({self._source}) lack {len(lacking)} tensors that"
                f" {', '.join(x.name for x in layers)} use: {some_of(lacking)}",
                expected=f"layers whose weights it holds; stages that are whole: {self._stages()}",
                remedy="choose such layers, or give a file that holds them",
            )
        foreign = self._nodes.foreign(self._unknown, self._of(layers))
        if foreign:
            raise WeightsError(
                f"weights of {self._name} ({self._source}) are of another net: {len(foreign)}"
                f" tensors have no place in the modules used: {some_of(foreign)}",
                expected=f"a file for timm's {self._name} with the same options",
                remedy="name the backbone, and the options, that the file was made with",
            )

    def check_layers(self, layers: tuple[LayerSpec, ...]) -> None:
        """Raise where the net cannot give a layer, whatever its weights."""
        with self._lock:
            new = [x for x in layers if x not in self._checked]
            for layer in new:
                self._check_layer(layer)
            self._nodes.hook(n for x in new for n in x.nodes)
            self._checked.update(new)

    def size_error(
        self, input_size: tuple[int, int], error: Exception, scale: float = 1.0
    ) -> ConfigError:
        """Return the error for an input of a size that the net refused.

        Where it was an image at another `scale`, what is told of is the image.
        """
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        near = whole_patches(self._net, input_size)
        expected = "sides of whole patches" if near else "a size it was made for"
        height, width = (round(n / scale) for n in near or self.native_size)
        return ConfigError(
            f"backbone {self._name} cannot take images of {input_size[0]}x{input_size[1]} px"
            + (f", which is image scale {scale:g}: {why}" if scale != 1 else f": {why}"),
            expected=f"{expected}, as {height}x{width}",
            remedy=f"set the size, as --size {height}x{width}, or for some nets the option"
            " img_size",
        )

    def _check_layer(self, layer: LayerSpec) -> None:
        for node in layer.nodes:
            if node not in self._nodes.names:
                raise self._no_node(node)
            runs = self._visit(node).runs
            if runs != 1:
                raise LayerError(
                    f"node {node} of {self._name} runs {runs} times in a forward",
                    expected="a module that runs once, as " + self._stages(),
                )
        if layer.pooling and layer.pooling[0] == "mean" and layer.pooling[1] % 2 == 0:
            raise ConfigError(
                f"layer {layer.name}: pooling {layer.pool}",
                expected="an odd number, as in mean3, which keeps the map's size",
            )
        if layer.norm and not (
            self.info.tokens and isinstance(getattr(self._net, "norm", None), nn.LayerNorm)
        ):
            raise LayerError(
                f"layer {layer.name}: {self._name} has no final norm of tokens",
                expected="a vision transformer with a module norm",
                remedy="leave out ~norm",
            )

    def _no_node(self, node: str) -> LayerError:
        names = [n for n in self._nodes.names if self._visit(n).runs == 1]
        near = difflib.get_close_matches(node, names, n=5, cutoff=0.5)
        return LayerError(
            f"backbone {self._name} has no node {node!r}"
            + (f"; near it: {', '.join(near)}" if near else ""),
            expected=f"a module's name; stages whose weights are at hand: {self._stages()}",
        )

    def _stages(self) -> str:
        return ", ".join(self.info.stages) or "none"

    def _blank(self) -> Tensor:
        return torch.zeros(1, 3, *self.native_size, device=self._device)

    def _visit(self, node: str) -> Visit:
        with self._lock:
            if not self._visits:
                self._visits = in_one(lambda: self._nodes.survey(self._blank()))
        return self._visits.get(node, Visit(0, None))

    def _of(self, layers: Iterable[LayerSpec]) -> list[Dependencies]:
        layers = tuple(layers)
        self.check_layers(layers)
        nodes = {n for x in layers for n in x.nodes}
        with self._lock:
            todo = nodes - set(self._dependencies)
            if todo:
                self._dependencies.update(self._depend(todo))
            return [self._dependencies[n] for n in nodes]

    def _depend(self, nodes: Iterable[str]) -> dict[str, Dependencies]:
        return in_one(lambda: self._nodes.dependencies(self._blank(), nodes)) if nodes else {}

    def _describe(self) -> BackboneInfo:
        known = getattr(self._net, "feature_info", None)
        said = {x.get("module", ""): x for x in known} if isinstance(known, list) else {}
        found: dict[str, tuple[int, int]] = {}
        tokens = False
        for node in said or [k for k, _ in self._net.named_children()]:
            visit = self._visit(node)
            if visit.runs != 1 or visit.shape is None:
                continue
            made = self.to_map(torch.empty(visit.shape, device="meta"), self.native_size)
            if made is None or min(made.shape[-2:]) < 2:
                continue
            height, rows = self.native_size[0], made.shape[2]
            stride = said.get(node, {}).get("reduction") or round(height / rows)
            # Sizes that the stride does not divide make the measured one a little off.
            stride = stride if abs(rows - height / stride) <= 2 else round(height / rows)
            found[node] = (made.shape[1], stride)
            tokens = tokens or len(visit.shape) == 3
        state = (k for k, v in self._net.state_dict().items() if v.is_floating_point())
        if self._held is not None and not self._held.issuperset(state):
            self._dependencies.update(self._depend(found))
            found = {k: v for k, v in found.items() if self._dependencies[k].tensors <= self._held}
        blocks = getattr(self._net, "blocks", None)
        depth = len(blocks) if tokens and isinstance(blocks, (nn.Sequential, nn.ModuleList)) else 0
        return BackboneInfo(
            self._name,
            tuple(found),
            tuple(channels for channels, _ in found.values()),
            tuple(stride for _, stride in found.values()),
            tokens,
            depth,
        )


def native_size(net: nn.Module) -> tuple[int, int]:
    """Return a size that the net surely takes, small where it takes any."""
    config = getattr(net, "pretrained_cfg", None) or {}
    fixed = getattr(getattr(net, "patch_embed", None), "img_size", None)
    size = fixed or tuple(config.get("input_size", (3, 224, 224)))[-2:]
    height, width = int(size[0]), int(size[1])
    if not fixed and not config.get("fixed_input_size") and min(height, width) > 224:
        height = width = 224
    return height, width


def whole_patches(net: nn.Module, size: tuple[int, int]) -> tuple[int, int] | None:
    """Return the size next to `size` that a net cuts into whole patches.

    None where `size` is one, and of nets that do not cut images into patches.
    """
    patch = getattr(getattr(net, "patch_embed", None), "patch_size", None)
    if not isinstance(patch, tuple) or not any(n % p for n, p in zip(size, patch, strict=True)):
        return None
    height, width = (max(p, round(n / p) * p) for n, p in zip(size, patch, strict=True))
    return height, width
