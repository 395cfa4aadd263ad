"""What can be set: every setting is described whole, and settings never change."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from flows.runtime.settings import Settings, changed, every_setting


def test_every_setting_has_help_a_kind_and_a_name_of_its_own():
    for setting in every_setting():
        assert setting.field.description.endswith("."), setting.path
        assert setting.kind, setting.path
        # A field that is None by itself is nothing to whoever reads of it.
        assert setting.default not in ("", "None", "{}"), setting.path
    for said in ("path", "environment"):
        names = [getattr(s, said) for s in every_setting()]
        assert len(set(names)) == len(names)
    groups = {group for s in every_setting() for group in s.groups}
    for group in groups:
        mine = [s for s in every_setting() if not s.groups or group in s.groups]
        for said in ("keyword", "option"):
            names = [name for s in mine if (name := getattr(s, said))]
            assert len(set(names)) == len(names), group


@pytest.mark.parametrize(
    ("path", "kind", "default", "option", "environment", "keyword"),
    [
        ("training.target_fpr", "number > 0, < 1", "0.05", "--target-fpr",
         "HEADWATER_TRAINING__TARGET_FPR", "target_fpr"),
        ("extraction.batch", "integer >= 1, <= 4096", "16", "",
         "HEADWATER_EXTRACTION__BATCH", "extraction_batch"),
        ("extraction.precision", "auto|float32|bfloat16", "auto", "--precision",
         "HEADWATER_EXTRACTION__PRECISION", "precision"),
        ("backbone.options", "KEY=VALUE", "the set's last", "--backbone-option",
         "HEADWATER_BACKBONE__OPTIONS", "backbone_option"),
        ("images", "path", "the set's last", "--images", "HEADWATER_IMAGES", "images"),
    ],
)  # fmt: skip
def test_a_setting_is_described_by_its_field(path, kind, default, option, environment, keyword):
    (setting,) = [s for s in every_setting() if s.path == path]
    assert (setting.kind, setting.default) == (kind, default)
    assert (setting.option, setting.environment) == (option, environment)
    assert setting.keyword == keyword


def test_settings_never_change_and_what_is_given_is_known():
    settings = Settings.model_validate({"backbone": {"name": "resnet18"}})
    assert settings.backbone.model_fields_set == {"name"}
    with pytest.raises(ValidationError, match="frozen"):
        settings.backbone.name = "resnet50"
    with pytest.raises(ValidationError, match="not permitted"):
        Settings.model_validate({"backbon": {}})
    other = changed(settings, {"backbone.weights": Path("w"), "extraction.size": 64, "store": "x"})
    assert (settings.backbone.weights, settings.store) == (None, None)
    assert (other.backbone.name, other.backbone.weights) == ("resnet18", Path("w"))
    assert other.backbone.model_fields_set == {"name", "weights"}
    assert other.extraction.model_fields_set == {"size"}
    again = Settings.model_validate(other.model_dump(mode="json"))
    assert again == other
