"""Several heads of one backbone pass as one: each on one scale of the normals, then their mean.

Nothing is learnt here: the members are trained as they are alone. What heads give has no common
unit (a distance, a likelihood), so each member's scores, and the values of its maps, are
standardised by normal images that it has not learnt from: those by which thresholds are set. No
label and no test image is looked at, and all members weigh the same.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from heads.contract import (
    REGISTERED,
    Batch,
    Head,
    HeadConfig,
    Scores,
    Shapes,
    Size,
    Training,
    TrainOptions,
    register,
)
from heads.judging.rules import Pool
from heads.looking import LOOKED, looking, values_of
from heads.training.out_of_fold import OutOfFold
from headwater.errors import ConfigError, DataError
from headwater.spec import BackboneInfo, LayerSpec, Needs


@dataclass(frozen=True)
class EnsembleConfig(HeadConfig):
    """Settings of an ensemble; they follow from its members.

    Parameters
    ----------
    members
        One a member, JSON-ready: ``head``, its name; ``config``, its whole configuration;
        ``layers``, what it reads.
    """

    members: tuple[Mapping[str, Any], ...] = ()


@register
class Ensemble(Head):
    """Heads that were trained alone, joined to one.

    Its state holds those of its members. `settle_by` (or `join_out_of_fold`) tells it the scales of
    its members; then it may score.
    """

    name = "ensemble"
    Config = EnsembleConfig
    config: EnsembleConfig
    summary = "the mean of several heads, each on the scale of its normals"
    reads = "what its members read"
    #: Fewer are no ensemble.
    least: ClassVar[int] = 2

    def __init__(self, config: HeadConfig, shapes: Shapes, map_size: Size) -> None:
        super().__init__(config, shapes, map_size)
        made = []
        for member in _members(self.config):
            kind = REGISTERED[member["head"]]
            own = {name: shapes[name] for name in member["layers"]}
            made.append(kind(config_of(kind, member["config"]), own, map_size))
        self.members = nn.ModuleList(made)
        self.image, self.heat = Pool(len(made)), Pool(len(made))
        self.register_buffer("fitted", torch.tensor(False))

    @property
    def heads(self) -> list[Head]:
        """The members."""
        return [one for one in self.members if isinstance(one, Head)]

    def adopt(self, heads: Sequence[Head]) -> None:
        """Take trained heads for its members, and go where they are.

        Parameters
        ----------
        heads
            In the order of the configuration, each as it says.
        """
        assert [one.name for one in heads] == [one["head"] for one in self.config.members]
        self.members = nn.ModuleList(heads)
        own = next(itertools.chain(heads[0].buffers(), heads[0].parameters()), torch.empty(0))
        self.to(own.device)

    @classmethod
    def needs(cls, config: HeadConfig, backbone: BackboneInfo, resize: Size) -> Needs:
        """Return all that its members read; `ConfigError` where it has none."""
        assert isinstance(config, EnsembleConfig)
        every = dict.fromkeys(x for member in _members(config) for x in member["layers"])
        return Needs(tuple(LayerSpec.parse(name) for name in every))

    def chooses(self, options: TrainOptions) -> bool:
        """Nothing: its members have."""
        return False

    def learn(self, training: Training) -> dict[str, float]:
        """Raise `ConfigError`: its members learn, each alone, and are put together."""
        raise ConfigError(
            "an ensemble learns nothing of its own",
            expected="members that were trained alone",
            remedy="headwater run SET --heads A,B --combine A,B",
        )

    def apart(self, batch: Batch) -> list[Scores]:
        """Return what each member gives of a batch that was checked."""
        return [
            one.scored({k: batch[k] for k in (*one.batch_shapes, LOOKED) if k in batch})
            for one in self.heads
        ]

    def scored(self, batch: Batch) -> Scores:
        """Return the mean of the members' standardised scores and maps."""
        found = self.apart(batch)
        return Scores(
            self.image.joined(torch.stack([one.image.double() for one in found], 1)),
            self.heat.joined(torch.stack([one.maps.double() for one in found], 1)),
        )

    @torch.no_grad()
    def settle_by(self, source: Any, batch: int = 8) -> np.ndarray:
        """Learn the scales of the members from normals that none of them has learnt from.

        Return the members' scores of these, ``[N, K]`` float64.

        Parameters
        ----------
        source
            Of these images, or of the tiles of these.
        """
        images, moments = [], _Moments(len(self.heads))
        own = next(iter(self.buffers()))
        for start in range(0, len(source), batch):
            rows = source.read(start, min(start + batch, len(source)))
            given = {k: x.to(own.device) for k, x in rows.items()}
            with looking(given):
                found = self.apart(given)
                images.append(torch.stack([one.image.double() for one in found], 1).cpu().numpy())
                for at, one in enumerate(found):
                    moments.add(at, (x.double().cpu().numpy() for x in values_of(one.maps)))
        scores = np.concatenate(images)
        self.image.settle(scores)
        self.heat.adopt(*moments.found())
        self.mark_fitted()
        return scores

    @property
    def score_limit(self) -> float | None:
        """What no image score exceeds, where every member has such a limit."""
        return _limit(self.image, [one.score_limit for one in self.heads])

    @property
    def map_limit(self) -> float | None:
        """The same of its maps."""
        return _limit(self.heat, [one.map_limit for one in self.heads])


