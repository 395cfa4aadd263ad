"""How the maps of an image become its score: the setting `score` of the heads.

A head hands over one map a scale, of how far each position is from what is normal: distances, or
half the squared latents, never likelihoods. The exponential of such an energy is 0 in float32 from
about 100 on, and images whose latents differ would share a score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from heads.contract import Head, HeadConfig, Scores, Shapes, Size
from heads.judging.known import best_rule
from heads.judging.scores import top_k_mean, upsample
from heads.looking import largest, mean_over, places
from headwater.errors import ConfigError

#: What a head may be told, beside ``auto``; `paper` is its paper's own.
RULES = ("paper", "max", "mean", "top", "scales", "pooled")
#: What stands for the one of them, but `paper`, that known defects choose.
BY_DEFECTS = "validation"
#: What `pooled` joins.
POOLED = ("max", "top", "scales")


def joint(scales: Sequence[Tensor], size: Size | None = None) -> Tensor:
    """Return the mean of the scales' maps ``[B, h_i, w_i]``, ``[B, *size]``; at the finest's size.

    Examples
    --------
    >>> joint([torch.tensor([[[0.0, 4.0]]]), torch.tensor([[[2.0]]])])
    tensor([[[1., 3.]]])
    """
    if size is None:
        finest = max(scales, key=lambda m: m.shape[1] * m.shape[2])
        size = finest.shape[1], finest.shape[2]
    return torch.stack([upsample(m, size) for m in scales]).mean(0)


def by_rule(rule: str, scales: Sequence[Tensor], share: float) -> Tensor:
    """Return the scores ``[B]`` of images, of what is looked at.

    Parameters
    ----------
    rule
        ``max``, ``top``: the largest value, or the mean of the largest share, of the scales' mean
        map; ``mean``: the mean over all positions of all scales, most of which are the finest's;
        ``scales``: the mean of each scale's mean.
    scales
        ``[B, h_i, w_i]`` each, larger is more anomalous.
    share
        Of ``top``: 0 is the largest value alone.

    Examples
    --------
    >>> maps = [torch.tensor([[[0.0, 4.0]]]), torch.tensor([[[2.0]]])]
    >>> [float(by_rule(rule, maps, 0.5)) for rule in ("max", "top", "mean", "scales")]
    [3.0, 3.0, 2.0, 2.0]
    """
    if rule == "max":
        return largest(joint(scales))
    if rule == "top":
        return top_k_mean(joint(scales), share)
    means = torch.stack([mean_over(m) for m in scales])
    if rule == "scales":
        return means.mean(0)
    counts = [torch.as_tensor(places((m.shape[1], m.shape[2]))).to(means) for m in scales]
    weights = torch.stack([c.expand(means.shape[1]) for c in counts])
    return (means * weights).sum(0) / weights.sum(0)


@dataclass(frozen=True)
class RuledConfig(HeadConfig):
    """Settings of heads whose image score is one of several.

    Parameters
    ----------
    score
        How the maps of an image become its score. ``auto``: ``pooled``, and ``max`` of images that
        are seen in tiles, which is about small defects; ``paper``: as the head's paper has it;
        ``max``: their largest value; ``mean``: the mean over all positions; ``top``: the mean of
        the largest values, `top_share` of them; ``scales``: each scale's mean, with equal weight;
        ``pooled``: the mean of ``max``, ``top`` and ``scales``, each standardised by the normals'
        scores that set the threshold; ``validation``: the one of these, but ``paper``, that ranks
        known defects best above those normals.
    top_share
        Of ``top``, in ``pooled`` too: the share of the positions.
    """

    score: str = "auto"
    top_share: float = 0.03

    LATER: ClassVar[dict[str, Any]] = {"score": "paper", "top_share": 0.03}

    def __post_init__(self) -> None:
        if self.score not in (known := ("auto", *RULES, BY_DEFECTS)):
            raise ConfigError(f"score {self.score!r}", expected="one of " + ", ".join(known))
        if not 0 <= self.top_share <= 1:
            raise ConfigError(f"top_share {self.top_share}", expected="a share, 0 to 1")


@dataclass(frozen=True)
class RuledScores(Scores):
    """Scores with what a pooled one was joined of.

    Parameters
    ----------
    parts
        ``[B, K]`` float64, or None where nothing is pooled.
    """

    parts: Tensor | None = None


def together(found: Sequence[Scores]) -> RuledScores:
    """Return the scores of several batches as those of one."""
    parts = [one.parts for one in found if isinstance(one, RuledScores) and one.parts is not None]
    return RuledScores(
        torch.cat([one.image for one in found]),
        torch.cat([one.maps for one in found]),
        torch.cat(parts) if parts else None,
    )


class Pool(nn.Module):
    """The mean of several values, each less its mean and divided by its deviation on normals.

    Parameters
    ----------
    count
        How many are joined; 0 keeps nothing.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        if count:
            self.register_buffer("mean", torch.zeros(count, dtype=torch.float64))
            self.register_buffer("deviation", torch.ones(count, dtype=torch.float64))

    def joined(self, parts: Tensor) -> Tensor:
        """Return the joined values ``[N, ...]`` float32 of ``[N, K, ...]``.

        Examples
        --------
        >>> pool = Pool(2)
        >>> pool.adopt([0.0, 10.0], [1.0, 5.0])
        >>> pool.joined(torch.tensor([[2.0, 20.0]]))
        tensor([2.])
        """
        mean, deviation = (
            x.reshape(-1, *(1,) * (parts.ndim - 2)) for x in (self.mean, self.deviation)
        )
        return ((parts - mean) / deviation).mean(1).float()

    def settle(self, parts: NDArray[np.float64]) -> NDArray[np.float32]:
        """Learn the scale of each part from normal images; return their scores ``[N]``.

        Parameters
        ----------
        parts
            ``[N, K]``, by heads that have not learnt from these images.
        """
        known = torch.from_numpy(np.asarray(parts, np.float64)).to(self.mean)
        self.adopt(known.mean(0), known.std(0, correction=0))
        return self.joined(known).cpu().numpy()

    def adopt(self, mean: Any, deviation: Any) -> None:
        """Take means and deviations ``[K]`` as they are given."""
        self.mean.copy_(torch.as_tensor(mean))
        self.deviation.copy_(torch.as_tensor(deviation).clamp_min(1e-12))


