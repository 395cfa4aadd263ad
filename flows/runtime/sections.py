"""What sections of the settings are made of, and the sections about a model in service."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, field_validator

from flows.runtime.values import WebAddress, Words
from headwater.files import expand_user

#: Limits of a number, and how they are written.
LIMITS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
# Groups of commands, as `flows.command.options.takes` names them.
_RETRAIN = ("retrain",)
_SERVE = ("serve",)


def setting(default: Any, text: str, groups: tuple[str, ...] = (), **more: Any) -> Any:
    """Return a field of this default and help.

    `more` are limits and the rest of `flows.runtime.settings.Setting`.
    """
    limits = {key: more.pop(key) for key in LIMITS if key in more}
    extra = {"groups": groups, **more}
    return Field(default, description=text, json_schema_extra=extra, **limits)


class Section(BaseModel):
    """Some settings that belong together."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    @field_validator("*", mode="wrap")
    @classmethod
    def _no_bool_is_a_number(cls, value: Any, validate: Any, info: Any) -> Any:
        """Yes would be 1: what YAML makes of a word is no number."""
        kind = cls.model_fields[info.field_name].annotation
        kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
        if isinstance(value, bool) and {int, float} & set(kinds):
            raise ValueError(f"a number, not {'yes' if value else 'no'} (true or false)")
        return validate(value)


# fmt: off
class RetrainSettings(Section):
    """What `headwater retrain` takes in, and what it puts in service."""

    guard: float = setting(
        0.01, "New normals that the model in service calls anomalous wait for a review where their "
        "p-value is up to this; of few normals, where it is the lowest there can be.", _RETRAIN,
        ge=0, lt=1)
    most_flagged: float = setting(
        0.25, "Share of a batch that may be called anomalous before all of it waits.",
        gt=0, le=1)
    most_moved: float = setting(
        0.25, "How far one batch may move the mean of what is learnt from, in units of its spread, "
        "before all of it waits.", gt=0)
    auroc_margin: float = setting(
        0.02, "Image AUROC that a challenger may lose on the locked test.", _RETRAIN, ge=0, lt=1)
    fpr_margin: float = setting(
        0.05, "False-positive rate that it may add on normals of the locked test.", _RETRAIN,
        ge=0, lt=1)
    recall_margin: float = setting(
        0.05, "Share of each kind of defect that it may lose.", _RETRAIN, ge=0, lt=1)
    max_ms: float | None = setting(
        None, "Milliseconds an image that it may take on this machine.", _RETRAIN, gt=0)
    max_mb: float | None = setting(
        None, "Megabytes of memory that it may take while it answers.", _RETRAIN, gt=0)
    increments: Literal["exact", "all", "none"] = setting(
        "exact", "Which heads grow the model in service by what is new instead of learning from "
        "all images: those to which it is the same (padim, subspace), all that can, or none.",
        _RETRAIN)
    full_every: int = setting(
        10, "Every so many retrainings are full ones, from all images.", _RETRAIN, ge=1)
    grown_epochs: float = setting(
        0.25, "Share of the epochs of a full training that a flow head takes to grow.", gt=0, le=1)


class ScheduledSet(Section):
    """When one set is retrained."""

    cron: str | None = setting(None, "When, as cron writes it: minute, hour, day, month, weekday.")
    timezone: str | None = setting(None, "Of that time, as Europe/Berlin.")
    inbox: Path | None = setting(None, "Folder whose images are taken into the set's.")

    @field_validator("inbox")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        """A service has no folder that relative paths would be of."""
        folder = None if value is None else expand_user(value)
        if folder is not None and not folder.is_absolute():
            raise ValueError("an absolute path, such as /srv/inbox/bolts")
        return folder


class ScheduleSettings(Section):
    """Which sets `headwater serve` retrains, and when."""

    sets: dict[str, ScheduledSet] = setting(
        {}, "Sets that are in the home: {SET: {cron: '0 2 * * *', inbox: /srv/inbox/SET}}; "
        "times are UTC's where there is no timezone: Europe/Berlin, say.",
        words="SET: {cron, timezone, inbox}", otherwise="none")
    at_once: int = setting(1, "How many retrainings may run at once.", ge=1)
    settle: float = setting(
        10.0, "Seconds for which a file of an inbox must not have changed before it is taken.",
        ge=0)
    max_mb: float = setting(
        512.0, "Megabytes above which a file of an inbox is refused unread.", gt=0)


class ServeSettings(Section):
    """How `headwater serve --http` answers."""

    host: str = setting(
        "127.0.0.1", "Address to answer on; 127.0.0.1: this machine alone.", _SERVE)
    port: int = setting(8090, "Port to answer on; 0: a free one.", _SERVE, ge=0, le=65535)
    max_mb: float = setting(32, "Megabytes that a request may have.", gt=0, le=2000)
    timeout: float = setting(
        30, "Seconds after which a request is given up, from its first byte to the answer.", gt=0)
    waiting: int = setting(
        64, "Requests of a set that may be in hand; more are turned away with 503.", ge=1)
    batch: int = setting(8, "Pictures that are answered together, where so many wait.", ge=1)
    look: float = setting(
        5, "Seconds between two looks at which version is in service.", gt=0)


class KeepSettings(Section):
    """What is kept of what the model in service says, and what becomes of what people say."""

    pictures: Literal["none", "flagged", "near", "all"] = setting(
        "near", "Pictures that are kept: those called anomalous, or also those near the threshold.")
    near: float = setting(
        0.25, "How near: share of the way from the threshold to the median normal score.", ge=0)
    share: float = setting(
        0.01, "Share of the other pictures that are kept, chosen by their bytes.", ge=0, le=1)
    max_mb: int = setting(
        1000, "Megabytes of pictures a set; beyond, the oldest go that nobody has answered.", ge=1)
    days: int = setting(
        90, "Days that an answer of the model is kept where nobody has said whether it is right.",
        ge=1)
    test_share: float = setting(
        0.25, "Share of the defects told by feedback, chosen by their bytes, that goes to the test "
        "images for the next lock; the others choose (val).", ge=0, le=1)


class HookSettings(Section):
    """Who is told when the model in service changes, stays, or cannot be retrained."""

    command: Words | None = setting(
        None, "Command that is started, without a shell, when a model is promoted, kept, held, "
        "failed or rolled back: JSON comes on its standard input, the event is in HOOK_EVENT.",
        words="list, or text", otherwise="nobody is told")
    url: WebAddress | None = setting(
        None, "Address to which the same JSON is posted.", otherwise="nobody is told")
    seconds: float = setting(10.0, "How long each of them may take.", gt=0, le=600)
# fmt: on
