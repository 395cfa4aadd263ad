"""Distance of every position to the normal mean, in deviations per channel."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from heads.base import Head, HeadConfig, Scores, register
from heads.data import check_finite
from heads.scoring import top_k_mean, upsample
from headwater.errors import ConfigError, DataError, NotFittedError
from headwater.spec import LayerSpec, Needs


@dataclass(frozen=True)
class NearestMeanConfig(HeadConfig):
    """Settings; every field is JSON-ready and has a default.

    Parameters
    ----------
    top_k
        The image score is the mean of this share of the largest pixels.
    """

    top_k: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.top_k <= 1:
            raise ConfigError(f"top_k {self.top_k}", expected="a share, 0 to 1")


@register
class NearestMean(Head):
    """One mean and one deviation per channel, over all positions of all normal images."""

    name = "nearest_mean"
    Config = NearestMeanConfig
    summary = "distance to the normal mean, in deviations"
    reads = "the deepest stage"
    presets = {"small": {"top_k": 0.02}}

    def __init__(self, config, shapes, map_size) -> None:
        super().__init__(config, shapes, map_size)
        ((self.layer, (channels, _, _)),) = self.shapes.items()
        # All that is learnt is in buffers and parameters: the state dict is the model.
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.zeros(channels))

    @classmethod
    def needs(cls, config, backbone, resize) -> Needs:
        """Say which layers are read; the planner merges this with what other heads read."""
        nodes = config.nodes or backbone.stages[-1:]
        if not nodes:
            raise ConfigError(f"{cls.name}: {backbone.name} has no stage", remedy="name the nodes")
        return Needs((LayerSpec(tuple(nodes)),))

    def fit(self, train, held_out, options, progress) -> dict[str, float]:
        """Learn from normal images alone, a batch at a time."""
        self.check(train)
        total = square = torch.zeros(())
        count = 0
        for batch in train.batches(16):
            check_finite(batch, self.name, train.ids)  # names the image in the error
            x = batch[self.layer].double()
            total, square = total + x.sum((0, 2, 3)), square + x.square().sum((0, 2, 3))
            count += x.numel() // x.shape[1]
            progress.step(count, count, "reading")
        if not count:
            raise DataError("no normal images to learn from", remedy="add normal images")
        mean = total / count
        self.mean.copy_(mean)
        self.deviation.copy_((square / count - mean**2).clamp_min(1e-8).sqrt())
        return {"positions": float(count)}

    @torch.no_grad()
    def score(self, batch: Mapping[str, Tensor]) -> Scores:
        """Score each row by itself: nothing here may look at the rest of the batch."""
        if not self.deviation.any():
            raise NotFittedError.of(self.name)
        self.check(batch)
        check_finite({self.layer: batch[self.layer]}, self.name)
        x = batch[self.layer].to(self.mean.device)
        far = (x - self.mean[:, None, None]) / self.deviation[:, None, None]
        maps = upsample(far.square().mean(1), self.map_size)
        return Scores(image=top_k_mean(maps, self.config.top_k), maps=maps)
