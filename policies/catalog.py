"""The deciders by actor, and presets of their settings: what replay, virtual time and services all read."""

from collections.abc import Mapping
from typing import Any

from policies.admission import ADMISSION
from policies.decider import Decider
from policies.eviction import EVICTION
from policies.quota import QUOTA

ACTORS: dict[str, Decider[Any]] = {ADMISSION.name: ADMISSION, QUOTA.name: QUOTA, EVICTION.name: EVICTION}
"""Actor -> its decider, once each: what workers run and logs are verified with. An owner's settings, a preset's too,
stand in the log (`actor_started`)."""

Preset = Mapping[str, Mapping[str, Any]]
"""Actor -> its settings, those that are not the default."""

PRESETS: dict[str, Preset] = {
    "default": {},
    # Stock engines behind a plain proxy: everything goes on at once, in turn.
    "first_come": {
        "admission": {"mode": "observe", "placement": "round_robin"},
        "quota": {"enabled": "off"},
        "eviction": {"enabled": "off"},
    },
    # The careful way without admission: everything goes on at once, to where its prefix is.
    "first_come_affinity": {
        "admission": {"mode": "observe", "placement": "prefix_affinity"},
        "quota": {"enabled": "off"},
        "eviction": {"enabled": "off"},
    },
    # The same with load-aware early rejection: what could not be in time is refused at once, nothing waits here. Its
    # chunk budget is the engine's `batch_tokens_max`.
    "honest_rival": {
        "admission": {"mode": "enforce", "deferral": "off", "placement": "prefix_affinity", "tpot_margin_ppm": 0},
        "quota": {"enabled": "off"},
        "eviction": {"enabled": "off"},
    },
}
"""Settings by preset and actor."""
