"""A simulated engine with tiers behind it: no byte is lost, no limit passed, and what is loaded changes times only."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events.base import NS_PER_S, PPM, EngineId, ModelId, RequestId, SliceId
from events.decisions import CancelReason, EngineDirected, Move, MoveReason, TransferCancelled, TransferOrdered
from events.engine import Capability, EngineKind, EngineRegistered
from events.slice import (
    SlicesCleared,
    SlicesHit,
    SlicesRemoved,
    SlicesStored,
    Tier,
    TierMeasured,
    TransferEnd,
    TransferFinished,
)
from policies.memory.kinds import EvictionKind
from policies.predictors.step_time import prefill_ns
from replay.engines import carrier
from replay.engines.decode_clock import DecodeClock
from replay.engines.job import Finished, FirstToken, Outcome, SimRequest
from replay.engines.light import LightEngine
from replay.engines.loads import LATE_PPM
from replay.engines.tier_cache import TierCache
from replay.engines.tiers import TierSizes
from replay.faults import TransferFaults
from tests.replay.test_light_engine import LOADS, MS, SHAPE, STEP, Load, drain, ends, finished, requests, run_light

BLOCK_BYTES = 1_000
UNIT_BYTES = 2 * BLOCK_BYTES
"""Units are of 8 tokens, blocks of 4."""
ROUNDING_NS = 100
QUICK, SLOW = 100_000_000, 400_000
"""Bytes per second with which a unit takes 20 us, and 5 ms: a unit takes about 6 ms to compute alone."""


def sizes(units: int = 12, ssd_units: int = 0, *, speed: int = QUICK, ssd_speed: int = QUICK // 4) -> TierSizes:
    return TierSizes(
        dram_bytes=units * UNIT_BYTES, ssd_bytes=ssd_units * UNIT_BYTES, dram_bytes_per_s=speed,
        ssd_read_bytes_per_s=ssd_speed, ssd_write_bytes_per_s=ssd_speed, peer_bytes_per_s=speed,
    )  # fmt: skip


def registered(name: str = "e1", *, kv_blocks: int = SHAPE["kv_blocks"]) -> EngineRegistered:
    return EngineRegistered(
        engine_id=EngineId(name), kind=EngineKind.SIMULATED, models=(ModelId("m"),), kv_blocks=kv_blocks,
        block_tokens=SHAPE["block_tokens"], block_bytes=BLOCK_BYTES, step=STEP,
        capability=Capability(embedding=True, seqs_max=SHAPE["seqs_max"], batch_tokens_max=SHAPE["batch_tokens"]),
    )  # fmt: skip


def tiered(
    tiers: TierSizes | None = None, *, name: str = "e1", faults: TransferFaults | None = None,
    peers: dict[EngineId, LightEngine] | None = None, now_ns: int = 0, ssd: TierCache | None = None,
) -> LightEngine:  # fmt: skip
    return LightEngine(
        registered(name), tell_tokens=False, tiers=tiers or sizes(), faults=faults, peers=(peers or {}).get, ssd=ssd,
        now_ns=now_ns,
    )  # fmt: skip


def asked(name: str, units: int, *, family: int = 0, output: int = 1, tail: int = 1) -> SimRequest:
    keys = tuple(family * 100 + index for index in range(units))
    return SimRequest(
        request_id=RequestId(name), prompt_tokens=8 * units + tail, output_tokens=output, prefix=keys, unit_tokens=8
    )


def served(one: LightEngine, request: SimRequest, at_ns: int = 0) -> tuple[int, Finished]:
    """The request alone: when its first token came, and its end."""
    one.run_until(at_ns)
    one.submit(request, at_ns)
    out = drain(one)
    [first] = [o for o in out if isinstance(o, FirstToken) and o.request_id == request.request_id]
    return first.at_ns - at_ns, finished(out)[request.request_id]


def pushed_out(one: LightEngine) -> int:
    """Another prompt fills the device memory; when that is over."""
    served(one, asked("filler", 19, family=9), now(one))
    return now(one)


def now(one: LightEngine) -> int:
    return one._now_ns + NS_PER_S


# What loading is.


def test_a_prefix_that_left_the_device_comes_back_from_dram_sooner_than_it_is_computed() -> None:
    one = tiered(sizes(40))
    cold_ns, first = served(one, asked("a", 10))
    again_ns, second = served(one, asked("b", 10), pushed_out(one))
    assert first.cached_tokens == 0
    assert second.cached_tokens == 80
    assert again_ns < cold_ns / 2
    assert (first.output_tokens, first.kv_tokens) == (second.output_tokens, second.kv_tokens)


def test_the_last_token_of_a_prompt_is_computed() -> None:
    one = tiered(sizes(40))
    served(one, asked("a", 10, tail=0))
    _, second = served(one, asked("b", 10, tail=0), pushed_out(one))
    assert second.cached_tokens == 72, "nine of ten units: the tenth ends with the last token"


def test_who_waited_for_slices_goes_on_before_those_that_wait_in_the_queue() -> None:
    """As in vLLM: behind those that compute, and not counted as running meanwhile."""
    one = tiered(sizes(40))
    served(one, asked("a", 10))
    at_ns = pushed_out(one)
    one.run_until(at_ns)
    for name, family in (("b", 0), ("long", 5), ("next", 6)):
        one.submit(asked(name, 10 if name == "b" else 9, family=family), at_ns)
    one.run_until(at_ns + 1)
    assert (one.measured().running, one.measured().waiting) == (1, 2), "b loads, long computes, next waits"
    first = {str(o.request_id): o.at_ns for o in drain(one) if isinstance(o, FirstToken)}
    assert first["long"] <= first["b"] < first["next"]


def test_a_link_slower_than_computing_is_not_waited_for() -> None:
    one = tiered(sizes(40, speed=SLOW // 4))
    cold_ns, _ = served(one, asked("a", 10))
    one.run_until(20 * NS_PER_S)
    again_ns, second = served(one, asked("b", 10), pushed_out(one))
    assert second.cached_tokens < 8, "a block of a unit, which was left in device memory"
    assert 0 <= cold_ns - again_ns < cold_ns // 10


def test_ssd_serves_what_dram_has_lost() -> None:
    one = tiered(sizes(12, 60))
    cold_ns, _ = served(one, asked("a", 10))
    again_ns, second = served(one, asked("b", 10), pushed_out(one))
    assert second.cached_tokens == 80
    assert again_ns < cold_ns / 2
    hits = [fact for fact in one.slice_facts(measure=True) if isinstance(fact, SlicesHit)]
    assert {fact.tier for fact in hits} == {Tier.SSD}
    assert len(hits[0].slices) == 10


def test_what_is_in_ssd_outlives_the_engine() -> None:
    one = tiered(sizes(40, 60))
    served(one, asked("a", 10))
    one.run_until(now(one))
    second = tiered(sizes(40, 60), ssd=one.ssd(), now_ns=5 * NS_PER_S)
    facts = second.slice_facts(measure=True)
    assert [fact.tier for fact in facts if isinstance(fact, SlicesCleared)] == [Tier.HBM, Tier.DRAM, Tier.SSD]
    [stored] = [fact for fact in facts if isinstance(fact, SlicesStored)]
    assert (stored.tier, len(stored.slices), stored.slice_bytes) == (Tier.SSD, 10, UNIT_BYTES)
    _, again = served(second, asked("b", 10), 6 * NS_PER_S)
    assert again.cached_tokens == 80


def test_a_preempted_request_loads_its_prompt_again() -> None:
    one = tiered(sizes(40))
    one.submit(asked("a", 10, output=60), 0)
    one.run_until(200 * MS)
    assert one.preempt(RequestId("a"), 200 * MS)
    one.run_until(NS_PER_S)
    one.resume(RequestId("a"), pushed_out(one))
    [end] = [o for o in drain(one) if isinstance(o, Finished)]
    assert (end.output_tokens, end.preemptions) == (60, 1)
    facts = one.slice_facts(measure=True)
    assert [len(fact.slices) for fact in facts if isinstance(fact, SlicesHit) and fact.tier is Tier.DRAM] == [10]


# Laws.

TIERS = st.builds(
    sizes, st.integers(1, 30), st.sampled_from((0, 0, 3, 40)), speed=st.sampled_from((QUICK, SLOW)),
    ssd_speed=st.sampled_from((QUICK, SLOW)),
)  # fmt: skip
FAULTS = st.none() | st.builds(
    TransferFaults, seed=st.integers(0, 9), failing_ppm=st.sampled_from((0, 100_000, 500_000)),
    stalling_ppm=st.sampled_from((0, 50_000, 500_000)), stall_ns=st.sampled_from((10 * MS, NS_PER_S)),
)  # fmt: skip


@contextmanager
def single_steps() -> Iterator[None]:
    """No step is taken together with the next one."""
    with patch.object(DecodeClock, "steps_to_end", lambda _clock: 1):
        yield


@settings(max_examples=120, deadline=None)
@given(LOADS, TIERS, FAULTS)
def test_many_steps_at_once_equal_one_by_one(
    loads: list[Load], tiers: TierSizes, faults: TransferFaults | None
) -> None:
    work = requests(loads)
    together = run_light(work, [], tiered(tiers, faults=faults))
    with single_steps():
        assert ends(together) == ends(run_light(work, [], tiered(tiers, faults=faults)))


@settings(max_examples=80, deadline=None)
@given(LOADS, TIERS, FAULTS, st.lists(st.integers(0, 3_000 * MS), max_size=30))
def test_who_looks_in_changes_nothing(
    loads: list[Load], tiers: TierSizes, faults: TransferFaults | None, polls_ns: list[int]
) -> None:
    work = requests(loads)
    seen = run_light(work, polls_ns, tiered(tiers, faults=faults))
    assert ends(seen) == ends(run_light(work, [], tiered(tiers, faults=faults)))


@settings(max_examples=80, deadline=None)
@given(LOADS, TIERS, FAULTS)
def test_answers_are_those_of_an_engine_without_tiers(
    loads: list[Load], tiers: TierSizes, faults: TransferFaults | None
) -> None:
    work = requests(loads)
    with_tiers = finished(run_light(work, [], tiered(tiers, faults=faults)))
    without = finished(run_light(work, [], LightEngine(registered(), tell_tokens=False)))
    assert {name: (o.output_tokens, o.kv_tokens) for name, o in with_tiers.items()} == {
        name: (o.output_tokens, o.kv_tokens) for name, o in without.items()
    }


# Orders.


def slices(*keys: int) -> tuple[SliceId, ...]:
    return tuple(SliceId(str(key)) for key in keys)


def ordered(
    move: Move, keys: tuple[int, ...], source: Tier, target: Tier | None = None, *, name: str = "m1",
    until_ns: int = 0, to_engine: str = "",
) -> TransferOrdered:  # fmt: skip
    return TransferOrdered(
        order=name, engine_id=EngineId("e1"), move=move, reason=MoveReason.PRESSURE, until_ns=until_ns,
        slices=slices(*keys), from_tier=source, to_tier=target, to_engine=EngineId(to_engine),
    )  # fmt: skip


def named(request: SimRequest) -> SimRequest:
    """With slices named as in a log."""
    return msgspec.structs.replace(request, prefix=tuple(SliceId(str(key)) for key in request.prefix))


class Held:
    """What an engine's facts say that it holds; checks that they never contradict each other."""

    def __init__(self) -> None:
        self.slices: dict[Tier, set[str]] = {tier: set() for tier in Tier}
        self.finished: list[TransferFinished] = []
        self.measured: dict[Tier, TierMeasured] = {}

    def take(self, one: LightEngine) -> None:
        for fact in one.slice_facts(measure=True):
            match fact:
                case SlicesStored():
                    assert not self.slices[fact.tier] & set(fact.slices), "what is there is not stored again"
                    self.slices[fact.tier] |= set(fact.slices)
                case SlicesRemoved():
                    assert self.slices[fact.tier] >= set(fact.slices), "only what is there is removed"
                    self.slices[fact.tier] -= set(fact.slices)
                case TransferFinished():
                    self.finished.append(fact)
                case TierMeasured():
                    self.measured[fact.tier] = fact
                case _:
                    pass


