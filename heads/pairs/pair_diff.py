"""AnoDFDNet: a deep feature difference network over pairs of images.

Wang et al., "AnoDFDNet: A Deep Feature Difference Network for Anomaly Detection"
(`papers/002`). It needs pairs with change masks; `heads.pairs.pair_flow` needs none.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from heads.contract import (
    Batch,
    FeatureSource,
    HeadConfig,
    Reference,
    Scores,
    Shapes,
    Size,
    Training,
    register,
)
from heads.judging.scores import top_k_mean
from heads.looking import LOOKED, looking, mean_over, only
from heads.pairs.pair_head import DifferenceSource, PairHead, differences
from heads.pairs.source import CURRENT, HISTORY, PairSource
from heads.pairs.transformer import MapTransformer
from heads.pairs.unet import PairEncoder, SkipDecoder
from heads.parts.elementary import channel_statistics
from heads.parts.seeds import seeded
from heads.training.trainer import Schedule, adam, train_module
from headwater.errors import ConfigError, DataError, ShapeError
from headwater.spec import BackboneInfo, LayerSpec, Needs

#: The layer name under which batches carry preprocessed images for ``encoder="trained"``.
IMAGE = "image"


@dataclass(frozen=True)
class PairDiffConfig(HeadConfig):
    """Settings of `pair_diff`; the defaults are the paper's, but for the frozen encoder.

    Parameters
    ----------
    encoder
        ``frozen``: stored features of a backbone. ``trained``: the paper's Siamese CNN from
        scratch, which reads images (layer ``image``).
    image_size
        Pixels of the square image, or ``run`` for the run's own size.
    strides
        Strides of the backbone's stages whose differences are taken; those it has not are left out.
    layers
        Transformer layers, 0 to 8 in the paper's ablation (table III).
    heads, mlp, embedding, dropout
        Attention heads, units of the perceptron, channels of a token, dropout in the transformer.
    width
        Channels of the finest level, in the trained encoder and in the decoder; they double with
        each halving of the size, up to 8 times.
    standardise
        Divide each channel of the frozen differences by its root mean square over the training
        pairs. (No mean is taken off: no difference stays 0.) The paper's batch norms do the like.
    compress
        Take ``log(1 + x)`` of the frozen differences. They are mostly near 0 with a few large ones,
        and the finest level reaches the last convolution as it is: unbounded, it decides the logit.
    augment
        Flips and turns by 180 degrees of both images alike. With the frozen encoder the stored
        maps are flipped, which is not quite the map of the flipped image (its kernels have no
        mirror symmetry); stored views would not do, since they are seeded per image.
    base_rate
        Start the bias of the last layer where every pixel's probability is the share of changed
        pixels in the training masks. From 0.5 everywhere the first epochs of a short training go
        into learning that changes are rare; the paper says nothing of it.
    schedule
        Of the learning rate: ``constant``, or ``one_cycle`` with `lr` as its top.
    top_k
        The pair's score is the mean of this share of the largest pixels.
    """

    encoder: Literal["frozen", "trained"] = "frozen"
    image_size: int | str = 256
    strides: tuple[int, ...] = (2, 4, 8, 16)
    layers: int = 2
    heads: int = 16
    mlp: int = 2048
    embedding: int = 1024
    dropout: float = 0.1
    width: int = 64
    standardise: bool = True
    compress: bool = False
    augment: bool = True
    epochs: int = 100
    batch_size: int = 4
    lr: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.999)
    base_rate: bool = False
    schedule: Literal["constant", "one_cycle"] = "constant"
    top_k: float = 0.001

    def __post_init__(self) -> None:
        if self.encoder not in ("frozen", "trained"):
            raise ConfigError(f"encoder {self.encoder!r}", expected="frozen or trained")
        size = self.image_size
        if size != "run" and not (isinstance(size, int) and size > 0):
            raise ConfigError(f"image_size {size!r}", expected="a number of pixels, or run")
        if self.layers < 0 or self.width < 1 or not self.strides:
            raise ConfigError(
                f"layers {self.layers}, width {self.width}, strides {self.strides}",
                expected="0 or more layers, a positive width, at least one stride",
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout {self.dropout}", expected="0 or more, less than 1")
        if self.schedule not in ("constant", "one_cycle"):
            raise ConfigError(f"schedule {self.schedule!r}", expected="constant or one_cycle")


@register
class PairDiff(PairHead):
    """Change maps from feature differences: transformer on the deepest, decoder over all levels.

    Section III: ``F = |F_c - F_h|`` at every level (eq. 2); the deepest level's positions are
    tokens of a transformer (eq. 3-5); a U-shaped decoder takes in the differenced levels; binary
    cross-entropy (eq. 6, whose sum lacks a pair of brackets).
    """

    name = "pair_diff"
    Config = PairDiffConfig
    paper = "AnoDFDNet: deep feature difference network"
    summary = "paired images with change masks: differences, transformer, decoder"
    reads = "stages of strides 2 to 16, or four blocks of a transformer, of both images"
    reference = Reference("", 256, {IMAGE: (3, 256, 256)}, {"encoder": "trained"})
    presets = {
        "small": {
            "embedding": 256,
            "mlp": 512,
            "width": 16,
            "epochs": 12,
            "lr": 5e-3,
            "schedule": "one_cycle",
            "base_rate": True,
            "compress": True,
            "image_size": "run",
        },
        "published": {"encoder": "trained"},
    }
    labelled = True
    config: PairDiffConfig
    scale: Tensor

    def __init__(self, config: HeadConfig, shapes: Shapes, map_size: Size) -> None:
        super().__init__(config, shapes, map_size)
        config = self.config
        levels = list(self.shapes.values())
        if not levels:
            raise ConfigError(f"{self.name} without maps", expected="at least one level")
        with seeded(config.seed):
            self.encoder: PairEncoder | None = None
            if config.encoder == "trained":
                if len(levels) != 1 or levels[0][0] != 3:
                    raise ConfigError(
                        f"{self.name} with a trained encoder over {dict(self.shapes)}",
                        expected=f"one layer {IMAGE!r} of 3 channels",
                    )
                self.encoder = PairEncoder(config.width, config.embedding)
                levels = self.encoder.shapes(levels[0][1:])
            # The published latent level is the tokens' alone; of a backbone, which has no such
            # level, the deepest is a skip as well.
            skips = levels[:-1] if self.encoder is not None else levels
            self.transformer = MapTransformer(
                *levels[-1],
                layers=config.layers,
                embedding=config.embedding,
                heads=config.heads,
                mlp=config.mlp,
                dropout=config.dropout,
            )
            deep = (self.transformer.channels, *levels[-1][1:])
            widths = [config.width * min(8, max(1, skips[0][1] // s[1])) for s in skips]
            self.decoder = SkipDecoder(deep, skips, widths, self.map_size)
        channels = sum(s[0] for s in self.shapes.values())
        self.register_buffer("scale", torch.ones(channels))
        self.register_buffer("fitted", torch.tensor(False))
        # Here, not in `fit`: a loaded head must have the layout of the trained one, or its scores
        # would differ in the last digit.
        self.to(memory_format=torch.channels_last)

    @staticmethod
    def reads_images(config: HeadConfig) -> bool:
        """Whether batches must carry ``current:image`` and ``history:image``, not features."""
        return cast("PairDiffConfig", config).encoder == "trained"

    @classmethod
    def needs(cls, config: HeadConfig, backbone: BackboneInfo, resize: Size) -> Needs:
        """Return the stages of the strides asked for, or four blocks of a transformer.

        With the trained encoder: the one layer ``image``, which no backbone has; see
        `reads_images`.

        Raises
        ------
        ConfigError
            Where the backbone has none of the strides.
        """
        config = cast("PairDiffConfig", config)
        size = None if config.image_size == "run" else (int(config.image_size),) * 2
        if config.encoder == "trained":
            return Needs((LayerSpec((IMAGE,)),), size)
        nodes = config.nodes
        if not nodes and backbone.tokens:
            picks = [max(1, round(backbone.depth * k / 4)) - 1 for k in (1, 2, 3, 4)]
            nodes = tuple(f"blocks.{k}" for k in sorted(set(picks)))
        if not nodes:
            # Of several stages with one stride the deepest sees most.
            stages = dict(zip(backbone.strides, backbone.stages, strict=True))
            nodes = tuple(stages[s] for s in sorted(config.strides) if s in stages)
        if not nodes:
            have = ", ".join(map(str, backbone.strides)) or "none"
            raise ConfigError(
                f"{cls.name} with backbone {backbone.name}: no stage of stride "
                + ", ".join(map(str, config.strides)),
                expected=f"strides it has: {have}",
                remedy="choose another backbone, strides it has, or name the nodes, fine to deep",
            )
        return Needs(tuple(LayerSpec((n,)) for n in nodes), size)

    # --- the network -----------------------------------------------------------------------------

    def differenced(self, batch: Batch) -> list[Tensor]:
        """Return ``|F_c - F_h|`` at every level, ``[B, C, h, w]``, fine to deep (eq. 1 and 2)."""
        if self.encoder is None:
            found = differences({k: v for k, v in batch.items() if not k.startswith("_")})
            scales = self.scale.split([s[0] for s in self.shapes.values()])
            levels = [
                only(found[layer]) / scale[None, :, None, None]
                for layer, scale in zip(self.shapes, scales, strict=True)
            ]
            return [x.log1p() for x in levels] if self.config.compress else levels
        layer = next(iter(self.shapes))
        # One pass for both images: the weights are shared, and so are batch statistics.
        both = torch.cat([batch[CURRENT + layer], batch[HISTORY + layer]])
        levels = [level.chunk(2) for level in self.encoder(both)]
        return [(current - history).abs() for current, history in levels]

    def logits(self, batch: Batch) -> Tensor:
        """Return the change map before its sigmoid, ``[B, 1, H, W]``."""
        levels = self.differenced(batch)
        deep = self.transformer(levels[-1])
        return self.decoder(deep, levels if self.encoder is None else levels[:-1])

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the binary cross-entropy per pair, ``[B]`` (eq. 6); augments in training."""
        if self.training and self.config.augment:
            batch = flip_alike(batch)
        with looking(batch):  # what is looked at was flipped with the maps
            logits = self.logits(batch).float()
            mask = batch["_mask"].to(logits.device)
            losses = F.binary_cross_entropy_with_logits(logits, mask, reduction="none")
            return {"loss": mean_over(losses[:, 0])}

    def learn(self, training: Training) -> dict[str, float]:
        """Learn from labelled pairs: the sources are `PairSource`s with masks.

        Raises
        ------
        DataError
            Pairs without masks, or masks without any changed pixel.
        ShapeError
            Masks of another size.
        """
        train, held_out = training.train, training.held_out
        digest = self._check_labels(train, held_out)
        config = self.config
        if config.standardise and self.encoder is None:
            statistics = channel_statistics(DifferenceSource(train), list(self.shapes)).values()
            rms = torch.cat([(m.square() + s.square()).sqrt() for m, s in statistics])
            # A channel that hardly differs would else be blown up without measure.
            self.scale.copy_(rms.clamp_min(max(1e-6, 0.05 * float(rms.median()))))
        if config.base_rate:
            assert isinstance(train, PairSource)
            shares = [
                train.mask(row)[train.looked(row)].float().mean() for row in range(len(train))
            ]
            self.decoder.start_at(float(torch.stack(shares).mean()))
        result = train_module(
            self,
            self.loss,
            train,
            held_out,
            optimizer=lambda parameters: adam(parameters, config, fused=False),
            schedule=Schedule(config.schedule),
            epochs=config.epochs,
            batch_size=config.batch_size,
            seed=config.seed,
            options=training.options,
            progress=training.progress,
            identity={
                "head": self.name,
                "config": dataclasses.asdict(config),
                "shapes": {k: list(v) for k, v in self.shapes.items()},
                "labels": digest,
            },
        )
        self.mark_fitted()
        return {**result.figures(), **self._held_out_figures(held_out)}

    def _check_labels(self, train: FeatureSource, held_out: FeatureSource) -> list[str]:
        digests = []
        for what, source in (("training", train), ("held-out", held_out)):
            if not isinstance(source, PairSource) or not source.labelled:
                raise DataError(
                    f"{self.name}: {what} pairs without change masks",
                    expected="a PairSource with masks",
                    remedy="give masks, or train pair_flow, which needs none",
                )
            for row in range(len(source)):
                size = tuple(source.mask(row).shape)
                if size != tuple(self.map_size):
                    raise ShapeError(
                        f"{self.name}: the mask of pair {source.keys[row]} is {size}",
                        expected=f"{tuple(self.map_size)}, the size of the network's input",
                        remedy="bring masks to the input's size (mask_to_input)",
                    )
            digests.append(source.labels_digest())
        assert isinstance(train, PairSource)
        if len(train) and not any(bool(train.mask(r).any()) for r in range(len(train))):
            raise DataError(
                f"{self.name}: no changed pixel in any training mask",
                expected="pairs that show what is to be found",
                remedy="give masks of changes, or train pair_flow on these normal pairs",
            )
        return digests

    def _held_out_figures(self, held_out: FeatureSource) -> dict[str, float]:
        """Return F1 and IoU at 0.5 over all pixels of the validation pairs."""
        tp = called = bad = 0
        for batch in held_out.batches(self.config.batch_size):
            verdict, truth = self.score(batch).maps.cpu() > 0.5, batch["_mask"][:, 0] > 0.5
            with looking(batch):
                verdict, truth = only(verdict, False), only(truth, False)
            tp, called = tp + int((verdict & truth).sum()), called + int(verdict.sum())
            bad += int(truth.sum())
        if not called + bad:
            return {}
        return {"held_out_f1": 2 * tp / (called + bad), "held_out_iou": tp / (called + bad - tp)}

    def scored(self, batch: Batch) -> Scores:
        """Return change probabilities per pixel, and per pair the mean of its `top_k` largest."""
        maps = torch.sigmoid(self.logits(batch).float())[:, 0]
        return Scores(image=top_k_mean(maps, self.config.top_k), maps=maps)


def flip_alike(batch: Batch) -> Batch:
    """Flip each pair's maps and mask left-right, up-down, both (180 degrees) or not, alike.

    Each pair draws one of the four from torch's global CPU generator, which the trainer seeds.
    """
    rows = len(batch[next(k for k in batch if not k.startswith("_"))])
    draws = torch.rand(2, rows) < 0.5
    out = dict(batch)
    for name, x in batch.items():
        if name.startswith("_") and name not in ("_mask", LOOKED):
            continue
        for axis, drawn in ((-1, draws[0]), (-2, draws[1])):
            chosen = drawn.to(x.device).reshape(-1, *[1] * (x.ndim - 1))
            x = torch.where(chosen, x.flip(axis), x)
        out[name] = x
    return out
