"""The deciders by name: what replay, virtual time and services all read. A preset is a decider with settings."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from policies.admission import ADMISSION
from policies.admission_state import State, configure, initial
from policies.decider import Decider

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    # Stock engines behind a plain proxy: everything goes on at once, in turn.
    "first_come": {"mode": "observe", "placement": "round_robin"},
    # The careful way without admission: everything goes on at once, to where its prefix is.
    "first_come_affinity": {"mode": "observe", "placement": "prefix_affinity"},
}
"""Settings of admission by preset."""


def admission(settings: Mapping[str, Any]) -> Decider[State]:
    """Admission that begins with these settings. Raises ValueError for a bad one."""
    configure(initial(), settings)

    def begin() -> State:
        state = initial()
        configure(state, settings)
        return state

    return replace(ADMISSION, initial=begin)


DECIDERS: dict[str, Decider[State]] = {name: admission(settings) for name, settings in PRESETS.items()}
"""Admission by preset. All of them speak as the actor `admission`."""
