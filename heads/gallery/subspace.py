"""Subspace: how far a patch lies outside the subspace in which normal patches vary."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from heads.contract import (
    FeatureSource,
    HeadConfig,
    Progress,
    Reference,
    Scores,
    Shapes,
    Size,
    Training,
    register,
)
from heads.gallery.gallery_head import OneMapConfig, OneMapHead, fused_layer, vectors_of
from heads.gallery.neighbours import Growing, vectors_in
from heads.judging.scores import top_k_mean
from heads.training.arithmetic import device_of, running
from heads.training.growing import GrowingHead, Growth
from headwater.errors import ConfigError, DataError, GrowthError
from headwater.spec import BackboneInfo, Needs


@dataclass(frozen=True)
class SubspaceConfig(OneMapConfig):
    """Settings of `subspace`.

    Parameters
    ----------
    variance
        Share of the normal patches' variance that the components hold whose outside is looked at.
        The paper has 0.99, of a far larger backbone's features.
    """

    variance: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.variance < 1:
            raise ConfigError(f"variance {self.variance}", expected="a share, above 0 and below 1")


@register
class Subspace(Growing, OneMapHead, GrowingHead):
    """Residual of a patch outside the principal components of all normal patches.

    After Lendering, Akdag and Bondarev, "SubspaceAD: Training-Free Few-Shot Anomaly Detection via
    Subspace Modeling" (arXiv 2602.23013); on the layers that `patchcore` reads, without copies of
    the images that are turned.

    It learns a count, a sum and a sum of outer products, in float64: adding images and taking them
    out again is exact.
    """

    name = "subspace"
    Config = SubspaceConfig
    config: SubspaceConfig
    paper = "after SubspaceAD (Lendering et al. 2026)"
    summary = "residual outside the components of normal patches"
    reads = "the stages nearest to strides 8 and 16, or two blocks of a transformer, fused"
    reference = Reference("wide_resnet50_2", 224, {"layer2+layer3~avg3s1": (1536, 28, 28)})
    presets = {"small": {}}
    grows_exactly = True

    growing = ("basis",)
    mean: Tensor
    basis: Tensor

    def __init__(self, config: HeadConfig, shapes: Shapes, map_size: Size) -> None:
        super().__init__(config, shapes, map_size)
        self.register_buffer("mean", torch.zeros(self.channels))
        #: One component a row.
        self.register_buffer("basis", torch.empty(0, self.channels))
        self.register_buffer("fitted", torch.tensor(False))
        self._sums: dict[str, Tensor] = {}

    @classmethod
    def needs(cls, config: HeadConfig, backbone: BackboneInfo, resize: Size) -> Needs:
        """Return one layer: what `patchcore` reads."""
        return Needs((fused_layer(config, backbone, cls.name),))

    def learn(self, training: Training) -> dict[str, float]:
        """Sum the products of all normal patches and take their components."""
        device = device_of(training.options.device)
        with running(device, training.options.threads), torch.no_grad():
            self.to(device)
            return self._settle(self._summed(training.train, training.progress))

    def keepsake(self) -> dict[str, Tensor]:
        """Return ``count`` [1], ``sum`` [C] and ``products`` [C, C], float64."""
        return self._sums

    def grown(self, growth: Growth) -> dict[str, float]:
        """Add the sums of new images, take off those of images that are gone."""
        device = device_of(growth.options.device)
        with running(device, growth.options.threads), torch.no_grad():
            self.to(device)
            more = self._summed(growth.new, growth.progress)
            less = self._summed(growth.gone, growth.progress)
            try:
                sums = {k: v + (more[k] - less[k]).cpu() for k, v in growth.kept.items()}
            except (KeyError, RuntimeError) as error:
                raise GrowthError(
                    f"{self.name}: what its training kept does not fit it",
                    expected=f"sums of {self.channels} channels",
                    remedy="train it in full",
                ) from error
            return self._settle(sums)

    def _summed(self, source: FeatureSource, progress: Progress) -> dict[str, Tensor]:
        """Return count, sum and sum of outer products of a source's patches."""
        wide = {"dtype": torch.float64, "device": self.mean.device}
        count = torch.zeros(1, dtype=torch.float64)
        total = torch.zeros(self.channels, **wide)  # type: ignore[call-overload]
        products = torch.zeros(self.channels, self.channels, **wide)  # type: ignore[call-overload]
        done = 0
        for vectors, owners in vectors_in(source, self.layer):
            x = vectors.to(self.mean.device).double()
            count += len(x)
            total += x.sum(0)
            products.addmm_(x.T, x)
            done = int(owners[-1]) + 1 if len(owners) else done
            progress.step(done, len(source), "reading features")
        return {"count": count, "sum": total, "products": products}

    def _settle(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Take the components of sums; return how many, and of how many patches."""
        self._sums = {k: v.cpu() for k, v in sums.items()}
        count = float(self._sums["count"])
        if count < 1:
            raise DataError(
                f"{self.name}: no normal images to learn from", remedy="add normal images"
            )
        mean = self._sums["sum"] / count
        covariance = self._sums["products"] / count - torch.outer(mean, mean)
        values, vectors = torch.linalg.eigh(covariance.to(self.mean.device))
        values = values.flip(0).clamp_min(0)
        # Of images that are all alike nothing varies: then one component is as good as none.
        held = values.cumsum(0) / values.sum().clamp_min(1e-300)
        kept = min(int((held < self.config.variance).sum()) + 1, self.channels)
        self.mean.copy_(mean)
        self.basis = vectors.flip(1)[:, :kept].T.float().contiguous()
        return {"patches": count, "components": float(kept)}

    def scored_alone(self, one: Tensor) -> Scores:
        """Return the map of residuals and its score; the paper's is its highest hundredth's."""
        away = vectors_of(one) - self.mean
        outside = away - (away @ self.basis.T) @ self.basis
        scales = [outside.square().sum(1).sqrt().reshape(1, *self.feature_size)]
        if not self.published:
            return self.judged(scales)
        heat = self.heat(scales)
        return Scores(top_k_mean(heat, 0.01), heat)
