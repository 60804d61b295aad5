"""A steady offer of sessions: so many are open at any time, from the first moment to the last.

A slot is somebody who always has one session open: when its last answer is there (the last at the pace of the line:
turns that were recorded side by side may end otherwise) the next one begins, and it is over too when a turn had no
answer. So the offer neither grows nor runs dry, whatever becomes of it.

A session here has prompts of some length at least, and no pause of more than `PAUSE_NS`: a longer one is cut to that.
Sessions that were recorded pause for hours; a slot would hold nobody for most of the time, and the more of them there
were, the less would a number of open sessions say.

All sessions lie end to end on a line, in a drawn order, each answer taking `ANSWER_NS_PER_TOKEN`; every slot begins at
a drawn moment of it and goes on from there. So at time 0 sessions are in progress, each moment of them as likely as it
is later. No engine keeps up with the pace of the line, so that no slot runs dry: what is not reached by the end of the
window is missed, for everybody alike, and shares of all requests say little here.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain, count, cycle
from random import Random
from typing import Final, NamedTuple

from msgspec.structs import replace

from events.base import NS_PER_MS, NS_PER_S
from replay.workloads.base import Arrival
from replay.workloads.sessions import Session, again

PAUSE_NS: Final = 60 * NS_PER_S
"""Recorded agents have six in seven turns within it."""
ANSWER_NS_PER_TOKEN: Final = 10 * NS_PER_MS
"""Less than an H100 takes for a token of an 8B model while it computes long prompts beside it."""


class _Place(NamedTuple):
    """Where who waits for a turn is put: behind that kept turn, answered then, with that much thinking already."""

    behind: str
    ended_ns: int
    thought_ns: int = 0


def steady(session: Session, *, prompt_tokens_min: int = 1, pause_ns: int = PAUSE_NS) -> Session:
    """A recorded session as one that the module speaks of, from 0 on at the pace of the line; of no turns where all
    are too short. Who waited for a turn that is left out waits for the one before it, or for the last that is kept."""
    kept, places = list[Arrival](), dict[str, _Place]()
    last = _Place("", 0)
    for turn in session:
        before = places.get(turn.after, last)
        think_ns = min(pause_ns, before.thought_ns + turn.think_ns) if kept else 0
        if turn.prompt_tokens < prompt_tokens_min:
            places[turn.request_id] = before._replace(thought_ns=think_ns)
            continue
        placed = replace(turn, at_ns=before.ended_ns + think_ns, after=before.behind, think_ns=think_ns)
        kept.append(placed)
        last = places[turn.request_id] = _Place(turn.request_id, _ended_ns(placed))
    return tuple(sorted(kept, key=_at_ns))


def in_slots(sessions: Sequence[Session], *, seed: int, seconds: int, slots: int) -> list[Arrival]:
    """What so many slots ask for in `seconds`, in order of time. `sessions` are as `steady` makes them; each that is
    begun is another one, with ids of its own. Raises ValueError where there is nothing to take from."""
    if not sum(map(_length_ns, sessions)) or slots < 1 or seconds < 1:
        raise ValueError("slots need sessions that last, and a count and seconds of at least 1")
    rng = Random(seed)  # noqa: S311
    line = rng.sample(sessions, len(sessions))
    ends_ns = list(accumulate(map(_length_ns, line)))
    begun, asked = count(1), list[Arrival]()
    for slot in range(slots):
        # One in each of as many equal parts of the line, so that few are in the same session.
        at_ns = (slot * ends_ns[-1] + rng.randrange(ends_ns[-1])) // slots
        first = bisect_right(ends_ns, at_ns)
        begin_ns = ends_ns[first] - _length_ns(line[first]) - at_ns
        asked += _taken(chain(line[first:], cycle(line)), begin_ns, seconds * NS_PER_S, begun)
    asked.sort(key=_at_ns)
    return asked


def _taken(line: Iterable[Session], begin_ns: int, until_ns: int, begun: Iterator[int]) -> list[Arrival]:
    """What one slot asks for: the first session began at `begin_ns`, before 0; each other one waits for the last answer
    of the one before."""
    taken, last = list[Arrival](), ""
    for session in line:
        if begin_ns >= until_ns:
            break
        turns = list(again(_rest(session, begin_ns), times=next(begun)))
        begin_ns += _length_ns(session)
        if turns and last:
            turns[0] = replace(turns[0], after=last)
        last = max(turns, key=_ended_ns).request_id if turns else last
        taken += turns
    return taken


def _rest(session: Session, begin_ns: int) -> Session:
    """The turns of a session that began at `begin_ns` which come from 0 on. Who would wait for one before, comes."""
    coming = [replace(turn, at_ns=begin_ns + turn.at_ns) for turn in session if begin_ns + turn.at_ns >= 0]
    names = {turn.request_id for turn in coming}
    return tuple(turn if turn.after in names else replace(turn, after="", think_ns=0) for turn in coming)


def _length_ns(session: Session) -> int:
    """From its begin until all of it is answered."""
    return max(map(_ended_ns, session))


def _ended_ns(turn: Arrival) -> int:
    return turn.at_ns + turn.output_tokens * ANSWER_NS_PER_TOKEN


def _at_ns(turn: Arrival) -> int:
    return turn.at_ns
