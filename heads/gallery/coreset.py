"""Greedy k-center: the few vectors that cover all others, chosen exactly and fast.

Plain greedy (Gonzalez 1985; PatchCore, Roth et al. 2022, Algorithm 1) adds the vector that is
farthest from those chosen, m times, and each time compares all n vectors with the newest: n m
distances, one memory-bound pass over all vectors per choice. Here the same vectors are chosen in
the same order. A vector's distance to the chosen ones only ever shrinks, so an old value is an
upper bound: only a block of the vectors with the largest bounds is kept exact, and while its
farthest vector is farther than every bound outside, it is the farthest of all. When it is not,
the next block is taken and brought up to date by matrix products, and most vectors near a chosen
one are never looked at again.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from heads.training.arithmetic import running
from headwater.errors import ConfigError

# Below this share of its squared norm a squared distance from a matrix product is rounding noise.
_NOISE = 1e-6


@dataclass(frozen=True)
class Coreset:
    """What `k_center` chose.

    Parameters
    ----------
    indices
        ``[m]`` int64 rows in the order of choice.
    radius
        Covering radius: the largest distance of any vector to its nearest chosen one.
    """

    indices: Tensor
    radius: float


def coreset_size(total: int, ratio: float) -> int:
    """Return how many of `total` vectors a `ratio` in ]0, 1] keeps: at least one.

    Examples
    --------
    >>> coreset_size(1000, 0.1), coreset_size(3, 0.01)
    (100, 1)
    """
    if not 0 < ratio <= 1:
        raise ConfigError(f"coreset ratio {ratio}", expected="above 0, at most 1")
    return max(1, int(total * ratio))


def project(features: Tensor, dim: int, seed: int, rows: int = 16384) -> Tensor:
    """Return a seeded Gaussian random projection ``[n, dim]`` (Johnson-Lindenstrauss).

    Distances are kept up to a relative error of about ``sqrt(2 / dim)``.
    """
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(features.shape[1], dim, generator=generator) / dim**0.5
    matrix = matrix.to(features.device)
    out = torch.empty(len(features), dim, device=features.device)
    for i in range(0, len(features), rows):
        out[i : i + rows] = features[i : i + rows].float() @ matrix
    return out


def k_center(
    features: Tensor,
    count: int,
    *,
    seed: int = 0,
    block: int = 2048,
    progress: Callable[[int, int], None] | None = None,
) -> Coreset:
    """Choose `count` rows by greedy k-center.

    Parameters
    ----------
    features
        ``[n, d]`` of any floating dtype, on any device; rows are made float32 a block at a time,
        so float16 features are never held twice. Beside them memory is 12 n bytes, the chosen
        vectors in float32 and a few blocks.
    count
        Rows to choose. Fewer are chosen where fewer are distinct.
    seed
        Draws the first row.
    block
        Candidates that are kept exact.
    progress
        Called now and then with ``(chosen, count)``.

    Returns
    -------
    Coreset
        The rows that plain greedy would choose from the same start; of rows that are equally far
        in float32 the first.

    Raises
    ------
    ConfigError
        A count outside the features.

    Examples
    --------
    >>> points = torch.tensor([[0.0], [0.1], [5.0], [9.0], [9.2]])
    >>> found = k_center(points, 3)
    >>> sorted(found.indices.tolist()), round(found.radius, 4)
    ([0, 2, 4], 0.2)
    """
    total = len(features)
    if not 1 <= count <= total:
        raise ConfigError(f"coreset of {count} vectors", expected=f"1 to {total}")
    start = int(torch.randint(total, (1,), generator=torch.Generator().manual_seed(seed)))
    return _greedy(features, count, [start], 0.0, block, progress)


def cover(
    features: Tensor,
    chosen: int,
    radius: float,
    *,
    block: int = 2048,
    progress: Callable[[int, int], None] | None = None,
) -> Coreset:
    """Go on choosing by greedy k-center until all vectors are covered.

    Parameters
    ----------
    features
        ``[n, d]`` as of `k_center`, the ones chosen before first.
    chosen
        How many these are, at least one.
    radius
        No vector may lie farther from its nearest chosen one.
    block, progress
        As of `k_center`; what is told is how many are chosen of how many there are.

    Returns
    -------
    Coreset
        Its indices are those of all chosen, the ones of before first; its radius is at least that
        of the vectors, and not above the one asked for.

    Examples
    --------
    >>> points = torch.tensor([[0.0], [5.0], [0.1], [9.0], [9.2]])
    >>> found = cover(points, 2, 0.25)
    >>> found.indices.tolist(), round(found.radius, 4)
    ([0, 1, 4], 0.2)
    """
    if not 1 <= chosen <= len(features):
        raise ConfigError(f"{chosen} vectors chosen before", expected=f"1 to {len(features)}")
    return _greedy(features, len(features), list(range(chosen)), radius, block, progress)


def _greedy(
    features: Tensor,
    count: int,
    chosen: list[int],
    enough: float,
    block: int,
    progress: Callable[[int, int], None] | None,
) -> Coreset:
    threads = torch.get_num_threads() if features.device.type == "cpu" else 1
    with torch.no_grad(), running(torch.device("cpu"), 1), ThreadPoolExecutor(threads) as pool:
        return _Greedy(features, count, chosen, enough, block, pool, threads).run(progress)


class _Greedy:
    """State of one selection; all distances are squared.

    Vectors are shifted so that the first chosen is the origin: then the norms in |a|² + |b|² − 2ab
    are distances of the data itself and the difference loses no more digits than it must.

    A block's rows are shared out among plain threads, each of which computes alone: choosing within
    a block is a sequence of tiny operations, and threads that meet after each of them lose
    more than they gain; on a busy machine a run with two such threads took five times as long as
    with one.
    """

    def __init__(
        self,
        features: Tensor,
        count: int,
        chosen: list[int],
        enough: float,
        block: int,
        pool: ThreadPoolExecutor,
        threads: int,
    ) -> None:
        self.features, self.count, self.enough = features, count, enough**2
        self.pool, self.threads = pool, threads
        self.block = min(block, len(features))
        device, total, dim = features.device, len(features), features.shape[1]
        self.origin = features[chosen[0]].float()
        self.norms = torch.empty(total, device=device)
        for i in range(0, total, 16384):
            self.norms[i : i + 16384] = self.rows(slice(i, i + 16384)).square().sum(1)
        self.bounds = self.norms.clone()  # the first chosen is the origin
        self.seen = torch.ones(total, dtype=torch.int32, device=device)
        # Of those that go on, most need few more: room for them is made as they come.
        room = count if len(chosen) == 1 else min(count, 2 * len(chosen))
        self.centres = torch.zeros(room, dim, device=device)
        self.centre_norms = torch.zeros(room, device=device)
        self.chosen = list(chosen)
        given = torch.tensor(chosen, device=device)
        self.centres[: len(chosen)] = self.rows(given)
        self.centre_norms[: len(chosen)] = self.norms[given]
        self.bounds[given] = -1.0

    def rows(self, index: Tensor | slice) -> Tensor:
        """Return shifted float32 vectors."""
        return self.features[index].float() - self.origin

    def run(self, progress: Callable[[int, int], None] | None) -> Coreset:
        told = 0
        while True:
            radius = self.fill()
            if progress is not None and len(self.chosen) - told >= 1000:
                told = len(self.chosen)
                progress(told, self.count)
            if radius is not None:
                break
        if progress is not None:
            progress(len(self.chosen), self.count)
        return Coreset(torch.tensor(self.chosen, dtype=torch.int64), radius**0.5)

    def fill(self) -> float | None:
        """Take a block of the farthest and choose from it; the final radius², or None."""
        members, rival, rival_index = self.candidates()
        vectors, norms = self.rows(members), self.norms[members]
        exact = self.refresh(members, vectors, norms)
        twice = vectors * -2.0
        radius: float | None = None
        while True:
            value, at = (x.item() for x in exact.max(0))
            at = int(at)
            index = int(members[at])
            if value <= self.enough and rival <= self.enough:
                radius = max(value, rival, 0.0)
                break
            if value < rival or (value == rival and rival_index < index):
                break  # someone outside may be farther
            if value <= _NOISE * float(norms[at]) and self.is_chosen(vectors[at]):
                exact[at] = -1.0
                continue
            if len(self.chosen) == self.count:
                radius = value
                break
            number = len(self.chosen)
            self.make_room(number)
            self.centres[number], self.centre_norms[number] = vectors[at], norms[at]
            self.chosen.append(index)
            distance = torch.addmv(norms, twice, vectors[at]).add_(norms[at])
            torch.minimum(exact, distance, out=exact)
            exact[at] = -1.0
        self.bounds[members] = exact
        self.seen[members] = len(self.chosen)
        return radius

    def make_room(self, number: int) -> None:
        """See that there is a place for centre `number`."""
        if number < len(self.centres):
            return
        more = min(self.count, 2 * number) - number
        self.centres = torch.cat(
            (self.centres, self.centres.new_zeros(more, self.centres.shape[1]))
        )
        self.centre_norms = torch.cat((self.centre_norms, self.centre_norms.new_zeros(more)))

    def candidates(self) -> tuple[Tensor, float, int]:
        """Return the rows with the largest bounds, ascending, and the best ``(bound, row)`` left.

        Equal bounds are ordered by row, so that ties are broken as plain greedy breaks them.
        """
        total = len(self.bounds)
        if self.block == total:
            return torch.arange(total, device=self.bounds.device), -1.0, total
        values, rows = torch.topk(self.bounds, self.block + 1)
        lowest = values[-1]
        inside = rows[values > lowest]
        ties = (self.bounds == lowest).nonzero().flatten()
        room = self.block - len(inside)
        members = torch.cat((inside, ties[:room])).sort().values
        return members, float(lowest), int(ties[room])

    def refresh(self, members: Tensor, vectors: Tensor, norms: Tensor) -> Tensor:
        """Return the members' distances to all chosen so far."""
        size = -(-len(members) // self.threads)
        shares = zip(members.split(size), vectors.split(size), norms.split(size), strict=True)
        return torch.cat(list(self.pool.map(lambda part: self.refresh_part(*part), shares)))

    @torch.no_grad()
    def refresh_part(self, members: Tensor, vectors: Tensor, norms: Tensor) -> Tensor:
        """Do `refresh` for some of the members."""
        exact, seen = self.bounds[members], self.seen[members]
        order = seen.argsort(stable=True)
        sorted_seen = seen[order]
        first, last, width = int(sorted_seen[0]), len(self.chosen), 512
        for low in range(first, last, width):
            high = min(low + width, last)
            which = order[: int(torch.searchsorted(sorted_seen, high))]
            centres, offset = self.centres[low:high], self.centre_norms[low:high]
            near = torch.addmm(offset, vectors[which], centres.T, alpha=-2.0).amin(1)
            near += norms[which]
            exact[which] = torch.minimum(exact[which], near)
        return exact

    def is_chosen(self, vector: Tensor) -> bool:
        """Whether a vector equals a chosen one, by direct differences."""
        known = self.centres[: len(self.chosen)]
        return any(bool((part == vector).all(1).any()) for part in known.split(8192))
