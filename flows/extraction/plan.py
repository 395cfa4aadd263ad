"""From heads to work: what each head reads, and what must be extracted, once."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from features.images.places.beside import BESIDE
from flows.extraction.backbone import BackboneRef, settle_precision
from flows.extraction.combine import members
from flows.extraction.regions import last_own, region_id, size_of, tiles_of
from flows.runtime.resolve import require_set, resolve
from flows.runtime.settings import ExtractionSettings, Settings, chosen_heads
from flows.runtime.values import height_width, low_high
from heads.catalogue import all_heads, get_head, make_config
from heads.contract import HeadConfig
from heads.ensemble import Ensemble
from headwater.errors import ConfigError
from headwater.spec import BackboneInfo, ExtractorSpec, LayerSpec, Precision, digest

if TYPE_CHECKING:
    from features.backbones.backbone import Backbone
    from flows.runtime.home import Home


#: Stands for the backbone where a head reads preprocessed images.
IMAGES = "images"


@dataclass(frozen=True)
class HeadPlan:
    """One head of a run: its configuration and what it reads. Plain data, sent to Dask workers.

    Parameters
    ----------
    head
        Registered name.
    preset
        Preset the configuration began with.
    config
        The configuration's fields.
    spec
        Extractor settings of the plain images.
    layers
        Arrays it reads, in its order.
    view_spec
        Extractor settings of the views it trains on, or None.
    members
        Of an ensemble: the heads of the run that it joins.
    """

    head: str
    preset: str
    config: dict[str, Any]
    spec: ExtractorSpec
    layers: tuple[LayerSpec, ...]
    view_spec: ExtractorSpec | None = None
    members: tuple[HeadPlan, ...] = ()

    @property
    def reads_images(self) -> bool:
        """Whether it learns its own encoder from images: nothing is extracted for it."""
        return get_head(self.head).reads_images(self.make_config())

    @property
    def extractor_id(self) -> str:
        """Id of the extractor: settings and layers."""
        return self.spec.extractor_id(self.layers)

    def make_config(self) -> HeadConfig:
        """Rebuild the head's configuration."""
        return make_config(self.head, self.config)


@dataclass(frozen=True)
class JobPlan:
    """What a job is to do, settled before anything is scanned or computed.

    Parameters
    ----------
    heads
        What each head reads.
    backbone
        Whose features; None where every head reads images.
    notes
        What is to be told of it.
    """

    heads: tuple[HeadPlan, ...]
    backbone: BackboneRef | None
    notes: tuple[str, ...] = ()

    def seeing(self, **settings: Any) -> JobPlan:
        """Return the plan with these fields of all its extractors, known only after a scan."""

        def seen(spec: ExtractorSpec) -> ExtractorSpec:
            return dataclasses.replace(spec, **settings)

        def own(head: HeadPlan) -> HeadPlan:
            views, members = head.view_spec and seen(head.view_spec), tuple(map(own, head.members))
            return dataclasses.replace(head, spec=seen(head.spec), view_spec=views, members=members)

        return dataclasses.replace(self, heads=tuple(map(own, self.heads)))


@dataclass(frozen=True)
class ExtractionPlan:
    """Layers to extract with one `ExtractorSpec`, merged over the heads that share it."""

    spec: ExtractorSpec
    layers: tuple[LayerSpec, ...]


def resolve_preset(preset: str, device: str) -> str:
    """Return ``small`` or ``paper``; ``auto`` means paper only where a GPU will train."""
    if preset != "auto":
        return preset
    gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    return "paper" if gpu else "small"


def ready(settings: Settings, home: Home, *, images: bool = True) -> Settings:
    """Return the settings of a job made whole and checked; its first step.

    Parameters as of `flows.runtime.resolve.resolve`.

    Raises
    ------
    ConfigError
        For an unknown head or setting, before anything is looked for; for what `resolve` raises;
        for heads of single images on a set of pairs, and the other way round.
    """
    configured(settings)
    settings = resolve(settings, home, images=images)
    check_kind(settings)
    check_choices(settings)
    return settings


