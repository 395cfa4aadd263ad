"""Out-of-fold scores as a file, for what is joined of heads after they were trained.

The scores are kept as they are. Of the maps so much is kept as pixel thresholds take: thinned out,
in float16 of their range.
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from heads.training.folds import Folds
from heads.training.out_of_fold import OutOfFold, thinning
from headwater.errors import DataError

#: The artifact of a run.
KEPT = "out-of-fold.npz"
#: Map values that are kept, over all images: 8 MB of float16.
VALUES = 1 << 22


def rounded(apart: OutOfFold) -> OutOfFold:
    """Return out-of-fold scores as `kept` gives them back.

    What is reckoned from these is the same whether they come from a file or from a training.
    """
    codes, outside, about = _coded(apart)
    return dataclasses.replace(
        apart, maps=_maps(codes, outside, about), parts=None, step=about["step"]
    )


def keep(apart: OutOfFold, file: Path) -> Path:
    """Write out-of-fold scores; return the file."""
    codes, outside, about = _coded(apart)
    told = {
        "folds": apart.folds.to_json(),
        "images": list(apart.images),
        "seconds": apart.seconds,
        **about,
    }
    with file.open("wb") as target:
        np.savez_compressed(
            target,
            about=np.frombuffer(json.dumps(told).encode(), np.uint8),
            scores=apart.scores,
            maps=codes,
            outside=np.packbits(outside, axis=None) if outside.any() else np.empty(0, np.uint8),
        )
    return file


def _coded(apart: OutOfFold) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Return the maps thinned out, in float16 from 0 to 1, what is not looked at, and the scale."""
    shape = apart.maps.shape[1] * apart.step, apart.maps.shape[2] * apart.step
    more = max(1, -(-thinning(len(apart.images), shape, VALUES) // apart.step))
    thin = apart.maps[:, ::more, ::more]
    values, outside = np.ma.getdata(thin), np.ma.getmaskarray(thin)
    # From the least on: values of a small spread far from 0 keep it.
    low, high = float(values.min()), float(values.max())
    scale = high - low or 1.0
    codes = ((values - np.float64(low)) / scale).astype(np.float16)
    return codes, outside, {"low": low, "scale": scale, "step": apart.step * more}


def _maps(codes: np.ndarray, outside: np.ndarray | None, about: Mapping[str, Any]) -> Any:
    values = (codes.astype(np.float64) * about["scale"] + about["low"]).astype(np.float32)
    if outside is None or not outside.any():
        return values
    return np.ma.masked_array(values, outside)


def kept(file: Path) -> OutOfFold:
    """Return what `keep` wrote.

    Raises
    ------
    DataError
        Where the file is not whole.
    """
    try:
        with np.load(file, allow_pickle=False) as found:
            about = json.loads(found["about"].tobytes())
            scores, codes, bits = found["scores"], found["maps"], found["outside"]
        flat = np.unpackbits(bits, count=codes.size).astype(bool) if bits.size else None
        maps = _maps(codes, None if flat is None else flat.reshape(codes.shape), about)
        folds, images = Folds.from_json(about["folds"]), about["images"]
        return OutOfFold(folds, images, scores, maps, about["seconds"], None, about["step"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{file}: {str(error).splitlines()[0] if str(error) else 'not whole'}",
            expected="out-of-fold scores as a training kept them",
            remedy="fetch it again, or train again",
        ) from error
