"""The settings of eviction, each with its range."""

from typing import Annotated

from msgspec import Meta

from events.base import NS_PER_S, PPM
from policies.memory.kinds import EvictionKind
from policies.settings import Settings, Switch


class EvictionSettings(Settings, kw_only=True):
    """What can be changed about eviction, live.

    `enabled` off: engines choose as they would alone. `kind` is how slices are evicted. An answer of which
    `protect_ppm` of the expected length is there is not preempted by its engine. At most `hot_max` slices are hot:
    those used most of late, and at least `hot_uses_min` times. At most `needed_max` slices of waiting requests are
    kept. A reuse counts within `horizon_ns`, and over that time heat fades.
    """

    enabled: Switch = Switch.ON
    kind: EvictionKind = EvictionKind.SLO_AWARE
    protect_ppm: Annotated[int, Meta(ge=0, le=PPM)] = 800_000
    hot_max: Annotated[int, Meta(ge=0, le=1_024)] = 64
    hot_uses_min: Annotated[int, Meta(ge=2, le=1_000)] = 8
    needed_max: Annotated[int, Meta(ge=0, le=2_048)] = 256
    horizon_ns: Annotated[int, Meta(ge=4 * NS_PER_S, le=86_400 * NS_PER_S)] = 300 * NS_PER_S
