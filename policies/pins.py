"""Pinned slices: those that people want to stay where they are, each until a time.

Said again, a pin holds from now on; for no time, it is lifted. Beyond PINS_MAX no more are taken: the oldest pins hold.
"""

from events.base import SliceId
from events.slice import SlicesPinned

PINS_MAX = 1_024
"""Slices pinned at once."""

Pins = dict[SliceId, int]
"""Until when each is pinned, in the order in which that was said."""


def heed(pins: Pins, event: SlicesPinned, now_ns: int) -> None:
    """Take a pin in."""
    for slice_id in event.slices:
        pins.pop(slice_id, None)
        if event.for_ns > 0 and len(pins) < PINS_MAX:
            pins[slice_id] = now_ns + event.for_ns


def holding(pins: Pins, now_ns: int) -> Pins:
    """Those that hold still."""
    return {slice_id: until_ns for slice_id, until_ns in pins.items() if until_ns > now_ns}
