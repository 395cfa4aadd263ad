"""Opening a model: its files put together to what a `Detector` is made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from features.backbones.backbone import restore_backbone
from features.images.pixels import decode_image
from heads.catalogue import get_head, saved_config
from heads.judging.calibration import Calibration
from heads.training.arithmetic import device_of
from headwater.errors import HeadwaterError, ModelError
from headwater.spec import ExtractorSpec, LayerSpec
from storage.serving.bundle import read_bundle
from storage.serving.encoding import decode_base64
from storage.serving.files import read_files
from storage.serving.manifest import FETCH_AGAIN, HEAD_FILE


class Fetches(Protocol):
    """What opening needs of a registry."""

    def download(self, uri: str) -> Path:
        """Return the local folder of a model URI."""


def opened(location: str | Path, registry: Fetches | None, device: str) -> dict[str, Any]:
    """Return the arguments of `storage.serving.detector.Detector` for a model.

    Parameters
    ----------
    location, registry, device
        As of `Detector.load`.

    Raises
    ------
    ModelError
        For all that can be wrong with a model.
    """
    folder = Path(location)
    if str(location).startswith("models:/"):
        if registry is None:
            raise ModelError(
                f"model URI {location!r} without a registry",
                expected="a folder, or a registry that fetches it",
            )
        folder = registry.download(str(location))
    where = device_of(device)
    manifest, state, weights = read_bundle(folder) if folder.is_file() else read_files(folder)
    with _as_model_error(folder):
        spec = ExtractorSpec.from_json(manifest["spec"])
        layers = tuple(LayerSpec.parse(name) for name in manifest["layers"])
        about = manifest["head"]
        kind, config = get_head(about["name"]), saved_config(about["name"], about["config"])
        backbone = None
        if not kind.reads_images(config):
            backbone = restore_backbone(
                spec.backbone,
                weights,
                weights_id=spec.weights,
                options=dict(spec.options),
                device=str(where),
            )
            backbone.check_weights(layers)
        shapes = {k: (v[0], v[1], v[2]) for k, v in about["shapes"].items()}
        height, width = about["map_size"]
        if spec.input_size != (height, width) or min(*spec.resize, height, width) < 1:
            raise ModelError(
                f"{folder}: images of {spec.resize}, seen at {spec.input_size}, have no maps of "
                f"{(height, width)}",
                expected="maps of the size that the net sees",
                remedy=FETCH_AGAIN,
            )
        head = kind(config, shapes, (height, width))
        try:
            head.load_state_dict(state, strict=True)
        except (RuntimeError, KeyError) as error:
            raise ModelError(
                f"{folder / HEAD_FILE} does not fit head {about['name']}: {error}",
                expected="the state that this head saved",
                remedy=f"the model was made by Headwater {manifest.get('headwater', 'unknown')}",
            ) from error
        head.requires_grad_(False)
        region = None
        if manifest.get("region"):
            region = decode_image(decode_base64(manifest["region"], "region"))[..., 0] > 0
        return {
            "backbone": backbone,
            "head": head.to(where),
            "spec": spec,
            "layers": layers,
            "calibration": Calibration.from_json(manifest["calibration"]),
            "manifest": manifest,
            "region": region,
        }


@contextmanager
def _as_model_error(place: Path) -> Iterator[None]:
    """Tell whatever a manifest that is not as it was saved leads to as a `ModelError`."""
    try:
        yield
    except ModelError:
        raise
    except HeadwaterError as error:
        raise ModelError(
            f"{place}: {error.culprit}",
            expected=error.expected,
            remedy=error.remedy or FETCH_AGAIN,
        ) from error
    except Exception as error:
        first = (str(error) or "nothing more is known").splitlines()[0][:200]
        raise ModelError(
            f"{place} cannot be put together: {type(error).__name__}: {first}",
            expected="a manifest as it was saved with the model",
            remedy=FETCH_AGAIN,
        ) from error
