"""What the golden journals hold: small days that each show one thing, and one long day with everything in it.

    .venv/bin/python -m tests.golden.scenarios [NAME...]

writes those that are named, or all of them, anew into `tests/golden/`. Do so only when a policy's behaviour was changed
on purpose, in the same commit, and say in its message what changed. Journals of bugs stand beside them and are never
written anew.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from events.base import EngineId, Event, HolderId, PoolId, RequestId, TenantId
from events.control import PolicyConfigured
from events.engine import EngineRemoved, Health
from events.log.base import Message
from events.log.journal import JournalWriter
from events.quota import TenantQuotaAsked
from events.request import AbortReason, HolderStopped, OutputPredicted
from events.slice import SlicesPinned, TransferEnd
from policies.catalog import ACTORS
from replay.virtual_log import VirtualLog
from tests.policies.quota_words import both, bounds, quota, tenant
from tests.policies.tier_words import (
    DRAM,
    HBM,
    SSD,
    answered,
    failed,
    gauged,
    removed,
    stored,
    tiered,
)
from tests.policies.words import (
    FS_PER_MS,
    MS,
    STEP,
    S,
    aborted,
    arrived,
    beat,
    embedding,
    engine,
    expired,
    finished,
    first_token,
    health,
    measured,
    settings,
    slices,
    tick,
)
from tests.policies.world import WILD, World, live, numbers
from tests.spec import START_NS

FOLDER = Path(__file__).parent
POOL = PoolId("golden")
Day = Sequence[tuple[int, Event]]


def seconds(first: int, last: int, *spoken: Event) -> list[tuple[int, Event]]:
    """Ticks from one second to another, with what is said before each."""
    return [(n * S, event) for n in range(first, last + 1) for event in (*spoken, tick(n))]


ADMIT: Day = [
    (0, engine("e1")), (0, engine("e2", embedding=True)), (0, engine("e3", step=None)), (0, tick(0)),
    (10 * MS, arrived("a", 300, now=10 * MS, slices=slices("x", "y", "z"), slice_tokens=100)),
    (15 * MS, arrived("b", 200, now=15 * MS, tpot=50 * MS)),
    (20 * MS, embedding("v", 500, now=20 * MS, inputs=5)),
    (40 * MS, first_token("a")), (60 * MS, first_token("b", "e2")), (70 * MS, finished("v", "e2", out=0)),
    (80 * MS, arrived("c", 400, now=80 * MS, slices=slices("x", "y", "z"), slice_tokens=100)),
    (990 * MS, measured("e1", used_ppm=400_000, running=2)), (995 * MS, beat(a=50, b=40)), *seconds(1, 1),
    (1_200 * MS, finished("a", out=60)), (1_300 * MS, finished("b", "e2", out=50)), *seconds(2, 2, beat()),
]  # fmt: skip

DEFER: Day = [
    (0, settings(passes_max=1, backlog_max_ns=30 * MS, strategy="fifo", late_max_ns=0)),
    (0, engine("e1", seqs_max=4)), (0, tick(0)),
    (0, arrived("a", 500, out=400)), (10 * MS, arrived("b", 100, now=10 * MS, out=5)),
    (50 * MS, first_token("a")), (60 * MS, arrived("c", 500, now=60 * MS, slack=3 * S)),
    (70 * MS, arrived("d", 50, now=70 * MS, out=10)), (80 * MS, arrived("e", 50, now=80 * MS, slack=800 * MS)),
    (100 * MS, finished("b", out=5)), (120 * MS, first_token("d")), (300 * MS, aborted("d", engine_id=EngineId("e1"))),
    (900 * MS, tick(0)), *seconds(1, 1, beat(a=90)), (1_500 * MS, expired("c")), (1_600 * MS, finished("a", out=120)),
    *seconds(2, 3, beat()),
]  # fmt: skip

PACE: Day = [
    (0, engine("e1", blocks=1_000, seqs_max=2, step=replace(STEP, knee_tokens=1, above_fs=3 * FS_PER_MS // 10))),
    (0, tick(0)), (0, arrived("a", 10, out=100, tpot=15 * MS)), (13 * MS, first_token("a")),
    (20 * MS, arrived("b", 1_900, now=20 * MS, out=1, slack=3 * S)), (30 * MS, arrived("c", 10, now=30 * MS, out=5)),
    (40 * MS, arrived("d", 10, now=40 * MS)), (60 * MS, first_token("c")), (90 * MS, finished("c", out=5)),
    *seconds(1, 1, beat(a=95)), (1_100 * MS, finished("a", out=100)), *seconds(2, 2, beat()),
]  # fmt: skip

REJECT: Day = [
    (0, tick(0)), (0, arrived("early")), (0, engine("e1")), (0, arrived("other", model="other")),
    (0, arrived("long", 5_000)), (0, arrived("slow", 900, slack=50 * MS)), (0, arrived("fast", tpot=1 * MS)),
    (0, arrived("a", 600, out=300)), (0, arrived("late", 100, slack=60 * MS)), (60 * MS, first_token("a")),
    (70 * MS, settings(queue_max=1)), (80 * MS, arrived("b", 600, now=80 * MS)),
    (90 * MS, arrived("c", 600, now=90 * MS)),
    *seconds(1, 2, beat()), (2_100 * MS, arrived("d", 600, now=2_100 * MS)), (2_200 * MS, health("e1", Health.LOST)),
    (2_300 * MS, aborted("a", AbortReason.ENGINE_LOST, engine_id=EngineId("e1"), final=False)),
    (2_310 * MS, arrived("a", 600, now=2_310 * MS, attempt=1)), (2_400 * MS, EngineRemoved(engine_id=EngineId("e1"))),
]  # fmt: skip

HOLDER_LOST: Day = [
    (0, engine("e1")), (0, tick(0)), (0, beat("h", "1")), (0, beat("g", "1")),
    (10 * MS, arrived("a", 400, out=500, now=10 * MS)), (20 * MS, arrived("b", 100, now=20 * MS, holder="g")),
    (30 * MS, arrived("c", 700, now=30 * MS, slack=60 * S)), (60 * MS, first_token("a")),
    *seconds(1, 7, beat("g", "1", b=9)),
    (7_100 * MS, beat("h", "2")), (7_200 * MS, arrived("d", 400, now=7_200 * MS)), (7_300 * MS, beat("g", "2")),
    *seconds(8, 9, beat("h", "2")), (9_500 * MS, HolderStopped(holder=HolderId("h"))),
]  # fmt: skip

KEPT_ROOM: Day = [
    (0, engine("e1", blocks=10_000, seqs_max=64, batch_tokens_max=10_000, context_tokens_max=90_000)), (0, tick(0)),
    *((n * MS, event) for n in range(10) for event in (
        arrived(f"long{n}", 20_000, slack=1, now=n * MS), arrived(f"s{n}", 2_000, out=50, slack=50 * S, now=n * MS),
        first_token(f"s{n}"), finished(f"s{n}", out=20),
    )),
    (20 * MS, arrived("big", 70_000, out=900, slack=50 * S, now=20 * MS)), (90 * MS, first_token("big")),
    (95 * MS, arrived("waits", 12_000, out=90, slack=50 * S, now=95 * MS)),
    (97 * MS, arrived("goes", 20_000, out=90, slack=50 * S, now=97 * MS)), (150 * MS, first_token("goes")),
    *seconds(1, 2, beat()), (2_100 * MS, finished("big", out=300)), *seconds(3, 4, beat()),
]  # fmt: skip

OBSERVE: Day = [
    (0, engine("e1")), (0, engine("e2")), (0, tick(0)),
    *((n * MS, arrived(f"r{n}", 300 + n, out=200, now=n * MS, slack=(100 + 5 * n) * MS)) for n in range(12)),
    (20 * MS, arrived("long", 9_000)), (30 * MS, first_token("r0")), (60 * MS, first_token("r1", "e2")),
    *seconds(1, 1, beat()), (1_100 * MS, settings(mode="enforce")), (1_200 * MS, arrived("x", 300, now=1_200 * MS)),
    (1_300 * MS, finished("r0", out=200)), *seconds(2, 3, beat()),
]  # fmt: skip

QUOTA: Day = [
    (0, both("e1")), (0, both("e2")), (0, engine("e3")), (0, tick(0)), (0, tenant("t", 500_000)),
    *seconds(1, 1, measured("e1"), measured("e2"), measured("e3"), beat()),
    *((1_100 * MS + n, embedding(f"v{n}", 300, now=1_100 * MS, inputs=4)) for n in range(6)),
    (1_150 * MS, arrived("a", 400, out=300, now=1_150 * MS)),
    *seconds(2, 3, measured("e1"), measured("e2"), measured("e3"), beat()),
    *((3_100 * MS + n, finished(f"v{n}", f"e{n % 2 + 1}", out=0)) for n in range(6)),
    *seconds(4, 9, beat()), *seconds(10, 16, measured("e1"), measured("e2"), measured("e3"), beat()),
    (16_100 * MS, bounds(30, 40, "e2")), (16_200 * MS, finished("a", out=200)), (16_300 * MS, bounds(10, 10)),
    (16_400 * MS, quota(enabled="off")), *seconds(17, 17, beat()), (17_500 * MS, tenant("t", 0)),
]  # fmt: skip

EVICTION: Day = [
    (0, PolicyConfigured(actor="eviction", settings={"hot_uses_min": 2})), (0, engine("e1")), (0, tick(0)),
    (0, arrived("a", 500, out=400, slices=slices("x", "a1", "a2"))),
    (10 * MS, arrived("b", 600, now=10 * MS, slack=9 * S, slices=slices("x", "b1", "b2"))),
    (50 * MS, first_token("a")), *seconds(1, 2, beat(a=90)),
    (2_100 * MS, SlicesPinned(slices=slices("x", "p"), for_ns=3 * S)), *seconds(3, 3, beat(a=95)),
    (3_100 * MS, finished("a", out=100)), *seconds(4, 6, beat()),
    (6_100 * MS, engine("e1")), (6_200 * MS, PolicyConfigured(actor="eviction", settings={"kind": "lru"})),
    *seconds(7, 8, beat()), (8_100 * MS, PolicyConfigured(actor="eviction", settings={"enabled": "off"})),
    *seconds(9, 10, beat()),
]  # fmt: skip


TIERED: Day = [(0, tiered()), (0, gauged(DRAM, used=1)), (0, gauged(SSD, used=3)), (0, tick(0))]

MIGRATION: Day = [
    (0, PolicyConfigured(actor="migration", settings={
        "hot_uses_min": 2, "peer_bytes_per_s": 10**6, "tries_max": 4, "order_slices_max": 3,
    })),
    (0, PolicyConfigured(actor="prefetch", settings={"enabled": "off"})), *TIERED, (0, tiered("e2")),
    *((n * MS, event) for n in range(6) for event in (
        arrived(f"a{n}", 30, slices=slices(*("abc", "pq")[n % 2])), finished(f"a{n}"),
    )),
    (9 * MS, arrived("once", 30, slices=slices(*"xyz"))), (9 * MS, finished("once")),
    (10 * MS, stored(SSD, *"abcpq")), (10 * MS, stored(DRAM, *"xyz")),
    # DRAM is full: one goes down, one that nobody knows is dropped.
    (20 * MS, gauged(DRAM, used=3, room=3)), (30 * MS, stored(SSD, "z")), (30 * MS, removed(DRAM, "z")),
    (30 * MS, answered("m1", done=1)), (40 * MS, stored(DRAM, "w")), (50 * MS, gauged(DRAM, used=3, room=3)),
    (60 * MS, removed(DRAM, "w")), (60 * MS, answered("m2", done=1)), *seconds(1, 1, beat()),
    # Hot slices come up; the link fails, is suspended, tried and used again.
    (1_100 * MS, gauged(DRAM, used=2, room=20)), *((1_200 * MS, failed(f"m{n}")) for n in range(3, 7)),
    *seconds(2, 7, beat(), gauged(DRAM, used=2, room=20)), (7_100 * MS, stored(DRAM, "b")),
    (7_100 * MS, answered("m7", done=1)), (7_200 * MS, gauged(DRAM, used=3, room=20)), (7_300 * MS, stored(DRAM, "c")),
    (7_300 * MS, answered("m8", done=1)),
    # What is in SSD too may leave DRAM, but not what is pinned.
    (7_400 * MS, gauged(DRAM, used=4, room=4)),
    (7_700 * MS, SlicesPinned(slices=slices("c"), for_ns=60 * S)), *seconds(8, 8, beat()),
    (8_100 * MS, answered("m9", TransferEnd.CANCELLED)), (8_200 * MS, gauged(SSD, used=6, room=6)),
    (8_400 * MS, stored(DRAM, "a")),
    # What e2 lacks comes from e1, until e2 is lost.
    (8_500 * MS, gauged(DRAM, on="e2")), (8_600 * MS, health("e2", Health.LOST)), *seconds(9, 30, beat()),
    (30_100 * MS, gauged(SSD, used=5, room=5)),
    (30_200 * MS, PolicyConfigured(actor="migration", settings={"enabled": "off"})), *seconds(31, 32, beat()),
]  # fmt: skip

PREFETCH: Day = [
    (0, PolicyConfigured(actor="prefetch", settings={"tries_max": 2})),
    (0, PolicyConfigured(actor="migration", settings={"enabled": "off"})), *TIERED, (0, settings(safety_ppm=0)),
    (0, stored(HBM, *"ab")), (0, stored(DRAM, *"c")), (0, stored(SSD, *"cdefg")),
    # One has to wait: what it begins with comes up at the second try.
    (0, arrived("big", 900, out=50, slack=9 * S)),
    (10 * MS, arrived("a", 60, now=10 * MS, out=300, slack=9 * S, slices=slices(*"abcde"))),
    (20 * MS, failed("p1")), (100 * MS, stored(DRAM, *"de")), (110 * MS, answered("p2", done=2)),
    (120 * MS, first_token("big")), (400 * MS, finished("big")), (500 * MS, first_token("a")),
    (600 * MS, finished("a")), *seconds(1, 1, beat()),
    # One is gone before what it wanted is there; many begin alike.
    *((1_100 * MS + n * MS, event) for n in range(5) for event in (
        arrived(f"b{n}", 80, now=1_100 * MS + n * MS, out=5, slices=slices(*"abcdefg")), finished(f"b{n}"),
    )),
    (1_200 * MS, answered("p3", TransferEnd.CANCELLED)), *seconds(2, 2, beat()), (2_100 * MS, stored(DRAM, *"fg")),
    (2_110 * MS, answered("p4", done=2)), (2_200 * MS, stored(SSD, *"stuv")),
    # A session that pauses for four seconds.
    *(spoken for n, second in enumerate((2, 6, 10)) for spoken in (
        *((second * S + 300 * MS, event) for event in (
            arrived(f"s{n}", 45, now=second * S + 300 * MS, out=5, session="s", slices=slices(*"stuv")),
            first_token(f"s{n}"), finished(f"s{n}"), answered(f"p{n + 5}", TransferEnd.CANCELLED),
        )),
        *seconds(second + 1, second + 4, beat()),
    )),
    *seconds(15, 30, beat()),
    (30_100 * MS, PolicyConfigured(actor="prefetch", settings={"enabled": "off"})), *seconds(31, 32, beat()),
]  # fmt: skip


def outside(name: str, high: int) -> OutputPredicted:
    """A predictor outside of the house says how long an answer will be."""
    return OutputPredicted(request_id=RequestId(name), source="model", output_tokens_low=1, output_tokens_high=high)


def answers(first_ms: int, count: int, out: int, *, said: int) -> list[tuple[int, Event]]:
    """One request after another, each predicted outside, that end after `out` tokens; a tick and a beat before them."""
    spoken: list[tuple[int, Event]] = [(first_ms * MS, beat()), (first_ms * MS, tick(first_ms // 1_000))]
    for number in range(count):
        name, ms = f"r{first_ms + 10 * number}", (first_ms + 10 * number) * MS
        spoken += [
            (ms, outside(name, said)),
            (ms, arrived(name, 50, out=0, now=ms)),
            (ms + MS, finished(name, out=out)),
        ]
    return spoken


MISCOVERAGE: Day = [
    (0, engine("e1")),
    *answers(1_000, 95, 10, said=50), *answers(2_000, 20, 40, said=50),
    *answers(3_000, 45, 60, said=50), *answers(4_000, 80, 40, said=50),
    *answers(5_000, 5, 40, said=0),
    (6_000 * MS, settings(output_predictor="quantile", output_quantile_ppm=900_000)), *answers(7_000, 5, 40, said=500),
]  # fmt: skip
"""Outside predictions stop to hold, and hold again; then they are nonsense, then they are not asked for."""

PREEMPT: Day = [
    (0, settings(preemption="slack", backlog_max_ns=500 * MS)), (0, engine("e1", can_preempt=True)),
    (0, engine("e2", blocks=40)), (0, tick(0)),
    (0, arrived("low", 500, out=400)), (60 * MS, first_token("low")),
    (80 * MS, arrived("lower", 250, out=90, slack=9 * S)),
    (90 * MS, arrived("high", 600, now=90 * MS, out=100, priority=1, slack=700 * MS)),
    (100 * MS, arrived("higher", 300, now=100 * MS, out=50, priority=2, slack=400 * MS)),
    (110 * MS, first_token("lower", "e2")), (200 * MS, first_token("high")), *seconds(1, 1, beat(high=70, lower=60)),
    (1_200 * MS, finished("high", out=100)), (1_300 * MS, finished("higher", "e2", out=50)),
    *seconds(2, 2, beat(low=9)),
    (2_200 * MS, finished("lower", "e2", out=80)), *seconds(3, 5, beat(low=90)), (5_500 * MS, finished("low", out=200)),
    *seconds(6, 6, beat()), (7 * S, settings(late_max_ns=0)),
    (7_000 * MS, arrived("gone", 600, now=7_000 * MS, out=100, slack=150 * MS)),
    (7_010 * MS, arrived("urgent", 600, now=7_010 * MS, out=300, priority=1, slack=200 * MS)),
    (7_080 * MS, first_token("urgent")), *seconds(8, 8, beat(urgent=80)), (8_500 * MS, finished("urgent", out=100)),
    *seconds(9, 9, beat()),
]  # fmt: skip

SHARES: Day = [
    (0, settings(backlog_max_ns=500 * MS)), (0, engine("e1", embedding=True)), (0, tick(0)),
    (0, arrived("a", 300, out=50)), (10 * MS, embedding("v1", 200, now=10 * MS, slack=9 * S)),
    *seconds(1, 2, beat(), measured("e1", used_ppm=500_000, running=2)),
    (2_010 * MS, TenantQuotaAsked(tenant=TenantId("t"), kv_bytes_max=60_000)),
    (2_020 * MS, arrived("b", 300, now=2_020 * MS, out=50, slack=9 * S)),
    (2_030 * MS, embedding("v2", 500, now=2_030 * MS, slack=9 * S, tenant="other")),
    *seconds(3, 4, beat(), measured("e1", used_ppm=500_000, running=2)), (4_500 * MS, finished("a", out=50)),
    *seconds(5, 5, beat(), measured("e1", used_ppm=200_000, running=1)), (5_500 * MS, finished("v1", out=0)),
    (5_600 * MS, aborted("v2", engine_id=EngineId("e1"))), *seconds(6, 7, beat(), measured("e1")),
]  # fmt: skip

SESSIONS: Day = [
    (0, settings(session_slots="on", session_lease_max_ns=3 * S, session_wait_max_ns=9 * S)), (0, engine("e1")),
    (0, tick(0)), (0, arrived("a1", 400, out=10, session="a")), (40 * MS, first_token("a1")),
    (50 * MS, arrived("b1", 400, now=50 * MS, out=10, session="b")), (100 * MS, finished("a1")),
    (200 * MS, finished("b1")), (300 * MS, arrived("c1", 400, now=300 * MS, out=10, slack=30 * S, session="c")),
    *seconds(1, 1, beat()), (1_500 * MS, arrived("a2", 500, now=1_500 * MS, out=10, session="a")),
    (1_600 * MS, finished("a2")), *seconds(2, 6, beat()), (6_500 * MS, finished("c1")), *seconds(7, 10, beat()),
]  # fmt: skip

SET_ASIDE: Day = [
    (0, settings(long_prefill_ns=50 * MS, backlog_max_ns=500 * MS)), (0, engine("e1", blocks=1_000)), (0, tick(0)),
    (0, arrived("long", 900, out=10, slack=5 * S)), (0, arrived("longer", 1_000, out=10, slack=5 * S)),
    (0, arrived("short", 100, out=10)), (90 * MS, first_token("long")), (100 * MS, first_token("short")),
    *seconds(1, 1, beat(long=9)), (1_100 * MS, finished("long")), (1_200 * MS, finished("short")),
    (1_300 * MS, first_token("longer")), (1_400 * MS, finished("longer")), *seconds(2, 2, beat()),
]  # fmt: skip

LATE: Day = [
    (0, settings(long_prefill_ns=0)), (0, engine("e1", blocks=1_000)), (0, tick(0)), (0, arrived("a", 1_000, out=1)),
    (0, arrived("late", 500, out=9, slack=60 * MS)), (0, arrived("b", 500, out=1)), (0, arrived("c", 900, slack=S)),
    (0, arrived("d", 400, slack=200 * MS)), (100 * MS, first_token("a")), (101 * MS, finished("a", out=1)),
    (140 * MS, first_token("d")), (190 * MS, first_token("b")), (191 * MS, finished("b", out=1)),
    (280 * MS, first_token("c")), (340 * MS, first_token("late")), *seconds(1, 1, beat(late=5)),
    (1_100 * MS, finished("late", out=9)), (1_200 * MS, finished("c")), (1_300 * MS, finished("d")), *seconds(2, 2),
]  # fmt: skip

ORDERS = ("fifo", "priority", "slo_aware", "cost_optimized", "adaptive", "hybrid")
ORDERINGS: Day = [
    (0, engine("e1", blocks=1_000, embedding=True)), (0, tick(0)),
    *((at_ms * MS, event) for start, strategy in zip(range(0, 6_000, 1_000), ORDERS, strict=True) for at_ms, event in (
        (start, settings(strategy=strategy, backlog_max_ns=10 * MS)),
        (start, arrived(f"{strategy}-a", 1_000, out=1, now=start * MS)),
        (start, arrived(f"{strategy}-b", 400, out=1, now=start * MS, slack=900 * MS)),
        (start, arrived(f"{strategy}-c", 300, out=9, now=start * MS, slack=800 * MS, priority=1)),
        (start, embedding(f"{strategy}-v", 200, now=start * MS, slack=700 * MS)),
        (start + 100, first_token(f"{strategy}-a")), (start + 101, finished(f"{strategy}-a", out=1)),
        *((start + 200 + 100 * n, finished(f"{strategy}-{name}", out=1)) for n, name in enumerate("cvbcvb")),
        (start + 990, tick(start // 1_000 + 1)),
    )),
]  # fmt: skip

KINDS = ("round_robin", "least_loaded", "prefix_affinity", "load_balanced", "affinity", "locality", "topology_aware",
         "dynamo_kv", "slo_aware")  # fmt: skip
PLACEMENTS: Day = [
    (0, engine("e1", labels={"host": "a", "rack": "1"})), (0, engine("e2", labels={"host": "b", "rack": "1"})),
    (0, engine("e3", labels={"host": "c", "rack": "2"})), (0, tick(0)),
    *((at_ms * MS, event) for start, kind in zip(range(0, 9_000, 1_000), KINDS, strict=True) for at_ms, event in (
        (start, settings(placement=kind, affinity_tokens_min=100)),
        *((start + n, arrived(f"{kind}-{n}", 100 + 100 * n, out=5, now=(start + n) * MS, session=f"s{n % 2}",
                              slices=slices("x", "y") if n % 2 else (), slice_tokens=100)) for n in range(4)),
        *((start + 500 + n, aborted(f"{kind}-{n}")) for n in range(4)), (start + 990, tick(start // 1_000 + 1)),
    )),
]  # fmt: skip

DAYS: dict[str, tuple[dict[str, Any], Day]] = {
    "admit": ({}, ADMIT),
    "defer": ({}, DEFER),
    "pace": ({}, PACE),
    "reject": ({}, REJECT),
    "holder_lost": ({}, HOLDER_LOST),
    "preempt": ({}, PREEMPT),
    "shares": ({}, SHARES),
    "sessions": ({}, SESSIONS),
    "set_aside": ({}, SET_ASIDE),
    "late": ({}, LATE),
    "kept_room": ({}, KEPT_ROOM),
    "orderings": ({}, ORDERINGS),
    "placements": ({}, PLACEMENTS),
    "observe": ({"mode": "observe", "placement": "round_robin"}, OBSERVE),
    "quota": ({}, QUOTA),
    "eviction": ({}, EVICTION),
    "migration": ({}, MIGRATION),
    "prefetch": ({}, PREFETCH),
    "miscoverage": ({"output_predictor": "external"}, MISCOVERAGE),
}
LONG_DAY = "long_day"
LONG_DAY_VERBS, LONG_DAY_SEED = 1_200, 11


def file_of(name: str) -> Path:
    """Where a scenario's journal stands; long ones are compressed."""
    return FOLDER / (f"{name}.jsonl.zst" if name in (LONG_DAY, "miscoverage") else f"{name}.jsonl")


