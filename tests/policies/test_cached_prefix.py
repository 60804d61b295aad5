"""What admission takes to be cached: reported by the engine, or guessed from what was sent there."""

from typing import Any

import pytest

from events.base import NS_PER_MS, EngineId, Event
from events.decisions import RequestAdmitted
from events.engine import EngineRemoved
from events.request import RequestArrived
from policies.admission import ADMISSION
from policies.slice_reports import UNREGISTERED_MAX
from tests.policies.tier_words import DRAM, HBM, SSD, gauged, removed, stored, tiered
from tests.policies.words import MS, S, arrived, engine, finished, first_token, measured, settings, slices, tick
from tests.spec import At, Spec, at, given, said

PROMPT = [chr(300 + n) for n in range(40)]
"""40 slices of 10 tokens: computed alone in four steps, 40 ms."""


def prompt(name: str = "r", *, now: int = 0, **more: Any) -> RequestArrived:
    """400 tokens of PROMPT and 5 of its own: 50 ms on an idle engine with nothing cached."""
    return arrived(name, 405, now=now, slack=10 * S, slices=slices(*PROMPT), **more)


def house(*events: Event | At) -> Spec:
    """An engine that reports, with tiers that were measured."""
    return given(
        ADMISSION, at(0, tick(0)), settings(safety_ppm=0), tiered(blocks=1_000), gauged(DRAM), gauged(SSD), *events
    )


@pytest.mark.parametrize(
    ("events", "cached", "ttft_ms"),
    [
        ([], 0, 50),
        ([stored(HBM, *PROMPT)], 400, 10),
        ([stored(HBM, *PROMPT[:20])], 200, 30),
        ([stored(DRAM, *PROMPT)], 400, 10.4),
        ([stored(HBM, *PROMPT[:10]), stored(DRAM, *PROMPT[10:])], 400, 10.3),
        ([stored(SSD, *PROMPT)], 400, 14.4),
        ([stored(SSD, *PROMPT), gauged(SSD, queue=100)], 400, 24.4),
        ([stored(SSD, *PROMPT), gauged(SSD, queue=400)], 0, 50),
        ([stored(SSD, *PROMPT), gauged(SSD, read=1_000_000)], 0, 50),
        ([stored(DRAM, *PROMPT[:20]), stored(SSD, *PROMPT[20:]), gauged(SSD, read=1_000_000)], 200, 30.2),
        ([stored(HBM, *PROMPT), removed(HBM, PROMPT[20])], 200, 30),
        ([stored(HBM, *PROMPT, on="e2")], 0, 50),
    ],
    ids=["nothing", "all in HBM", "half in HBM", "in DRAM", "HBM, then DRAM", "in SSD", "in SSD, a short queue",
         "in SSD, a long queue", "a slow SSD", "DRAM, then a slow SSD", "a hole", "elsewhere"],
)  # fmt: skip
def test_what_is_reported_shortens_the_time_to_first_token(events: list[Event], cached: int, ttft_ms: float) -> None:
    spec = house(*events).when(prompt())
    spec.then(said(RequestAdmitted, cached_tokens_predicted=cached, ttft_predicted_ns=round(ttft_ms * NS_PER_MS)))


def test_a_load_goes_on_while_other_work_is_done_before_it() -> None:
    spec = house(settings(backlog_max_ns=S), stored(SSD, *PROMPT), arrived("before", 50, slack=9 * S))
    # One step for both takes 10 ms, and the load of 4.4 ms is over by then; alone it would wait for it.
    spec.when(prompt()).then(said(RequestAdmitted, cached_tokens_predicted=400, ttft_predicted_ns=10 * MS))
    told = spec.explained(prompt("s"))
    [one] = told["requests"]
    [there] = one["engines"]
    assert (there["cached_tokens"], there["load_ns"]) == (400, 0), "what runs there will be there"


@pytest.mark.parametrize(("now_ms", "ttft_ms"), [(1, 50), (15, 50), (25, 45.4)])
def test_while_the_head_of_the_line_loads_nothing_of_it_is_done(now_ms: int, ttft_ms: float) -> None:
    spec = house(settings(backlog_max_ns=S), stored(SSD, *PROMPT), gauged(SSD, read=4_000_000, queue=40), prompt())
    # Its load takes 20.4 ms, the 5 tokens behind it a step of 10 ms; with 405 more there are five steps.
    spec.when(at(now_ms * MS, arrived("s", 405, now=now_ms * MS, slack=9 * S)))
    spec.then(said(RequestAdmitted, request_id="s", ttft_predicted_ns=round(ttft_ms * NS_PER_MS)))


def test_while_the_head_of_the_line_loads_the_next_one_is_computed() -> None:
    spec = house(settings(backlog_max_ns=S), stored(SSD, *PROMPT), gauged(SSD, read=4_000_000, queue=40), prompt())
    spec.after(at(5 * MS, arrived("s", 405, now=5 * MS, slack=9 * S)))
    spec.when(at(8 * MS, arrived("t", 100, now=8 * MS, slack=9 * S)))
    spec.then(said(RequestAdmitted, request_id="t", ttft_predicted_ns=57 * NS_PER_MS))


def test_what_runs_there_counts_before_it_is_reported_and_not_after_it_ended() -> None:
    spec = house(prompt(), first_token("r")).when(prompt("s")).then(said(RequestAdmitted, cached_tokens_predicted=400))
    spec.after(first_token("s"), finished("r"), finished("s"))
    spec.when(prompt("t")).then(said(RequestAdmitted, cached_tokens_predicted=0))


def test_the_engine_that_has_it_is_chosen() -> None:
    spec = house(tiered("e2"), gauged(DRAM, on="e2"), stored(DRAM, *PROMPT, on="e2"))
    spec.when(prompt()).then(said(RequestAdmitted, engine_id="e2", cached_tokens_predicted=400))


def test_of_an_engine_that_does_not_report_what_was_sent_there_is_taken_to_be_there() -> None:
    spec = given(ADMISSION, at(0, tick(0)), engine("e1"), stored(SSD, *PROMPT), gauged(SSD))
    spec.after(prompt(), first_token("r"), finished("r"))
    spec.when(prompt("s")).then(said(RequestAdmitted, cached_tokens_predicted=400))


def test_reports_before_the_engine_is_registered_are_kept_for_it_within_a_limit() -> None:
    heard = [stored(DRAM, *PROMPT, on=f"e{n}") for n in range(UNREGISTERED_MAX + 1)]
    spec = given(ADMISSION, at(0, tick(0)), *heard)
    assert len(spec.state.unregistered) == UNREGISTERED_MAX
    spec.after(tiered("e7"), gauged(DRAM, on="e7"))
    assert "e7" not in spec.state.unregistered
    spec.when(prompt()).then(said(RequestAdmitted, engine_id="e7", cached_tokens_predicted=400))
    spec.after(EngineRemoved(engine_id=EngineId("e7")))


def test_waiting_for_a_load_is_not_taken_for_slow_computing() -> None:
    spec = house(stored(SSD, *PROMPT), gauged(SSD, read=4_000_000, queue=40))
    for n in range(20):
        now = n * 100 * MS
        spec.after(at(now, prompt(f"r{n}", now=now)))
        [admitted] = spec.decisions
        assert isinstance(admitted, RequestAdmitted)
        assert (admitted.cached_tokens_predicted, admitted.ttft_predicted_ns) == (400, 30_400_000)
        spec.after(at(now + 30_400_000, first_token(f"r{n}")), finished(f"r{n}"), measured("e1"))
    assert spec.state.accounts["e1"].correction.ratio_ppm == 1_000_000
