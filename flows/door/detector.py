"""A registered model, loaded: pictures in, results out."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from features.images.depth import Range, in_colour
from features.images.masks import read_mask
from features.images.pixels import from_pillow, read_image
from features.images.places.regions import region_on
from flows.pictures.answer import draw_prediction
from flows.runtime.console import counted
from flows.use.predict import open_bundle, region_beside
from headwater.errors import ImageError
from headwater.files import expand_user
from storage.serving.prediction import note_on

if TYPE_CHECKING:
    from storage.serving.detector import Detector
    from storage.serving.prediction import Prediction, Region

#: One picture: a file, a PIL image, or an array ``[H, W, 3]`` or ``[H, W]``: uint8, or of more bits
#: where the model was trained on such, in the values of its files.
Picture = str | Path | Image.Image | NDArray[Any]
#: What is judged: a picture, or of models over pairs ``(current, history)``.
Sample = Picture | tuple[Picture, Picture]
Pixels = NDArray[Any]
#: A region of interest: a mask's file, a folder of such, or ``[h, w]`` where not 0.
Roi = str | Path | NDArray[Any]


@dataclass(frozen=True, repr=False)
class Result:
    """What a model says of one sample.

    Parameters
    ----------
    score
        Larger is more anomalous; of pairs, more changed.
    verdict
        ``normal`` or ``anomalous``; of pairs ``unchanged`` or ``changed``.
    map
        ``[H, W]`` float32, at the size that the net saw, or in the image's own aspect.
    threshold
        What the score was compared with.
    pixel_threshold
        Map value that few normal pixels exceed; None where the model has none.
    model, version
        Which model: ``SET.HEAD`` and its number, as in ``--json``.
    p_value
        Share of normal samples that score as high; None where the model has no out-of-fold scores.
    regions
        Where it is, in the picture's pixels, the largest first: each has ``x, y, width, height,
        area, peak_x, peak_y, peak``.
    note
        Empty, or what is to be known of this answer.
    """

    score: float
    verdict: str
    map: NDArray[np.float32]
    threshold: float
    pixel_threshold: float | None
    model: str
    version: str
    _draw: Callable[[Path], None] = field(compare=False)
    p_value: float | None = None
    regions: tuple[Region, ...] = ()
    note: str = ""

    def __str__(self) -> str:
        p = "" if self.p_value is None else f"p {self.p_value:.3g}, "
        return (
            f"{self.verdict}: score {self.score:.4g}, {p}threshold {self.threshold:.4g}, "
            f"{counted(len(self.regions), 'region')}, by {_named(self.model, self.version)}"
        )

    def __repr__(self) -> str:
        return f"Result({self})"

    def save(self, path: str | Path) -> Path:
        """Write the picture with its map as a PNG, its folder too; return the file."""
        file = expand_user(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        self._draw(file)
        return file

    def image(self) -> Image.Image:
        """Return the picture with its map."""
        with Image.open(io.BytesIO(self._repr_png_())) as drawn:
            return drawn.convert("RGB")

    def _repr_png_(self) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            return self.save(Path(folder) / "result.png").read_bytes()

    def show(self) -> None:
        """Show the picture with its map: below a notebook's cell, else in the picture viewer."""
        try:
            from IPython.core.getipython import get_ipython  # installed with notebooks alone
            from IPython.display import display
        except ImportError:
            self.image().show(title=str(self))
            return
        display(self) if get_ipython() else self.image().show(title=str(self))


def _named(model: str, version: str) -> str:
    return f"{model} version {version}"


