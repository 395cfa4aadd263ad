"""PaDiM: one Gaussian per position of the feature map."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy import ndimage
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
    check_finite,
    register,
)
from heads.gallery.gallery_head import OneMapConfig, OneMapHead, nearest_stages
from heads.gallery.moments import Moments, packed, unpacked
from heads.judging.rules import together
from heads.looking import LOOKED, largest, positions
from heads.parts.seeds import draw_channels
from heads.training.arithmetic import device_of, running
from heads.training.growing import GrowingHead, Growth
from headwater.errors import ConfigError, DataError, GrowthError
from headwater.spec import BackboneInfo, LayerSpec, Needs

#: What it keeps to grow.
_KEPT = ("count", "mean", "high", "low")


@dataclass(frozen=True)
class PaDiMConfig(OneMapConfig):
    """Settings of `padim`; the defaults are the paper's for a ResNet-18.

    Parameters
    ----------
    channels
        Channels kept, drawn with the seed; all where there are fewer.
    ridge
        Added to the diagonal of every covariance (eq. 1's epsilon).
    sigma
        Gaussian smoothing of the maps, in positions of the finest feature map; the default is the
        paper's 4 pixels at stride 4.
    memory
        Megabytes that the covariances being worked on may take.
    """

    channels: int = 100
    ridge: float = 0.01
    sigma: float = 1.0
    memory: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels < 1 or self.ridge <= 0 or self.memory < 1:
            raise ConfigError(
                f"channels {self.channels}, ridge {self.ridge}, memory {self.memory}",
                expected="all above 0",
            )


@register
class PaDiM(OneMapHead, GrowingHead):
    """Mahalanobis distance of every position to that position's normal features.

    Defard et al., "PaDiM: a Patch Distribution Modeling Framework" (2021).

    To grow it keeps each position's count, mean and sum of products: the factor that it scores by
    is the inverse of what these give, rounded.
    """

    name = "padim"
    Config = PaDiMConfig
    config: PaDiMConfig
    paper = "PaDiM (Defard et al. 2021)"
    summary = "one Gaussian of the features per position"
    reads = "the stages nearest to strides 4, 8 and 16, or three blocks of a transformer, fused"
    reference = Reference("wide_resnet50_2", 224, {"layer1+layer2+layer3": (1792, 56, 56)})
    presets = {"small": {"channels": 50}}
    by_position = True
    grows_exactly = True

    #: Positions worked on at a time on a processor: what they take stays in its caches.
    block: ClassVar[int] = 64
    drawn: Tensor
    mean: Tensor
    factor: Tensor

    def __init__(self, config: HeadConfig, shapes: Shapes, map_size: Size) -> None:
        super().__init__(config, shapes, map_size)
        places = math.prod(self.feature_size)
        kept = min(self.config.channels, self.channels)
        self.register_buffer("drawn", draw_channels(self.channels, kept, config.seed))
        self.register_buffer("mean", torch.zeros(places, kept))
        # lower triangular, the inverse of the covariance's Cholesky factor
        self.register_buffer("factor", torch.zeros(places, kept, kept))
        self.register_buffer("fitted", torch.tensor(False))
        self._kept: dict[str, Tensor] = {}

    @classmethod
    def needs(cls, config: HeadConfig, backbone: BackboneInfo, resize: Size) -> Needs:
        """Return the stages at strides 4, 8 and 16, fused at the finest; of a transformer, blocks.

        Raises
        ------
        ConfigError
            Where the backbone has no stage.
        """
        nodes = config.nodes
        if not nodes and backbone.tokens and backbone.depth:
            thirds = {max(0, backbone.depth * k // 4 - 1) for k in (1, 2, 3)}
            nodes = tuple(f"blocks.{k}" for k in sorted(thirds))
        return Needs((LayerSpec(nodes or nearest_stages(cls.name, backbone, (4, 8, 16))),))

    def _vectors(self, maps: Tensor) -> Tensor:
        """Return ``[B, H * W, kept channels]`` of ``[B, C, H, W]``."""
        return maps[:, self.drawn].flatten(2).transpose(1, 2)

    def learn(self, training: Training) -> dict[str, float]:
        """Take mean and covariance per position over the plain training images, exactly.

        The drawn channels of all images are held in float16 (or float32 where that would lose
        something); covariances are made and factorized a block of positions at a time.
        """
        options = training.options
        with running(device_of(options.device), options.threads), torch.no_grad():
            self.to(device_of(options.device))
            rows, seen = self._collect(training.train, training.progress)

            def work(block: slice) -> slice:
                return self._settle(self._moments(rows, seen, block), block)

            self._in_blocks(work, training.progress)
        return {"images": float(len(rows))}

    def keepsake(self) -> dict[str, Tensor]:
        """Return each position's ``count`` [P], ``mean`` [P, C] and, `packed`, its products."""
        return self._kept

    def grown(self, growth: Growth) -> dict[str, float]:
        """Join the moments of new images, take out those of images that are gone."""
        kept, options = dict(growth.kept), growth.options
        sizes = {k: tuple(v.shape) for k, v in kept.items()}
        places, count = self.mean.shape
        if sizes.get("mean") != (places, count) or sizes.keys() != {*_KEPT}:
            raise GrowthError(
                f"{self.name}: what its training kept does not fit it",
                expected=f"moments of {count} channels at {places} positions",
                remedy="train it in full",
            )
        with running(device_of(options.device), options.threads), torch.no_grad():
            self.to(device_of(options.device))
            change = [
                (sign, *self._collect(source, growth.progress))
                for sign, source in ((1, growth.new), (-1, growth.gone))
                if len(source)
            ]

            def work(block: slice) -> slice:
                products = unpacked(kept["high"][block], kept["low"][block])
                found = Moments(kept["count"][block], kept["mean"][block], products)
                for sign, rows, seen in change:
                    found = found.joined(self._moments(rows, seen, block).cpu(), sign)
                return self._settle(found, block)

            try:
                self._in_blocks(work, growth.progress)
            except torch.linalg.LinAlgError as error:
                raise GrowthError(
                    f"{self.name}: what is left has no covariance", remedy="train it in full"
                ) from error
        return {"images": float(self._kept["count"].max())}

    def _in_blocks(self, work: Callable[[slice], slice], progress: Progress) -> None:
        """Settle all positions, a block at a time; `work` is what is done for one."""
        device, (places, kept) = self.mean.device, self.mean.shape
        triangle = kept * (kept + 1) // 2
        self._kept = {
            "count": torch.zeros(places, dtype=torch.float64),
            "mean": torch.zeros(places, kept, dtype=torch.float64),
            "high": torch.zeros(places, triangle),
            "low": torch.zeros(places, triangle, dtype=torch.int8),
        }
        threads = torch.get_num_threads() if device.type == "cpu" else 1
        # the covariance, its factor and the inverse: three float64 matrices a position
        step = max(1, self.config.memory * 2**20 // (threads * 3 * 8 * kept * kept))
        if device.type == "cpu":
            step = min(step, self.block)
        blocks = [slice(low, min(low + step, places)) for low in range(0, places, step)]
        # Plain threads, each alone with a block: sharing out small matrices costs more.
        with running(torch.device("cpu"), 1), ThreadPoolExecutor(threads) as pool:
            for block in pool.map(work, blocks):
                progress.step(block.stop, places, "Gaussians")
        counts = self._kept["count"]
        if bool((counts != counts.max()).any()):
            self._lend(counts)

    @torch.no_grad()
    def left_out(self, training: Training, folds: Sequence[int]) -> Scores:
        """Return the scores of the plain images, each without its fold.

        What heads that have learnt from the other folds give, up to rounding, at about the cost of
        one: the sums of products of all less the fold's are those of the others, and by Woodbury's
        identity the fold comes out of a covariance that is factorized once.

        Parameters
        ----------
        training
            All normals; all of each image is looked at.
        folds
            The fold of each plain image, in the source's order.
        """
        device = device_of(training.options.device)
        with running(device, training.options.threads):
            self.to(device)
            rows, _ = self._collect(training.train, training.progress)
            members = [np.flatnonzero(np.asarray(folds) == fold) for fold in sorted(set(folds))]
            sizes = {len(m): np.stack([x for x in members if len(x) == len(m)]) for m in members}
            far = torch.empty(len(rows), rows.shape[1])
            threads = torch.get_num_threads() if device.type == "cpu" else 1
            blocks = [slice(low, low + 64) for low in range(0, rows.shape[1], 64)]

            def work(block: slice) -> slice:
                x = rows[:, block].transpose(0, 1).contiguous().to(device).double()
                x -= x.mean(1, keepdim=True)
                for of in sizes.values():
                    found = self._without(x, torch.from_numpy(of).to(device))
                    far[of.ravel(), block] = found.T.float().cpu()
                return block

            with running(torch.device("cpu"), 1), ThreadPoolExecutor(threads) as pool:
                for block in pool.map(work, blocks):
                    training.progress.step(block.stop, rows.shape[1], "leaving images out")
            found = [self._of_distances(one.to(device)) for one in far]
        return together(found)

    def _without(self, x: Tensor, of: Tensor) -> Tensor:
        """Return Mahalanobis distances ``[P, F * r]`` of images to Gaussians without their fold.

        Parameters
        ----------
        x
            ``[P, N, C]`` float64, vectors less their mean over all images.
        of
            ``[F, r]``, the images of each of F folds of one size.
        """
        places, count, kept = x.shape
        left = count - of.shape[1]
        free = max(1, left - 1)
        eye = torch.eye(kept, dtype=x.dtype, device=x.device)
        lower = torch.linalg.cholesky(x.mT @ x / free + self.config.ridge * eye)
        own = x[:, of]  # [P, F, r, C]
        total = own.sum(2, keepdim=True)
        taken = torch.cat([own, total / math.sqrt(left)], 2) / math.sqrt(free)
        from_mean = own + total / left  # the mean of the others is -total / left

        def whitened(vectors: Tensor) -> Tensor:
            flat = vectors.reshape(places, -1, kept).mT
            made = torch.linalg.solve_triangular(lower, flat, upper=False)
            return made.mT.reshape(vectors.shape)

        w, y = whitened(taken), whitened(from_mean)
        rest = torch.eye(w.shape[2], dtype=x.dtype, device=x.device) - w @ w.mT
        both = w @ y.mT  # [P, F, r + 1, r]
        more = (both * torch.cholesky_solve(both, torch.linalg.cholesky(rest))).sum(2)
        return (y.square().sum(3) + more).sqrt().reshape(places, -1)

    @torch.no_grad()
    def _moments(self, rows: Tensor, seen: Tensor | None, block: slice) -> Moments:
        """Return the moments of images ``[N, H * W, C]`` at a block of positions.

        Of the images that are looked at there, `seen` ``[N, H * W]``; of all without it.
        """
        x = rows[:, block].transpose(0, 1).contiguous().to(self.mean.device).double()
        if seen is None:
            count = torch.full(x.shape[:1], float(len(rows)), dtype=x.dtype, device=x.device)
            mean = x.mean(1, keepdim=True)
            x -= mean
        else:
            own = seen[:, block].T[..., None].to(x)
            count = own.sum((1, 2))
            mean = (x * own).sum(1, keepdim=True) / count.clamp_min(1)[:, None, None]
            x = (x - mean) * own
        return Moments(count, mean[:, 0], x.mT @ x)

    @torch.no_grad()
    def _settle(self, found: Moments, block: slice) -> slice:
        """Set mean and factor of a block of positions, and keep their moments; return the block."""
        kept = self._kept
        kept["count"][block], kept["mean"][block] = found.number.cpu(), found.mean.cpu()
        kept["high"][block], kept["low"][block] = packed(found.products.cpu())
        own = found.products.to(self.mean.device)
        eye = torch.eye(own.shape[2], dtype=own.dtype, device=own.device)
        free = (found.number - 1).clamp_min(1).to(own)[:, None, None]
        lower = torch.linalg.cholesky(self.config.ridge * eye + own / free)
        self.mean[block] = found.mean.float()
        self.factor[block] = torch.linalg.solve_triangular(
            lower, eye.expand_as(lower), upper=False
        ).float()
        return block

    def _lend(self, counts: Tensor) -> None:
        """Give positions at which too few images are looked at the Gaussian of the nearest others.

        Images of other shapes may be looked at there, and of ten images a covariance is a guess.
        """
        grid = counts.reshape(self.feature_size).cpu().numpy()
        few = grid < min(10, grid.max())
        rows, columns = ndimage.distance_transform_edt(
            few, return_distances=False, return_indices=True
        )
        source = torch.from_numpy(rows * self.feature_size[1] + columns).flatten()
        for buffer in (self.mean, self.factor):
            buffer.copy_(buffer[source.to(buffer.device)])

    def _collect(self, train: FeatureSource, progress: Progress) -> tuple[Tensor, Tensor | None]:
        """Return the drawn channels of all plain images, ``[N, H * W, kept]``.

        And which of their positions are looked at, ``[N, H * W]`` bool; None where all are.
        """
        plain = [i for i, view in enumerate(train.views) if view == 0]
        if not plain:
            raise DataError("padim: no normal images to learn from", remedy="add normal images")
        out = torch.empty(len(plain), *self.mean.shape, dtype=torch.float16)
        seen = torch.ones(out.shape[:2], dtype=torch.bool)
        for number, row in enumerate(plain):
            batch = train.read(row, row + 1)
            maps = batch[self.layer]
            if LOOKED in batch:
                seen[number] = positions(batch[LOOKED], self.feature_size).flatten()
            check_finite({self.layer: maps, "_rows": torch.tensor([row])}, self.name, train.ids)
            vectors = self._vectors(maps.to(self.drawn.device)).cpu()[0]
            if out.dtype == torch.float16 and not torch.equal(vectors.half().float(), vectors):
                out = out.float()
            out[number] = vectors
            progress.step(number + 1, len(plain), "reading features")
        return out, None if bool(seen.all()) else seen

    def scored_alone(self, one: Tensor) -> Scores:
        """Return the map of Mahalanobis distances, smoothed, and its score."""
        x = self._vectors(one[None])[0] - self.mean
        return self._of_distances(
            torch.bmm(self.factor, x[:, :, None])[:, :, 0].square().sum(1).sqrt()
        )

    def _of_distances(self, far: Tensor) -> Scores:
        """Return the scores, a batch of one, of one image's distances ``[h * w]``."""
        scales = [far.reshape(1, *self.feature_size)]
        if not self.published:
            return self.judged(scales)
        heat = self.heat(scales)
        return Scores(largest(heat), heat)
