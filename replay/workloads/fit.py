"""A profile fitted to a trace, and how near it comes.

Lengths are taken as quantiles, sessions as they are named or, where they are not, by prefix: a request goes on with the
session whose newest prompt, in full units, is a part of its own. Each quantity is drawn by itself, so what hangs
together in the trace (long sessions have long prompts) does not in the profile; `Fit` says what that costs.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import pairwise
from typing import NamedTuple

import msgspec

from events.base import NS_PER_MS, NS_PER_S
from replay.belady import ideal_share
from replay.workloads.base import Arrival
from replay.workloads.drawn import ANSWER_MS_PER_TOKEN, draw
from replay.workloads.lengths import Lengths, always, fitted
from replay.workloads.profile import Cluster, Documents, Fit, Profile, Stream, Tenant

WINDOW_NS = 10 * NS_PER_S
"""Arrivals are counted in windows of this length."""
SYSTEM_SHARE = 0.5
"""A leading unit that this share of sessions opens with belongs to the system prompt."""
ANSWER_NS_PER_TOKEN = ANSWER_MS_PER_TOKEN * NS_PER_MS
CLUSTER_MS = 3_000


class _Opened(NamedTuple):
    """A session with the document that it opens with: its first unit (None: none that others open with too), and how
    many tokens of it are shared."""

    turns: list[Arrival]
    document: Hashable
    shared: int


def fit(arrivals: Sequence[Arrival], *, name: str, source: str, about: str = "", seed: int = 1) -> Profile:
    """The profile of a trace, with what it states of itself. Raises ValueError for one without answers."""
    asked = [one for one in arrivals if one.output_tokens > 0]
    if not asked:
        raise ValueError("no request of the trace has an answer")
    sessions = by_session(asked)
    seconds = max(1, -(-(asked[-1].at_ns - asked[0].at_ns) // NS_PER_S))
    system = _system_tokens(sessions)
    opened = _opened(sessions, system)
    parts = {
        "once": [one for one in opened if len(one.turns) == 1],
        "sessions": [one for one in opened if len(one.turns) > 1],
    }
    found = Profile(
        name=name, about=about, source=source, seconds=seconds, tenants={"default": Tenant(system_tokens=system)},
        streams=tuple(_stream(part, each, system, seconds) for part, each in parts.items() if each),
    )  # fmt: skip
    found = _at_rate(found, asked, seed=seed)
    return msgspec.structs.replace(found, fit=nearness(found, asked, seed=seed, seconds=seconds))


def _stream(name: str, opened: Sequence[_Opened], system: int, seconds: int) -> Stream:
    """Sessions of one kind."""
    sessions = [one.turns for one in opened]
    size = max(1, round(dispersion([turns[0].at_ns for turns in sessions])))
    return Stream(
        name=name,
        starts_per_s=len(sessions) / seconds,
        cluster=Cluster(size=always(size), within_ms=CLUSTER_MS) if size > 1 else None,
        turns=fitted([len(turns) for turns in sessions]),
        documents=_documents(opened),
        opening_tokens=fitted([max(1, one.turns[0].prompt_tokens - system - one.shared) for one in opened]),
        message_tokens=_fitted_or(always(1), [max(0, grown) for turns in sessions for grown in _growth(turns)]),
        answer_tokens=fitted([one.output_tokens for turns in sessions for one in turns]),
        think_ms=_fitted_or(always(0), [think // NS_PER_MS for turns in sessions for think in _thinks(turns)]),
    )


def _documents(opened: Sequence[_Opened]) -> Documents | None:
    """What is shared by those that open with something that others open with too."""
    sharing = [one for one in opened if one.document is not None and one.shared]
    if not sharing:
        return None
    return Documents(
        count=len({one.document for one in sharing}),
        tokens=fitted([one.shared for one in sharing]),
        share_percent=max(1, round(100 * len(sharing) / len(opened))),
    )


def _at_rate(profile: Profile, arrivals: Sequence[Arrival], *, seed: int) -> Profile:
    """With as many starts as make it as many requests: what the end of the window cuts off is cut off twice."""
    factor = len(arrivals) / max(1, len(draw(profile, seed=seed)))
    streams = tuple(
        msgspec.structs.replace(stream, starts_per_s=round(stream.starts_per_s * factor, 4))
        for stream in profile.streams
    )
    return msgspec.structs.replace(profile, streams=streams)


def nearness(profile: Profile, arrivals: Sequence[Arrival], *, seed: int, seconds: int) -> Fit:
    """How near what is drawn from a profile comes to these arrivals."""
    drawn = draw(profile, seed=seed, seconds=seconds)
    both = (arrivals, drawn)
    rates = [len(each) / seconds for each in both]
    spreads = [dispersion([one.at_ns for one in each]) for each in both]
    shares = [ideal_share(each) for each in both]
    return Fit(
        prompt_ks=round(distance([one.prompt_tokens for one in arrivals], [one.prompt_tokens for one in drawn]), 4),
        answer_ks=round(distance([one.output_tokens for one in arrivals], [one.output_tokens for one in drawn]), 4),
        requests_per_s=(round(rates[0], 3), round(rates[1], 3)),
        dispersion=(round(spreads[0], 2), round(spreads[1], 2)),
        ideal_hit_share=(round(shares[0], 4), round(shares[1], 4)),
        seed=seed,
        seconds=seconds,
    )


def by_session(arrivals: Sequence[Arrival]) -> list[list[Arrival]]:
    """The requests of each session, in order of time; sessions in order of their first."""
    sessions: list[list[Arrival]] = []
    named: dict[str, list[Arrival]] = {}
    newest: dict[Hashable, list[Arrival]] = {}
    for one in arrivals:
        full = one.prefix[: one.prompt_tokens // one.prefix_tokens]
        turns = named.get(one.session) if one.session else _goes_on(full, newest)
        if turns is None:
            turns = []
            sessions.append(turns)
        turns.append(one)
        if one.session:
            named[one.session] = turns
        elif full:
            newest[full[-1]] = turns
    return sessions


def dispersion(times_ns: Sequence[int]) -> float:
    """Variance over mean of the number in each window: 1 for a Poisson process, more where they come in bursts."""
    if not times_ns:
        return 0.0
    first, last = min(times_ns), max(times_ns)
    windows = max(1, -(-(last - first) // WINDOW_NS))
    counts = Counter(min(windows - 1, (at - first) // WINDOW_NS) for at in times_ns)
    mean = len(times_ns) / windows
    # Windows in which nothing came are counted, not gone through: a trace may be long and sparse.
    apart = sum((count - mean) ** 2 for count in counts.values()) + (windows - len(counts)) * mean**2
    return apart / windows / mean


def distance(left: Sequence[int], right: Sequence[int]) -> float:
    """The greatest distance between two empirical distribution functions (Kolmogorov-Smirnov)."""
    counts, others = Counter(left), Counter(right)
    most, at, there = 0.0, 0, 0
    for value in sorted(counts.keys() | others.keys()):
        at += counts[value]
        there += others[value]
        most = max(most, abs(at / len(left) - there / len(right)))
    return most


def _goes_on(full: Sequence[Hashable], newest: dict[Hashable, list[Arrival]]) -> list[Arrival] | None:
    """The session whose newest prompt is the longest part of this one; the first unit alone says nothing."""
    for unit in reversed(full[1:]):
        turns = newest.pop(unit, None)
        if turns is not None:
            return turns
    return None


def _system_tokens(sessions: Sequence[Sequence[Arrival]]) -> int:
    """How long the beginning is that most sessions share."""
    tokens = 0
    first = sessions[0][0]
    for index in range(len(first.prefix)):
        units = Counter(turns[0].prefix[index] for turns in sessions if len(turns[0].prefix) > index)
        [(_, most)] = units.most_common(1)
        if most < SYSTEM_SHARE * len(sessions):
            break
        tokens += first.prefix_tokens
    return tokens


def _opened(sessions: Sequence[list[Arrival]], system: int) -> list[_Opened]:
    """Sessions that begin alike, beyond the system prompt, open with one document."""
    roots = [_root(turns[0], system) for turns in sessions]
    alike = Counter(root for root in roots if root is not None)
    opened, seen = list[_Opened](), set[Hashable]()
    for turns, root in zip(sessions, roots, strict=True):
        first = turns[0]
        full = first.prefix[: first.prompt_tokens // first.prefix_tokens]
        known = next((index for index, unit in enumerate(full) if unit not in seen), len(full))
        several = root is not None and alike[root] > 1
        opened.append(_Opened(turns, root if several else None, max(0, known * first.prefix_tokens - system)))
        seen.update(unit for one in turns for unit in one.prefix)
    return opened


def _root(first: Arrival, system: int) -> Hashable:
    """The first full unit after the system prompt."""
    index = system // first.prefix_tokens
    full = first.prefix[: first.prompt_tokens // first.prefix_tokens]
    return full[index] if index < len(full) else None


def _growth(turns: Sequence[Arrival]) -> list[int]:
    return [after.prompt_tokens - before.prompt_tokens - before.output_tokens for before, after in pairwise(turns)]


def _thinks(turns: Sequence[Arrival]) -> list[int]:
    """What lies between an answer and the next turn, in ns: as told, else the gap less what the answer took."""
    return [
        after.think_ns
        if after.after
        else max(0, after.at_ns - before.at_ns - before.output_tokens * ANSWER_NS_PER_TOKEN)
        for before, after in pairwise(turns)
    ]


def _fitted_or(otherwise: Lengths, values: Sequence[int]) -> Lengths:
    return fitted(values) if values else otherwise
