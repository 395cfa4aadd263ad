"""PatchCore: the distance of every position to a gallery of normal positions."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from heads.contract import (
    Batch,
    FeatureSource,
    Head,
    HeadConfig,
    Progress,
    Reference,
    Scores,
    Shape,
    TrainOptions,
    check_finite,
    register,
)
from heads.gallery.coreset import coreset_size, k_center, project
from heads.gallery.neighbours import Gallery, MapMaker, collect_vectors
from heads.training.arithmetic import device_of, running
from headwater.errors import ConfigError, DataError, NotFittedError
from headwater.spec import BackboneInfo, LayerSpec, Needs

# 3x3 neighbourhood mean with the zeros beyond the border counted, as PatchCore has it. It damps
# the border, where the backbone's own padding makes features vary from image to image: with the
# zeros left out, most normal images of glassfiber_layup_512 have their maximum in a corner (image
# AUROC 0.81 instead of 0.91).
_POOL = "avg3s1"


@dataclass(frozen=True)
class GalleryConfig(HeadConfig):
    """Settings of the heads that compare with a gallery.

    Parameters
    ----------
    ratio
        Share of all normal positions that the greedy k-center coreset keeps; 1 keeps all.
    limit
        At most this many gallery vectors, whatever the ratio; 0 for no limit.
    projection
        Choose the coreset on a seeded random projection of this many dimensions; 0 on the vectors
        themselves, which takes about as long here and covers better.
    sigma
        Gaussian smoothing of the maps, in positions of the feature map; 0 for none. The default is
        the deviation of the 3x3 neighbourhood that each feature is averaged over, as a map cannot
        be sharper than its features; PatchCore's 4 pixels at 224 px are 0.5. The image score is
        taken before it.
    """

    ratio: float = 0.1
    limit: int = 0
    projection: int = 0
    sigma: float = 0.8165

    def __post_init__(self) -> None:
        coreset_size(1, self.ratio)
        if self.limit < 0 or self.projection < 0 or self.sigma < 0:
            raise ConfigError(
                f"limit {self.limit}, projection {self.projection}, sigma {self.sigma}",
                expected="none below 0",
            )


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


def fused_layer(config: HeadConfig, backbone: BackboneInfo, head: str) -> LayerSpec:
    """Return the fused, 3x3-averaged map that gallery heads read.

    The stages nearest to strides 8 and 16 (layer2 and layer3 of a ResNet at any width); of a
    transformer, whose maps are all of one size, the blocks behind one half and before the last of
    its depth. `config.nodes` overrides the choice.

    Raises
    ------
    ConfigError
        Where the backbone has no stage at all.
    """
    if config.nodes:
        return LayerSpec(config.nodes, pool=_POOL)
    if backbone.tokens and backbone.depth:
        pair = sorted({backbone.depth // 2, max(0, backbone.depth - 2)})
        return LayerSpec(tuple(f"blocks.{k}" for k in pair), pool=_POOL)
    if not backbone.stages:
        raise ConfigError(
            f"{head}: {backbone.name} has no stages whose weights are at hand",
            expected="a backbone with feature maps",
            remedy="name the nodes with nodes",
        )
    chosen = set()
    for stride in (8, 16):
        # of equally near stages the finer: what lies deeper is about classes more than places
        near = [abs(math.log2(s / stride)) for s in backbone.strides]
        chosen.add(near.index(min(near)))
    return LayerSpec(tuple(backbone.stages[k] for k in sorted(chosen)), pool=_POOL)


class GalleryHead(Head):
    """What `patchcore` and `f2r` share: one fused map, a gallery, distances, maps."""

    Config = GalleryConfig
    reads = "the stages nearest to strides 8 and 16, or two blocks of a transformer, fused"
    config: GalleryConfig

    def __init__(
        self, config: HeadConfig, shapes: Mapping[str, Shape], map_size: tuple[int, int]
    ) -> None:
        super().__init__(config, shapes, map_size)
        if len(self.shapes) != 1:
            raise ConfigError(
                f"{self.name}: layers {', '.join(self.shapes)}", expected="one fused layer"
            )
        self.layer, (channels, height, width) = next(iter(self.shapes.items()))
        self.size = (height, width)
        self.gallery = Gallery(channels)
        self.maps = MapMaker(self.size, map_size, self.config.sigma)

    @classmethod
    def needs(cls, config: HeadConfig, backbone: BackboneInfo, resize: tuple[int, int]) -> Needs:
        """Return one layer: the stages at strides 8 and 16, averaged 3x3 and fused."""
        return Needs((fused_layer(config, backbone, cls.name),))

    def choose(
        self, vectors: Tensor, device: torch.device, progress: Progress
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the coreset's rows of ``[n, C]`` vectors, and figures about it."""
        if not len(vectors):
            raise DataError(
                f"{self.name}: no normal images to learn from", remedy="add normal images"
            )
        began = time.perf_counter()
        count = coreset_size(len(vectors), self.config.ratio)
        if self.config.limit:
            count = min(count, self.config.limit)
        if count == len(vectors):
            # in a drawn order, so that the first ones are of all images
            generator = torch.Generator().manual_seed(self.config.seed)
            rows = torch.randperm(count, generator=generator)
            return rows, {"gallery": float(count), "coreset_radius": 0.0}
        space = vectors.to(device)
        if self.config.projection:
            space = project(space, self.config.projection, self.config.seed)
        found = k_center(
            space,
            count,
            seed=self.config.seed,
            progress=lambda done, all_: progress.step(done, all_, "choosing the coreset"),
        )
        return found.indices, {
            "gallery": float(len(found.indices)),
            "coreset_radius": found.radius,
            "coreset_seconds": time.perf_counter() - began,
        }

    def ready(self, batch: Batch) -> Tensor:
        """Return the batch's maps on the head's device, checked."""
        if not len(self.gallery):
            raise NotFittedError.of(self.name)
        self.check(batch)
        check_finite({self.layer: batch[self.layer]}, self.name)
        return batch[self.layer].to(self.gallery.vectors.device).float()

    def features(self, vectors: Tensor) -> Tensor:
        """Return what is compared with the gallery, for one image's ``[H * W, C]`` vectors."""
        return vectors

    def image_score(self, vectors: Tensor, distances: Tensor, rows: Tensor) -> Tensor:
        """Return an image's score from its positions' distances and nearest gallery rows."""
        return distances.max()

    @torch.no_grad()
    def score(self, batch: Batch) -> Scores:
        """Score each image alone: nearest distance per position, the largest for the image."""
        images, maps = [], []
        for one in self.ready(batch):
            # one image a time and in one shape, so that its company cannot change a bit of it
            vectors = one.permute(1, 2, 0).reshape(-1, one.shape[0]).contiguous()
            score, heat = self.compared(self.features(vectors))
            images.append(score)
            maps.append(heat)
        return Scores(image=torch.stack(images), maps=torch.stack(maps))

    def compared(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the score and the map ``[H, W]`` of one image's `features`."""
        distances, rows = self.gallery.nearest(vectors)
        return self.image_score(vectors, distances, rows), self.maps(distances.reshape(self.size))


@register
class PatchCore(GalleryHead):
    """Nearest distance to a coreset of normal vectors.

    Roth et al., "Towards Total Recall in Industrial Anomaly Detection" (CVPR 2022); F²R's plain
    gallery.
    """

    name = "patchcore"
    Config = PatchCoreConfig
    config: PatchCoreConfig
    paper = "PatchCore (Roth et al. 2022); the gallery of F²R without the factorization"
    summary = "nearest distance to a coreset of normal positions"
    reference = Reference("wide_resnet50_2", 224, {"layer2+layer3~avg3s1": (1536, 28, 28)})
    presets: ClassVar[dict[str, dict[str, Any]]] = {"small": {"ratio": 0.01}}

    def fit(
        self,
        train: FeatureSource,
        held_out: FeatureSource,
        options: TrainOptions,
        progress: Progress,
    ) -> dict[str, float]:
        """Collect all normal positions and keep their coreset; nothing is trained."""
        self.check(train)
        began, device = time.perf_counter(), device_of(options.device)
        with running(device, options.threads):
            vectors = collect_vectors(
                train, self.layer, lambda d, n: progress.step(d, n, "reading features")
            )
            rows, figures = self.choose(vectors, device, progress)
            self.to(device)
            self.gallery.set(vectors[rows])
        return {**figures, "fit_seconds": time.perf_counter() - began}

    def image_score(self, vectors: Tensor, distances: Tensor, rows: Tensor) -> Tensor:
        """Return the largest distance, weighted by eq. 7 where asked for."""
        at = int(distances.argmax())
        if not cast("PatchCoreConfig", self.config).reweight or len(self.gallery) < 2:
            return distances[at]
        near = self.gallery.around(int(rows[at]), self.config.neighbours)
        around = (self.gallery.vectors[near] - vectors[at]).square().sum(1).sqrt()
        # eq. 7's quotient of exponentials, with the largest exponent taken out of both
        return (1 - torch.softmax(around, 0)[0]) * distances[at]
