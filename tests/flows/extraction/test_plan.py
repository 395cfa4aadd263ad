"""Planning: what the heads need is merged, so that what two heads share is computed once."""

import dataclasses

import pytest

from flows.extraction.fill import wanted_rows
from flows.extraction.plan import (
    check_kind,
    configured,
    plan_extraction,
    plan_head,
    training_key,
)
from flows.runtime.settings import DEFAULT_SIZE, Settings
from flows.runtime.sources import load_settings
from headwater.errors import ConfigError
from headwater.spec import BackboneInfo, ExtractorSpec
from storage.store.table import ImageRow


class PlannedBackbone:
    """What planning asks of a backbone, without a net."""

    info = BackboneInfo("net", ("a", "b", "c"), (64, 128, 256), (4, 8, 16))

    def default_spec(self, **fields):
        return ExtractorSpec("net", "0" * 64, **fields)


def plans_for(heads, **extraction):
    settings = Settings.model_validate(
        {"heads": heads, "extraction": extraction, "training": {"preset": "small"}}
    )
    return [
        plan_head(name, *head, settings.extraction, PlannedBackbone(), "float32")
        for name, head in configured(settings).items()
    ]


def test_what_two_heads_share_is_planned_once():
    plans = plans_for({"patchcore": {}, "padim": {}, "cs_flow": {}})
    (merged,) = plan_extraction(plans)
    asked = [layer for plan in plans for layer in plan.layers]
    assert set(merged.layers) == set(asked)
    assert len(merged.layers) == len(set(asked))


def test_views_are_an_extraction_of_their_own_over_normal_training_images():
    plans = plans_for({"f2r": {"views": 2, "factorize": "always"}, "patchcore": {}})
    plain, views = plan_extraction(plans)
    assert plain.spec.views is None
    assert views.spec.views is not None
    assert dataclasses.replace(views.spec, views=None) == plain.spec
    rows = {
        name: ImageRow(name, f"{name}.png", split, kind)
        for name, split, kind in (("n", "train", "good"), ("t", "test", "good"), ("d", "test", "x"))
    }
    assert [sha for sha, _ in wanted_rows(plain, rows)] == ["n", "t", "d"]
    count = views.spec.views.count
    assert wanted_rows(views, rows) == [("n", k) for k in range(1, count + 1)]


def test_another_size_or_views_seed_is_another_extractor():
    base, other = (plans_for({"patchcore": {}}, size=s)[0] for s in (128, 256))
    assert base.spec.id != other.spec.id
    view = plans_for({"f2r": {"views": 2, "factorize": "always"}})[0].view_spec
    reseeded = dataclasses.replace(view, views=dataclasses.replace(view.views, seed=1))
    assert reseeded.id != view.id


def test_the_default_size_is_for_heads_that_choose_none():
    heads = {"patchcore": {}, "fast_flow": {"image_size": 96}}
    for sizes, expected in (
        ({"default_size": 64}, [(64, 64), (96, 96)]),
        ({"size": 128, "default_size": 64}, [(128, 128), (128, 128)]),
        ({}, [(DEFAULT_SIZE, DEFAULT_SIZE), (96, 96)]),
    ):
        assert [plan.spec.resize for plan in plans_for(heads, **sizes)] == expected


def test_one_layer_more_changes_the_extractor_id_but_not_the_group():
    one = plans_for({"patchcore": {"nodes": ["b", "c"]}})[0]
    two = plans_for({"patchcore": {"nodes": ["a", "b", "c"]}})[0]
    assert one.spec.id == two.spec.id
    assert one.extractor_id != two.extractor_id


def test_the_key_of_a_training_depends_on_what_changes_its_result():
    plan = plans_for({"patchcore": {}})[0]
    reference = training_key(plan, "images", {"held_out": 0.1})
    assert reference == training_key(plan, "images", {"held_out": 0.1})
    seeded = plans_for({"patchcore": {"seed": 1}})[0]
    for other in (
        training_key(seeded, "images", {"held_out": 0.1}),
        training_key(plan, "other images", {"held_out": 0.1}),
        training_key(plan, "images", {"held_out": 0.2}),
    ):
        assert other != reference


@pytest.mark.parametrize(
    ("heads", "said"),
    [
        ({"patchcor": {}}, "one of .*patchcore"),
        ({"patchcore": {"rato": 1}}, "setting 'rato'"),
        ({"patchcore": {"preset": "tiny"}}, "preset 'tiny'"),
    ],
)
def test_a_wrong_head_setting_or_preset_is_named_with_the_choices(heads, said):
    with pytest.raises(ConfigError, match=said):
        configured(Settings.model_validate({"heads": heads}))


def test_heads_and_sets_must_fit():
    heads = {"patchcore": {}, "padim": {}, "pair_diff": {}}
    settings = Settings.model_validate({"image_set": "boards", "pairs": "boards", "heads": heads})
    with pytest.raises(ConfigError, match="patchcore, padim read single images"):
        check_kind(settings)


def test_a_mistake_in_a_heads_settings_has_its_place(tmp_path):
    file = tmp_path / "h.yaml"
    for text, said in (
        ("heads:\n  patchcore:\n    ratioo: 1\n", r"h.yaml, line 3: setting 'ratioo'"),
        ("heads:\n  padim: {}\n  pachcore: {}\n", r"h.yaml, line 3: unknown head 'pachcore'"),
        ("\nheads: [pachcore]\n", r"h.yaml, line 2: unknown head 'pachcore'"),
        ("heads: {patchcore: {ratio: lots}}\n", r"h.yaml, line 1: setting ratio = 'lots'"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=said):
            configured(load_settings(file))


def test_a_setting_that_came_later_keeps_the_key_where_it_changes_nothing():
    plan, always = (plans_for({"f2r": {"factorize": f}})[0] for f in ("as_needed", "always"))
    before = {k: v for k, v in plan.config.items() if k != "factorize"}
    old = training_key(dataclasses.replace(plan, config=before), "images", {})
    assert training_key(plan, "images", {}) == old
    assert training_key(always, "images", {}) != old
