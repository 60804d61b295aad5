"""The house in a closed loop: turns wait for answers, what is rejected comes back once, and nobody is forgotten."""

import os
import subprocess
import sys
from collections import defaultdict
from typing import Any

import pytest
from msgspec.structs import replace

from events.base import NS_PER_MS, NS_PER_S, PPM, Event
from events.decisions import RequestRejected
from events.engine import EngineRegistered
from events.log.base import Message
from events.request import RequestAborted, RequestArrived, RequestFinished
from policies.catalog import ACTORS, PRESETS
from replay.cluster import CONTROL_NS, START_NS, Run, simulate
from replay.costmodel import registered
from replay.faults import Fault, FaultKind, draw_faults
from replay.verify import verify
from replay.workloads.base import Arrival
from replay.workloads.mixed import LLM_MODEL
from tests.replay.test_cluster import records

THINK_NS = 300 * NS_PER_MS
UNTIL_NS = 20 * NS_PER_S


def sessions(count: int, turns: int = 4, *, gap_ms: int = 20, prompt: int = 3_000, output: int = 150) -> list[Arrival]:
    """That many at once, nearly; each turn has what was said before it as its prefix."""
    return [
        Arrival(
            at_ns=session * gap_ms * NS_PER_MS + turn * 2 * NS_PER_S, request_id=f"s{session}.{turn}",
            session=f"s{session}", prompt_tokens=prompt * (turn + 1), output_tokens=output, tokens_max=output,
            prefix=tuple(session * 1_000 + unit for unit in range(prompt * (turn + 1) // 512)),
            after=f"s{session}.{turn - 1}" if turn else "", think_ns=THINK_NS if turn else 0,
        )
        for session in range(count) for turn in range(turns)
    ]  # fmt: skip


def pool(count: int = 1) -> list[EngineRegistered]:
    return [registered(f"e{n}", [LLM_MODEL]) for n in range(1, count + 1)]


def times(run: Run, kind: type[Event]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for one in records(run):
        if isinstance(one.event, kind):
            found[one.event.request_id].append(one.ts_ns)  # type: ignore[attr-defined]
    return found


def test_a_turn_thinks_from_the_end_of_the_answer_on() -> None:
    run = simulate(sessions(3), pool(), closed_loop=True)
    arrived, finished = times(run, RequestArrived), times(run, RequestFinished)
    assert len(finished) == 12
    assert run.unsent == []
    for session in range(3):
        for turn in range(1, 4):
            (at_ns,), (end_ns,) = arrived[f"s{session}.{turn}"], finished[f"s{session}.{turn - 1}"]
            assert at_ns == end_ns + THINK_NS


def test_the_next_session_begins_when_the_one_before_has_no_answer() -> None:
    """The second turn of the first session fits into no engine."""
    first, second = sessions(2, 3)[:3], sessions(2, 3)[3:]
    huge = replace(first[1], prompt_tokens=10_000_000)
    behind = replace(second[0], after=first[2].request_id, think_ns=THINK_NS, at_ns=first[2].at_ns)
    later = [replace(one, at_ns=one.at_ns + 6 * NS_PER_S) for one in second[1:]]
    run = simulate([first[0], huge, first[2], behind, *later], pool(), closed_loop=True)
    ended = {
        str(one.event.request_id): one.ts_ns for one in records(run)
        if isinstance(one.event, RequestRejected | RequestAborted)
    }  # fmt: skip
    assert list(ended) == [huge.request_id]
    arrived, finished = times(run, RequestArrived), times(run, RequestFinished)
    assert sorted(finished) == sorted(one.request_id for one in (first[0], *second))
    assert [one.request_id for one in run.unsent] == [first[2].request_id]
    assert arrived[behind.request_id][0] >= ended[huge.request_id] + THINK_NS


def test_the_next_session_begins_when_a_refused_turn_would_come_back_after_the_window() -> None:
    first = sessions(120, 1)
    behind = [replace(one, request_id=f"n.{one.request_id}", session=f"n.{one.session}", after=one.request_id,
                      think_ns=0, at_ns=one.at_ns + 1) for one in first]  # fmt: skip
    until_ns = 3 * NS_PER_S
    at_once = {"admission": {"late_max_ns": 0}}
    run = simulate([*first, *behind], pool(), settings=at_once, closed_loop=True, until_ns=until_ns)
    late = {
        str(one.event.request_id): one.ts_ns for one in records(run)
        if isinstance(one.event, RequestRejected) and not one.event.request_id.startswith("n.")
        and one.event.retry_after_ns and one.ts_ns + one.event.retry_after_ns >= START_NS + until_ns
    }  # fmt: skip
    arrived = times(run, RequestArrived)
    gone = [
        name for name, at_ns in late.items() if at_ns + CONTROL_NS < START_NS + until_ns and len(arrived[name]) == 1
    ]
    assert gone, "some would come back too late"
    assert all(arrived[f"n.{name}"][0] >= late[name] for name in gone)


def test_in_an_open_loop_turns_wait_for_nobody() -> None:
    arrivals = sessions(3)
    arrived = times(simulate(arrivals, pool()), RequestArrived)
    assert arrived == {one.request_id: [START_NS + one.at_ns] for one in arrivals}


@pytest.mark.parametrize("engines", [1, 3])
@pytest.mark.parametrize("settings", [{}, PRESETS["first_come"]], ids=["default", "first_come"])
def test_whoever_is_in_the_window_counts_once_however_it_goes(
    engines: int, settings: dict[str, dict[str, Any]]
) -> None:
    arrivals = sessions(60)
    run = simulate(arrivals, pool(engines), settings=settings, closed_loop=True, until_ns=UNTIL_NS)
    sent = set(times(run, RequestArrived))
    assert sent.isdisjoint(one.request_id for one in run.unsent)
    assert len(sent) + len(run.unsent) == len(arrivals) == run.scores.requests
    assert run.scores.unsent == len(run.unsent)
    assert run.scores.window_ns == UNTIL_NS
    assert sum(part.requests for part in run.scores.prompts.values()) == len(arrivals)
    assert max(at_ns for found in times(run, RequestArrived).values() for at_ns in found) < START_NS + UNTIL_NS
    assert verify(run.messages, run.pool, ACTORS).identical


def test_what_is_rejected_comes_back_once_after_its_retry_after_and_then_its_session_ends() -> None:
    arrivals = sessions(120)
    run = simulate(arrivals, pool(), closed_loop=True)
    refused: dict[str, list[tuple[int, RequestRejected]]] = defaultdict(list)
    for one in records(run):
        if isinstance(one.event, RequestRejected):
            refused[one.event.request_id].append((one.ts_ns, one.event))
    arrived, finished = times(run, RequestArrived), times(run, RequestFinished)
    assert any(len(found) == 2 for found in refused.values()), "some are rejected twice"
    assert any(name in finished for name in refused), "some are served when they come back"
    for name, found in refused.items():
        at_ns, first = found[0]
        back = [at_ns + CONTROL_NS + first.retry_after_ns] if first.retry_after_ns else []
        assert arrived[name][1:] == back
    over = {name for name in arrived if name not in finished}
    waiting = {one.request_id: one.after for one in arrivals if one.after}
    assert {one.request_id for one in run.unsent} == {
        name for name in waiting if _session_is_over(name, waiting, over)
    }, "what waits for it is never sent, all else is"
    assert run.scores.ttft_p99_ns is None, "what was never sent has no answer"


def _session_is_over(name: str, waiting: dict[str, str], over: set[str]) -> bool:
    before = waiting.get(name, "")
    return bool(before) and (before in over or _session_is_over(before, waiting, over))


@pytest.mark.parametrize("seed", range(3))
def test_whatever_goes_wrong_the_set_stays(seed: int) -> None:
    arrivals = sessions(40)
    faults = draw_faults(seed, span_ns=10 * NS_PER_S, holders_lost=1, clients_gone=8)
    run = simulate(arrivals, pool(2), closed_loop=True, holders=2, faults=faults, until_ns=UNTIL_NS)
    assert len(times(run, RequestArrived)) + len(run.unsent) == len(arrivals) == run.scores.requests, f"seed {seed}"
    assert verify(run.messages, run.pool, ACTORS).identical, f"seed {seed}"


def test_when_every_door_is_gone_what_was_to_come_is_missed() -> None:
    fault = Fault(at_ns=50 * NS_PER_MS, kind=FaultKind.HOLDER_LOST, pick=0)
    arrivals = sessions(10, 1)
    run = simulate(arrivals, pool(), faults=[fault])
    assert [one.request_id for one in run.unsent] == [f"s{n}.0" for n in range(3, 10)]
    assert run.scores.requests == 10


def test_a_window_is_the_same_for_every_system_though_traffic_ends_before() -> None:
    run = simulate(sessions(2, 1), pool(), until_ns=100 * NS_PER_S)
    assert run.scores.window_ns == 100 * NS_PER_S
    assert run.scores.goodput_per_s == pytest.approx(0.02)
    assert run.ended_ns < 10 * NS_PER_S, "nobody waits for the end of a window in which nothing comes"


class EnoughError(Exception):
    """Stop."""


def test_a_run_that_is_stopped_leaves_a_log_that_verify_accepts() -> None:
    def stop(ended: int, _total: int) -> None:
        if ended > 20:
            raise EnoughError

    heard: list[Message] = []
    arrivals = sessions(40)
    with pytest.raises(EnoughError):
        simulate(arrivals, pool(), closed_loop=True, on_progress=stop, on_message=heard.append)
    whole = simulate(arrivals, pool(), closed_loop=True)
    assert 0 < len(heard) < len(whole.messages)
    assert heard == whole.messages[: len(heard)]
    report = verify(heard, whole.pool, ACTORS)
    assert report.identical
    assert report.pending == 0, "it is stopped when all is answered"


def test_a_closed_loop_reuses_what_its_earlier_turns_left() -> None:
    scores = simulate(sessions(4), pool(), closed_loop=True).scores
    share = sum(scores.hit_tokens_by_tier.values()) * PPM // scores.prompt_tokens
    assert share == scores.cached_token_share * PPM // 1
    assert share > 500_000


SCRIPT = """
from msgspec.structs import replace
from events.base import NS_PER_S
from replay.cluster import simulate
from replay.engines.tiers import TierSizes
from replay.faults import TransferFaults, draw_faults
from tests.replay.test_closed_loop import UNTIL_NS, pool, sessions
engines = [replace(one, capability=replace(one.capability, reports_slices=True)) for one in pool(2)]
print(simulate(
    sessions(30), engines, closed_loop=True, until_ns=UNTIL_NS, holders=2,
    faults=draw_faults(4, span_ns=10 * NS_PER_S), transfer_faults=TransferFaults(seed=4, failing_ppm=50_000),
    tiers={one.engine_id: TierSizes(dram_bytes=1 << 32, ssd_bytes=1 << 34) for one in engines},
).digest)
"""


def test_a_closed_loop_with_tiers_and_faults_is_the_same_in_fresh_processes_under_two_hash_seeds() -> None:
    digests = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT], env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            check=True, capture_output=True, text=True,
        ).stdout.strip()
        for seed in ("1", "2")
    ]  # fmt: skip
    assert digests[0] == digests[1]
    assert len(digests[0]) == 32
