"""F²R: features are factorized into local and global parts, scaled, reversed and compared."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from heads.contract import (
    Batch,
    HeadConfig,
    Reference,
    Scores,
    Shapes,
    Size,
    Training,
    TrainOptions,
    register,
)
from heads.flow.flow_head import FlowHead
from heads.gallery.f2r_band import Band
from heads.gallery.f2r_loss import Factorization
from heads.gallery.f2r_select import select_synthetic
from heads.gallery.gallery_head import GalleryConfig, GalleryHead, fused_layer, vectors_of
from heads.gallery.neighbours import Growing, collect_vectors
from heads.parts.seeds import seeded
from heads.parts.vector import vector_glow
from heads.training.arithmetic import device_of, running
from heads.training.trainer import Schedule, adam, train_module
from headwater.errors import ConfigError, ModelError
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
        ``fixed`` takes 1 for what is None; ``band``, where neither is given, averages the
        standardised distances of a band of points near the diagonal (`heads.gallery.f2r_band`);
        ``synthetic`` picks from the grid, on held-out normals against synthetic defects made of
        them, a poor guide. The paper's choice, on the test labels, is
        `heads.gallery.f2r_grid.grid` (`headwater grid`), marked ``oracle``.
    factorize
        ``as_needed`` trains the invertible net only where alpha, beta or `select` need it: at 1, 1
        there is nothing to train. ``always`` trains it, for `grid` and for other alpha and beta
        when the model answers.
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
    select: Literal["fixed", "band", "synthetic"] = "fixed"
    factorize: Literal["as_needed", "always"] = "as_needed"
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

    LATER: ClassVar[dict[str, Any]] = {**GalleryConfig.LATER, "factorize": "as_needed"}

    def __post_init__(self) -> None:
        super().__post_init__()
        choices = {
            "select": ("fixed", "band", "synthetic"),
            "factorize": ("as_needed", "always"),
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
        if self.select == "band" and {self.alpha, self.beta} != {None}:
            raise ConfigError(
                f"select band with alpha {self.alpha}, beta {self.beta}",
                expected="neither given: a band is of many",
            )
        if self.steps < 1 or self.width <= 0 or self.views < 0:
            raise ConfigError(
                f"steps {self.steps}, width {self.width}, views {self.views}",
                expected="at least one step, a width above 0, nothing negative",
            )
        if self.positions < 0 or self.positions == 1:
            # batch norm has no statistics of the one vector of a batch of one image
            raise ConfigError(f"positions {self.positions}", expected="0, for all, or at least 2")

    @property
    def factorizes(self) -> bool:
        """Whether the invertible net is trained."""
        given = {self.alpha, self.beta}
        picked = self.select != "fixed" and None in given
        return self.factorize == "always" or picked or not given <= {None, 1}


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
    reference = Reference(PAPER_BACKBONE, 224, {"layer2+layer3~avg3s1": (1536, 28, 28)},
                          {"factorize": "always"})  # fmt: skip
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
        self.glow: nn.Module | None = self._glow() if self.config.factorizes else None
        #: What scores in place of one point's gallery.
        self.band: Band | None = Band() if self.config.select == "band" else None
        #: Whether it does: not where one point is asked for (`prefer`).
        self.banded = self.band is not None

    def _glow(self) -> nn.Module:
        config, width = self.config, max(2, round(self.config.width * self.channels))
        with seeded(config.seed):
            return vector_glow(self.channels, config.steps, width, config.clamp, config.seed)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # Before there was a choice every model had its net, and what has one keeps it.
        if self.glow is None and any(key.startswith(f"{prefix}glow.") for key in state_dict):
            self.glow = self._glow().to(self.preference.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @property
    def net(self) -> nn.Module:
        """T; `ModelError` where the model was made without."""
        if self.glow is None:
            raise ModelError(
                "this f2r model was made at alpha 1, beta 1, without the net that others need",
                remedy="train one: headwater run SET --heads f2r --set f2r.factorize=always",
            )
        return self.glow

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
        if config.views and config.factorizes:
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
        z, logdet = self.net(maps.permute(0, 2, 3, 1).reshape(-1, c))
        return [z.reshape(b, h, w, c).permute(0, 3, 1, 2)], logdet.reshape(b, h * w).sum(1)

    def reverse(self, z: Sequence[Tensor]) -> list[Tensor]:
        """Return the maps that `latent` takes to `z`."""
        b, c, h, w = z[0].shape
        f, _ = self.net(z[0].permute(0, 2, 3, 1).reshape(-1, c), rev=True)
        return [f.reshape(b, h, w, c).permute(0, 3, 1, 2)]

    @torch.no_grad()
    def latents(self, vectors: Tensor) -> Tensor:
        """Return z of ``[n, C]`` vectors, float32 on the head's device."""
        device = self.preference.device
        out = torch.empty(len(vectors), self.channels, device=device)
        for low in range(0, len(vectors), 8192):
            out[low : low + 8192], _ = self.net(vectors[low : low + 8192].to(device).float())
        return out

    @torch.no_grad()
    def reversed_latents(self, z: Tensor, alpha: float, beta: float) -> Tensor:
        """Return f̃ of ``[n, C]`` latents at a preference (section III.A), float32."""
        half = self.channels // 2
        scale = torch.full((self.channels,), beta, device=z.device)
        scale[:half] = alpha
        out = torch.empty_like(z)
        for low in range(0, len(z), 8192):
            out[low : low + 8192] = self.net(z[low : low + 8192] * scale, rev=True)[0]
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

    def scored_alone(self, one: Tensor) -> Scores:
        """Return the image's scores at the head's preference, or over the band."""
        vectors = vectors_of(one)
        if self.band is None or not self.banded:
            return self.compared(self.features(vectors))
        far = self.band(self, vectors)
        return self.of_distances(far, torch.zeros_like(far, dtype=torch.int64), vectors)

    def prefer(self, alpha: float, beta: float, limit: int = 0) -> None:
        """Take another alpha and beta, and no band: the gallery's members are reversed anew.

        Parameters
        ----------
        alpha, beta
            Scales of the local and of the global half.
        limit
            Use only so many members: the first ones, which are a coreset of that size; 0 for all.
        """
        self.banded = False
        self.preference.copy_(torch.tensor([alpha, beta]))
        self.hold(self.reversed_features(self.members[: limit or None], alpha, beta))

    # --- learning

    def chooses(self, options: TrainOptions) -> bool:
        """Whether an epoch is chosen, or alpha and beta."""
        open_ = self.config.alpha is None or self.config.beta is None
        return super().chooses(options) or (self.config.select == "synthetic" and open_)

    def learn(self, training: Training) -> dict[str, float]:
        """Train the net where it is needed, choose the gallery, pick alpha, beta."""
        device = device_of(training.options.device)
        figures = {} if self.glow is None else self._factorize(training, self.glow)
        self.to(device).eval()
        with running(device, training.options.threads):
            return {**figures, **self._fill_gallery(training, device)}

    def _factorize(self, training: Training, glow: nn.Module) -> dict[str, float]:
        """Train T beside the two perceptrons, which are dropped."""
        config, options, train = self.config, training.options, training.train
        with seeded(config.seed + 1):
            module = Factorization(
                glow,
                self.channels,
                math.prod(self.feature_size),
                gamma=config.gamma,
                positions=config.positions,
                squared=config.implementation == "reg",
            )
        images = max(1, len(set(train.ids)))

        def passes(epochs: int) -> int:
            """Epochs of the source, each of which shows an image once per view."""
            return max(1, math.ceil(epochs * images / max(1, len(train))))

        if options.epochs is not None:
            options = dataclasses.replace(options, epochs=passes(options.epochs))
        return train_module(
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
        ).figures()

    def _fill_gallery(self, training: Training, device: torch.device) -> dict[str, float]:
        config, progress = self.config, training.progress
        vectors = collect_vectors(training.train, self.layer)
        alpha, beta = self.given(1.0)
        told = self.whitening.learn(vectors)
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
        if self.band is not None:
            self.banded = True
            self.band.settle(self, vectors, config.seed)
        return {**told, **figures, "alpha": alpha, "beta": beta}
