"""Synthetic defects in feature space, made of held-out normal maps alone.

They stand in for defects where something has to be chosen without labels. Each is a region of
random place, size and shape in a normal map, altered in one of three ways that real defects alter
features: something normal at the wrong place, another image's content, or something unseen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from headwater.errors import DataError


@dataclass(frozen=True)
class SyntheticDefects:
    """Normal maps and defective copies of them.

    Parameters
    ----------
    maps
        ``[N, C, H, W]`` float32.
    masks
        ``[N, H, W]`` bool at the maps' size; of a normal map nothing.
    """

    maps: Tensor
    masks: Tensor


KINDS = ("displaced", "foreign", "unseen")


def blob(height: int, width: int, generator: torch.Generator) -> Tensor:
    """Return a ``[H, W]`` bool region: smoothed noise above the level of a drawn area, 1 to 12 %.

    Never empty, and never the whole map where that has more than one position.
    """
    coarse = torch.randn(1, 1, 5, 5, generator=generator)
    field = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)[0, 0]
    y, x = (torch.rand(2, generator=generator) * torch.tensor([height, width])).tolist()
    rows = (torch.arange(height) + 0.5 - y)[:, None] / height
    columns = (torch.arange(width) + 0.5 - x)[None] / width
    # one place rather than scattered ones, with a ragged outline
    field = 0.3 * field - 6 * (rows.square() + columns.square()).sqrt()
    share = 0.01 + 0.11 * float(torch.rand((), generator=generator))
    count = min(max(1, round(share * height * width)), max(1, height * width - 1))
    region = torch.zeros(height * width, dtype=torch.bool)
    region[field.flatten().topk(count).indices] = True
    return region.reshape(height, width)


def synthetic_defects(normal: Tensor, seed: int) -> SyntheticDefects:
    """Return the normal maps and one defective copy of each per kind.

    Parameters
    ----------
    normal
        ``[N, C, H, W]`` of held-out normal images, N at least 1.
    seed
        Decides everything.

    Raises
    ------
    DataError
        No maps.
    """
    count, channels, height, width = normal.shape
    if not count:
        raise DataError("no held-out normal images to make synthetic defects of")
    generator = torch.Generator().manual_seed(seed)
    deviation = normal.std((0, 2, 3), correction=0)[:, None]
    altered, masks = [], []
    for index, one in enumerate(normal):
        for kind in KINDS:
            region = blob(height, width, generator)
            other = int(torch.randint(count, (), generator=generator))
            shift = [
                int(torch.randint(1, n, (), generator=generator)) if n > 1 else 0
                for n in (height, width)
            ]
            noise = torch.randn(channels, 1, generator=generator)
            if kind == "displaced":
                new = one.roll(shift, (1, 2))[:, region]
            elif kind == "foreign":
                donor = normal[other if other != index else (index + 1) % count]
                new = donor.roll(shift, (1, 2)).flip(2)[:, region]
            else:
                # one drawn direction for the whole region: a material of its own
                new = (one[:, region] + noise * deviation).clamp_min(float(normal.min()))
            copy = one.clone()
            copy[:, region] = new
            altered.append(copy)
            masks.append(region)
    empty = torch.zeros(count, height, width, dtype=torch.bool)
    return SyntheticDefects(
        torch.cat((normal, torch.stack(altered))), torch.cat((empty, torch.stack(masks)))
    )
