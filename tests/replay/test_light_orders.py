"""Orders to a simulated engine: preempt, resume, abort and directives lose no block and no request."""

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from events.base import PPM, EngineId, RequestId
from events.decisions import EngineDirected
from policies.memory.kinds import EvictionKind
from replay.engines.job import Finished, FirstToken, Outcome
from replay.engines.light import LightEngine
from tests.replay.test_light_engine import LOADS, MS, SHAPE, Load, drain, engine, finished, llm, requests

ORDERS = st.lists(
    st.tuples(st.integers(0, 1_500 * MS), st.sampled_from(["abort", "preempt", "resume"]), st.integers(0, 23)),
    max_size=40,
)
DIRECTIVES = st.lists(
    st.tuples(
        st.integers(0, 1_500 * MS),
        st.sampled_from(list(EvictionKind)),
        st.integers(0, PPM),
        st.lists(st.integers(0, 3), max_size=2),
        st.lists(st.integers(0, 3), max_size=2),
    ),
    max_size=4,
)


def directive(version: int, kind: str, protect_ppm: int = 800_000, **slices: list[int]) -> EngineDirected:
    """Units are named by whole numbers in these tests."""
    named: dict[str, Any] = {name: tuple(units) for name, units in slices.items()}
    return EngineDirected(
        engine_id=EngineId("e1"), version=version, eviction=kind, protect_ppm=protect_ppm, horizon_ns=400 * MS, **named
    )


@settings(max_examples=250, deadline=None)
@given(LOADS, ORDERS, DIRECTIVES)
def test_no_block_is_lost_whatever_is_ordered(
    loads: list[Load], orders: list[tuple[int, str, int]], directives: list[tuple[int, str, int, list[int], list[int]]]
) -> None:  # fmt: skip
    one, out, gone = engine(**SHAPE), list[Outcome](), set[str]()
    steps: list[tuple[int, Callable[[int], object]]] = [
        (at, lambda now, r=request: one.submit(r, now)) for at, request in requests(loads)
    ]

    def carry_out(what: str, name: RequestId, now: int) -> None:
        if getattr(one, what)(name, now) and what == "abort":
            gone.add(name)

    steps += [(at, partial(carry_out, what, RequestId(f"r{n}"))) for at, what, n in orders]
    for version, (at, kind, protect_ppm, hot, needed) in enumerate(directives, start=1):
        chains = [family * 100 + index for family in needed for index in range(3)]
        sent = directive(version, kind, protect_ppm, hot=[family * 100 for family in hot], needed=chains)
        steps.append((at, lambda _, sent=sent: one.direct(sent)))
    for at, act in sorted(steps, key=lambda step: step[0]):
        while (due := one.next_ns()) is not None and due < at:
            out += one.run_until(due)
            one.check_integrity()
        act(at)
        one.check_integrity()
    out += drain(one)
    ended = {o.request_id for o in out if isinstance(o, Finished)}
    left = [request_id for request_id, _ in one.progress()]
    assert one.measured().kv_used_ppm == 0, "what is parked holds nothing"
    assert ended | set(left) | gone == {f"r{n}" for n in range(len(loads))}
    assert not ended & set(left)
    for request_id in left:
        assert not one.preempt(request_id, 10_000_000 * MS), "it is parked already"
        assert one.resume(request_id, 10_000_000 * MS)
    assert {o.request_id for o in drain(one)} == set(left)


def test_a_parked_request_goes_on_where_it_was() -> None:
    one = engine()
    one.submit(llm("r", 16, 24), 0)
    out = one.run_until(60 * MS)
    assert one.preempt(RequestId("r"), 60 * MS)
    out += drain(one)
    ((_, so_far),) = one.progress()
    assert 0 < so_far < 24
    assert (one.measured().running, one.measured().waiting, one.measured().kv_used_ppm) == (0, 0, 0)
    assert one.next_ns() is None, "it is in no queue"
    assert one.resume(RequestId("r"), 500 * MS)
    out += drain(one)
    end = finished(out)["r"]
    assert (end.output_tokens, end.preemptions) == (24, 1)
    assert sum(isinstance(o, FirstToken) for o in out) == 1, "its first token is not told twice"


def test_an_order_that_is_taken_back_within_the_step_changes_nothing() -> None:
    ends_ns = []
    for taken_back in (False, True):
        one = engine()
        one.submit(llm("r", 16, 24), 0)
        out = one.run_until(MS)
        if taken_back:
            assert one.preempt(RequestId("r"), MS)
            assert one.resume(RequestId("r"), 2 * MS)
        ends_ns.append(finished(out + drain(one))["r"].at_ns)
    assert ends_ns[0] == ends_ns[1]


def test_under_a_directive_the_rule_chooses_who_gives_way() -> None:
    """Without one the newest gives way; by the rule the one with the most time left."""
    given_way = []
    for directed in (False, True):
        one = engine(kv_blocks=16)
        if directed:
            one.direct(directive(1, "lru"))
        for name, deadline_s in (("early", 100), ("late", 1)):
            request = llm(name, 16, 24)
            one.submit(msgspec.structs.replace(request, slo_tpot_ns=deadline_s * 10 * MS, output_expected=24), 0)
        given_way.append([name for name, end in finished(drain(one)).items() if end.preemptions])
    assert given_way == [["late"], ["early"]]


def test_an_answer_that_is_nearly_complete_does_not_give_way() -> None:
    one = engine(kv_blocks=16)
    one.direct(directive(1, "lru", 100_000))
    for name, expected in (("done", 24), ("begun", 10_000)):
        request = llm(name, 16, 24)
        one.submit(msgspec.structs.replace(request, slo_tpot_ns=10 * MS, output_expected=expected), 0)
    assert [name for name, end in finished(drain(one)).items() if end.preemptions] == ["begun"]


def test_needed_units_stay_and_hot_ones_go_last() -> None:
    one = engine(kv_blocks=16)
    for family in range(4):
        one.submit(llm(f"r{family}", 9, 1, (family,)), family * 100 * MS)
        drain(one)
    one.direct(directive(1, "lru", needed=[0], hot=[1]))
    one.submit(llm("big", 48, 1, ()), 1_000 * MS)
    drain(one)
    one.check_integrity()
    assert [prefix_is_cached(one, family) for family in range(4)] == [True, True, False, False]
    one.submit(llm("bigger", 52, 1, ()), 2_000 * MS)
    drain(one)
    assert [prefix_is_cached(one, family) for family in range(2)] == [True, False]
    assert one.measured().evictions_total == 3
    assert one.measured().directive_version == 1
    one.submit(llm("all", 60, 1, ()), 3_000 * MS)
    assert "all" in finished(drain(one)), "nothing else could go on, so what is kept makes room"


def prefix_is_cached(one: LightEngine, unit: int) -> bool:
    """Asked of the engine's own cache: a request would change it."""
    return bool(one._batch.device.cache.match(2, (unit,)))


def test_an_older_directive_changes_nothing() -> None:
    one = engine()
    one.direct(directive(7, "lru"))
    one.direct(directive(6, "hotness"))
    assert one.measured().directive_version == 7
