"""Old words into new ones, so that every journal ever written still decodes.

When an event's shape changes, its tag goes up and the way from the old shape to the new stands here, together
with a golden journal that holds the old one.
"""

from collections.abc import Callable
from typing import Any

Raw = dict[str, Any]

UPCASTERS: dict[str, Callable[[Raw], Raw]] = {}
"""Old tag -> the same event one version newer (`type` included). Empty: no shape has changed yet."""


def to_newest(raw: Raw, upcasters: dict[str, Callable[[Raw], Raw]] = UPCASTERS) -> Raw:
    """Climb from the tag of `raw` to the newest one that is known."""
    while (step := upcasters.get(str(raw.get("type", "")))) is not None:
        raw = step(raw)
    return raw