def _members(config: HeadConfig) -> Sequence[Mapping[str, Any]]:
    assert isinstance(config, EnsembleConfig)
    if len(config.members) < Ensemble.least:
        raise ConfigError(
            f"an ensemble of {len(config.members)} head(s)",
            expected=f"{Ensemble.least} heads of the run or more",
            remedy="name the heads with --heads, and those to join with --combine",
        )
    return config.members


def config_of(kind: type[Head], values: Mapping[str, Any]) -> HeadConfig:
    """Return a member's configuration; what it was saved without is as it was then."""
    whole = {**kind.Config.LATER, **values}
    made: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in whole.items()}
    return kind.Config(**made)


def _limit(pool: Pool, limits: Sequence[float | None]) -> float | None:
    known = [x for x in limits if x is not None]
    if len(known) < len(limits):
        return None
    return float(pool.joined(torch.tensor([known], dtype=torch.float64).to(pool.mean))[0])


class _Moments:
    """Means and deviations of the values of K members, which come in pieces."""

    def __init__(self, count: int) -> None:
        self._count, self._sum, self._square = (np.zeros(count) for _ in range(3))

    def add(self, at: int, pieces: Iterable[Any]) -> None:
        """Take values of member number `at`."""
        for piece in pieces:
            self._count[at] += piece.size
            self._sum[at] += piece.sum(dtype=np.float64)
            self._square[at] += np.square(piece, dtype=np.float64).sum()

    def found(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the means and the deviations."""
        mean = self._sum / self._count
        return mean, np.sqrt(np.maximum(self._square / self._count - mean**2, 0.0))


def telling(names: Sequence[str], scores: Sequence[np.ndarray]) -> list[int]:
    """Return the numbers of the members whose scores of normals tell them apart at all.

    The one thing that normals alone can say against a member: where most of them share a score (one
    that has saturated, say) it has no scale to be put on, and adds a constant.

    Parameters
    ----------
    names
        Of the members, for the error.
    scores
        ``[N]`` each, of normals that the member has not learnt from.

    Raises
    ------
    DataError
        Where fewer than two are left.
    """
    most = [int(np.unique(one, return_counts=True)[1].max()) for one in scores]
    good = [i for i, one in enumerate(scores) if 2 * most[i] <= one.size]
    if len(good) < Ensemble.least:
        bad = ", ".join(name for i, name in enumerate(names) if i not in good)
        raise DataError(
            f"ensemble of {', '.join(names)}: {bad} give most normals one score",
            expected=f"{Ensemble.least} members or more that tell normals apart",
            remedy="other heads, or another `score` of these",
        )
    return good


def join_out_of_fold(head: Ensemble, apart: Sequence[OutOfFold]) -> OutOfFold:
    """Join the out-of-fold scores of the members; `head` learns their scales from them.

    What a member gives of an image is by a head that has not learnt from it, and so is the mean.
    Folds need not be the same for that: a member that leaves images out at no cost has folds of its
    own. Those that are told are the coarsest.

    Parameters
    ----------
    head
        With its members' states, in the order of `apart`.
    apart
        One a member, of the same images in any order; their maps of one size.

    Raises
    ------
    DataError
        Where the members were calibrated by other images than each other.
    """
    began, first = time.perf_counter(), apart[0]
    order = [dict(zip(one.images, range(len(one.images)), strict=True)) for one in apart]
    names = [one.name for one in head.heads]
    for name, one in zip(names, order, strict=True):
        if one.keys() != order[0].keys():
            other = len(one.keys() ^ order[0].keys())
            raise DataError(
                f"{name} was calibrated by other normals than {names[0]}: {other} are not the same",
                expected="members of one set, snapshot and review",
                remedy="headwater run SET trains those that are not",
            )
    rows = [[one[image] for image in first.images] for one in order]
    scores = np.stack([one.scores[at] for one, at in zip(apart, rows, strict=True)], 1)
    maps = [one.maps[at] for one, at in zip(apart, rows, strict=True)]
    moments = _Moments(len(apart))
    for at, heat in enumerate(maps):
        moments.add(at, [np.ma.compressed(heat)])
    head.heat.adopt(*moments.found())
    joined = np.empty(first.maps.shape, np.float32)
    for at in range(len(joined)):
        parts = np.stack([np.ma.getdata(one[at]) for one in maps])
        joined[at] = head.heat.joined(_as(head.heat, parts))[0].cpu().numpy()
    outside = np.ma.getmaskarray(first.maps)
    made = head.image.settle(scores.astype(np.float64))
    head.mark_fitted()
    return dataclasses.replace(
        first,
        folds=min((one.folds for one in apart), key=lambda folds: folds.count),
        scores=made,
        maps=np.ma.masked_array(joined, outside) if outside.any() else joined,
        seconds=time.perf_counter() - began,
        parts=None,
    )


def _as(pool: Pool, parts: np.ndarray) -> Tensor:
    return torch.from_numpy(parts[None].astype(np.float64)).to(pool.mean)
