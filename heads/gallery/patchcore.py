"""PatchCore: the distance of every position to a gallery of normal positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from heads.contract import Reference, Training, register
from heads.gallery.gallery_head import GalleryConfig, GalleryHead
from heads.gallery.neighbours import collect_vectors
from heads.training.arithmetic import device_of, running


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
    presets = {"small": {"ratio": 0.01}}

    def learn(self, training: Training) -> dict[str, float]:
        """Collect all normal positions and keep their coreset; nothing is trained."""
        device, tell = device_of(training.options.device), training.progress.step
        with running(device, training.options.threads):
            vectors = collect_vectors(
                training.train, self.layer, lambda d, n: tell(d, n, "reading features")
            )
            self.to(device)
            figures = self.whitening.learn(vectors)
            rows, more = self.choose(vectors, device, training.progress)
            self.hold(vectors[rows].to(device))
        return {**figures, **more}

    def image_score(self, vectors: Tensor, distances: Tensor, rows: Tensor) -> Tensor:
        """Return the largest distance, weighted by eq. 7 where asked for (``score: paper``)."""
        at = int(distances.argmax())
        if not self.config.reweight or len(self.gallery) < 2:
            return distances[at]
        near = self.gallery.around(int(rows[at]), self.config.neighbours)
        around = (self.gallery.vectors[near] - vectors[at]).square().sum(1).sqrt()
        # eq. 7's quotient of exponentials, with the largest exponent taken out of both
        return (1 - torch.softmax(around, 0)[0]) * distances[at]