def played(policy: dict[str, Any], day: Day) -> list[Message]:
    """The log of a day."""
    log = VirtualLog(POOL, ACTORS, lambda _decision, _place: None)
    log.now_ns = START_NS
    log.start({"admission": policy})
    for at_ns, event in day:
        log.now_ns = max(log.now_ns, START_NS + at_ns)
        log.say(_source(event), "golden", event)
    return log.messages


def long_day() -> Day:
    """Everything that can happen, for a while."""
    world = live(numbers(LONG_DAY_VERBS, LONG_DAY_SEED), WILD, World())
    return [(recorded.ts_ns - START_NS, recorded.event) for recorded in world.facts]


def _source(event: Event) -> str:
    """The subject's source token, as live writers use it."""
    kind = event.event_kind()
    sources: tuple[tuple[str, Callable[[str], bool]], ...] = (
        ("clock", lambda kind: kind == "ticked"),
        ("policy", lambda kind: kind == "policy_configured"),
        ("sensor", lambda kind: kind.startswith("engine_")),
    )
    return next((source for source, says in sources if says(kind)), "gateway")


def write(names: Sequence[str]) -> None:
    """Write these scenarios' journals anew, all of them if none is named."""
    days = {**DAYS, LONG_DAY: ({}, long_day())}
    for name in names or days:
        policy, day = days[name]
        with JournalWriter(file_of(name), POOL) as journal:
            for message in played(policy, day):
                journal.write(message)


if __name__ == "__main__":
    write(sys.argv[1:])