class LoadedModel:
    """A model, loaded; `OpenHome.detector` gives a registered one, `load` that of a bundle.

    Parameters
    ----------
    inference
        The model's files, put together.
    model, version
        ``SET.HEAD`` and its number.
    """

    def __init__(self, inference: Detector, model: str, version: str) -> None:
        self.inference, self.model, self.version = inference, model, version

    @property
    def name(self) -> str:
        """What people call it: ``SET.HEAD version N``."""
        return _named(self.model, self.version)

    def __repr__(self) -> str:
        return f"{self.name}: threshold {self.threshold:.4g}"

    @property
    def threshold(self) -> float:
        """A sample's verdict is the worse one where its score is greater."""
        return self.inference.threshold

    @overload
    def predict(
        self, sample: Sample, threshold: float | None = None, *, roi: Roi | None = None
    ) -> Result: ...
    @overload
    def predict(
        self, sample: list[Any], threshold: float | None = None, *, roi: Roi | None = None
    ) -> list[Result]: ...
    def predict(
        self, sample: Sample | list[Any], threshold: float | None = None, *, roi: Roi | None = None
    ) -> Result | list[Result]:
        """Score a sample, or a list of them; each one's score depends on that one alone.

        Parameters
        ----------
        sample
            A file, a PIL image or an array; of models over pairs ``(current, history)``. A list of
            such gives a list.
        threshold
            Instead of the model's own.
        roi
            Of a model whose images have regions of interest of their own: a mask for all samples (a
            file, or ``[h, w]`` where not 0), or a folder of masks. Without it ``NAME_roi.png``
            beside a picture's file is taken; of a picture that is no file all is looked at, and
            the result's `note` says so.

        Raises
        ------
        ImageError
            For a picture or a region that cannot be read.
        ConfigError, ModelError
            For a pair where the model looks at single images, or the other way round; for `roi`
            where the model knows none.
        """
        samples = sample if isinstance(sample, list) else [sample]
        known = self.inference.spec.value_range
        given = [[pixels(p, known) for p in (s if isinstance(s, tuple) else (s,))] for s in samples]
        rois = None
        if self.inference.own_regions or roi is not None:
            firsts = [s[0] if isinstance(s, tuple) else s for s in samples]
            rois = [
                _region(first, roi, images[0].shape[:2])
                for first, images in zip(firsts, given, strict=True)
            ]
        got = self.inference.predict(given, threshold=threshold, rois=rois)
        lacking = [rois is not None and rois[i] is None for i in range(len(given))]
        results = [self._result(*one) for one in zip(given, got, lacking, strict=True)]
        return results if isinstance(sample, list) else results[0]

    def _result(self, images: Sequence[Pixels], got: Prediction, lacking: bool) -> Result:
        def paint(target: Path) -> None:
            draw_prediction(self.inference, images, got, target)

        return Result(
            got.score,
            got.verdict,
            got.map,
            got.threshold,
            got.pixel_threshold,
            self.model,
            self.version,
            paint,
            got.p_value,
            got.regions,
            note_on(got.regions, images[0].shape, lacking=lacking),
        )


def _region(picture: Picture, roi: Roi | None, size: tuple[int, ...]) -> NDArray[np.bool_] | None:
    """Return a picture's region of interest at its size, None where none is known."""
    if isinstance(roi, np.ndarray):
        return region_on(roi != 0, size[0], size[1], "roi")
    given = None if roi is None else Path(roi)
    if isinstance(picture, str | Path):
        return region_beside(Path(picture), Path(picture).parent, given, size)
    return None if given is None else region_on(read_mask(given), size[0], size[1], str(given))


def load(file: str | Path, *, device: str = "auto") -> LoadedModel:
    """Return the model of a file that `headwater bundle` wrote, to predict with; no home is needed.

    Parameters
    ----------
    file
        The bundle.
    device
        ``auto``, ``cpu`` or ``cuda[:n]``.

    Raises
    ------
    ModelError
        Where it is no bundle, damaged, or of a newer Headwater.
    """
    found, model = open_bundle(Path(file), device=device)
    return LoadedModel(found, model["model"], str(model["version"]))


def pixels(picture: Picture, value_range: Range | None = None) -> Pixels:
    """Return a picture's pixels, read as files are (`features.images.pixels.read_image`).

    Parameters
    ----------
    value_range
        That of the model: with one, arrays of more than 8 bits are taken.

    Raises
    ------
    ImageError
        For a file that cannot be read, or an array that is no picture of the model's depth.
    """
    if isinstance(picture, str | Path):
        return read_image(Path(picture))
    if isinstance(picture, Image.Image):
        return from_pillow(picture, "the PIL image")
    array = np.asarray(picture)
    colour = array.ndim == 3 and array.shape[2] == 3
    if array.dtype == np.uint8 and (colour or array.ndim == 2):
        array = in_colour(array)
        return array if array.flags.writeable else array.copy()
    if value_range is not None and array.dtype.kind in "uif" and (colour or array.ndim == 2):
        return array.astype(np.uint16 if array.dtype == np.uint16 else np.float32)
    raise ImageError(
        f"an array {array.dtype} {array.shape}",
        expected="uint8 [H, W, 3] or [H, W]"
        + (", or numbers in the training files' values" if value_range is not None else ""),
        remedy="scale it to 0...255 as the training images were",
    )
