"""The deciders by actor, and presets of their settings: what replay, virtual time and services all read."""

from typing import Any

from policies.admission import ADMISSION
from policies.decider import Decider

ACTORS: dict[str, Decider[Any]] = {ADMISSION.name: ADMISSION}
"""Actor -> its decider, once each: what workers run and logs are verified with. An owner's settings, a preset's too,
stand in the log (`actor_started`)."""

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    # Stock engines behind a plain proxy: everything goes on at once, in turn.
    "first_come": {"mode": "observe", "placement": "round_robin"},
    # The careful way without admission: everything goes on at once, to where its prefix is.
    "first_come_affinity": {"mode": "observe", "placement": "prefix_affinity"},
}
"""Settings of admission by preset."""