def plan_job(settings: Settings, home: Home, untrained_seed: int | None = None) -> JobPlan:
    """Load the backbone, unless every head reads images, and settle what the heads read.

    The backbone is held for the extraction that follows; see `flows.extraction.backbone`.

    Parameters
    ----------
    settings
        From `ready`.
    home
        Remembers the arithmetic.
    untrained_seed
        Only tests give one: an untrained net instead of weights.
    """
    heads, wanted = configured(settings), settings.extraction
    if region_id(wanted.roi) == BESIDE:  # which region is whose, the last extraction knows
        last = last_own(home, require_set(settings))
        wanted = wanted.model_copy(update={"roi": Path(last) if last else wanted.roi})
    ref: BackboneRef | None = None
    backbone: Backbone | None = None
    precision: Precision = "float32"
    if not all(get_head(name).reads_images(config) for name, (_, config) in heads.items()):
        ref = BackboneRef.of(settings.backbone, untrained_seed)
        backbone = ref.load()
        ref.keep(backbone)
        precision = settle_precision(backbone, wanted.precision, home, require_set(settings))
    plans: list[HeadPlan] = []
    notes: list[str] = []
    for seed in settings.training.seeds or (None,):
        made = [
            plan_head(name, *head, wanted, backbone, precision)
            for name, head in configured(settings, seed).items()
        ]
        plans += made
        if settings.combine:
            joined, notes = ensemble_of(made, settings.combine)
            plans.append(joined)
    return JobPlan(tuple(plans), ref, tuple(notes))


def configured(settings: Settings, seed: int | None = None) -> dict[str, tuple[str, HeadConfig]]:
    """Return ``{head: (its preset, its configuration)}`` of the heads asked for.

    `seed` is one of `settings.training.seeds`; without it the one seed.
    """
    preset = resolve_preset(settings.training.preset, settings.training.device)
    found = {}
    for name, values in chosen_heads(settings, settings.pairs is not None).items():
        # A head's own preset wins; one without a `small` preset has only one configuration.
        own = str(values.get("preset", preset))
        try:
            bare = own == "small" and "small" not in get_head(name).presets
        except ConfigError as error:
            raise _placed(error, settings, name, {}) from None
        plain = {k: v for k, v in values.items() if k != "preset"}
        if settings.training.seeds and "seed" in plain:
            raise _placed(
                ConfigError(
                    f"{name}.seed with --seeds",
                    expected="one of them",
                    remedy=f"leave {name}.seed out: each of the seeds is its seed in turn",
                ),
                settings,
                name,
                values,
            )
        plain.setdefault("seed", settings.training.seed if seed is None else seed)
        try:
            config = make_config(name, plain, None if bare else own)
        except ConfigError as error:
            raise _placed(error, settings, name, values) from None
        found[name] = (preset if bare else own, config)
    return found


def _placed(
    error: ConfigError, settings: Settings, head: str, values: Mapping[str, Any]
) -> ConfigError:
    """Return a mistake in a head's settings with the file and line, or variable, that it is in."""
    named = [key for key in values if re.search(rf"\b{re.escape(key)}\b", error.culprit)]
    path = f"heads.{head}" + (f".{named[0]}" if named else "")
    place = settings.place(path)
    if not place and not named:
        place = settings.place("heads")  # a list of names
    culprit = f"{place}: {error.culprit}" if place else error.culprit
    return ConfigError(culprit, expected=error.expected, remedy=error.remedy)


def check_kind(settings: Settings) -> None:
    """Raise `ConfigError` for heads of single images on a set of pairs, and the other way round.

    `settings` must say where the images are (`flows.runtime.resolve.resolve`).
    """
    pairs = settings.pairs is not None
    wrong = [name for name in chosen_heads(settings, pairs) if get_head(name).pairs != pairs]
    if not wrong:
        return
    fit = [name for name, head in all_heads().items() if head.pairs == pairs]
    one = len(wrong) == 1
    reads, kind = ("single images", "pairs") if pairs else ("pairs", "single images")
    remedy = "--images DIR or --normal DIR, as a set of another name" if pairs else "--pairs DIR"
    raise ConfigError(
        f"{'head' if one else 'heads'} {', '.join(wrong)} {'reads' if one else 'read'} {reads}, "
        f"and {settings.image_set} is a set of {kind}",
        expected=f"--heads with some of {', '.join(fit)}",
        remedy=f"or give {reads} to {'it' if one else 'them'}: {remedy}",
    )


def check_choices(settings: Settings) -> None:
    """Raise `ConfigError` where a threshold is asked for in two ways, or of pairs by defects."""
    asked = settings.training
    if asked.target_recall is not None and asked.costs is not None:
        raise ConfigError(
            f"--target-recall {asked.target_recall:g} and --costs {asked.costs}",
            expected="one of them: a model has one threshold",
        )
    if settings.pairs is not None and (asked.target_recall is not None or asked.costs is not None):
        raise ConfigError(
            "--target-recall" if asked.costs is None else "--costs",
            expected="a set of single images: pairs have no known defects apart",
        )


