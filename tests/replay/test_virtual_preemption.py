"""Preemption and directives in virtual time: what was decided is carried out, whatever happens meanwhile."""

from collections import Counter
from random import Random

import pytest
from msgspec.structs import replace

from events import codec
from events.base import NS_PER_MS, NS_PER_S, EngineId, Event, RequestKind
from events.decisions import EngineDirected, HolderLost, RequestAdmitted, RequestPreempted, RequestRejected
from events.engine import Capability, EngineMeasured, EngineRegistered
from events.request import (
    DispatchStarted,
    FirstTokenSeen,
    RequestAborted,
    RequestArrived,
    RequestExpired,
    RequestFinished,
)
from policies.catalog import ACTORS
from replay.cluster import Run, simulate
from replay.costmodel import registered
from replay.faults import draw_faults
from replay.verify import verify
from replay.workloads.base import Arrival
from replay.workloads.mixed import LLM_MODEL
from tests.replay.test_cluster import last_measured

KV_TOKENS = 40_000


def said(run: Run) -> list[Event]:
    return [one.event for m in run.messages for one in codec.decode(m.seq, m.subject, m.body)]


def house(count: int = 1, *, can_preempt: bool = True) -> list[EngineRegistered]:
    capability = Capability(embedding=True, can_preempt=can_preempt)
    return [registered(f"e{n}", [LLM_MODEL], kv_tokens=KV_TOKENS, capability=capability) for n in range(1, count + 1)]


def asks(name: str, at_ms: int, prompt: int, output: int, priority: int = 0) -> Arrival:
    return Arrival(
        at_ns=at_ms * NS_PER_MS, request_id=name, prompt_tokens=prompt, output_tokens=output, tokens_max=output,
        priority=priority, prefix=tuple(range(at_ms * 1_000, at_ms * 1_000 + prompt // 512)),
    )  # fmt: skip


def crowd(seed: int, count: int = 120) -> list[Arrival]:
    """More than fits, of three priorities."""
    rng = Random(seed)
    return [
        asks(f"r{n}", rng.randrange(12_000), rng.randrange(500, 12_000), rng.randrange(20, 1_500), rng.randrange(-1, 2))
        for n in range(count)
    ]


def of(run: Run, request_id: str, *kinds: type[Event]) -> list[str]:
    """What is said of a request, by name."""
    return [type(event).__name__ for event in said(run) if getattr(event, "request_id", "") == request_id
            and isinstance(event, kinds)]  # fmt: skip


LIFE = (RequestAdmitted, RequestPreempted, DispatchStarted, FirstTokenSeen, RequestFinished)


def test_a_more_important_request_takes_the_place_and_the_victim_goes_on_after_it() -> None:
    arrivals = [asks("low", 0, 30_000, 900, -1), asks("high", 5_000, 20_000, 50, 1)]
    run = simulate(arrivals, house())
    assert of(run, "low", *LIFE) == [
        "RequestAdmitted", "DispatchStarted", "FirstTokenSeen", "RequestPreempted",
        "RequestAdmitted", "DispatchStarted", "RequestFinished",
    ]  # fmt: skip
    again = [event for event in said(run) if isinstance(event, RequestAdmitted) and event.request_id == "low"][1]
    assert again.resumed
    (end,) = [event for event in said(run) if isinstance(event, RequestFinished) and event.request_id == "low"]
    assert (end.output_tokens, end.preemptions) == (900, 1), "no token is lost"
    assert verify(run.messages, run.pool, ACTORS).identical


def test_an_engine_that_cannot_preempt_keeps_what_has_begun() -> None:
    arrivals = [asks("low", 0, 30_000, 900, -1), asks("high", 5_000, 20_000, 50, 1)]
    run = simulate(arrivals, house(can_preempt=False))
    assert not [event for event in said(run) if isinstance(event, RequestPreempted)]
    assert of(run, "low", *LIFE)[-1] == "RequestFinished"


@pytest.mark.parametrize("can_preempt", [True, False])
@pytest.mark.parametrize("control_ms", [1, 400])
@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_preempted_every_request_ends_once_and_nothing_stays_behind(
    seed: int, control_ms: int, can_preempt: bool
) -> None:  # fmt: skip
    """Also where orders come so late that what they are about has begun, ended or been lost meanwhile."""
    run = simulate(
        crowd(seed), house(2, can_preempt=can_preempt), holders=2, control_ns=control_ms * NS_PER_MS,
        faults=draw_faults(seed, span_ns=12 * NS_PER_S),
    )  # fmt: skip
    events = said(run)
    orders = [event for event in events if isinstance(event, RequestPreempted)]
    assert orders or not can_preempt, "the law is about something"
    assert run.scores.unfinished == 0
    by_holder = Counter(
        event.request_id
        for event in events
        if isinstance(event, RequestFinished | RequestExpired) or (isinstance(event, RequestAborted) and event.final)
    )
    assert set(by_holder.values()) == {1}, "its holder says once that it ended"
    refused = {event.request_id for event in events if isinstance(event, RequestRejected)}
    lost = {name for event in events if isinstance(event, HolderLost) for name in event.requests}
    arrived = {event.request_id for event in events if isinstance(event, RequestArrived)}
    assert arrived == {*by_holder} | refused | lost
    for one in last_measured(run):
        assert (one.running, one.waiting, one.kv_used_ppm) == (0, 0, 0), "nothing stays behind in an engine"
    assert verify(run.messages, run.pool, ACTORS).identical


def test_engines_go_by_what_they_are_told_and_say_so() -> None:
    run = simulate(crowd(1), house(2))
    told = {event.engine_id: event.version for event in said(run) if isinstance(event, EngineDirected)}
    last = {event.engine_id: event for event in said(run) if isinstance(event, EngineMeasured)}
    assert sorted(told) == [EngineId("e1"), EngineId("e2")]
    assert {name: one.directive_version for name, one in last.items()} == told
    assert sum(one.evictions_total for one in last.values()) > 0


def test_a_finished_request_says_its_slack_and_its_workspace() -> None:
    job = replace(asks("job", 0, 6_000, 0), kind=RequestKind.EMBEDDING, inputs=3, prefix=(), tokens_max=0)
    run = simulate([asks("chat", 0, 500, 10), job], house())
    ends = {event.request_id: event for event in said(run) if isinstance(event, RequestFinished)}
    assert 0 < ends["chat"].slo_slack_ns == NS_PER_S - ends["chat"].ttft_ns
    assert ends["chat"].embedding_workspace_bytes == 0
    engine = house()[0]
    assert ends["job"].embedding_workspace_bytes == 2_048 // engine.block_tokens * engine.block_bytes
