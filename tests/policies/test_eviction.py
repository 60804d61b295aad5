"""The eviction actor: what engines are told, when, and how much of it at most."""

from typing import Any

import msgspec
import pytest
from hypothesis import given as drawn
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from events.base import EngineId, Event, HolderId, ModelId, RequestId, SliceId
from events.control import PolicyConfigured
from events.decisions import (
    DeferReason,
    EngineDirected,
    HolderLost,
    PreemptReason,
    RejectReason,
    RequestAdmitted,
    RequestDeferred,
    RequestPreempted,
    RequestRejected,
)
from events.engine import EngineKind, EngineMeasured, EngineRemoved
from events.slice import SlicesPinned
from policies.eviction import EVICTION, SLICES_MAX
from policies.eviction_state import HEAT_MAX, OPEN_MAX
from policies.pins import PINS_MAX
from tests.policies.words import MS, S, aborted, arrived, engine, expired, finished, slices, tick
from tests.spec import START_NS, At, Spec, at, given, said


def configured(**changes: Any) -> PolicyConfigured:
    return PolicyConfigured(actor="eviction", settings=changes)


def deferred(name: str) -> RequestDeferred:
    return RequestDeferred(request_id=RequestId(name), until_ns=START_NS + 9 * S, reason=DeferReason.KV_BUDGET)


def admitted(name: str) -> RequestAdmitted:
    return RequestAdmitted(
        request_id=RequestId(name), engine_id=EngineId("e1"), output_tokens_predicted=1, kv_cache_tokens=1,
        kv_bytes_reserved=1, ttft_predicted_ns=1, slo_slack_ns=1,
    )  # fmt: skip


def rejected(name: str) -> RequestRejected:
    return RequestRejected(request_id=RequestId(name), reason=RejectReason.QUEUE_FULL)


def preempted(name: str) -> RequestPreempted:
    return RequestPreempted(
        request_id=RequestId(name), engine_id=EngineId("e1"), for_request=RequestId("u"),
        reason=PreemptReason.MORE_URGENT,
    )  # fmt: skip


def pinned(*names: str, for_s: int) -> SlicesPinned:
    return SlicesPinned(slices=slices(*names), for_ns=for_s * S)


def lost(*names: str) -> HolderLost:
    return HolderLost(holder=HolderId("h"), requests=tuple(RequestId(name) for name in names))


SEEN = slices("x", "y", "z", *(f"s{n:02}" for n in range(80)))
"""What a request began with that has ended."""


def house(*events: Event | At) -> Spec:
    """An engine of 100 slices that was told what it goes by, in a pool where SEEN was asked for once."""
    seen = [arrived("before", 830, slices=SEEN), finished("before")]
    return given(EVICTION, engine("e1"), at(0, tick(0)), *seen, *events)


HOT = configured(hot_uses_min=2)
ABC = arrived("a", 40, slices=slices("x", "y", "z", "new"))


def test_an_engine_is_told_when_it_registers() -> None:
    given(EVICTION, at(0, tick(0))).when(engine("e1")).then(
        EngineDirected(
            engine_id=EngineId("e1"), version=1, eviction="slo_aware", protect_ppm=800_000, horizon_ns=300 * S
        )
    )


def test_a_stock_engine_is_told_nothing() -> None:
    stock = engine("e1")
    vllm = type(stock)(**{name: getattr(stock, name) for name in stock.__struct_fields__} | {"kind": EngineKind.VLLM})
    given(EVICTION, at(0, tick(0))).when(vllm).then_nothing()


def test_what_a_waiting_request_begins_with_is_needed() -> None:
    house(ABC, deferred("a")).when(at(S, tick(1))).then(said(EngineDirected, version=2, needed=slices("x", "y", "z")))


ENDS: list[Event] = [admitted("a"), rejected("a"), expired("a"), aborted("a"), finished("a"), lost("a")]


@pytest.mark.parametrize("end", ENDS, ids=lambda end: type(end).__name__)
def test_it_is_needed_no_more_when_the_request_waits_no_more(end: Event) -> None:
    house(ABC, deferred("a"), at(S, tick(1)), end).when(at(2 * S, tick(2))).then(said(EngineDirected, needed=()))


def test_a_preempted_request_waits_again() -> None:
    house(ABC, admitted("a"), preempted("a")).when(at(S, tick(1))).then(
        said(EngineDirected, needed=slices("x", "y", "z", "new"))
    )


