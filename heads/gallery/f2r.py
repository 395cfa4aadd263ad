"""F²R: features are factorized into local and global parts, scaled, reversed and compared."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.contract import (
    Batch,
    HeadConfig,
    Reference,
    Shapes,
    Size,
    Training,
    TrainOptions,
    register,
)
from heads.flow.flow_head import FlowHead
from heads.gallery.f2r_select import select_synthetic
from heads.gallery.gallery_head import GalleryConfig, GalleryHead, fused_layer
from heads.gallery.neighbours import Growing, collect_vectors
from heads.looking import looked_at
from heads.parts.seeds import seeded
from heads.parts.vector import perceptron, vector_glow
from heads.training.arithmetic import device_of, running
from heads.training.trainer import Schedule, adam, train_module
from headwater.errors import ConfigError
from headwater.spec import BackboneInfo, Needs, ViewSpec

PAPER_BACKBONE = "wide_resnet50_2"


@dataclass(frozen=True)
class F2RConfig(GalleryConfig):
    """Settings of `f2r`; the defaults are the paper's (section IV.A).

    But for `clip_norm` and `sigma`, which the paper does not have: 0 each for its letter.

    Parameters
    ----------
    alpha, beta
        Scale of the local and of the global half (section III.A); None leaves it to `select`. A
        number is kept whatever `select` says. At 1, 1 the result is the plain gallery's.
    select
        ``fixed`` takes 1 for what is None; ``synthetic`` picks it from the grid, on held-out
        normals against synthetic defects made of them, a poor guide. The paper's choice, on the
        test labels, is `heads.gallery.f2r_grid.grid` (`headwater grid`), marked ``oracle``.
    coreset
        ``once``: chosen at 1, 1 and re-reversed; ``per_point``: chosen anew at alpha, beta.
    implementation
        ``cls``: cosine similarity; ``reg``: squared error (second term of eq. 5).
    gamma
        Weight of the negative log-likelihood (eq. 6).
    steps, width, clamp
        Glow's steps; hidden width of its couplings as a multiple of the channels (9/8 gives the
        paper's number of parameters); soft clamp of the log-scales.
    views, rotation
        Seeded rotated views beside each image, and their largest angle in degrees.
    positions
        Positions drawn per image and step; 0 takes all.
    image_size
        ``auto``: the paper's 256 px cropped to 224 on its backbone, the run's own elsewhere;
        ``paper`` or ``run`` everywhere.
    epochs
        Times each image is seen, as itself or as one of its views.
    clip_norm
        Gradient norm is clipped to this; 0 for not at all. The paper does not speak of it; without
        it the likelihood of 384 channels and more diverged at rates of 1e-3.
    """

    alpha: float | None = None
    beta: float | None = None
    select: Literal["fixed", "synthetic"] = "fixed"
    coreset: Literal["once", "per_point"] = "once"
    implementation: Literal["cls", "reg"] = "cls"
    gamma: float = 0.001
    steps: int = 6
    width: float = 1.125
    clamp: float = 1.9
    views: int = 4
    rotation: float = 30.0
    positions: int = 0
    image_size: str = "auto"
    epochs: int = 300
    batch_size: int = 32
    lr: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.05
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        choices = {
            "select": ("fixed", "synthetic"),
            "coreset": ("once", "per_point"),
            "implementation": ("cls", "reg"),
            "image_size": ("auto", "paper", "run"),
        }
        for name, valid in choices.items():
            if getattr(self, name) not in valid:
                raise ConfigError(
                    f"{name} {getattr(self, name)!r}", expected="one of " + ", ".join(valid)
                )
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (number and math.isfinite(value)):
                raise ConfigError(
                    f"{name} {value!r}", expected="a number, or none to have it picked"
                )
        if self.steps < 1 or self.width <= 0 or self.views < 0:
            raise ConfigError(
                f"steps {self.steps}, width {self.width}, views {self.views}",
                expected="at least one step, a width above 0, nothing negative",
            )
        if self.positions < 0 or self.positions == 1:
            # batch norm has no statistics of the one vector of a batch of one image
            raise ConfigError(f"positions {self.positions}", expected="0, for all, or at least 2")


class _Factorization(nn.Module):
    """What is trained: the invertible net and the two perceptrons that are dropped afterwards.

    Parameters
    ----------
    glow
        T.
    channels, places
        Of the feature vectors; number of positions in a map.
    config
        The head's settings.
    """

    def __init__(self, glow: nn.Module, channels: int, places: int, config: F2RConfig) -> None:
        super().__init__()
        self.glow, self.config = glow, config
        self.local_half = channels // 2
        self.local_net = perceptron(self.local_half, channels, channels)
        self.global_net = perceptron(channels - self.local_half, channels, places)

    def forward(self, maps: Tensor) -> dict[str, Tensor]:
        """Return the losses of ``[B, C, H, W]`` maps (eqs. 2, 5 and 6).

        ``nll`` is told per dimension; in the loss it is the paper's, per vector.
        """
        config, channels = self.config, maps.shape[1]
        vectors = maps.flatten(2).transpose(1, 2)
        places = torch.arange(vectors.shape[1], device=maps.device).expand(len(maps), -1)
        seen = looked_at((maps.shape[2], maps.shape[3]))
        seen = None if seen is None else seen.flatten(1)
        if self.training and 0 < config.positions < vectors.shape[1]:
            # drawn on the CPU, whose generator a resumed training restores
            order = torch.rand(places.shape)
            if seen is not None:  # what is not looked at comes last
                order += (~seen).to(order)
            drawn = order.argsort(1)[:, : config.positions].to(maps.device)
            places = drawn
            vectors = vectors.gather(1, drawn[..., None].expand(-1, -1, channels))
            seen = None if seen is None else seen.gather(1, drawn)
        f, label = vectors.reshape(-1, channels), places.reshape(-1)
        if seen is not None:
            f, label = f[seen.flatten()], label[seen.flatten()]
        z, logdet = self.glow(f)
        nll = 0.5 * z.square().sum(1) - logdet
        z_local, z_global = z[:, : self.local_half], z[:, self.local_half :]
        centred_l, centred_g = z_local - z_local.mean(0), z_global - z_global.mean(0)
        with torch.autocast(maps.device.type, enabled=False):
            covariance = (centred_l.T @ centred_g / max(1, len(z) - 1)).abs().mean()
        guess = self.local_net(z_local).float()
        if config.implementation == "cls":
            local = -F.cosine_similarity(guess, f, dim=1).mean()
        else:
            local = (guess - f).square().sum(1).mean()
        position = F.cross_entropy(self.global_net(z_global).float(), label)
        loss = config.gamma * nll.mean() + covariance + local + position
        return {
            "loss": loss,
            "nll": nll.mean() / channels,
            "covariance": covariance,
            "local": local,
            "position": position,
        }


@register
class F2R(Growing, GalleryHead, FlowHead):
    """Nearest distance between features whose local and global parts were scaled.

    Zhu et al., "Factorized Industrial Anomaly Detection and Localization": ``z = T(f)``,
    ``z = [z_l, z_g]``, ``f̃ = T⁻¹([α z_l, β z_g])``; f̃ of the normals is the gallery.
    """

    name = "f2r"
    Config = F2RConfig
    config: F2RConfig
    paper = "F²R, Feature Factorization and Reversion (Zhu et al. 2023)"
    summary = "gallery of features with scaled local and global parts"
    reads = GalleryHead.reads + ", and rotated views for training"
    reference = Reference(PAPER_BACKBONE, 224, {"layer2+layer3~avg3s1": (1536, 28, 28)})
    presets = {
        "small": {
            "views": 0,
            "positions": 256,
            "epochs": 16,
            "batch_size": 8,
            "lr": 5e-4,
            "image_size": "run",
            "ratio": 0.02,
        }
    }

    growing = ("members",)
    preference: Tensor
    members: Tensor

    def __init__(self, config: HeadConfig, shapes: Shapes, map_size: Size) -> None:
        super().__init__(config, shapes, map_size)
        if self.channels < 4:
            raise ConfigError(f"f2r on {self.channels} channels", expected="at least 4")
        self.register_buffer("preference", torch.tensor(self.given(1.0)))
        self.register_buffer("members", torch.empty(0, self.channels))
        with seeded(config.seed):
            self.glow = vector_glow(
                self.channels,
                self.config.steps,
                max(2, round(self.config.width * self.channels)),
                self.config.clamp,
                config.seed,
            )

    def given(self, otherwise: float) -> tuple[float, float]:
        """Return the configured alpha and beta, `otherwise` where there is none."""
        alpha, beta = self.config.alpha, self.config.beta
        return (
            otherwise if alpha is None else float(alpha),
            otherwise if beta is None else float(beta),
        )

    @classmethod
    def needs(cls, config: HeadConfig, backbone: BackboneInfo, resize: Size) -> Needs:
        """Return the gallery's fused layer and the rotated views."""
        config = cast("F2RConfig", config)
        paper = config.image_size == "paper" or (
            config.image_size == "auto" and backbone.name.startswith(PAPER_BACKBONE)
        )
        views = None
        if config.views:
            views = ViewSpec(count=config.views, rotation=config.rotation, seed=config.seed)
        return Needs(
            (fused_layer(config, backbone, cls.name),),
            resize=(256, 256) if paper else None,
            crop=(224, 224) if paper else None,
            views=views,
        )

    # --- the invertible net

    def latent(self, batch: Batch) -> tuple[list[Tensor], Tensor]:
        """Return ``[z]`` like the maps, and ``log|det dz/df|`` per sample, ``[B]``."""
        maps = batch[self.layer]
        b, c, h, w = maps.shape
        z, logdet = self.glow(maps.permute(0, 2, 3, 1).reshape(-1, c))
        return [z.reshape(b, h, w, c).permute(0, 3, 1, 2)], logdet.reshape(b, h * w).sum(1)

    def reverse(self, z: Sequence[Tensor]) -> list[Tensor]:
        """Return the maps that `latent` takes to `z`."""
        b, c, h, w = z[0].shape
        f, _ = self.glow(z[0].permute(0, 2, 3, 1).reshape(-1, c), rev=True)
        return [f.reshape(b, h, w, c).permute(0, 3, 1, 2)]

    @torch.no_grad()
    def latents(self, vectors: Tensor) -> Tensor:
        """Return z of ``[n, C]`` vectors, float32 on the head's device."""
        device = self.preference.device
        out = torch.empty(len(vectors), self.channels, device=device)
        for low in range(0, len(vectors), 8192):
            out[low : low + 8192], _ = self.glow(vectors[low : low + 8192].to(device).float())
        return out

    @torch.no_grad()
    def reversed_latents(self, z: Tensor, alpha: float, beta: float) -> Tensor:
        """Return f̃ of ``[n, C]`` latents at a preference (section III.A), float32."""
        half = self.channels // 2
        scale = torch.full((self.channels,), beta, device=z.device)
        scale[:half] = alpha
        out = torch.empty_like(z)
        for low in range(0, len(z), 8192):
            out[low : low + 8192] = self.glow(z[low : low + 8192] * scale, rev=True)[0]
        return out

    def reversed_features(self, vectors: Tensor, alpha: float, beta: float) -> Tensor:
        """Return f̃ of ``[n, C]`` vectors at a preference (section III.A), float32."""
        if alpha == beta == 1:  # f̃ is f: the way through T and back would only round
            return vectors.to(self.preference.device).float()
        return self.reversed_latents(self.latents(vectors), alpha, beta)

    def features(self, vectors: Tensor) -> Tensor:
        """Return f̃ of one image's vectors at the head's preference."""
        alpha, beta = self.preference.tolist()
        return self.reversed_features(vectors, alpha, beta)

    def prefer(self, alpha: float, beta: float, limit: int = 0) -> None:
        """Take another alpha and beta: the gallery's members are reversed anew.

        Parameters
        ----------
        alpha, beta
            Scales of the local and of the global half.
        limit
            Use only so many members: the first ones, which are a coreset of that size; 0 for all.
        """
        self.preference.copy_(torch.tensor([alpha, beta]))
        self.gallery.set(self.reversed_features(self.members[: limit or None], alpha, beta))

    # --- learning

    def chooses(self, options: TrainOptions) -> bool:
        """Whether an epoch is chosen, or alpha and beta."""
        open_ = self.config.alpha is None or self.config.beta is None
        return super().chooses(options) or (self.config.select == "synthetic" and open_)

    def learn(self, training: Training) -> dict[str, float]:
        """Train the invertible net, drop the perceptrons, choose the gallery, pick alpha, beta."""
        config, options, train = self.config, training.options, training.train
        device = device_of(options.device)
        with seeded(config.seed + 1):
            module = _Factorization(self.glow, self.channels, math.prod(self.feature_size), config)
        images = max(1, len(set(train.ids)))

        def passes(epochs: int) -> int:
            """Epochs of the source, each of which shows an image once per view."""
            return max(1, math.ceil(epochs * images / max(1, len(train))))

        if options.epochs is not None:
            options = dataclasses.replace(options, epochs=passes(options.epochs))
        result = train_module(
            module,
            lambda batch: module(batch[self.layer]),
            train,
            training.held_out,
            # Not fused: that leaves the parameters' version as it was, by which the matrices of
            # `InvertibleLinear` know that they are out of date.
            optimizer=lambda p: adam(p, config, decoupled=True, fused=False),
            epochs=passes(config.epochs),
            batch_size=config.batch_size,
            seed=config.seed,
            options=options,
            progress=training.progress,
            schedule=Schedule("cosine"),
            clip_norm=config.clip_norm or None,
            identity={"head": self.name, "config": config},
        )
        self.to(device).eval()
        with running(device, options.threads):
            figures = self._fill_gallery(training, device)
        return {**result.figures(), **figures}

    def _fill_gallery(self, training: Training, device: torch.device) -> dict[str, float]:
        config, progress = self.config, training.progress
        vectors = collect_vectors(training.train, self.layer)
        alpha, beta = self.given(1.0)
        rows, figures = self.choose(vectors, device, progress)
        self.members = vectors[rows].float().to(device)
        if config.select == "synthetic" and (config.alpha is None or config.beta is None):
            asked = config.alpha, config.beta
            alpha, beta = select_synthetic(self, training.held_out, config.seed, progress, asked)
        if config.coreset == "per_point" and (alpha, beta) != (1.0, 1.0):
            turned = self.reversed_features(vectors, alpha, beta)
            rows, figures = self.choose(turned, device, progress)
            self.members = vectors[rows].float().to(device)
        self.prefer(alpha, beta)
        return {**figures, "alpha": alpha, "beta": beta}
