"""The settings of prefetch, each with its range."""

from typing import Annotated

from msgspec import Meta

from events.base import NS_PER_S, PPM
from policies.memory.gate import MARGIN_PPM
from policies.settings import Settings, Switch


class PrefetchSettings(Settings, kw_only=True):
    """What can be changed about prefetch, live.

    `enabled` off: nothing is ordered, and what is open is taken back. `next_turns` and `hot_prefixes`: whether more is
    fetched than what a request waits for. Hot is what was used most of late, at least `hot_uses_min` times within
    `horizon_ns`, `hot_max` slices at most. A fetch has to be quicker than computing by `margin_ppm`. At most
    `link_share_ppm` of a link's time is used; at most `open_max` orders are open, each of `order_slices_max` slices and
    tried `tries_max` times. Of what waits, `scan_max` requests are looked at once a second.
    """

    enabled: Switch = Switch.ON
    next_turns: Switch = Switch.ON
    hot_prefixes: Switch = Switch.ON
    hot_max: Annotated[int, Meta(ge=0, le=1_024)] = 32
    hot_uses_min: Annotated[int, Meta(ge=2, le=1_000)] = 4
    horizon_ns: Annotated[int, Meta(ge=4 * NS_PER_S, le=86_400 * NS_PER_S)] = 300 * NS_PER_S
    margin_ppm: Annotated[int, Meta(ge=0, le=10 * PPM)] = MARGIN_PPM
    link_share_ppm: Annotated[int, Meta(ge=0, le=PPM)] = 500_000
    open_max: Annotated[int, Meta(ge=1, le=256)] = 64
    order_slices_max: Annotated[int, Meta(ge=1, le=256)] = 32
    tries_max: Annotated[int, Meta(ge=1, le=10)] = 3
    scan_max: Annotated[int, Meta(ge=1, le=2_048)] = 64