class Rule(Pool):
    """One of the rules, and what a pooled one has learnt of normal images.

    Parameters
    ----------
    name
        ``auto`` or one of `RULES`; ``paper`` is the head's business, and here the largest value.
    share
        See `by_rule`.
    """

    def __init__(self, name: str, share: float) -> None:
        self.name, self.share = ("max" if name == "paper" else name), share
        super().__init__(len(POOLED) if self.pooled else 0)

    @property
    def pooled(self) -> bool:
        """Whether it joins several, standardised by what `settle` was told."""
        return self.name in ("auto", "pooled")

    def forward(self, scales: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return scores ``[B]`` float32, and what they were joined of, ``[B, K]``, if they were."""
        scales = [m.double() for m in scales]
        if not self.pooled:
            return by_rule(self.name, scales, self.share).float(), None
        parts = torch.stack([by_rule(part, scales, self.share) for part in POOLED], 1)
        return self.joined(parts), parts

    def of_map(self, heat: Any) -> tuple[float, NDArray[np.float64] | None]:
        """Return score and parts of one map, an array ``[H, W]``: of what is not masked.

        Of a map that is joined of tiles.
        """
        if self.name == "auto":
            return float(heat.max()), None
        values = torch.from_numpy(np.ma.compressed(heat))[None, None]
        score, parts = self([values.to(self.mean.device) if self.pooled else values])
        return float(score[0]), None if parts is None else parts[0].cpu().numpy()


class ChosenRule(Rule):
    """The rule that known defects choose; until they have, ``pooled``."""

    #: What is kept of every image: what `pooled` joins, and the rest of the candidates.
    PARTS = (*POOLED, "mean")
    #: In the order in which they are kept.
    CANDIDATES = ("pooled", *PARTS)

    chosen: Tensor

    def __init__(self, share: float) -> None:
        super().__init__("pooled", share)
        self.register_buffer("chosen", torch.zeros((), dtype=torch.int64))

    def forward(self, scales: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return scores by the rule that was chosen, and those of all parts."""
        scales = [m.double() for m in scales]
        parts = torch.stack([by_rule(part, scales, self.share) for part in self.PARTS], 1)
        return self.of_parts(parts, self.CANDIDATES[int(self.chosen)]).float(), parts

    def of_parts(self, parts: Tensor, rule: str) -> Tensor:
        """Return the scores ``[N]`` float64 of `parts` ``[N, K]`` by one of the candidates."""
        if rule != "pooled":
            return parts[:, self.PARTS.index(rule)]
        return ((parts[:, : len(POOLED)] - self.mean) / self.deviation).mean(1)

    def settle(self, parts: NDArray[np.float64]) -> NDArray[np.float32]:
        """Learn the scale of what is pooled from normal images; return their scores ``[N]``."""
        super().settle(parts[:, : len(POOLED)])
        return self.scores(parts)

    def scores(self, parts: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return scores ``[N]`` by the rule that was chosen, of parts ``[N, K]``."""
        rule = self.CANDIDATES[int(self.chosen)]
        return self.of_parts(self._known(parts), rule).float().cpu().numpy()

    def choose(
        self, normals: NDArray[np.float64], defects: NDArray[np.float64], default: str
    ) -> tuple[str, dict[str, float]]:
        """Choose the rule that ranks known defects best above normals; `settle` comes first.

        Parameters
        ----------
        normals, defects
            Parts ``[N, K]`` and ``[M, K]``, the normals' by heads that have not learnt from them.
        default
            What is kept where it is as good as any.

        Returns
        -------
        tuple
            The rule, and the image AUROC of each candidate, the default first.
        """
        order = sorted(self.CANDIDATES, key=lambda rule: rule != default)
        of = [
            {rule: self.of_parts(self._known(parts), rule).float().cpu().numpy() for rule in order}
            for parts in (normals, defects)
        ]
        rule, found = best_rule(*of)
        self.chosen.fill_(self.CANDIDATES.index(rule))
        return rule, found

    def _known(self, parts: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(np.asarray(parts, np.float64)).to(self.mean)


def rule_of(head: Head) -> Rule:
    """Return a head's rule; the largest value where it has none."""
    return head.rule if isinstance(head, RuledHead) else Rule("max", 0.0)


class RuledHead(Head):
    """A head whose image score is a setting; it gives `judged` one map a scale."""

    config: RuledConfig

    def __init__(self, config: HeadConfig, shapes: Shapes, map_size: Size) -> None:
        super().__init__(config, shapes, map_size)
        by_defects = self.config.score == BY_DEFECTS
        share = self.config.top_share
        self.rule = ChosenRule(share) if by_defects else Rule(self.config.score, share)

    @property
    def published(self) -> bool:
        """Whether it scores as its paper has it."""
        return self.config.score == "paper"

    def heat(self, scales: Sequence[Tensor]) -> Tensor:
        """Return the map ``[B, *map_size]`` of the scales' maps: their mean."""
        return joint(scales, self.map_size)

    def judged(self, scales: Sequence[Tensor]) -> Scores:
        """Return scores by the rule, and maps, of one map ``[B, h_i, w_i]`` a scale."""
        image, parts = self.rule(scales)
        return RuledScores(image, self.heat(scales).float(), parts)