def ensemble_of(plans: Sequence[HeadPlan], wanted: Sequence[str]) -> tuple[HeadPlan, list[str]]:
    """Return the plan of an ensemble of heads of one run, and what is to be told of it.

    Parameters and errors as of `flows.extraction.combine.members`.
    """
    names, notes = members({p.head: (p.spec, p.reads_images) for p in plans}, wanted)
    own = tuple(p for p in plans if p.head in names)
    layers = tuple(dict.fromkeys(layer for p in own for layer in p.layers))
    told = tuple(
        {"head": p.head, "config": p.config, "layers": [x.name for x in p.layers]} for p in own
    )
    preset = ", ".join(dict.fromkeys(p.preset for p in own))
    config = {"nodes": (), "seed": own[0].config["seed"], "members": told}
    return HeadPlan(Ensemble.name, preset, config, own[0].spec, layers, None, own), notes


def plan_head(
    name: str,
    preset: str,
    config: HeadConfig,
    wanted: ExtractionSettings,
    backbone: Backbone | None,
    precision: Precision,
) -> HeadPlan:
    """Settle what one configured head reads.

    Parameters
    ----------
    name, preset, config
        The head, from `configured`.
    wanted
        Size and stored dtype.
    backbone
        Loaded backbone; its info decides default nodes. None where no head needs one.
    precision
        Arithmetic of the backbone, resolved.

    Raises
    ------
    ConfigError
        For a backbone without the maps that the head needs, or a crop of more than there is; for
        a head that cannot learn from tiles.
    """
    tiles, size = tiles_of(wanted), size_of(wanted)
    if tiles is not None and (get_head(name).by_position or get_head(name).pairs):
        raise _not_in_tiles(name)
    crop = None if wanted.crop is None else height_width(wanted.crop)
    usual = height_width(wanted.default_size)
    if get_head(name).reads_images(config):
        backbone = None
    info = BackboneInfo(IMAGES, (), (), ()) if backbone is None else backbone.info
    needs = get_head(name).needs(config, info, size or usual)
    if size is None and needs.resize not in (None, usual):
        # Asked again at the head's own size: the choice of nodes may depend on it.
        needs = get_head(name).needs(config, info, needs.resize or usual)
    resize = size or needs.resize or usual
    crop = crop or (needs.crop if size is None else None)
    if crop and (crop[0] > resize[0] or crop[1] > resize[1]):
        raise ConfigError(f"crop {crop} of images of {resize}", expected="a crop within the size")
    # Where the set's own images are to decide, they do when they have been looked at.
    own: dict[str, Any] = {"resize": resize, "crop": crop, "value_range": low_high(wanted.range)}
    own |= {"fitting": wanted.resize or "squash", "region": region_id(wanted.roi), "tiles": tiles}
    if backbone is None:
        spec = ExtractorSpec(IMAGES, "none", dtype="float32", **own)
    else:
        spec = backbone.default_spec(precision=precision, dtype=wanted.dtype, **own)
    view_spec = dataclasses.replace(spec, views=needs.views) if needs.views else None
    return HeadPlan(name, preset, dataclasses.asdict(config), spec, needs.layers, view_spec)


def _not_in_tiles(name: str) -> ConfigError:
    """Return why a head does not learn from tiles."""
    if get_head(name).pairs:
        return ConfigError(
            f"--tile with {name}: pairs are not cut into tiles",
            expected="single images",
            remedy="--tile 0; headwater pairs cut DIR OUT makes a set of crops of them",
        )
    fit = [n for n, head in all_heads().items() if not (head.by_position or head.pairs)]
    return ConfigError(
        f"--tile with {name}, which learns what is normal at each place of the image: the same "
        "place of another tile is another place of the image",
        expected=f"heads with one idea of normal for all places: {', '.join(fit)}",
        remedy=f"leave {name} out of --heads, or --tile 0 for whole images",
    )


def plan_extraction(plans: Sequence[HeadPlan]) -> list[ExtractionPlan]:
    """Merge what the heads read: one entry a distinct `ExtractorSpec`, each layer once."""
    merged: dict[str, ExtractionPlan] = {}
    for plan in plans:
        for spec in (plan.spec, plan.view_spec):
            if spec is None or spec.backbone == IMAGES:
                continue
            known = merged[spec.id].layers if spec.id in merged else ()
            merged[spec.id] = ExtractionPlan(spec, tuple(sorted({*known, *plan.layers})))
    return list(merged.values())


def training_key(plan: HeadPlan, snapshot_images: str, options: Mapping[str, Any]) -> str:
    """Return the idempotency key of a training: same images, head, settings, seed, same key.

    `snapshot_images` is the digest of the images (and their labels) that the training and its
    evaluation see; `options` are the training settings that change the result.
    """
    later = get_head(plan.head).Config.LATER
    return digest(
        {
            "head": plan.head,
            "config": {k: v for k, v in plan.config.items() if k not in later or v != later[k]},
            "extractor": plan.extractor_id,
            "views": plan.view_spec.id if plan.view_spec else None,
            "images": snapshot_images,
            "options": dict(options),
        }
    )
