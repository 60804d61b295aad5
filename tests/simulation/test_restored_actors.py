"""A pressured run, read again by every actor: one that is brought back from a snapshot anywhere says what one that was
never stopped says; and when all has ended, nobody remembers any request."""

from random import Random
from typing import Any

import pytest

from events import codec
from events.base import Recorded
from events.decisions import RequestDeferred, RequestPreempted, SharesSet, TransferOrdered
from policies import eviction_state, quota_state, whereabouts
from policies.admission import ADMISSION
from policies.catalog import ACTORS
from policies.decider import Progress, advance, begin
from policies.eviction import EVICTION
from policies.migration import MIGRATION
from policies.prefetch import PREFETCH
from policies.quota import QUOTA
from replay.cluster import simulate
from replay.costmodel import registered
from replay.engines.tiers import TierSizes
from replay.faults import TransferFaults, draw_faults
from replay.verify import verify
from tests.simulation.endurance import EMBEDDING, LLM, arrivals
from tests.spec import restored, snapshot

REQUESTS = 500
SETTINGS: dict[str, dict[str, Any]] = {
    "by priority": {"preemption": "priority"},
    "all at once": {
        "preemption": "slack", "strategy": "adaptive", "session_slots": "on", "session_kv_ppm": 500_000,
        "placement": "load_balanced", "output_predictor": "external",
    },
    "kinds take turns": {"strategy": "hybrid", "placement": "affinity", "output_predictor": "moving_average"},
}  # fmt: skip


def pressured(seed: int, admission: dict[str, Any]) -> list[Recorded]:
    """The log of a run with too little memory, an engine and a holder lost, and clients gone."""
    drawn = arrivals(seed, REQUESTS)
    faults = draw_faults(seed, span_ns=drawn[-1].at_ns, engines_lost=1, holders_lost=1, clients_gone=5)
    engines = [registered(f"e{n}", (LLM, EMBEDDING), kv_tokens=28_000) for n in (1, 2)]
    run = simulate(drawn, engines, holders=2, faults=faults, settings={"admission": admission})
    return [one for message in run.messages for one in codec.decode(message.seq, message.subject, message.body)]


def tiered(seed: int) -> list[Recorded]:
    """The log of a run in which slices move between tiers over links that fail and stall, and an engine is lost."""
    drawn = [one for one in arrivals(seed, REQUESTS) if one.model == LLM]
    faults = draw_faults(seed, span_ns=drawn[-1].at_ns, engines_lost=1, holders_lost=1, clients_gone=5)
    engines = [registered(f"e{n}", (LLM,), kv_tokens=28_000, reports_slices=True) for n in (1, 2)]
    sizes = TierSizes(dram_bytes=1 << 30, ssd_bytes=16 << 30)
    run = simulate(
        drawn, engines, holders=2, faults=faults, tiers={one.engine_id: sizes for one in engines},
        transfer_faults=TransferFaults(seed=seed, failing_ppm=100_000, stalling_ppm=50_000),
    )  # fmt: skip
    assert verify(run.messages, run.pool, ACTORS).identical
    return [one for message in run.messages for one in codec.decode(message.seq, message.subject, message.body)]


def read(name: str, log: list[Recorded], *, restarts: Random | None) -> tuple[list[Any], Progress[Any]]:
    """All that this actor says to a log, with restarts drawn from `restarts`."""
    decider, said = ACTORS[name], []
    progress: Progress[Any] = begin(decider)
    for recorded in log:
        if restarts is not None and restarts.random() < 0.02:
            progress = restored(decider, progress)
        said.append(advance(decider, progress, recorded))
    return said, progress


@pytest.mark.parametrize("admission", SETTINGS.values(), ids=SETTINGS)
def test_a_restart_changes_no_decision_of_any_actor(admission: dict[str, Any]) -> None:
    log = pressured(4, admission)
    kinds = {type(one.event) for one in log}
    assert {RequestDeferred, RequestPreempted, SharesSet} <= kinds, "else there is no pressure"
    for name in ACTORS:
        straight, stood = read(name, log, restarts=None)
        for seed in (1, 2):
            said, stands = read(name, log, restarts=Random(seed))
            assert said == straight
            assert snapshot(stands) == snapshot(stood)


def test_a_restart_changes_no_order_to_move_slices() -> None:
    log = tiered(7)
    orders = [one.event.order for one in log if isinstance(one.event, TransferOrdered)]
    assert {order[0] for order in orders} == {"m", "p"}, "else nothing is shown"
    for name in (ADMISSION.name, MIGRATION.name, PREFETCH.name):
        straight, stood = read(name, log, restarts=None)
        said, stands = read(name, log, restarts=Random(1))
        assert said == straight
        assert snapshot(stands) == snapshot(stood)
    for name in (MIGRATION.name, PREFETCH.name):
        known = read(name, log, restarts=None)[1].state.needs
        assert (known.open, known.begun) == ({}, {}), "when all has ended nobody wants anything"


def test_when_all_has_ended_nobody_remembers_any_request() -> None:
    log = pressured(6, {"preemption": "slack"})
    admission: whereabouts.State = read(ADMISSION.name, log, restarts=None)[1].state
    quota: quota_state.State = read(QUOTA.name, log, restarts=None)[1].state
    eviction: eviction_state.State = read(EVICTION.name, log, restarts=None)[1].state
    remembered = (admission.running, admission.parked_on, admission.lines.group_of, quota.open, eviction.open)
    assert remembered == ({}, {}, {}, {}, {})
    assert (admission.tenants.held, eviction.waiting) == ({}, {})
    books = [quota.waiting, *(engine.books for engine in quota.engines.values())]
    assert {(one.llm.held, one.embedding.held) for one in books} == {(0, 0)}
