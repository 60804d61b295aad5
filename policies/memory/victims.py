"""Which running requests give way so that blocks are free. Algorithm 3, for requests.

Orders of admission and choices within an engine step ask the same function. In plain words:

1. Who may be chosen at all: who holds blocks; who is less urgent than the one it is for (lower priority, or the same
   and it stays on time where the other would not wait, or it is late already); nobody whose answer is nearly complete
   (`protect_ppm` of its expected length); nobody that gave way `preempted_max` times; with a first token only where
   the engine can preempt.
2. In what order: who stays on time in spite of it, then who is late already, then who is made late. Of those, the
   tenant that holds most above its fair part of the engine pays first. Of its requests: most slack left after the
   loss, lowest priority, least work lost, most blocks freed per time lost, then id. Slack and loss are compared by
   powers of two: a few milliseconds more slack are no reason to throw away ten times the work.
3. Greedy until enough; then who turned out needless is spared, the dearest first.
4. If all who may be chosen do not free enough, nobody is: `CannotFree` says what could have been freed.

Work lost is what it takes to be where it is now, computed anew or reloaded, and counts once more for each time that
the request gave way before: work already sunk is not thrown away twice for nothing.

vLLM preempts the newest, or the lowest priority (its scheduler), llm-d the lowest priority, newest first; neither
looks at what is lost. Bytes reclaimed per token of work, times the part of the answer still to come, is vLLM PR
#56897's S(r); it is the last but one criterion here, with the time lost in place of tokens and protection in place of
the factor. Sparing what can still be on time before what cannot is Moore and Hodgson's rule.

Example: 30 blocks are needed at once. One request of 40 blocks is at 95 % of its answer: protected. One of 40 blocks
has 8 s of slack and would lose 2 s: chosen. One of 10 blocks has 300 ms and would lose 1 s: it would be late, so it
is asked last, and not needed.
"""

from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from heapq import heapify, heappop, heapreplace

import msgspec

from events.base import PPM, RequestId, TenantId

CANDIDATES_MAX = 4_096
"""Running requests that are looked at, the first ones of those given."""
PREEMPTED_MAX = 3
"""A request gives way at most so often, whoever is more urgent: nothing is starved."""
VICTIMS_MAX = 64
"""Requests that give way at once. What is decided because of one record has to fit into one message."""


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """A request that runs on the engine in question.

    `priority`: higher is more important. `slack_ns`: how much longer it could take and still be on time (below 0: it
    is late). `tokens_done` of `tokens_expected` output tokens are there (0 expected: nobody knows how many).
    `blocks_freed` is what its leaving frees: blocks that others hold too are not counted. `lost_ns`: what it takes to
    be where it is now, by recomputing or by reloading, whichever is less. `preempted` times it has given way.
    """

    request_id: RequestId
    tenant: TenantId = TenantId("")
    priority: int = 0
    slack_ns: int = 0
    tokens_done: int = 0
    tokens_expected: int = 0
    blocks_freed: int = 0
    lost_ns: int = 0
    first_token: bool = False
    preempted: int = 0


class Urgent(msgspec.Struct, frozen=True, kw_only=True):
    """The one that needs the blocks, with what is left to its deadline if it goes now."""

    priority: int = 0
    slack_ns: int = 0


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """Who gives way, in order of choice, with the blocks that it frees and the work that it loses in all."""

    victims: tuple[Running, ...]
    blocks_freed: int
    lost_ns: int


class CannotFree(msgspec.Struct, frozen=True, kw_only=True):
    """Nobody gives way: `freed_max` blocks are the most that could have been freed, fewer than needed."""

    freed_max: int


class Harm(IntEnum):
    """What giving way does to a request's promise."""

    STAYS_ON_TIME = 0
    LATE_ALREADY = 1
    MADE_LATE = 2


_Rank = tuple[int, int, int, int, RequestId]


def choose(
    running: Sequence[Running],
    *,
    need_blocks: int,
    urgent: Urgent | None,
    protect_ppm: int,
    can_preempt: bool = True,
    preempted_max: int = PREEMPTED_MAX,
    victims_max: int = VICTIMS_MAX,
) -> Chosen | CannotFree:
    """Who gives way so that at least `need_blocks` blocks are free.

    `urgent` None: nobody in particular needs them (an engine that ran out within a step), so all are less urgent.
    `can_preempt` False: only who has no first token. Changes nothing; costs O(n log n) for n running, n bounded.
    """
    assert need_blocks > 0, "who needs no blocks preempts nobody"
    some = running[:CANDIDATES_MAX]
    allowed = [
        one
        for one in some
        if may_give_way(one, urgent, protect_ppm=protect_ppm, can_preempt=can_preempt, preempted_max=preempted_max)
    ]
    largest = sorted((one.blocks_freed for one in allowed), reverse=True)[:victims_max]
    if sum(largest) < need_blocks:
        return CannotFree(freed_max=sum(largest))
    victims = _spare(_greedy(_in_order(allowed, some), need_blocks), need_blocks)
    if len(victims) > victims_max:
        # The orderly way takes too many: the fewest that free enough, then.
        by_size = sorted(allowed, key=lambda one: (-one.blocks_freed, _place(one)))
        victims = _greedy(by_size, need_blocks)
    return Chosen(
        victims=tuple(victims),
        blocks_freed=sum(one.blocks_freed for one in victims),
        lost_ns=sum(one.lost_ns for one in victims),
    )


