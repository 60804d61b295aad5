"""The settings of migration, each with its range."""

from typing import Annotated

from msgspec import Meta

from events.base import NS_PER_S, PPM
from policies.memory.gate import MARGIN_PPM
from policies.settings import Settings, Switch


class MigrationSettings(Settings, kw_only=True):
    """What can be changed about migration, live.

    `enabled` off: nothing is ordered, and what is open is taken back. A tier that is `high_ppm` full is relieved until
    it is `low_ppm` full (at most `high_ppm`). From DRAM without a useful SSD below it only slices go of which fewer
    than `worthless_ppm` come back within `horizon_ns`. At most `hot_max` slices are hot: those used most of late, and
    at least `hot_uses_min` times. A fetch has to be quicker than computing by `margin_ppm`. At most `link_share_ppm` of
    a link's time is used; at most `open_max` orders are open, each of `order_slices_max` slices and tried `tries_max`
    times. Between engines goes what `peer_bytes_per_s` allow (0 = they have no transport: nothing is replicated).
    """

    enabled: Switch = Switch.ON
    high_ppm: Annotated[int, Meta(ge=1, le=PPM)] = 970_000
    low_ppm: Annotated[int, Meta(ge=0, le=PPM)] = 950_000
    worthless_ppm: Annotated[int, Meta(ge=0, le=PPM)] = 20_000
    hot_max: Annotated[int, Meta(ge=0, le=1_024)] = 64
    hot_uses_min: Annotated[int, Meta(ge=2, le=1_000)] = 8
    horizon_ns: Annotated[int, Meta(ge=4 * NS_PER_S, le=86_400 * NS_PER_S)] = 300 * NS_PER_S
    margin_ppm: Annotated[int, Meta(ge=0, le=10 * PPM)] = MARGIN_PPM
    link_share_ppm: Annotated[int, Meta(ge=0, le=PPM)] = 200_000
    open_max: Annotated[int, Meta(ge=1, le=256)] = 32
    order_slices_max: Annotated[int, Meta(ge=1, le=256)] = 32
    tries_max: Annotated[int, Meta(ge=1, le=10)] = 3
    peer_bytes_per_s: Annotated[int, Meta(ge=0, le=10**12)] = 0
