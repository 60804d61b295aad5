"""Who holds payloads, and who has fallen silent.

Silence is counted by ticks, at most STEP_MAX_NS each: while the log is down nobody can be heard, and nobody is lost
for that.
"""

import msgspec

from events.base import NS_PER_S, HolderId

STEP_MAX_NS = NS_PER_S


class Heard(msgspec.Struct, array_like=True):
    """When a holder last said something (silence clock), and its epoch ("" until it beats)."""

    at_ns: int
    epoch: str = ""


class Holders(msgspec.Struct):
    """Everyone heard of, and the clock that silence is counted by."""

    heard: dict[HolderId, Heard] = msgspec.field(default_factory=dict)
    clock_ns: int = 0
    tick_ns: int = 0


def hear(holders: Holders, holder: HolderId) -> Heard:
    """It said something."""
    heard = holders.heard.get(holder)
    if heard is None:
        heard = holders.heard[holder] = Heard(holders.clock_ns)
    else:
        heard.at_ns = holders.clock_ns
    return heard


def tick(holders: Holders, now_ns: int) -> None:
    """Time went on."""
    if holders.tick_ns:
        holders.clock_ns += min(max(0, now_ns - holders.tick_ns), STEP_MAX_NS)
    holders.tick_ns = now_ns


def silent(holders: Holders, timeout_ns: int) -> list[HolderId]:
    """Those not heard of for that long, in the order in which they came."""
    limit_ns = holders.clock_ns - timeout_ns
    return [holder for holder, heard in holders.heard.items() if heard.at_ns <= limit_ns]
