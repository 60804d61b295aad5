"""The strategy applied to one line: who is looked at, in which order, and who waits although an engine would take it.

- Those that lag behind (`policies.ordering.fairness`) come first, then the order of the strategy.
- Who is set aside (`policies.ordering.set_aside`) is not looked at until a later plan has room for it.
- A long prefill waits while the long lane is full (`policies.ordering.long_lane`).
- The first of what is left is passed by at most `passes_max` later ones.

A request that just arrived is put into the order as if it waited, and goes at once only if the order lets it.
"""

from bisect import bisect_left
from itertools import islice

from events.base import RequestId, RequestKind, TenantId
from events.decisions import DeferReason
from policies.forecast import Prospect, alone_ns, backlog_ns
from policies.judgement import Admit, Defer, Desk, Ruling, judge, serving
from policies.late_service import is_late
from policies.ordering import kind_turns, lags, lane_ppm, long_lane, rule_of
from policies.ordering.fairness import class_of
from policies.ordering.set_aside import PLAN_MAX, Job, kept
from policies.settings import Switch
from policies.waiting import Line, Place, Waiting, place


def line_key(desk: Desk, line: Line) -> tuple[bool, int, Place]:
    """Which line is looked at first: that of the kind whose turn it is, or that with the first head. What can only be
    late comes last."""
    by_urgency = rule_of(desk.ordering, desk.settings).by_urgency
    turn = kind_turns.tag(desk.ordering.turns, line.head().request.kind) if by_urgency else 0
    return (is_late(line.head()), turn, line.order[0])


def lineup(desk: Desk, line: Line, *, gone: dict[RequestId, None], fresh: Waiting | None = None) -> list[Waiting]:
    """Those that are looked at, best first, at most PLAN_MAX; `fresh` as if it waited there, too."""
    left = islice((one for one in line.ordered() if one.request.request_id not in gone), PLAN_MAX)
    entries = list(left)
    if fresh is not None:
        entries.insert(bisect_left(entries, (fresh.key, fresh.number), key=_sort_key), fresh)
    behind = _who_lags(desk, entries)
    if any(behind):
        first = [position for position, lagging in enumerate(behind) if lagging]
        then = [position for position, lagging in enumerate(behind) if not lagging]
        entries, behind = [entries[p] for p in first + then], [True] * len(first) + [False] * len(then)
    if not rule_of(desk.ordering, desk.settings).sets_aside or not entries or is_late(entries[0]):
        return entries
    free_ns = backlogs_ns(desk, entries[0])
    if not free_ns:
        return entries  # No engine is left: each of them is told so.
    jobs = [Job(one.until_ns - desk.now_ns, one.work_ns, lagging) for one, lagging in zip(entries, behind, strict=True)]
    return [entries[position] for position in kept(jobs, free_ns)]


def _who_lags(desk: Desk, entries: list[Waiting]) -> list[bool]:
    """Whether each of them does; asked once per class and tenant."""
    known: dict[tuple[int, TenantId], bool] = {}
    behind = []
    for one in entries:
        kind = (class_of(one.request), one.request.tenant)
        if kind not in known:
            known[kind] = lags(desk.ordering, one.request, desk.settings)
        behind.append(known[kind])
    return behind


def _sort_key(one: Waiting) -> tuple[tuple[int, int], int]:
    return (one.key, one.number)


def backlogs_ns(desk: Desk, one: Waiting) -> list[int]:
    """After how much time each engine that serves it is free."""
    return [backlog_ns(desk.trial(account), desk.now_ns) for account in serving(desk, one.request, one.avoid)]


def keeps_out(desk: Desk, one: Waiting) -> bool:
    """Whether it has to wait for the long lane."""
    settings = desk.settings
    if not settings.long_prefill_ns or one.work_ns < settings.long_prefill_ns or settings.deferral is Switch.OFF:
        return False
    if one.request.kind is not RequestKind.LLM or not rule_of(desk.ordering, settings).sets_aside:
        return False
    if lags(desk.ordering, one.request, settings):
        return False
    return long_lane.is_full(
        backlogs_ns(desk, one), work_ns=one.work_ns, long_prefill_ns=settings.long_prefill_ns,
        long_lane_ppm=lane_ppm(desk.ordering, settings),
    )  # fmt: skip


def first_ruling(desk: Desk, fresh: Waiting, prospects: list[Prospect], line: Line | None) -> Ruling:
    """What is said to a request that just arrived; `line` are those that wait already."""
    if desk.settings.deferral is Switch.OFF:
        return judge(desk, prospects)  # Whoever else waits, for whatever reason.
    rule = rule_of(desk.ordering, desk.settings)
    if not rule.sets_aside:
        return _after_others(desk, fresh, prospects, line) if line is not None else judge(desk, prospects)
    ruling = judge(desk, prospects)
    if not isinstance(ruling, Admit):
        return ruling
    if line is None:
        work_ns = alone_ns(ruling.prospect) if ruling.prospect.judged else 0
        if work_ns < desk.settings.long_prefill_ns or not keeps_out(desk, _as_waiting(fresh, work_ns=work_ns)):
            return ruling
    waits = judge(desk, prospects, may_go=False)
    assert isinstance(waits, Defer), "what could go now could go later"
    one = _as_waiting(fresh, until_ns=waits.until_ns, work_ns=waits.work_ns)
    one.key = rule.key(one)
    going = lineup(desk, line, gone={}, fresh=one) if line is not None else [one]
    if one not in going or keeps_out(desk, one):
        return Defer(DeferReason.SET_ASIDE, waits.until_ns, waits.work_ns)
    return ruling if may_go(desk, going, one) else waits


def may_go(desk: Desk, going: list[Waiting], one: Waiting) -> bool:
    """All before it were looked at when something last changed, so it goes if it is first, or if a pass is left."""
    if going[0] is one:
        return True
    near = any(other is one for other in islice(going, desk.settings.scan_max))
    return near and passes_left(desk, going[0]) > 0


def passes_left(desk: Desk, head: Waiting) -> int:
    """How many later ones may go before the first in line. None, if it lags behind: what frees up is kept for it."""
    if lags(desk.ordering, head.request, desk.settings):
        return 0
    return desk.settings.passes_max - head.passed


def _after_others(desk: Desk, fresh: Waiting, prospects: list[Prospect], line: Line) -> Ruling:
    """Nobody is set aside: the work of those before it counts in full."""
    waits = judge(desk, prospects, may_go=False)
    if not isinstance(waits, Defer):
        return waits
    rule = rule_of(desk.ordering, desk.settings)
    one = _as_waiting(fresh, until_ns=waits.until_ns, work_ns=waits.work_ns)
    one.key = rule.key(one)
    before = bisect_left(line.order, place(one))
    ahead_ns = line.work_ns
    if before < len(line.order):
        ahead_ns = sum(line.entries[request_id].work_ns for _, _, request_id in islice(line.order, before))
    going = lineup(desk, line, gone={}, fresh=one)
    return judge(desk, prospects, ahead_ns=ahead_ns, may_go=one in going and may_go(desk, going, one))


def _as_waiting(fresh: Waiting, *, until_ns: int = 0, work_ns: int) -> Waiting:
    """As it would stand in its line: behind those that have the same key."""
    return Waiting(
        request=fresh.request, arrived_ns=fresh.arrived_ns, avoid=fresh.avoid, until_ns=until_ns, work_ns=work_ns,
        number=_LAST,
    )  # fmt: skip


_LAST = 1 << 62
"""A number that nobody who waits has."""
