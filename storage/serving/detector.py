"""Inference: from a registered model to predictions. One folder holds all it takes, no pickles.

A model is three files: ``manifest.json`` (what was extracted how, which head, its thresholds),
``head.safetensors`` and ``backbone.safetensors`` (only the weights that the head's layers use).
`Detector` puts them together; the MLflow model (`storage.serving.pyfunc`) and the command line
both predict through it, so that serving and evaluation cannot differ: the same preprocessing, the
same backbone arithmetic, and features rounded to the stored dtype as in the store.
"""

from __future__ import annotations

import copy
import dataclasses
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from features.backbones.backbone import Backbone
from features.images.places.beside import BESIDE
from features.images.places.regions import looked, region_on
from features.images.preprocess import blanked, own_map, preprocess
from heads.contract import Head
from heads.judging.calibration import Calibration
from heads.judging.rules import rule_of
from heads.looking import LOOKED
from headwater.errors import ModelError, ShapeError
from headwater.geometry import frame_of
from headwater.samples import IMAGE, PAIR
from headwater.spec import ExtractorSpec, LayerSpec
from storage.serving.encoding import encode_image
from storage.serving.files import write_files
from storage.serving.opening import Fetches, opened
from storage.serving.prediction import Image, Prediction, Sample, regions_of
from storage.serving.tiled import scored_in_tiles

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class Detector:
    """A trained head with its backbone: pixels in, scores out.

    Parameters
    ----------
    backbone
        Loaded backbone on the head's device; None where the head learnt its own encoder.
    head
        Fitted head.
    spec, layers
        What the head was trained on (the plain images' specification).
    calibration
        Thresholds.
    manifest
        The model's manifest, for those who ask.
    region
        ``[H, W]`` bool: the region of interest of every image, which has its aspect; or None.

    Attributes
    ----------
    kind
        What it judges: `headwater.samples.IMAGE` or `PAIR`.
    """

    def __init__(
        self,
        backbone: Backbone | None,
        head: Head,
        spec: ExtractorSpec,
        layers: Sequence[LayerSpec],
        calibration: Calibration,
        manifest: Mapping[str, Any] | None = None,
        *,
        region: NDArray[np.bool_] | None = None,
    ) -> None:
        self.backbone, self.head, self.spec = backbone, head.eval(), spec
        self.layers, self.calibration = tuple(layers), calibration
        self.manifest, self.region = dict(manifest or {}), region
        self.kind = PAIR if head.pairs else IMAGE
        self._factored: dict[tuple[float, float], Any] = {}
        self._lock = threading.Lock()

    @property
    def threshold(self) -> float:
        """The model's own: a sample is called anomalous, or changed, where its score is greater."""
        return self.calibration.threshold

    @property
    def cut(self) -> float:
        """A pixel is called anomalous, or changed, where its map value is greater."""
        pixel = self.calibration.pixel_threshold
        return self.threshold if pixel is None else pixel

    @property
    def about_regions(self) -> str:
        """What is to be known of the regions that it tells; empty for nothing."""
        found = self.calibration
        if found.area_threshold is not None or found.volume_threshold is not None:
            return ""
        why = "its pixels are probabilities" if self.head.labelled else "train it again for one"
        return f"this model knows no size that a region must exceed ({why}): normal ones show some"

    @property
    def own_regions(self) -> bool:
        """Whether the images that it was trained on had regions of interest of their own."""
        return self.spec.region.startswith(BESIDE)

    @classmethod
    def load(
        cls, location: str | Path, registry: Fetches | None = None, device: str = "auto"
    ) -> Detector:
        """Open a model, over single images or over pairs.

        Parameters
        ----------
        location
            Folder of a model (an MLflow model's, or of the three files alone), a bundle's file
            (`storage.serving.bundle`), or ``models:/NAME/VERSION``.
        registry
            Fetches the latter.
        device
            ``auto``, ``cpu`` or ``cuda[:n]``.

        Raises
        ------
        ModelError
            Where there is no model, its files were changed or do not fit each other, or it is of a
            newer Headwater.
        """
        return cls(**opened(location, registry, device))

    def save(self, folder: Path, about: Mapping[str, Any] | None = None) -> None:
        """Write the three files that `load` opens; `storage.serving.save` makes a served model.

        Parameters
        ----------
        folder
            Made where it is not there.
        about
            JSON-ready facts to keep in the manifest: image set, snapshot, training key.
        """
        plain, head = dataclasses.replace(self.spec, views=None), self.head
        manifest = {
            "spec": plain.to_json(),
            "extractor_id": plain.extractor_id(self.layers),
            "layers": [layer.name for layer in self.layers],
            "head": {
                "name": head.name,
                "config": dataclasses.asdict(head.config),
                "shapes": {k: list(v) for k, v in head.shapes.items()},
                "map_size": list(head.map_size),
            },
            "calibration": self.calibration.to_json(),
            "about": dict(about or {}),
        }
        if self.region is not None:
            manifest["region"] = encode_image(self.region)
        weights = self.backbone.export_state(self.layers) if self.backbone else {}
        write_files(folder, manifest, head.state_dict(), weights)

    @torch.inference_mode()
    def predict(
        self,
        samples: Sequence[Sample],
        *,
        threshold: float | None = None,
        alpha: float | None = None,
        beta: float | None = None,
        rois: Sequence[NDArray[np.bool_] | None] | None = None,
        batch: int = 8,
    ) -> list[Prediction]:
        """Score samples; each one's score depends on that sample alone.

        Parameters
        ----------
        samples
            Images of any size as `features.images.pixels.read_image` gives them: ``[H, W, 3]``
            uint8, or of more bits ``[H, W]`` or ``[H, W, 3]`` uint16 or float32, in the values of
            the files that were trained on; for a pair head ``(current, history)`` each.
        threshold
            Instead of the model's own.
        alpha, beta
            Factors of heads that have them (`f2r`), instead of the model's own. The threshold stays
            what it is: it was set at the model's own factors.
        rois
            Of models whose images have regions of interest of their own: that of each sample's
            image, ``[h, w]`` bool of its aspect, or None for all of it.
        batch
            Samples computed at a time.

        Raises
        ------
        ModelError
            For pairs where the head looks at single images, and the other way round; where factors
            are given and the head has none, or `rois` and the model's images have none.
        ShapeError
            For an array that is none of these, or floats where the model knows no range of values.
        """
        given = self._images(samples)
        if rois is not None and not self.own_regions:
            raise ModelError(
                "regions of images of their own",
                expected="a model that was trained with such (--roi beside)",
                remedy="leave them out",
            )
        head = self._with_factors(alpha, beta)
        limit = self.threshold if threshold is None else float(threshold)
        if self.spec.tiles is not None:
            own = rois or [self.region] * len(given)
            each = zip(given, own, strict=True)
            return [self._joined(x[0], region, head, limit, batch) for x, region in each]
        found: list[Prediction] = []
        for start in range(0, len(given), batch):
            part = given[start : start + batch]
            maps = self.features(part, rois and rois[start : start + batch])
            got, seen = head.score(maps), maps.get(LOOKED)
            for i, score in enumerate(got.image.float().tolist()):
                where = None if seen is None or seen[i].all() else seen[i].cpu().numpy()
                height, width = part[i][0].shape[:2]
                raw = got.maps[i].float().cpu().numpy()
                heat, where = own_map(raw, where, height, width, self.spec)
                found.append(self._said(score, heat, where, limit, head, (height, width)))
        return found

    def _said(
        self,
        score: float,
        heat: NDArray[np.float32],
        where: NDArray[np.bool_] | None,
        limit: float,
        head: Head,
        size: tuple[int, int],
    ) -> Prediction:
        """Return the prediction for an image of this ``(height, width)``."""
        verdict, pixel = self.kind.verdicts[score > limit], self.calibration.pixel_threshold
        # Scores of other factors are not those that the normals' are compared with.
        p = self.calibration.p_value(score) if head is self.head else None
        seen = heat if where is None else np.ma.masked_array(heat, ~where)
        regions = regions_of(seen, self.cut, self.calibration, frame_of(*size, self.spec))
        return Prediction(score, verdict, heat, limit, pixel, where, p, regions)

    def _joined(
        self,
        image: Image,
        own: NDArray[np.bool_] | None,
        head: Head,
        limit: float,
        batch: int,
    ) -> Prediction:
        """Score an image tile by tile."""

        def score(rows: Sequence[Any], regions: Sequence[Any]) -> tuple[Any, Any]:
            maps = self._seen(self.kind.images[0], rows, regions)
            seen = maps[LOOKED].cpu().numpy() if LOOKED in maps else None
            return head.score(maps).maps.float().cpu().numpy(), seen

        region = None if own is None else region_on(own, *image.shape[:2])
        standard = self.calibration.standard
        rule = rule_of(head)
        found = scored_in_tiles(image, region, self.spec, standard, rule, score, batch)
        return self._said(*found, limit, head, image.shape[:2])

    @torch.inference_mode()
    def features(
        self, samples: Sequence[Sample], own: Sequence[NDArray[np.bool_] | None] | None = None
    ) -> dict[str, torch.Tensor]:
        """Return what the store would hold of these samples, as the head's `score` takes it.

        `own` are the regions of interest of the samples' images, where they have their own.

        Float32 ``[B, C, H, W]`` by layer, of pairs by ``current:LAYER`` and ``history:LAYER``.
        Without a backbone: the preprocessed images themselves, under the one layer's name. Where
        not all of an image may be looked at, `heads.looking.LOOKED` says of what. Of a model over
        tiles each sample is taken for a tile.
        """
        made: dict[str, torch.Tensor] = {}
        sides = zip(*self._images(samples), strict=True)
        for name, images in zip(self.kind.images, sides, strict=True):
            own_ = own or [self.region] * len(images)
            regions = [
                None if r is None else region_on(r, *x.shape[:2])
                for x, r in zip(images, own_, strict=True)
            ]
            rows = [blanked(x, r, self.spec) for x, r in zip(images, regions, strict=True)]
            maps = self._seen(name, rows, regions)
            if LOOKED in made and LOOKED in maps:
                maps[LOOKED] &= made[LOOKED]
            made |= maps
        return made

    def _seen(
        self, name: str, rows: Sequence[Image], regions: Sequence[NDArray[np.bool_] | None]
    ) -> dict[str, torch.Tensor]:
        """Return the features of images, or of tiles, of the side `name`; see `features`."""
        tensors = *self.head.buffers(), *self.head.parameters(), torch.empty(0)
        inputs = [preprocess(x, self.spec) for x in rows]
        pixels, made = torch.stack(inputs).to(tensors[0].device), {}
        if self.spec.fitting == "fit" or any(r is not None for r in regions):
            made[LOOKED] = torch.stack([
                torch.from_numpy(looked(x.shape[0], x.shape[1], self.spec, r))
                for x, r in zip(rows, regions, strict=True)
            ]).to(pixels.device)  # fmt: skip
        if self.backbone is None:
            maps = {self.layers[0].name: pixels}
        else:
            maps = self.backbone.maps(pixels, self.layers, self.spec.precision)
            dtype = _DTYPES[self.spec.dtype]
            maps = {k: v.to(dtype).float() for k, v in maps.items()}
        return made | {self.kind.key(name, layer): x for layer, x in maps.items()}

    def _images(self, samples: Sequence[Sample]) -> list[Sequence[Image]]:
        """Return each sample's images, checked."""
        made: list[Sequence[Image]] = []
        for sample in samples:
            single = isinstance(sample, np.ndarray) and sample.ndim < 4
            images: Any = [sample] if single else sample
            if len(images) != len(self.kind.images):
                raise ModelError(
                    f"head {self.head.name} {self.kind.does}: {len(images)} image(s) as one sample",
                    expected=f"({', '.join(self.kind.images)}), each uint8 [H, W, 3]",
                )
            made.append(images)
        for at, image in enumerate(image for images in made for image in images):
            deep = image.dtype == np.uint16
            deep |= image.dtype == np.float32 and self.spec.value_range is not None
            colour = image.ndim == 3 and image.shape[2] == 3
            grey = image.ndim == 2
            if not ((colour and image.dtype == np.uint8) or (deep and (colour or grey))):
                raise ShapeError(
                    f"image {at}: {image.dtype} {image.shape}",
                    expected="uint8 [H, W, 3], or uint16 [H, W] or [H, W, 3]",
                )
        return made

    def _with_factors(self, alpha: float | None, beta: float | None) -> Head:
        """Return the head at these factors; one that has them has `preference` and `prefer`."""
        if alpha is None and beta is None:
            return self.head
        if not hasattr(self.head, "prefer"):
            raise ModelError(
                f"head {self.head.name} has no factors alpha and beta",
                expected="a head such as f2r",
                remedy="leave alpha and beta out",
            )
        head: Any = self.head
        own = head.preference.tolist()
        pair = (own[0] if alpha is None else float(alpha), own[1] if beta is None else float(beta))
        with self._lock:
            made = self._factored.get(pair)
            if made is None:
                # The gallery is made anew for each pair: keep the last two that were asked for.
                while len(self._factored) >= 2:
                    self._factored.pop(next(iter(self._factored)))
                # A head may count the changes of its tensors, which inference tensors do not.
                with torch.inference_mode(False), torch.no_grad():
                    made = copy.deepcopy(head)
                    made.prefer(*pair)
                self._factored[pair] = made
            return made
