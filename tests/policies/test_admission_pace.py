"""Admission: nobody breaks the pace of those that run."""

from typing import Any

import msgspec

from events.decisions import (
    DeferReason,
    RejectReason,
    WakeAsked,
)
from tests.policies.house import admitted, deferred, house, rejected
from tests.policies.words import (
    FS_PER_MS,
    MS,
    STEP,
    arrived,
    engine,
    first_token,
    settings,
)
from tests.spec import at, said


def test_a_prefill_that_would_make_a_running_answer_late_waits() -> None:
    # Prefill steps take 40 ms, decode steps 10 ms: 100 tokens at a limit of 15 ms leave room for 16 of them.
    slow = msgspec.structs.replace(STEP, knee_tokens=1, above_fs=3 * FS_PER_MS // 10)
    running: dict[str, Any] = {
        "engines": (engine("e1", step=slow, blocks=1_000),),
        "decoding": arrived("a", 10, out=100, tpot=15 * MS),
    }
    free = settings(backlog_max_ns=0)
    house(free, **running).when(arrived("b", 1_000, out=1)).then(admitted("b"))
    house(free, **running).when(arrived("b", 1_900, out=1)).then(deferred("b", DeferReason.TPOT_GUARD), said(WakeAsked))
    house(free, settings(tpot_margin_ppm=0), **running).when(arrived("b", 1_900, out=1)).then(admitted("b"))


def test_a_prefill_that_would_make_an_answer_late_whose_own_prefill_is_not_over_waits() -> None:
    slow = msgspec.structs.replace(STEP, knee_tokens=1, above_fs=3 * FS_PER_MS // 10)
    spec = house(
        settings(backlog_max_ns=0),
        arrived("a", 10, out=100, tpot=15 * MS),
        engines=(engine("e1", step=slow, blocks=1_000),),
    )
    spec.when(arrived("b", 1_900, out=1)).then(deferred("b", DeferReason.TPOT_GUARD), said(WakeAsked))
    spec.when(arrived("c", 1_000, out=1)).then(admitted("c"))


def test_a_pace_that_an_idle_engine_cannot_keep_is_refused() -> None:
    house().when(arrived("r", tpot=9 * MS)).then(rejected("r", RejectReason.SLO_INFEASIBLE, retry_after_ns=0))


def test_an_answer_that_is_late_anyway_holds_nobody_up() -> None:
    spec = house(arrived("a", 10, out=10, tpot=10 * MS), first_token("a"))
    spec.when(at(900 * MS, arrived("b", 100, out=1, now=900 * MS))).then(admitted("b"))
