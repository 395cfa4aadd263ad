"""Pictures for the demo: texture photographs that scikit-image ships, cut into tiles.

Normal tiles come from the upper three quarters of each photograph, test tiles from the last, so
that no pixel is in both. The photographs are real; the defects (scratches, stains, pieces of
another material) are drawn into them from a seed, with masks.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from features.images.pixels import write_image

TEXTURES = ("brick", "gravel")
KINDS = ("scratch", "blob", "patch")
TILE = 128
_VERSION = 3


def make_demo_images(folder: Path, seed: int = 0) -> Path:
    """Write the demo's image set in MVTec layout; does nothing where it is there already.

    Parameters
    ----------
    folder
        Where ``train/good``, ``test/KIND`` and ``ground_truth/KIND`` go.
    seed
        Of places, shapes and grey values of the defects.

    Returns
    -------
    Path
        `folder`.
    """
    stamp = folder / "made.json"
    made = {"version": _VERSION, "seed": seed}
    if stamp.exists() and json.loads(stamp.read_text()) == made:
        return folder
    from skimage import data

    rng = np.random.default_rng(seed)
    photographs = {name: np.asarray(getattr(data, name)(), dtype=np.uint8) for name in TEXTURES}
    for name, photograph in photographs.items():
        edge = photograph.shape[0] * 3 // 4
        for y in range(0, edge - TILE + 1, TILE // 2):
            for x in range(0, photograph.shape[1] - TILE + 1, TILE // 2):
                tile = photograph[y : y + TILE, x : x + TILE]
                write_image(tile, folder / f"train/good/{name}_{y}_{x}.png")
        bottom = photograph.shape[0] - TILE
        for x in range(0, photograph.shape[1] - TILE + 1, TILE // 2):
            tile = photograph[bottom : bottom + TILE, x : x + TILE]
            write_image(tile, folder / f"test/good/{name}_{x}.png")
        # A stone on bricks, a piece of brick on gravel.
        other = photographs["gravel" if name == "brick" else "brick"]
        for kind in KINDS:
            for number in range(6):
                x = int(rng.integers(0, photograph.shape[1] - TILE + 1))
                tile = photograph[bottom : bottom + TILE, x : x + TILE]
                image, mask = draw_defect(tile, kind, rng, other)
                write_image(image, folder / f"test/{kind}/{name}_{number}.png")
                write_image(mask, folder / f"ground_truth/{kind}/{name}_{number}_mask.png")
    stamp.write_text(json.dumps(made))
    return folder


def draw_defect(
    tile: np.ndarray, kind: str, rng: np.random.Generator, other: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one defect.

    Parameters
    ----------
    tile
        ``[H, W]`` uint8.
    kind
        One of `KINDS`.
    rng
        Source of all randomness.
    other
        Another photograph, from which a patch is cut.

    Returns
    -------
    tuple of numpy.ndarray
        The image and its mask (0 or 255), both ``[H, W]`` uint8.
    """
    height, width = tile.shape
    canvas = Image.new("L", (width, height), 0)
    pen = ImageDraw.Draw(canvas)
    centre = rng.uniform(0.3, 0.7, 2) * (width, height)
    if kind == "scratch":
        angle, length = rng.uniform(0, np.pi), rng.uniform(0.35, 0.6) * width
        steps = np.linspace(-0.5, 0.5, 16)
        along = np.array([np.cos(angle), np.sin(angle)])
        across = np.array([-along[1], along[0]])
        # Bent, and as unsteady as a hand or a stone that slips.
        wander = 5 * rng.uniform(-1, 1) * 4 * steps**2 + np.cumsum(rng.normal(0, 0.9, len(steps)))
        line = centre + steps[:, None] * length * along + wander[:, None] * across
        widths = rng.integers(2, 5, len(steps))
        for one, two, thick in zip(line[:-1], line[1:], widths, strict=False):
            pen.line([tuple(one), tuple(two)], fill=255, width=int(thick))
    else:
        radius = rng.uniform(9, 16)
        turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        parts = [
            rng.uniform(0.4, 1) / n * np.sin(n * turn + rng.uniform(0, 6.3)) for n in range(2, 7)
        ]
        waves = np.sum(parts, axis=0)
        reach = radius * (1 + 0.22 * waves)
        stretch = rng.uniform(0.75, 1.3)
        ring = np.stack([np.cos(turn) * stretch, np.sin(turn) / stretch], 1) * reach[:, None]
        pen.polygon([tuple(p) for p in centre + ring], fill=255)
    mask = np.asarray(canvas)

    def soft(pixels: float) -> np.ndarray:
        blurred = canvas.filter(ImageFilter.GaussianBlur(pixels))
        return np.asarray(blurred, dtype=np.float32) / 255

    image = tile.astype(np.float32)
    grain = rng.normal(0, 5, tile.shape).astype(np.float32)
    edge = soft(0.7)
    if kind == "scratch":
        # What was cut lies bare and pale; light from above leaves the lower lip in the shade.
        paint = 0.25 * image + 0.75 * rng.uniform(205, 240) + grain
        shade = np.clip(np.roll(edge, 2, 0) - edge, 0, 1)
        image = image * (1 - edge) + paint * edge
        image *= 1 - 0.5 * shade
    elif kind == "blob":
        # Something was spilt: the surface shows through it, darker, and darkest at the rim.
        rim = np.clip(edge - soft(3), 0, 1)
        image *= 1 - (0.72 + 0.1 * rng.uniform(-1, 1)) * edge - 0.2 * rim
        image += grain * edge
    else:
        # A piece of another material lies on the surface, and its shadow beside it.
        y, x = (int(rng.integers(0, other.shape[i] - (height, width)[i] + 1)) for i in (0, 1))
        paint = other[y : y + height, x : x + width].astype(np.float32)
        shadow = np.clip(np.roll(soft(1.5), (2, 2), (0, 1)) - edge, 0, 1)
        image *= 1 - 0.6 * shadow
        image = image * (1 - edge) + paint * edge
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), mask