def test_what_nobody_asked_for_before_is_not_needed() -> None:
    house(arrived("a", 30, slices=slices("new", "x", "y")), deferred("a")).when(at(S, tick(1))).then_nothing()


def test_a_request_for_another_model_needs_nothing_here() -> None:
    other = arrived("a", 30, slices=slices("x"), model=ModelId("other"))
    house(other, deferred("a")).when(at(S, tick(1))).then_nothing()


def test_needs_and_pins_take_at_most_half_of_the_engine() -> None:
    spec = house(arrived("a", 830, slices=SEEN), deferred("a"), pinned("p", "q", for_s=60)).when(at(S, tick(1)))
    spec.then(said(EngineDirected, pinned=slices("p", "q"), needed=SEEN[:48]))


def test_a_pin_ends_at_its_time() -> None:
    spec = house(pinned("p", for_s=3)).when(at(S, tick(1))).then(said(EngineDirected, pinned=slices("p")))
    spec.when(at(2 * S, tick(2))).then_nothing()
    spec.when(at(3 * S, tick(3))).then(said(EngineDirected, pinned=()))


def test_a_pin_of_no_time_is_taken_back() -> None:
    spec = (
        house(ABC, admitted("a"), pinned("p", "q", for_s=60))
        .when(at(S, tick(1)))
        .then(said(EngineDirected, pinned=slices("p", "q")))
    )
    spec.after(pinned("p", for_s=0)).when(at(2 * S, tick(2))).then(said(EngineDirected, pinned=slices("q")))


def test_what_was_used_often_of_late_is_hot_and_cools() -> None:
    again = [arrived(name, 30, now=100 * MS, slices=slices("x", name)) for name in ("b", "c")]
    spec = house(HOT, *again).when(at(S, tick(1)))
    spec.then(said(EngineDirected, hot=slices("x")))
    assert spec.explained(tick(1))["hot"] == {"x": 3}
    told: list[Event] = []
    for n in range(3, 200, 2):
        told += spec.after(at(n * S, tick(n))).decisions
    assert [event.hot for event in told if isinstance(event, EngineDirected)] == [()], "it is said once"


def test_a_little_change_of_what_is_hot_is_not_said() -> None:
    spec = house(HOT, arrived("a", 200, slices=SEEN[:20])).when(at(S, tick(1))).then(said(EngineDirected, version=2))
    spec.after(arrived("b", 10, now=S, slices=SEEN[40:41])).when(at(2 * S, tick(2))).then_nothing()


def test_an_engine_is_told_at_most_once_a_second() -> None:
    spec = house(ABC, deferred("a")).when(at(S, tick(1))).then(said(EngineDirected, version=2))
    spec.after(admitted("a")).when(at(1_500 * MS, tick(2))).then_nothing()
    spec.when(at(2 * S, tick(3))).then(said(EngineDirected, version=3))


def test_nothing_changed_nothing_said() -> None:
    house().when(at(S, tick(1))).then_nothing()


def test_other_settings_are_said_with_the_next_tick() -> None:
    house(configured(kind="hotness", protect_ppm=0)).when(at(S, tick(1))).then(
        said(EngineDirected, version=2, eviction="hotness", protect_ppm=0)
    )


def test_switched_off_engines_choose_as_they_like() -> None:
    spec = house(ABC, deferred("a"), configured(enabled="off")).when(at(S, tick(1)))
    spec.then(EngineDirected(engine_id=EngineId("e1"), version=2, eviction="", protect_ppm=0))
    spec.when(at(2 * S, tick(2))).then_nothing()
    spec.when(engine("e2")).then_nothing()


def test_a_bad_setting_names_what_is_allowed() -> None:
    with pytest.raises(ValueError, match=r"eviction.kind = 'arc' \(allowed: lru, fifo, hotness, slo_aware\)"):
        house(configured(kind="arc"))


def test_an_engine_that_was_started_anew_is_told_again() -> None:
    def at_version(version: int) -> EngineMeasured:
        return EngineMeasured(engine_id=EngineId("e1"), running=0, waiting=0, kv_used_ppm=0, directive_version=version)

    spec = house(at_version(1)).when(at(S, tick(1))).then_nothing()
    spec.after(at_version(0)).when(at(2 * S, tick(2))).then(said(EngineDirected, version=2))
    spec.when(engine("e1")).then(said(EngineDirected, version=3))


