"""Frozen backbones: timm's nets with checked weights, their maps taken at modules by name."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from features.backbones.inventory import Inventory
from features.backbones.lanes import in_lane, in_one, lane_count, lanes
from features.backbones.network import build_net, channel_triple, fill_net, without_prefix
from features.backbones.nodes import Nodes, combine
from features.backbones.packages import named_as_net
from features.backbones.precision import faster_precision
from features.backbones.weights import find_weights, read_weights
from features.images.pixels import sha256_of
from headwater.errors import ConfigError, LayerError
from headwater.spec import (
    DEFAULT_SIZE,
    BackboneInfo,
    ExtractorSpec,
    LayerSpec,
    Precision,
    StoredDtype,
)

#: Pixels of the batches that the net really sees: four images of 256 px on a CPU, beyond which the
#: caches lose more than the operators gain.
_BATCH_PIXELS = {"cpu": 4 * 256 * 256, "cuda": 32 * 256 * 256}
_BATCH_LIMIT = {"cpu": 4, "cuda": 64}


class Backbone:
    """A frozen net, made by `load_backbone`.

    The net runs on batches of one fixed shape per image size (filled up with zeros), each in a
    thread of its own on a CPU: a map is the same to the last bit whatever the batch it came in.

    Attributes
    ----------
    name
        timm model name.
    weights_id
        SHA-256 of the weight file, or ``untrained:<seed>``.
    weights_path
        The file, or None.
    options
        timm options and our own, sorted.
    mean, std
        Normalisation that the weights expect.
    calls
        Batches run by `maps` so far.
    """

    def __init__(
        self,
        net: nn.Module,
        name: str,
        weights_id: str,
        options: Mapping[str, Any],
        *,
        held: frozenset[str] | None = None,
        unknown: Sequence[str] = (),
        weights_path: Path | None = None,
        device: str = "cpu",
    ) -> None:
        config = getattr(net, "pretrained_cfg", {})
        self.name, self.weights_id, self.weights_path = name, weights_id, weights_path
        self.mean: tuple[float, float, float] = channel_triple(options, config, "mean")
        self.std: tuple[float, float, float] = channel_triple(options, config, "std")
        self.options = tuple(sorted((k, v) for k, v in options.items() if k not in ("mean", "std")))
        self.device = torch.device(device)
        self.calls = 0
        self._net = net.eval().to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._nodes = Nodes(self._net)
        self._inventory = Inventory(
            self._nodes, name, str(weights_path or weights_id), held, unknown, self.device
        )
        self._lock = threading.RLock()
        self._shapes: dict[tuple[LayerSpec, tuple[int, int]], tuple[int, int, int]] = {}
        self._pools: dict[int, ThreadPoolExecutor] = {}

    @property
    def info(self) -> BackboneInfo:
        """Stages whose weights are at hand, with channels and strides read from a forward."""
        return self._inventory.info

    def default_spec(
        self,
        resize: int | tuple[int, int] = DEFAULT_SIZE,
        crop: int | tuple[int, int] | None = None,
        precision: Precision | None = None,
        dtype: StoredDtype = "float16",
        **settings: Any,
    ) -> ExtractorSpec:
        """Return the specification of an extraction with this backbone.

        Parameters
        ----------
        resize, crop
            ``(height, width)`` or the side of a square, in pixels.
        precision
            None takes `best_precision`'s.
        dtype
            Stored dtype.
        settings
            Other fields of `ExtractorSpec`.
        """
        return ExtractorSpec(
            backbone=self.name,
            weights=self.weights_id,
            options=self.options,
            resize=(resize, resize) if isinstance(resize, int) else resize,
            crop=(crop, crop) if isinstance(crop, int) else crop,
            precision=precision or self.best_precision(),
            dtype=dtype,
            **{"mean": self.mean, "std": self.std, **settings},
        )

    def best_precision(self) -> Precision:
        """Return the faster arithmetic of this net here, as `faster_precision` finds it."""
        calls = self.calls
        try:
            return faster_precision(self.name, self.device.type, self._try)
        finally:
            self.calls = calls

    def _try(self, precision: Precision) -> bool:
        """Run a blank batch up to the last stage; False where there is no stage."""
        last = self.info.stages[-1:]
        if last:
            size = self._inventory.native_size
            blank = torch.zeros(self.batch_size(size), 3, *size)
            self.maps(blank, (LayerSpec(last),), precision)
        return bool(last)

    def check_weights(self, layers: Iterable[LayerSpec]) -> None:
        """Raise unless every parameter that `layers` depend on came from the weight file.

        Raises
        ------
        LayerError
            A node the backbone lacks.
        WeightsError
            Parameters that the file lacks, or parts of the layers' modules that it alone has.
        """
        self._inventory.check_weights(tuple(layers))

    def export_state(self, layers: Iterable[LayerSpec]) -> dict[str, Tensor]:
        """Return the tensors that `layers` depend on, by name; `restore_backbone` takes them."""
        needed = self._inventory.needed(tuple(layers))
        state = self._net.state_dict()
        return {k: state[k].detach().cpu().contiguous().clone() for k in sorted(needed)}

    def shapes(
        self, layers: Iterable[LayerSpec], input_size: tuple[int, int]
    ) -> dict[str, tuple[int, int, int]]:
        """Return ``{layer.name: (C, H, W)}`` for an input of this size.

        Raises
        ------
        LayerError
            A node the backbone lacks, or one that gives no map.
        ConfigError
            An input size that the backbone cannot take.
        """
        layers = tuple(layers)
        self._inventory.check_layers(layers)
        with self._lock:
            todo = [x for x in layers if (x, input_size) not in self._shapes]
            if todo:
                image = torch.zeros(1, 3, *input_size, device=self.device)
                found = in_one(lambda: self._forward(image, tuple(todo), "float32"))
                for name, maps in found.items():
                    layer = next(x for x in todo if x.name == name)
                    self._shapes[layer, input_size] = tuple(maps.shape[1:])  # type: ignore[assignment]
            return {x.name: self._shapes[x, input_size] for x in layers}

    def batch_size(self, input_size: tuple[int, int]) -> int:
        """Return the number of images of this size that the net sees at a time."""
        kind = "cpu" if self.device.type == "cpu" else "cuda"
        fit = _BATCH_PIXELS[kind] // (input_size[0] * input_size[1])
        return max(1, min(_BATCH_LIMIT[kind], fit))

    def maps(
        self, batch: Tensor, layers: Iterable[LayerSpec], precision: Precision = "float32"
    ) -> dict[str, Tensor]:
        """Return the feature maps of a batch; nothing behind the last node asked for is run.

        Parameters
        ----------
        batch
            ``[B, 3, h, w]`` float32, as `preprocess` makes it.
        layers
            What to compute; the layers of one image scale share one forward.
        precision
            Arithmetic of the net: ``bfloat16`` is autocast.

        Returns
        -------
        dict[str, torch.Tensor]
            ``{layer.name: [B, C, H, W]}`` float32, on the CPU or the backbone's GPU.
        """
        layers = tuple(layers)
        self._inventory.check_layers(layers)
        batches = batch.split(self.batch_size((batch.shape[-2], batch.shape[-1])))
        with self._lock:
            self.calls += len(batches) * len({x.scale for x in layers})

        def run(batch: Tensor) -> dict[str, Tensor]:
            return self._run_batch(batch, layers, precision)

        def join(done: list[dict[str, Tensor]]) -> dict[str, Tensor]:
            if len(done) == 1:
                return done[0]
            return {x.name: torch.cat([d[x.name] for d in done]) for x in layers}

        if self.device.type != "cpu" or in_lane():
            return join([run(b) for b in batches])
        pool = self.lanes()
        # Joined in a lane too: outside, torch's threads would spin beside the lanes of others.
        return pool.submit(join, list(pool.map(run, batches))).result()

    def lanes(self) -> ThreadPoolExecutor:
        """Return the threads that run this net (see `lane_count`), kept from call to call.

        New threads would first have to be given the memory that the net works in.
        """
        with self._lock:
            count = lane_count()
            if count not in self._pools:
                self._pools[count] = lanes(count)
            return self._pools[count]

    def _run_batch(
        self, batch: Tensor, layers: tuple[LayerSpec, ...], precision: Precision
    ) -> dict[str, Tensor]:
        """Run one batch, filled up to the fixed shape."""
        count = len(batch)
        full = self.batch_size((batch.shape[-2], batch.shape[-1]))
        if count < full:
            batch = torch.cat([batch, batch.new_zeros(full - count, *batch.shape[1:])])
        batch = batch.to(self.device)
        if self.device.type == "cpu":
            maps = self._forward(batch, layers, precision)
        else:
            with self._lock, torch.backends.cudnn.flags(
                enabled=True, benchmark=False, deterministic=True, allow_tf32=False
            ):  # fmt: skip
                maps = self._forward(batch, layers, precision)
        return {k: v[:count] for k, v in maps.items()}

    def _forward(
        self, batch: Tensor, layers: tuple[LayerSpec, ...], precision: Precision
    ) -> dict[str, Tensor]:
        height, width = batch.shape[-2:]
        maps: dict[str, Tensor] = {}
        # Nothing is computed on `meta`, and there is no autocast for it.
        kind = "cpu" if self.device.type == "meta" else self.device.type
        with torch.no_grad():
            for scale in sorted({x.scale for x in layers}, reverse=True):
                here = [x for x in layers if x.scale == scale]
                input_size = (round(height * scale), round(width * scale))
                x = batch
                if input_size != (height, width):
                    x = F.interpolate(
                        x, size=input_size, mode="bilinear", align_corners=False, antialias=True
                    )
                x = x.contiguous(memory_format=torch.channels_last)
                nodes = {n for layer in here for n in layer.nodes}
                try:
                    with torch.autocast(kind, torch.bfloat16, enabled=precision == "bfloat16"):
                        raw = self._nodes.run(x, nodes)
                # Nets check their input by assertions and by what their operators refuse.
                except (AssertionError, ValueError, RuntimeError) as error:
                    if isinstance(error, (torch.OutOfMemoryError, LayerError)):
                        raise
                    raise self._inventory.size_error(input_size, error, scale) from error
                for layer in here:
                    maps[layer.name] = self._layer(layer, raw, input_size)
        return maps

    def _layer(
        self, layer: LayerSpec, raw: dict[str, Tensor], input_size: tuple[int, int]
    ) -> Tensor:
        maps = []
        for node in layer.nodes:
            output = raw[node]
            if layer.norm and node == layer.nodes[-1]:
                output = self._net.norm(output)  # type: ignore[operator]
            made = self._inventory.to_map(output, input_size)
            if made is None:
                raise LayerError(
                    f"node {node} of {self.name} gives {tuple(output.shape)} for an input of"
                    f" {input_size[0]}x{input_size[1]} px, which is no map",
                    expected="a node such as " + ", ".join(self.info.stages),
                )
            maps.append(made)
        if layer.fuse == "sum" and len({m.shape[1] for m in maps}) > 1:
            raise LayerError(
                f"layer {layer.name}: channels {[m.shape[1] for m in maps]} cannot be summed",
                expected="nodes with equally many channels",
                remedy="leave out ~sum to concatenate them",
            )
        return combine(layer, maps)


def load_backbone(
    name: str,
    weights: Path | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    untrained_seed: int | None = None,
    device: str = "cpu",
) -> Backbone:
    """Build a timm net and load its weights.

    What the file does not hold is set to NaN, so that nothing random can ever pass for a feature;
    `Backbone.check_weights` says beforehand whether some layers would be hit.

    Parameters
    ----------
    name
        timm model name.
    weights
        File, folder (searched for ``NAME.*``), or None to look as `find_weights` does.
    options
        timm options (``num_classes``, ``pad_type``, ``bn_eps``, ``img_size``...) and ours:
        ``stride_in_1x1`` puts a bottleneck's stride into its first 1x1 convolution, as Caffe's and
        Keras' first ResNets have it; ``mean`` and ``std`` replace timm's normalisation.
    untrained_seed
        Weights drawn from this seed instead of a file: for demonstrations and tests only.
    device
        ``cpu`` or ``cuda[:n]``.

    Raises
    ------
    ConfigError
        An unknown model or option.
    WeightsError
        A missing, damaged or mismatching file.

    Examples
    --------
    >>> backbone = load_backbone("resnet10t", untrained_seed=0)
    >>> backbone.info.stages, backbone.info.strides
    (('act1', 'layer1', 'layer2', 'layer3', 'layer4'), (2, 4, 8, 16, 32))
    >>> backbone.shapes([LayerSpec(("layer2",))], (64, 64))
    {'layer2': (128, 8, 8)}
    """
    options = dict(options or {})
    if untrained_seed is not None:
        if weights is not None:
            raise ConfigError("weights and untrained_seed", expected="one of them, not both")
        net = build_net(name, options, untrained_seed)
        return Backbone(net, name, f"untrained:{untrained_seed}", options, device=device)
    path = find_weights(name, weights)
    tensors, weights_id = read_weights(path), sha256_of(path)
    net = build_net(name, options)
    tensors = named_as_net(tensors, weights_id, net if not options else None, name, str(path))
    held, unknown = fill_net(net, without_prefix(tensors, net, str(path)), name, str(path))
    return Backbone(
        net,
        name,
        weights_id,
        options,
        held=held,
        unknown=unknown,
        weights_path=path,
        device=device,
    )


def restore_backbone(
    name: str,
    state: Mapping[str, Tensor],
    *,
    weights_id: str,
    options: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> Backbone:
    """Rebuild a backbone from `Backbone.export_state`'s tensors: only those layers will run."""
    options = dict(options or {})
    net = build_net(name, options)
    held, unknown = fill_net(net, state, name, weights_id)
    return Backbone(net, name, weights_id, options, held=held, unknown=unknown, device=device)
