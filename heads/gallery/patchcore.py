"""PatchCore: the distance of every position to a gallery of normal positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from heads.contract import FeatureSource, HeadConfig, Reference, Shapes, Size, Training, register
from heads.gallery.coreset import cover, project
from heads.gallery.gallery_head import GalleryConfig, GalleryHead
from heads.gallery.neighbours import collect_owned
from heads.training.arithmetic import device_of, running
from heads.training.growing import GrowingHead, Growth
from headwater.errors import GrowthError


@dataclass(frozen=True)
class PatchCoreConfig(GalleryConfig):
    """Settings of `patchcore`; the defaults are the paper's 10 % variant.

    Parameters
    ----------
    reweight
        Weigh the image score by how dense the gallery is around the nearest vector (eq. 7).
    neighbours
        Gallery vectors looked at for that, the nearest included.
    """

    reweight: bool = True
    neighbours: int = 9


@register
class PatchCore(GalleryHead, GrowingHead):
    """Nearest distance to a coreset of normal vectors.

    Roth et al., "Towards Total Recall in Industrial Anomaly Detection" (CVPR 2022); F²R's plain
    gallery.

    It grows by what its gallery does not cover: the greedy choice goes on from the vectors chosen
    until none of the new ones lies farther from the gallery than the first fit's covering radius.
    Vectors of images that are gone leave it, and what they alone covered is covered anew. A full
    training would choose others.
    """

    name = "patchcore"
    Config = PatchCoreConfig
    config: PatchCoreConfig
    paper = "PatchCore (Roth et al. 2022); the gallery of F²R without the factorization"
    summary = "nearest distance to a coreset of normal positions"
    reference = Reference("wide_resnet50_2", 224, {"layer2+layer3~avg3s1": (1536, 28, 28)})
    presets = {"small": {"ratio": 0.01}}

    def __init__(self, config: HeadConfig, shapes: Shapes, map_size: Size) -> None:
        super().__init__(config, shapes, map_size)
        self._kept: dict[str, Tensor] = {}

    def learn(self, training: Training) -> dict[str, float]:
        """Collect all normal positions and keep their coreset; nothing is trained."""
        device, tell = device_of(training.options.device), training.progress.step
        with running(device, training.options.threads):
            vectors, owners = collect_owned(
                training.train, self.layer, lambda d, n: tell(d, n, "reading features")
            )
            self.to(device)
            figures = self.whitening.learn(vectors)
            rows, more = self.choose(vectors, device, training.progress)
            self.hold(vectors[rows].to(device))
            names = plain_names(training.train)
            self._keep([names[i] for i in owners[rows].tolist()], more["coreset_radius"])
        return {**figures, **more}

    @staticmethod
    def why_not(config: HeadConfig) -> str:
        """Return why not: a gallery that may not become larger."""
        assert isinstance(config, PatchCoreConfig)
        return f"its gallery is limited to {config.limit} vectors" if config.limit else ""

    def keepsake(self) -> dict[str, Tensor]:
        """Return the covering ``radius`` [1] and the ``owners`` of the vectors: images by name.

        The names are in ``names``, uint8 of their text, a line each; ``owners`` is ``[m]`` int32.
        """
        return self._kept

    def grown(self, growth: Growth) -> dict[str, float]:
        """Drop the vectors of images that are gone; go on choosing from what is not covered."""
        device = device_of(growth.options.device)
        with running(device, growth.options.threads), torch.no_grad():
            self.to(device)
            names, radius = self._owners(growth), float(growth.kept["radius"])
            gone, before = set(growth.gone.ids), len(self.gallery)
            if gone and self.whitening.used:
                raise GrowthError(
                    f"{self.name}: its features are whitened by images that are gone, too",
                    remedy="train it in full",
                )
            stays = [i for i, name in enumerate(names) if name not in gone]
            if not stays:
                raise GrowthError(
                    f"{self.name}: its gallery is of images that are gone",
                    remedy="train it in full",
                )
            # What the vectors that are dropped covered may lie open now: then all is looked at.
            source = growth.new if len(stays) == before else growth.train
            vectors, owners = collect_owned(
                source,
                self.layer,
                lambda d, n: growth.progress.step(d, n, "reading features"),
            )
            own = self.gallery.vectors[stays]
            space = torch.cat((own, self.whitening(vectors.to(device)).float()))
            seen = space
            if self.config.projection:
                seen = project(space, self.config.projection, self.config.seed)
            if radius > 0:
                rows = cover(
                    seen,
                    len(own),
                    radius,
                    progress=lambda d, n: growth.progress.step(d, n, "growing the coreset"),
                ).indices[len(own) :]
            else:  # all are in it
                rows = torch.arange(len(own), len(space))
                if source is growth.train:
                    fresh = {*growth.new.ids}
                    given = plain_names(source)
                    mine = torch.tensor([given[i] in fresh for i in owners.tolist()])
                    rows = rows[mine]
            given = plain_names(source)
            more = [given[i] for i in owners[rows - len(own)].tolist()]
            self.gallery.set(torch.cat((own, space[rows.to(device)])))
            self._keep([*(names[i] for i in stays), *more], radius)
        return {
            "gallery": float(len(self.gallery)),
            "gallery_new": float(len(rows)),
            "gallery_gone": float(before - len(stays)),
            "coreset_radius": radius,
        }

    def _keep(self, owners: list[str], radius: float) -> None:
        """Keep whose the gallery's vectors are, in their order."""
        number = {name: i for i, name in enumerate(dict.fromkeys(owners))}
        self._kept = {
            "owners": torch.tensor([number[name] for name in owners], dtype=torch.int32),
            "names": torch.tensor(list("\n".join(number).encode()), dtype=torch.uint8),
            "radius": torch.tensor([radius], dtype=torch.float64),
        }

    def _owners(self, growth: Growth) -> list[str]:
        """Return the image of each of the gallery's vectors."""
        kept = growth.kept
        try:
            names = bytes(kept["names"].tolist()).decode().split("\n")
            owners = [names[i] for i in kept["owners"].tolist()]
            fits = len(owners) == len(self.gallery) and kept["radius"].numel() == 1
        except (KeyError, IndexError, ValueError):
            fits = False
        if not fits:
            raise GrowthError(
                f"{self.name}: what its training kept does not fit its gallery",
                expected=f"the image of each of {len(self.gallery)} vectors",
                remedy="train it in full",
            )
        return owners

    def image_score(self, vectors: Tensor, distances: Tensor, rows: Tensor) -> Tensor:
        """Return the largest distance, weighted by eq. 7 where asked for (``score: paper``)."""
        at = int(distances.argmax())
        if not self.config.reweight or len(self.gallery) < 2:
            return distances[at]
        near = self.gallery.around(int(rows[at]), self.config.neighbours)
        around = (self.gallery.vectors[near] - vectors[at]).square().sum(1).sqrt()
        # eq. 7's quotient of exponentials, with the largest exponent taken out of both
        return (1 - torch.softmax(around, 0)[0]) * distances[at]


def plain_names(source: FeatureSource) -> list[str]:
    """Return the image of each plain row of a source."""
    return [name for name, view in zip(source.ids, source.views, strict=True) if view == 0]
