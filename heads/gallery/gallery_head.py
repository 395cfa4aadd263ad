"""What the heads that compare with what was seen share: one fused map, each image alone."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from heads.contract import Batch, HeadConfig, Progress, Scores, Shapes, Size
from heads.gallery.coreset import coreset_size, k_center, project
from heads.gallery.neighbours import Gallery, MapMaker
from heads.gallery.whitening import Whitening
from heads.judging.rules import RuledConfig, RuledHead, together
from heads.looking import LOOKED, looked_at, looking
from headwater.errors import ConfigError, DataError
from headwater.spec import BackboneInfo, LayerSpec, Needs

# 3x3 neighbourhood mean with the zeros beyond the border counted, as PatchCore has it. It damps
# the border, where the backbone's own padding makes features vary from image to image: with the
# zeros left out, most normal images of glassfiber_layup_512 have their maximum in a corner (image
# AUROC 0.81 instead of 0.91).
_POOL = "avg3s1"


def nearest_stages(head: str, backbone: BackboneInfo, strides: Iterable[int]) -> tuple[str, ...]:
    """Return the stages nearest to `strides`, each once, fine to coarse.

    Raises
    ------
    ConfigError
        Where the backbone has no stage at all.
    """
    if not backbone.stages:
        raise ConfigError(
            f"{head}: {backbone.name} has no stages whose weights are at hand",
            expected="a backbone with feature maps",
            remedy="name the nodes with nodes",
        )
    chosen = set()
    for stride in strides:
        # of equally near stages the finer: what lies deeper is about classes more than places
        near = [abs(math.log2(s / stride)) for s in backbone.strides]
        chosen.add(near.index(min(near)))
    return tuple(backbone.stages[k] for k in sorted(chosen))


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
        two = sorted({backbone.depth // 2, max(0, backbone.depth - 2)})
        return LayerSpec(tuple(f"blocks.{k}" for k in two), pool=_POOL)
    return LayerSpec(nearest_stages(head, backbone, (8, 16)), pool=_POOL)


@dataclass(frozen=True)
class OneMapConfig(RuledConfig):
    """Settings of the heads over one fused map.

    Parameters
    ----------
    sigma
        Gaussian smoothing of the maps, in positions of the feature map; 0 for none.
    """

    sigma: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma < 0:
            raise ConfigError(f"sigma {self.sigma}", expected="not below 0")


class OneMapHead(RuledHead):
    """A head over one fused map that scores each image alone, by a distance per position."""

    config: OneMapConfig

    def __init__(self, config: HeadConfig, shapes: Shapes, map_size: Size) -> None:
        super().__init__(config, shapes, map_size)
        if len(self.shapes) != 1:
            raise ConfigError(
                f"{self.name}: layers {', '.join(self.shapes)}", expected="one fused layer"
            )
        self.layer, (self.channels, height, width) = next(iter(self.shapes.items()))
        #: ``(height, width)`` of the fused map, in positions.
        self.feature_size = (height, width)
        self.maps = MapMaker(self.feature_size, map_size, self.config.sigma)

    def scored(self, batch: Batch) -> Scores:
        """Score one image at a time, so that its company cannot change a bit of it."""
        found = []
        for i, one in enumerate(batch[self.layer]):
            with looking({LOOKED: batch[LOOKED][i : i + 1]} if LOOKED in batch else {}):
                found.append(self.scored_alone(one.float()))
        return together(found)

    @abstractmethod
    def scored_alone(self, one: Tensor) -> Scores:
        """Return the scores, a batch of one, of one image's features ``[C, h, w]``.

        `heads.looking` says of what of it alone, as a batch of one.
        """

    def heat(self, scales: Sequence[Tensor]) -> Tensor:
        """Return the map of one image's distances: resized, then smoothed."""
        ((far,),) = scales
        return self.maps(far)[None]


