"""timm nets built from options and filled from files: nothing random left behind a name."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from headwater.errors import ConfigError, WeightsError

# Options of timm.create_model that load something or change what the net is.
_FORBIDDEN = frozenset(
    {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir",
     "features_only", "out_indices", "scriptable", "exportable", "no_jit"}
)  # fmt: skip
_OUR_OPTIONS = ("stride_in_1x1", "mean", "std")


def check_name(name: str) -> None:
    """Raise `ConfigError`, with the names near it, where timm has no model of this name.

    What follows the first dot is the tag of one training of the net, and timm must know it, too.
    """
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.5)
        raise ConfigError(
            f"backbone {name!r} is unknown to timm"
            + (f"; near it: {some_of(near)}" if near else ""),
            expected="a name of timm.list_models()",
            remedy="headwater backbones WORD lists those that have a word in their name",
        )
    net, _, tag = name.partition(".")
    try:
        timm.models.get_pretrained_cfg(name)
    except RuntimeError:
        raise ConfigError(
            f"backbone {name!r}: timm knows no tag {tag!r} of {net}",
            expected=f"{net}, or one of {some_of(timm.list_pretrained(net), 8)}",
            remedy=f"leave the tag out for a weight file of your own: --backbone {net}",
        ) from None


def build_net(name: str, options: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """Build a timm net with weights drawn from `seed`; see `load_backbone` for the options.

    Raises `ConfigError` for an unknown model or option.
    """
    import timm

    check_name(name)
    bad = sorted(_FORBIDDEN & set(options))
    if bad:
        raise ConfigError(f"backbone option {bad[0]!r} is not for this", remedy="leave it out")
    given = {k: v for k, v in options.items() if k not in _OUR_OPTIONS}
    with torch.random.fork_rng(devices=[]):
        try:
            # Position codes that fit the image at hand, where the net has it.
            torch.manual_seed(seed)
            net = timm.create_model(name, pretrained=False, **{"dynamic_img_size": True, **given})
        except TypeError:
            torch.manual_seed(seed)
            try:
                net = timm.create_model(name, pretrained=False, **given)
            except (TypeError, AttributeError, ValueError, AssertionError) as error:
                raise ConfigError(
                    f"options {given} of backbone {name}: {error}",
                    expected="keyword arguments of timm.create_model, stride_in_1x1, mean, std",
                ) from error
    if options.get("stride_in_1x1"):
        _stride_in_1x1(net, name)
    return net


def _stride_in_1x1(net: nn.Module, name: str) -> None:
    found = 0
    for block in net.modules():
        first, second = getattr(block, "conv1", None), getattr(block, "conv2", None)
        if isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d):
            narrow = first.kernel_size == (1, 1) and first.stride == (1, 1)
            if narrow and second.stride == (2, 2) and hasattr(block, "conv3"):
                first.stride, second.stride = (2, 2), (1, 1)
                found += 1
    if not found:
        raise ConfigError(
            f"option stride_in_1x1: {name} has no bottleneck with a stride in its 3x3 convolution",
            expected="a ResNet with bottlenecks, as resnet50",
        )


def fill_net(
    net: nn.Module, tensors: Mapping[str, Tensor], name: str, source: str
) -> tuple[frozenset[str], list[str]]:
    """Copy tensors into the net; NaN where there are none.

    Returns
    -------
    tuple
        Names of the net's tensors that were given, and given names that the net does not have.

    Raises
    ------
    WeightsError
        Tensors of another shape, not finite, or none that fits.
    """
    state = net.state_dict()
    wrong = [
        f"{k}: file {tuple(tensors[k].shape)}, net {tuple(v.shape)}"
        for k, v in state.items()
        if k in tensors and tensors[k].shape != v.shape
    ]
    if wrong:
        raise WeightsError(
            f"weights {source} do not fit {name}: {len(wrong)} tensors of another shape: "
            + some_of(wrong, 3),
            expected=f"a file for timm's {name}",
            remedy="give the options it was made with (num_classes=..., img_size=...),"
            " or another file",
        )
    held = frozenset(k for k in state if k in tensors)
    if not held:
        raise WeightsError(
            f"weights {source} have no tensor of {name}; they are named {some_of(sorted(tensors))}",
            expected=f"timm's names, as {some_of(list(state))}",
            remedy="name the backbone that the file is for, or rename its tensors",
        )
    spoilt = sorted(k for k in held if not bool(torch.isfinite(tensors[k]).all()))
    if spoilt:
        raise WeightsError(f"weights {source} hold NaN or infinity: {some_of(spoilt)}")
    with torch.no_grad():
        for k, v in state.items():
            if k in held:
                v.copy_(tensors[k])
            elif v.is_floating_point():
                v.fill_(float("nan"))
    return held, sorted(set(tensors) - held)


def without_prefix(
    tensors: Mapping[str, Tensor], net: nn.Module, source: str
) -> Mapping[str, Tensor]:
    """Return a file's tensors without what stands before the net's names, as ``backbone.``.

    Training code saves a net as a part of a larger one: ``encoder.``, ``model.module.``,
    ``teacher.backbone.``. Where no name is the net's as it stands, the one prefix under which most
    are is taken off, and what lies outside it is another part's and is left.

    Raises
    ------
    WeightsError
        Where two prefixes have equally many: which of the nets is meant, the file does not tell.
    """
    names = net.state_dict().keys()
    if any(name in tensors for name in names):
        return tensors
    found: Counter[str] = Counter()
    for key in tensors:
        parts = key.split(".")
        for n in range(1, len(parts)):
            if ".".join(parts[n:]) in names:
                found[".".join(parts[:n]) + "."] += 1
    if not found:
        return tensors
    (prefix, most), *rest = found.most_common(2)
    if rest and rest[0][1] == most:
        raise WeightsError(
            f"weights {source} hold the net twice: below {prefix} and below {rest[0][0]}",
            expected="one net",
            remedy="save the tensors of one of them in a file of their own",
        )
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def channel_triple(
    options: Mapping[str, Any], config: Mapping[str, Any], key: str
) -> tuple[float, float, float]:
    """Return ``mean`` or ``std`` from the options, else from timm's configuration of the net."""
    values = options.get(key, config.get(key))
    if values is None:
        values = (0.485, 0.456, 0.406) if key == "mean" else (0.229, 0.224, 0.225)
    values = [values] * 3 if isinstance(values, (int, float)) else list(values)
    if len(values) != 3 or (key == "std" and min(values) <= 0):
        raise ConfigError(f"backbone option {key}={values}", expected="three numbers (std above 0)")
    return float(values[0]), float(values[1]), float(values[2])


def some_of(names: Sequence[str], count: int = 5) -> str:
    """Return the first names and how many more there are, for messages."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
