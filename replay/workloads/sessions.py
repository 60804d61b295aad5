"""Sessions: turns that wait for the answers before them, and when each session of a workload begins."""

from collections.abc import Sequence
from hashlib import blake2b
from random import Random

from msgspec.structs import replace

from events.base import NS_PER_S
from replay.workloads.base import Arrival

Session = tuple[Arrival, ...]
"""The turns of one session, in order of time: `at_ns` counts from its begin, `after` and `think_ns` say which answer a
turn waits for and for how long then. Its request ids and its own prefix ids are those of no other session."""

ID_BYTES = 16
"""Prefix ids fit into so many, as fingerprints do."""


def started(sessions: Sequence[Session], *, seed: int, seconds: int, count: int) -> list[Arrival]:
    """`count` sessions with their begins drawn evenly over `seconds`, as one workload in order of time.

    Every session is drawn once before any is drawn again. One that is drawn again is another session of the same
    shape: its requests, its session and its prefixes get fresh ids, so nothing of it is in any cache. How long turns
    take and how long sessions think does not change: more load is more sessions. Raises ValueError when there is
    nothing to draw from.
    """
    if not sessions or count < 1 or seconds < 1:
        raise ValueError("a workload of sessions needs sessions, a count and seconds of at least 1")
    rng = Random(seed)  # noqa: S311
    drawn: list[Arrival] = []
    deck: list[int] = []
    for number in range(count):
        if not deck:
            deck = rng.sample(range(len(sessions)), len(sessions))
        session = again(sessions[deck.pop()], times=number // len(sessions))
        begin_ns = rng.randrange(seconds * NS_PER_S)
        drawn += [replace(turn, at_ns=begin_ns + turn.at_ns) for turn in session]
    drawn.sort(key=lambda turn: turn.at_ns)  # Stable: turns of one moment stay in the order they were drawn in.
    return drawn


def again(session: Session, *, times: int) -> Session:
    """The same session as another one: for every number of `times` with ids of its own, for 0 as it is."""
    if not times:
        return session
    mask, ids = int.from_bytes(blake2b(b"again %d" % times, digest_size=ID_BYTES).digest()), dict[int, int]()
    return tuple(
        replace(
            turn,
            request_id=_named(turn.request_id, times),
            session=_named(turn.session, times),
            after=_named(turn.after, times),
            # One object per id: a long session names the same prefix in every turn.
            prefix=tuple(ids.setdefault(unit, unit ^ mask) for unit in turn.prefix),
        )
        for turn in session
    )


def chained(arrivals: Sequence[Arrival], took_ns: Sequence[int]) -> list[Arrival]:
    """The same arrivals, in order of time, with every turn behind the one before it in its session: it thinks for what
    lies between the two, less what the answer between took by `took_ns` (0 at least). Without a session: as it is."""
    last: dict[str, tuple[str, int]] = {}
    behind: list[Arrival] = []
    for one, took in zip(arrivals, took_ns, strict=True):
        before = last.get(one.session)
        think_ns = max(0, one.at_ns - before[1]) if before else 0
        behind.append(replace(one, after=before[0], think_ns=think_ns) if before else one)
        if one.session:
            last[one.session] = one.request_id, one.at_ns + took
    return behind


def _named(name: str, times: int) -> str:
    return f"{name}~{times}" if name else ""