@dataclass(frozen=True)
class GalleryConfig(OneMapConfig):
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
    whiten
        Give all directions of the features the same variance before distances are taken.
        ``auto``: where the largest twentieth of the channels holds 40 % of the variance, as a
        transformer's may (`heads.gallery.whitening`); ``always``, ``never``.
    """

    ratio: float = 0.1
    limit: int = 0
    projection: int = 0
    sigma: float = 0.8165
    whiten: Literal["auto", "always", "never"] = "auto"

    LATER: ClassVar[dict[str, Any]] = {**OneMapConfig.LATER, "whiten": "never"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.whiten not in ("auto", "always", "never"):
            raise ConfigError(f"whiten {self.whiten!r}", expected="auto, always or never")
        coreset_size(1, self.ratio)
        if self.limit < 0 or self.projection < 0:
            raise ConfigError(
                f"limit {self.limit}, projection {self.projection}", expected="none below 0"
            )


class GalleryHead(OneMapHead):
    """What `patchcore` and `f2r` share: a gallery, its coreset, distances to it."""

    Config = GalleryConfig
    reads = "the stages nearest to strides 8 and 16, or two blocks of a transformer, fused"
    config: GalleryConfig

    def __init__(self, config: HeadConfig, shapes: Shapes, map_size: Size) -> None:
        super().__init__(config, shapes, map_size)
        self.gallery = Gallery(self.channels)
        self.whitening = Whitening(self.channels, self.config.whiten)

    @property
    def remarks(self) -> list[str]:
        """What is to be told of a training: that it whitens, and why."""
        share = self.whitening.top_share
        if not self.whitening.used or share is None:
            return []
        return [
            f"{self.name}: features are whitened: a twentieth of the channels holds {share:.0%} "
            "of the normal images' variance"
        ]

    def hold(self, vectors: Tensor) -> None:
        """Make a gallery of ``[m, C]`` vectors."""
        self.gallery.set(self.whitening(vectors.float()))

    @property
    def is_fitted(self) -> bool:
        """Whether it has a gallery."""
        return len(self.gallery) > 0

    @classmethod
    def needs(cls, config: HeadConfig, backbone: BackboneInfo, resize: Size) -> Needs:
        """Return one layer: the stages at strides 8 and 16, averaged 3x3 and fused."""
        return Needs((fused_layer(config, backbone, cls.name),))

    def choose(
        self, vectors: Tensor, device: torch.device, progress: Progress
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the coreset's rows of ``[n, C]`` vectors, as they are whitened, and figures."""
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
        space = self.whitening(vectors.to(device))
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

    def features(self, vectors: Tensor) -> Tensor:
        """Return what is compared with the gallery, for one image's ``[H * W, C]`` vectors."""
        return vectors

    def image_score(self, vectors: Tensor, distances: Tensor, rows: Tensor) -> Tensor:
        """Return an image's published score from its positions' distances and nearest rows."""
        return distances.max()

    def scored_alone(self, one: Tensor) -> Scores:
        """Return the image's score and its map of nearest distances."""
        return self.compared(self.features(vectors_of(one)))

    def compared(self, vectors: Tensor, published: bool = False) -> Scores:
        """Return the scores, a batch of one, of one image's `features`."""
        vectors = self.whitening(vectors.to(self.gallery.vectors).float())
        return self.of_distances(*self.gallery.nearest(vectors), vectors, published)

    def of_distances(
        self, distances: Tensor, rows: Tensor, vectors: Tensor, published: bool = False
    ) -> Scores:
        """Return the scores, a batch of one, of one image's distances ``[h * w]``.

        Parameters
        ----------
        distances, rows
            To the gallery's nearest, and which that is.
        vectors
            What was compared, ``[h * w, C]``.
        published
            By the paper's rule, whatever the setting is.
        """
        far = [distances.reshape(1, *self.feature_size)]
        if not (published or self.published):
            return self.judged(far)
        heat = self.heat(far)
        if (where := looked_at(self.feature_size)) is not None:
            vectors, distances, rows = (x[where.flatten()] for x in (vectors, distances, rows))
        return Scores(self.image_score(vectors, distances, rows)[None], heat)


def vectors_of(one: Tensor) -> Tensor:
    """Return ``[h * w, C]`` vectors of one image's ``[C, h, w]``."""
    return one.permute(1, 2, 0).reshape(-1, one.shape[0]).contiguous()