def after(
    one: LightEngine, *orders: TransferOrdered | TransferCancelled, held: Held | None = None
) -> tuple[Held, list[TransferFinished]]:
    """What the engine holds, and answered, when all that was ordered at once has been carried out."""
    at_ns = now(one)
    one.run_until(at_ns)
    for order in orders:
        one.order(order, at_ns)
    while (next_ns := one.next_ns()) is not None:
        one.run_until(next_ns)
        one.check_integrity()
    held = held or Held()
    held.finished.clear()
    held.take(one)
    return held, held.finished


def holding(tiers: TierSizes, **more: Any) -> LightEngine:
    """An engine that has computed a prompt of ten slices, 0 to 9, and is idle."""
    one = tiered(tiers, **more)
    served(one, named(asked("a", 10)))
    one.run_until(now(one))
    return one


TEN = tuple(range(10))
FULL = {str(key) for key in TEN}


def test_demoting_what_is_written_through_leaves_the_faster_tier_and_moves_nothing() -> None:
    held, [end] = after(holding(sizes(40, 60)), ordered(Move.DEMOTE, TEN, Tier.DRAM, Tier.SSD))
    assert (end.end, end.slices_done, end.bytes_moved) == (TransferEnd.DONE, 10, 0)
    assert (held.slices[Tier.DRAM], held.slices[Tier.SSD]) == (set(), FULL)


