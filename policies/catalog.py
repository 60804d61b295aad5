"""The deciders by actor, and presets of their settings: what replay, virtual time and services all read."""

from collections.abc import Mapping
from typing import Any

from policies.admission import ADMISSION
from policies.decider import Decider
from policies.eviction import EVICTION
from policies.migration import MIGRATION
from policies.prefetch import PREFETCH
from policies.quota import QUOTA

ACTORS: dict[str, Decider[Any]] = {
    decider.name: decider for decider in (ADMISSION, QUOTA, EVICTION, MIGRATION, PREFETCH)
}
"""Actor -> its decider, once each: what workers run and logs are verified with. An owner's settings, a preset's too,
stand in the log (`actor_started`)."""

Preset = Mapping[str, Mapping[str, Any]]
"""Actor -> its settings, those that are not the default."""

_ALONE: Preset = {actor: {"enabled": "off"} for actor in ("quota", "eviction", "migration", "prefetch")}
"""Engines are left to themselves."""


def _peer(placement: str) -> Preset:
    """A router without admission: everything goes on at once, to where its rule says."""
    return {"admission": {"mode": "observe", "placement": placement}, **_ALONE}


PRESETS: dict[str, Preset] = {
    "default": {},
    # Stock engines behind a plain proxy: everything goes on at once, in turn.
    "first_come": _peer("round_robin"),
    # The careful way without admission: everything goes on at once, to where its prefix is.
    "first_come_affinity": _peer("prefix_affinity"),
    # The same with load-aware early rejection: what could not be in time is refused at once, nothing waits here. Its
    # chunk budget is the engine's `batch_tokens_max`.
    "honest_rival": {
        "admission": {
            "mode": "enforce",
            "deferral": "off",
            "placement": "prefix_affinity",
            "strategy": "fifo",
            "tpot_margin_ppm": 0,
            "fairness_ppm": 0,
        },
        **_ALONE,
    },
    # Peers' rules as published; each one's source stands in `policies.placement`.
    "least_loaded": _peer("least_loaded"),
    "dynamo_kv": _peer("dynamo_kv"),
    "llm_d": _peer("load_balanced"),
    # The default with another order of those that wait: see `policies.ordering`.
    "fifo": {"admission": {"strategy": "fifo"}},
    "priority": {"admission": {"strategy": "priority"}},
    "cost_optimized": {"admission": {"strategy": "cost_optimized"}},
    "adaptive": {"admission": {"strategy": "adaptive"}},
    "hybrid": {"admission": {"strategy": "hybrid"}},
    # The default with another choice of engine: see `policies.placement`.
    "load_balanced": {"admission": {"placement": "load_balanced"}},
    "affinity": {"admission": {"placement": "affinity"}},
    "locality": {"admission": {"placement": "locality"}},
    "topology_aware": {"admission": {"placement": "topology_aware"}},
}
"""Settings by preset and actor."""