def test_an_engine_whose_agent_did_not_hear_is_told_again() -> None:
    def at_version(version: int) -> EngineMeasured:
        return EngineMeasured(engine_id=EngineId("e2"), running=0, waiting=0, kv_used_ppm=0, directive_version=version)

    agent = msgspec.structs.replace(engine("e2", reports_slices=True), kind=EngineKind.VLLM)
    spec = house().when(agent).then(said(EngineDirected, version=2))
    spec.after(at_version(0)).when(at(4 * S, tick(4))).then_nothing()
    spec.after(at(7 * S, tick(7)), at_version(0)).when(at(8 * S, tick(8))).then(said(EngineDirected, version=3))
    spec.after(at(9 * S, tick(9)), at_version(3)).when(at(30 * S, tick(30))).then_nothing()


def test_a_removed_engine_is_told_nothing_more() -> None:
    house(ABC, deferred("a"), EngineRemoved(engine_id=EngineId("e1"))).when(at(S, tick(1))).then_nothing()


def test_many_engines_are_told_over_several_ticks() -> None:
    names = tuple(SliceId(f"s{n}") for n in range(256))
    engines = [engine(f"e{n}", blocks=1_000) for n in range(40)]
    asked = [arrived(name, 2_560, slices=names) for name in ("b", "a")]
    spec = given(EVICTION, at(0, tick(0)), *engines, *asked, deferred("a"))
    told: list[str] = []
    for n in (1, 2):
        spec.when(at(n * S, tick(n)))
        directives = [event for event in spec.decisions if isinstance(event, EngineDirected)]
        assert sum(len(event.needed) for event in directives) <= SLICES_MAX
        told += [event.engine_id for event in directives]
    assert sorted(told) == sorted(f"e{n}" for n in range(40))


def test_what_it_knows_is_bounded() -> None:
    spec = house()
    for n in range(OPEN_MAX // 100 + 1):
        for m in range(100):
            spec.after(
                arrived(f"r{n}.{m}", 30, slices=slices(*(f"{n}.{m}.{i}" for i in range(9)))), deferred(f"r{n}.{m}")
            )
    spec.after(pinned(*(f"p{n}" for n in range(PINS_MAX + 1)), for_s=60))
    state = spec.state
    assert (len(state.open), len(state.waiting), len(state.heat)) == (OPEN_MAX, OPEN_MAX, HEAT_MAX)
    assert len(state.pins) == PINS_MAX


WORDS = st.lists(
    st.one_of(
        st.builds(
            lambda name, family, units: arrived(
                f"r{name}", 10 * units, slices=slices(*(f"{family}.{n}" for n in range(units)))
            ),
            st.integers(0, 5), st.integers(0, 2), st.integers(1, 60),
        ),
        st.integers(0, 5).map(lambda n: deferred(f"r{n}")),
        st.integers(0, 5).map(lambda n: admitted(f"r{n}")),
        st.integers(0, 5).map(lambda n: finished(f"r{n}")),
        st.integers(0, 9).map(lambda n: pinned(f"0.{n}", for_s=n)),
        st.sampled_from(["e1", "e2"]).map(engine),
        st.just(EngineRemoved(engine_id=EngineId("e2"))),
    ),
    max_size=40,
)  # fmt: skip


@hypothesis_settings(max_examples=100, deadline=None)
@drawn(WORDS)
def test_laws(words: list[Event]) -> None:
    """Versions rise; an engine is told at most once a second unless it registers; what is kept fits half of it;
    and a second tick at the same time says nothing."""
    spec, version = house(HOT), 1
    told: dict[str, int] = {"e1": -S}
    for second, event in enumerate(words, start=1):
        now = second * 400 * MS
        for spoken in (event, tick(0)):
            for directive in spec.after(at(now, spoken)).decisions:
                assert isinstance(directive, EngineDirected)
                assert directive.version == version + 1
                version += 1
                if spoken == tick(0):
                    assert now - told.get(directive.engine_id, -S) >= S
                told[directive.engine_id] = now
                assert len(directive.pinned) + len(directive.needed) <= 50
                assert len(directive.hot) <= 25
        spec.after(at(now, tick(0))).then_nothing()
