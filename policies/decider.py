"""The one way a decision is made, live and in replay.

    advance(decider, progress, recorded) -> decisions
      evolve(state, fact); decisions = decide(state, fact); evolve(state, each decision)
      what is not for this actor, and a cause already taken in from another, changes nothing

The decisions for a record depend on the log up to that record, and on nothing else.
`evolve` changes only the state it is given; `decide` and `explain` change nothing. Time is an input:
`now_ns` is the highest time that a record has shown, and a record can move it at most TICK_MAX_NS past the
last tick, so that one writer's wrong clock moves nothing; what the first tick finds beyond that goes back to it.

The shape (decide, evolve, initial state) is Chassaing's decider.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from events.base import TICK_MAX_NS, Cause, Event, Recorded
from events.control import ActorStarted, PolicyConfigured, Ticked

S = TypeVar("S", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Decider(Generic[S]):
    """One actor's policy. `takes` are the event types that it takes in; all others are no-ops.

    `initial` makes a fresh state. `configure(state, settings)` puts settings (plain values, named keys only)
    into the state and raises ValueError for a bad one; `policy_configured` and `actor_started` bring them.
    `explain(state, event, now_ns)` tells, in plain values, what `decide` looks at.
    """

    name: str
    state: type[S]
    initial: Callable[[], S]
    evolve: Callable[[S, Event, int], None]
    decide: Callable[[S, Event, int], list[Event]]
    configure: Callable[[S, Mapping[str, Any]], None]
    explain: Callable[[S, Event, int], dict[str, Any]]
    takes: frozenset[type[Event]]

    def tags(self) -> tuple[str, ...]:
        """The tags of `takes`, sorted: what an owner says at its start."""
        return tuple(sorted(cls.event_tag() for cls in self.takes))


class Heard(NamedTuple):
    """The newest cause taken in from another actor, and the message that it came in."""

    cause: Cause
    seq: int


@dataclass(slots=True)
class Progress(Generic[S]):
    """Where an actor stands: all that a snapshot has to hold."""

    state: S
    seq: int = 0
    item: int = -1
    now_ns: int = 0
    tick_ns: int = 0
    heard: dict[str, Heard] = field(default_factory=dict)
    takes: frozenset[type[Event]] | None = None
    skipped: int = 0


def begin(decider: Decider[S]) -> Progress[S]:
    """Before the first record."""
    return Progress(state=decider.initial())


def advance(
    decider: Decider[S],
    progress: Progress[S],
    recorded: Recorded,
    *,
    quarantined: frozenset[Cause] = frozenset(),
    said: list[Event] | None = None,
) -> list[Event]:
    """Take one record in (changing `progress`); what was decided because of it.

    `said` are the decisions that stand in the log for this cause, where another version of the code made
    them: they are taken in and given back instead of deciding again. Asserts log order. An exception out of
    the policy leaves `progress` unusable: the process ends and starts again from its snapshot.
    """  # fmt: skip
    seq, item, event = recorded.seq, recorded.item, recorded.event
    assert seq > progress.seq or (seq == progress.seq and item > progress.item), "records come in log order"
    progress.seq, progress.item = seq, item
    if recorded.ts_ns > progress.now_ns or type(event) is Ticked:  # What is older moves no time.
        _tell_time(progress, recorded)
    if quarantined and recorded.at in quarantined:
        return []  # Before all else: bad settings and a cause that cannot be read are quarantined too.
    if recorded.actor == decider.name:
        if isinstance(event, ActorStarted):
            progress.takes = frozenset(cls for cls in decider.takes if cls.event_tag() in event.tags)
            decider.configure(progress.state, event.settings)
        return []  # Own decisions were taken in when they were made.
    if recorded.actor and _heard_before(progress, recorded):
        return []
    if isinstance(event, PolicyConfigured):
        if event.actor == decider.name:
            decider.configure(progress.state, event.settings)
        return []
    if type(event) not in (decider.takes if progress.takes is None else progress.takes):
        progress.skipped += 1
        return []
    now_ns = progress.now_ns
    decider.evolve(progress.state, event, now_ns)
    decisions = decider.decide(progress.state, event, now_ns) if said is None else said
    for decision in decisions:
        decider.evolve(progress.state, decision, now_ns)
    return decisions


def _tell_time(progress: Progress[Any], recorded: Recorded) -> None:
    ts_ns = recorded.ts_ns
    if type(recorded.event) is Ticked:
        if progress.tick_ns:
            ts_ns = min(ts_ns, progress.tick_ns + TICK_MAX_NS)
        else:
            # Until now each writer went by its own wall: the first tick says what time it is.
            progress.now_ns = min(progress.now_ns, ts_ns + TICK_MAX_NS)
        progress.tick_ns = max(progress.tick_ns, ts_ns)
    elif progress.tick_ns:
        ts_ns = min(ts_ns, progress.tick_ns + TICK_MAX_NS)
    if ts_ns > progress.now_ns:
        progress.now_ns = ts_ns


def _heard_before(progress: Progress[Any], recorded: Recorded) -> bool:
    """Whether this cause was already taken in from that actor, in an earlier message."""
    if not recorded.cause:
        return False  # Ownership and quarantine notes answer nothing.
    cause = Cause.parse(recorded.cause)
    heard = progress.heard.get(recorded.actor)
    if heard is not None:
        if recorded.seq != heard.seq:
            if cause <= heard.cause:
                return True
        elif cause == heard.cause:
            return False  # Many decisions of one cause stand in one message.
    progress.heard[recorded.actor] = Heard(cause, recorded.seq)
    return False
