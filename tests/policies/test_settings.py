"""Settings: named keys only, all or none, and errors that say what is allowed."""

from typing import Any

import msgspec
import pytest

from policies.admission_settings import AdmissionSettings, Mode
from policies.catalog import ACTORS, PRESETS
from policies.settings import apply, choices, ranges


def test_only_the_named_keys_change() -> None:
    changed = AdmissionSettings()
    apply("admission", changed, {"mode": "observe", "queue_max": 7})
    assert changed == AdmissionSettings(mode=Mode.OBSERVE, queue_max=7)


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("mode", "perhaps", "enforce, observe"),
        ("mode", 1, "enforce, observe"),
        ("placement", "random", "slo_aware, round_robin"),
        ("safety_ppm", -1, "from 0 to 500000"),
        ("safety_ppm", 500_001, "from 0 to 500000"),
        ("safety_ppm", 0.5, "from 0 to 500000"),
        ("queue_max", True, "from 0 to 100000"),
        ("queue_max", "7", "from 0 to 100000"),
        ("quue_max", 7, "no such setting"),
    ],
)
def test_a_bad_value_names_key_value_and_what_is_allowed(key: str, value: Any, allowed: str) -> None:
    settings = AdmissionSettings()
    with pytest.raises(ValueError, match="admission") as error:
        apply("admission", settings, {"scan_max": 3, key: value})
    assert f"admission.{key} = {value!r}" in str(error.value)
    assert allowed in str(error.value)
    assert settings == AdmissionSettings(), "nothing moved"


def test_every_setting_has_its_range_or_choices_and_a_default_within() -> None:
    assert sorted(AdmissionSettings.__struct_fields__) == sorted(
        [*choices(AdmissionSettings), *ranges(AdmissionSettings)]
    )
    apply("admission", AdmissionSettings(), msgspec.to_builtins(AdmissionSettings()))


def test_the_presets_are_settings_of_their_actors() -> None:
    assert {"default", "first_come", "first_come_affinity", "honest_rival"} <= set(PRESETS)
    assert PRESETS["default"] == {}
    for preset in PRESETS.values():
        for actor, settings in preset.items():
            decider = ACTORS[actor]
            decider.configure(decider.initial(), settings)