def test_demoting_and_promoting_go_by_the_tier_between() -> None:
    one = holding(sizes(40, 60))
    held, [end] = after(one, ordered(Move.DEMOTE, TEN, Tier.HBM, Tier.SSD))
    assert (end.end, held.slices[Tier.HBM]) == (TransferEnd.DONE, set())
    held, [end] = after(one, ordered(Move.DROP, TEN, Tier.DRAM, name="m2"), held=held)
    assert (end.end, end.slices_done) == (TransferEnd.DONE, 10)
    held, [end] = after(one, ordered(Move.PROMOTE, TEN, Tier.SSD, Tier.HBM, name="m3"), held=held)
    assert (end.end, end.slices_done, end.bytes_moved) == (TransferEnd.DONE, 10, 2 * 10 * UNIT_BYTES)
    assert end.took_ns >= 10 * UNIT_BYTES * NS_PER_S // (QUICK // 4), "no quicker than the SSD reads"
    assert held.slices[Tier.HBM] == FULL
    cold_ns = prefill_ns(STEP, prompt=81, batch_tokens=SHAPE["batch_tokens"])
    ttft_ns, again = served(one, named(asked("b", 10)), now(one))
    assert (again.cached_tokens, ttft_ns < cold_ns / 3) == (80, True)


def test_a_first_slice_that_is_up_already_keeps_nobody_from_loading_the_rest() -> None:
    one = tiered(sizes(10, 60))
    served(one, named(asked("a", 10)))
    one.run_until(now(one))
    pushed_out(one)
    after(one, ordered(Move.PROMOTE, TEN[:1], Tier.SSD, Tier.DRAM))
    at_ns = now(one)
    one.run_until(at_ns)
    one.submit(asked("busy", 3, family=5), at_ns)  # What is loaded is of use when its second step is over: 6 ms.
    _, again = served(one, named(asked("b", 10)), at_ns)
    assert again.cached_tokens == 80


