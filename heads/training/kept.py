"""Out-of-fold scores as a file, for what is joined of heads after they were trained.

The scores are kept as they are. Of the maps so much is kept as pixel thresholds take: thinned out,
in float16 of the largest value.
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path

import numpy as np

from heads.training.folds import Folds
from heads.training.out_of_fold import OutOfFold, thinning
from headwater.errors import DataError

#: The artifact of a run.
KEPT = "out-of-fold.npz"
#: Map values that are kept, over all images: 8 MB of float16.
VALUES = 1 << 22


def rounded(apart: OutOfFold) -> OutOfFold:
    """Return out-of-fold scores as `kept` gives them back, but for what took how long.

    What is reckoned from these is the same whether they come from a file or from a training.
    """
    shape = apart.maps.shape[1] * apart.step, apart.maps.shape[2] * apart.step
    more = max(1, -(-thinning(len(apart.images), shape, VALUES) // apart.step))
    thin = apart.maps[:, ::more, ::more]
    values, outside = np.ma.getdata(thin), np.ma.getmaskarray(thin)
    scale = float(np.abs(values).max(initial=0.0)) or 1.0
    maps = (values / scale).astype(np.float16).astype(np.float32) * np.float32(scale)
    return dataclasses.replace(
        apart,
        maps=np.ma.masked_array(maps, outside) if outside.any() else maps,
        parts=None,
        step=apart.step * more,
    )


def keep(apart: OutOfFold, file: Path) -> Path:
    """Write out-of-fold scores; return the file."""
    thin = rounded(apart)
    values, outside = np.ma.getdata(thin.maps), np.ma.getmaskarray(thin.maps)
    scale = float(np.abs(values).max(initial=0.0)) or 1.0
    told = {
        "folds": apart.folds.to_json(),
        "images": list(apart.images),
        "seconds": apart.seconds,
        "step": thin.step,
        "scale": scale,
    }
    with file.open("wb") as target:
        np.savez_compressed(
            target,
            about=np.frombuffer(json.dumps(told).encode(), np.uint8),
            scores=apart.scores,
            maps=(values / scale).astype(np.float16),
            outside=np.packbits(outside, axis=None) if outside.any() else np.empty(0, np.uint8),
        )
    return file


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
            scores, thin, bits = found["scores"], found["maps"], found["outside"]
        maps = thin.astype(np.float32) * np.float32(about["scale"])
        if bits.size:
            flat = np.unpackbits(bits, count=maps.size).astype(bool)
            maps = np.ma.masked_array(maps, flat.reshape(maps.shape))
        folds = Folds.from_json(about["folds"])
        return OutOfFold(
            folds, about["images"], scores, maps, about["seconds"], None, about["step"]
        )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{file}: {str(error).splitlines()[0] if str(error) else 'not whole'}",
            expected="out-of-fold scores as a training kept them",
            remedy="fetch it again, or train again",
        ) from error