def may_give_way(
    one: Running,
    urgent: Urgent | None,
    *,
    protect_ppm: int,
    can_preempt: bool = True,
    preempted_max: int = PREEMPTED_MAX,
) -> bool:
    """Whether it may be chosen at all."""
    if one.blocks_freed <= 0 or one.preempted >= preempted_max or (one.first_token and not can_preempt):
        return False
    return not is_protected(one, protect_ppm) and (urgent is None or less_urgent(one, urgent))


def is_protected(one: Running, protect_ppm: int) -> bool:
    """Whether its answer has begun and is nearly complete. `protect_ppm` 0 protects every answer that has begun, as
    far as its length is expected at all."""
    if not one.first_token or not one.tokens_expected:
        return False
    return one.tokens_done * PPM >= protect_ppm * one.tokens_expected


def less_urgent(one: Running, urgent: Urgent) -> bool:
    """Whether `urgent` may take its place. A strict order, so that no two requests push each other out in turn: with
    equal priority the one that gives way still has more slack than the other had, or was late where the other is not.
    """
    if one.priority != urgent.priority:
        return one.priority < urgent.priority
    if urgent.slack_ns < 0:
        return False
    return one.slack_ns < 0 or one.slack_ns - one.lost_ns > urgent.slack_ns


def harm(one: Running) -> Harm:
    """What giving way does to it."""
    if one.slack_ns < 0:
        return Harm.LATE_ALREADY
    return Harm.STAYS_ON_TIME if one.slack_ns >= one.lost_ns else Harm.MADE_LATE


def _place(one: Running) -> _Rank:
    """Smaller gives way sooner: most slack left, lowest priority, least work lost, most blocks freed per time lost."""
    lost_ns = max(1, one.lost_ns) * (1 + one.preempted)
    left_ns = one.slack_ns - one.lost_ns
    slack = left_ns.bit_length() if left_ns >= 0 else -(-left_ns).bit_length()
    return -slack, one.priority, lost_ns.bit_length(), -((one.blocks_freed << 40) // lost_ns), one.request_id


def _in_order(allowed: Sequence[Running], everyone: Sequence[Running]) -> Iterator[Running]:
    """Those who may be chosen, the first to give way first. Who has paid holds less, so the tenant that holds most is
    looked for anew each time."""
    held = _held(everyone)
    fair = sum(held.values()) // max(1, len(held))
    lines: dict[Harm, dict[TenantId, list[tuple[_Rank, Running]]]] = {}
    for one in sorted(allowed, key=_place, reverse=True):
        lines.setdefault(harm(one), {}).setdefault(one.tenant, []).append((_place(one), one))
    for kind in Harm:
        tenants = lines.get(kind, {})
        # One entry per tenant: only who pays changes its place.
        heap = [(min(0, fair - held[tenant]), line[-1][0], tenant) for tenant, line in tenants.items()]
        heapify(heap)
        while heap:
            tenant = heap[0][2]
            one = tenants[tenant].pop()[1]
            held[tenant] -= one.blocks_freed
            if tenants[tenant]:
                heapreplace(heap, (min(0, fair - held[tenant]), tenants[tenant][-1][0], tenant))
            else:
                heappop(heap)
            yield one


def _held(running: Iterable[Running]) -> dict[TenantId, int]:
    held: dict[TenantId, int] = {}
    for one in running:
        held[one.tenant] = held.get(one.tenant, 0) + one.blocks_freed
    return held


def _greedy(in_order: Iterable[Running], need_blocks: int) -> list[Running]:
    """The first ones until enough is free."""
    victims: list[Running] = []
    freed = 0
    for one in in_order:
        if freed >= need_blocks:
            break
        victims.append(one)
        freed += one.blocks_freed
    return victims


def _spare(victims: list[Running], need_blocks: int) -> list[Running]:
    """Without those that are not needed, the last to give way spared first."""
    over = sum(one.blocks_freed for one in victims) - need_blocks
    kept: list[Running] = []
    for one in reversed(victims):
        if one.blocks_freed <= over:
            over -= one.blocks_freed
        else:
            kept.append(one)
    kept.reverse()
    return kept