def test_what_was_ordered_for_a_request_does_not_stand_before_it() -> None:
    one = tiered(sizes(10, 60, ssd_speed=3_000_000))
    served(one, named(asked("a", 10)))
    one.run_until(now(one))
    at_ns = pushed_out(one)
    one.run_until(at_ns)
    one.order(ordered(Move.PROMOTE, TEN, Tier.SSD, Tier.DRAM), at_ns)
    one.run_until(at_ns + MS // 10)
    _, again = served(one, named(asked("b", 10)), at_ns + MS // 10)
    assert again.cached_tokens == 80, "the first slice, on its way already, takes less than a twentieth of the prefill"


def test_a_part_that_is_in_use_is_not_dropped() -> None:
    one = holding(sizes(40))
    one.submit(named(asked("b", 5, output=30)), now(one))
    one.run_until(now(one) - NS_PER_S + 20 * MS)
    one.order(ordered(Move.DROP, TEN, Tier.HBM), one._now_ns)
    held = Held()
    held.take(one)
    [end] = held.finished
    assert (end.end, end.slices_done, end.why) == (TransferEnd.PARTLY, 5, "in_use")
    assert held.slices[Tier.HBM] == {"0", "1", "2", "3", "4"}


@pytest.mark.parametrize(
    ("order", "end", "why"),
    [
        (ordered(Move.PROMOTE, (77,), Tier.DRAM, Tier.HBM), TransferEnd.FAILED, "not_held"),
        (ordered(Move.PROMOTE, TEN, Tier.DRAM, Tier.HBM), TransferEnd.NOT_NEEDED, ""),
        (ordered(Move.DEMOTE, TEN, Tier.DRAM, Tier.SSD), TransferEnd.FAILED, "no_such_tier"),
        (ordered(Move.DROP, (77,), Tier.SSD), TransferEnd.FAILED, "not_held"),
        (ordered(Move.REPLICATE, TEN, Tier.DRAM, to_engine="e7"), TransferEnd.FAILED, "no_such_engine"),
        (ordered(Move.PROMOTE, (), Tier.DRAM, Tier.HBM), TransferEnd.NOT_NEEDED, ""),
    ],
)
def test_an_order_that_cannot_be_carried_out_says_why(order: TransferOrdered, end: TransferEnd, why: str) -> None:
    _, [answer] = after(holding(sizes(40)), order)
    assert (answer.order, answer.end, answer.why) == (order.order, end, why)


def test_more_orders_than_can_be_carried_out_at_once_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrier, "ORDERS_MAX", 1)
    one = holding(sizes(40, 60))
    after(one, ordered(Move.DROP, TEN, Tier.DRAM))
    orders = [ordered(Move.PROMOTE, TEN, Tier.SSD, Tier.DRAM, name=name) for name in ("m2", "m3")]
    _, ends_ = after(one, *orders)
    assert {(end.order, end.end, end.why) for end in ends_} == {
        ("m2", TransferEnd.DONE, ""), ("m3", TransferEnd.FAILED, "too_many_orders")
    }  # fmt: skip


def test_what_is_too_late_is_not_begun() -> None:
    one = holding(sizes(40, 60))
    after(one, ordered(Move.DROP, TEN, Tier.DRAM))
    late_ns = now(one) + UNIT_BYTES * NS_PER_S // (QUICK // 4)  # When the second one begins.
    _, [end] = after(one, ordered(Move.PROMOTE, TEN, Tier.SSD, Tier.DRAM, name="m2", until_ns=late_ns))
    assert (end.end, end.slices_done, end.why) == (TransferEnd.PARTLY, 2, "too_late")


def test_a_cancelled_order_begins_nothing_more_and_is_answered_once() -> None:
    one = holding(sizes(40, 60))
    after(one, ordered(Move.DROP, TEN, Tier.DRAM))
    cancel = TransferCancelled(order="m2", engine_id=EngineId("e1"), reason=CancelReason.NOT_NEEDED)
    held, ends_ = after(one, ordered(Move.PROMOTE, TEN, Tier.SSD, Tier.DRAM, name="m2"), cancel, cancel)
    [end] = ends_
    assert (end.end, end.slices_done) == (TransferEnd.CANCELLED, 1)
    assert held.slices[Tier.DRAM] == {"0"}, "what was on its way has arrived"


@pytest.mark.parametrize("tier", list(Tier))
def test_slices_are_copied_to_another_engine(tier: Tier) -> None:
    other = tiered(sizes(40, 60), name="e2")
    one = holding(sizes(40, 60), peers={EngineId("e2"): other})
    _, [end] = after(one, ordered(Move.REPLICATE, TEN, tier, to_engine="e2"))
    assert (end.end, end.bytes_moved) == (TransferEnd.DONE, 10 * UNIT_BYTES)
    held = Held()
    held.take(other)
    assert held.slices[tier] == FULL
    other.check_integrity()


ORDERS = st.lists(
    st.tuples(
        st.integers(0, 1_500 * MS), st.sampled_from(Move), st.integers(0, 3), st.integers(0, 6), st.integers(1, 6),
        st.sampled_from(Tier), st.sampled_from(Tier), st.booleans(),
    ),
    max_size=20,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(LOADS, TIERS, FAULTS, ORDERS, st.sampled_from((*EvictionKind, "")))
def test_whatever_is_ordered_no_byte_is_lost_and_every_order_is_answered_once(
    loads: list[Load], tiers: TierSizes, faults: TransferFaults | None, orders: list[Any], kind: str
) -> None:
    other = tiered(tiers, name="e2", faults=faults)
    one, out, held = tiered(tiers, faults=faults, peers={EngineId("e2"): other}), list[Outcome](), Held()
    one.direct(directive(kind))
    told = list[str]()
    steps: list[tuple[int, int, Any]] = [(at_ns, 0, named(request)) for at_ns, request in requests(loads)]
    steps += [(order[0], number, order) for number, order in enumerate(orders, 1)]
    for at_ns, number, what in sorted(steps, key=lambda step: step[:2]):
        while (due := one.next_ns()) is not None and due < at_ns:
            out += one.run_until(due)
            one.check_integrity()
        out += one.run_until(at_ns)
        if isinstance(what, SimRequest):
            one.submit(what, at_ns)
        else:
            _, move, family, first, count, source, target, is_cancelled = what
            keys = tuple(family * 100 + index for index in range(first, first + count))
            order = ordered(move, keys, source, target, name=f"m{number}", to_engine="e2")
            one.order(order, at_ns)
            told.append(order.order)
            if is_cancelled:
                cancel = TransferCancelled(order=order.order, engine_id=one.engine_id, reason=CancelReason.TOO_LATE)
                one.order(cancel, at_ns)
        one.check_integrity()
        held.take(one)
    out += drain(one)
    one.run_until(now(one) + 10 * NS_PER_S)  # What is stored, and what stalls, has arrived.
    held.take(one)
    other.check_integrity()
    assert {o.request_id for o in out if isinstance(o, Finished)} == {f"r{n}" for n in range(len(loads))}
    assert sorted(answer.order for answer in held.finished) == sorted(told), "each order is answered once"
    assert all(fact.bytes_used <= fact.bytes_max for fact in held.measured.values()), "no tier is overfull"
    there = {tier: UNIT_BYTES * len(held.slices[tier]) for tier in Tier if tier in held.measured}
    assert all(held.measured[tier].bytes_used == bytes_ for tier, bytes_ in there.items() if tier is not Tier.HBM)
    assert held.measured[Tier.HBM].bytes_used >= there[Tier.HBM], "ends of prompts and answers are cached without names"


def directive(kind: str) -> EngineDirected:
    return EngineDirected(
        engine_id=EngineId("e1"), version=1, eviction=kind, protect_ppm=800_000, pinned=slices(0, 1),
        needed=slices(100, 101), hot=slices(200, 300),
    )  # fmt: skip


# Faults.


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 18), st.integers(0, 1_000), st.sampled_from((0, 60)), st.integers(0, 9))
def test_no_request_waits_longer_for_slices_than_a_tenth_of_its_prefill(
    units: int, seed: int, ssd_units: int, tail: int
) -> None:
    faults = TransferFaults(seed=seed, failing_ppm=300_000, stalling_ppm=300_000, stall_ns=9 * NS_PER_S)
    one = tiered(sizes(19, ssd_units), faults=faults)
    served(one, asked("a", units, tail=tail + 1))
    one.run_until(50 * NS_PER_S)
    at_ns = pushed_out(one)
    model_ns = prefill_ns(STEP, prompt=8 * units + tail + 1, batch_tokens=SHAPE["batch_tokens"])
    ttft_ns, _ = served(one, asked("b", units, tail=tail + 1), at_ns)
    assert ttft_ns <= model_ns * (PPM + LATE_PPM) // PPM + ROUNDING_NS
