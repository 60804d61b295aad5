"""Memory follows the log: what is admitted holds, what ends gives back, and nothing is done twice."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events.base import EngineId, Event, HolderId, ModelId, RequestId, SliceId, TenantId
from events.decisions import (
    CancelReason,
    HolderLost,
    Move,
    MoveReason,
    PreemptReason,
    RejectReason,
    RequestAdmitted,
    RequestPreempted,
    RequestRejected,
    TransferCancelled,
    TransferOrdered,
)
from events.engine import EngineHealthChanged, EngineRemoved, Health
from events.request import (
    AbortReason,
    FirstTokenSeen,
    RequestAborted,
    RequestArrived,
    RequestExpired,
    RequestFinished,
)
from events.slice import Tier
from kvstore.engine_cache import EngineCache
from kvstore.errors import BudgetExceeded, DoubleFree, Pinned, TierUnavailable
from kvstore.scheduler_bridge import Allocated, Freed, Migrating, Operation, Refused, SchedulerBridge
from kvstore.schema import KVCacheSchema, KVDtype
from kvstore.stats import AccessStats

SCHEMA = KVCacheSchema(layers=1, kv_heads=1, head_dim=1, dtype=KVDtype.FP8, block_tokens=4)
SLICE = 8
E1, E2, ELSEWHERE = EngineId("e1"), EngineId("e2"), EngineId("e9")
R1, R2 = RequestId("r1"), RequestId("r2")


class House:
    """A bridge, and the memory of two engines behind it."""

    def __init__(self, *, carried: list[TransferOrdered] | None = None, requests_max: int = 100) -> None:
        self.cancelled: list[str] = []
        carry = carried.append if carried is not None else None
        self.caches = {
            name: EngineCache(
                SCHEMA, max_tokens=40, slice_tokens=SLICE, carry=carry, cancel=self.cancelled.append
            )
            for name in (E1, E2)
        }  # fmt: skip
        self.stats = AccessStats()
        self.bridge = SchedulerBridge(
            self.caches, slice_tokens=SLICE, stats=self.stats, requests_max=requests_max
        )  # fmt: skip

    def after(self, *events: Event) -> list[Operation]:
        done: list[Operation] = []
        for event in events:
            done = self.bridge.apply(event)
            for cache in self.caches.values():
                cache.check_integrity()
        return done


def arrived(request_id: RequestId, *slices: str, slice_tokens: int = SLICE) -> RequestArrived:
    return RequestArrived(
        request_id=request_id, tenant=TenantId("acme"), model=ModelId("m"), holder=HolderId("h"), prompt_tokens=16,
        slo_ttft_ns=1, deadline_ns=1, slices=tuple(map(SliceId, slices)), slice_tokens=slice_tokens,
    )  # fmt: skip


def admitted(request_id: RequestId, engine_id: EngineId = E1, tokens: int = 20) -> RequestAdmitted:
    return RequestAdmitted(
        request_id=request_id, engine_id=engine_id, output_tokens_predicted=4, kv_cache_tokens=tokens,
        kv_bytes_reserved=tokens * 2, ttft_predicted_ns=1, slo_slack_ns=1,
    )  # fmt: skip


def finished(request_id: RequestId, engine_id: EngineId = E1) -> RequestFinished:
    return RequestFinished(
        request_id=request_id, engine_id=engine_id, prompt_tokens=16, output_tokens=4, ttft_ns=1, e2e_ns=2
    )


def preempted(request_id: RequestId, engine_id: EngineId = E1) -> RequestPreempted:
    return RequestPreempted(
        request_id=request_id, engine_id=engine_id, for_request=RequestId("r9"), reason=PreemptReason.MORE_URGENT
    )


def aborted(request_id: RequestId, *, final: bool = True) -> RequestAborted:
    return RequestAborted(request_id=request_id, reason=AbortReason.CLIENT_GONE, final=final)


def first_token(request_id: RequestId, engine_id: EngineId = E1) -> FirstTokenSeen:
    return FirstTokenSeen(request_id=request_id, engine_id=engine_id, ttft_ns=1)


def ordered(engine_id: EngineId = E1) -> TransferOrdered:
    return TransferOrdered(
        order="m1", engine_id=engine_id, move=Move.DEMOTE, reason=MoveReason.PRESSURE, slices=(SliceId("1"),),
        from_tier=Tier.HBM, to_tier=Tier.DRAM,
    )  # fmt: skip


ENDS = {
    "finished": finished(R1),
    "preempted": preempted(R1),
    "aborted": aborted(R1),
    "aborted, but offered again": aborted(R1, final=False),
    "expired": RequestExpired(request_id=R1, waited_ns=1),
    "rejected": RequestRejected(request_id=R1, reason=RejectReason.EVICTED_DEADLINE_PASSED),
    "holder lost": HolderLost(holder=HolderId("h"), requests=(R1,)),
    "engine removed": EngineRemoved(engine_id=E1),
    "engine lost": EngineHealthChanged(engine_id=E1, health=Health.LOST),
}


def test_the_example_of_the_module_holds() -> None:
    house = House()
    assert house.after(arrived(R1, "1", "12"), admitted(R1)) == [Allocated(R1, E1, 20, 0)]
    assert house.after(finished(R1)) == [Freed(R1, E1, 4)]
    assert house.after(arrived(R2, "1", "13"), admitted(R2)) == [Allocated(R2, E1, 20, 1)]
    assert house.caches[E1].handle("r2").owner == "acme"
    assert house.stats.summary().tiers[Tier.HBM].hits == 1
    assert house.stats.summary().tiers[Tier.HBM].misses == 3


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_whatever_ends_a_request_gives_its_memory_back_once(end: Event) -> None:
    house = House()
    house.after(arrived(R1), admitted(R1))
    assert house.after(end) == [Freed(R1, E1, 20 if "engine" not in end.event_kind() else 0)]
    assert house.after(end) == []
    assert house.caches[E1].pool.tokens_free == 40


@pytest.mark.parametrize(
    ("before", "end", "cached"),
    [((), preempted(R1), 0), ((first_token(R1),), preempted(R1), 2), ((), aborted(R1), 0),
     ((first_token(R1),), aborted(R1), 2), ((), finished(R1), 2), ((first_token(R1),), EngineRemoved(engine_id=E1), 0)],
)  # fmt: skip
def test_only_what_was_computed_stays_cached(before: tuple[Event, ...], end: Event, cached: int) -> None:
    house = House()
    house.after(arrived(R1, "1", "12"), admitted(R1), *before, end, arrived(R2, "1", "12"))
    assert house.after(admitted(R2)) == [Allocated(R2, E1, 20, cached)]


def test_an_admission_said_again_allocates_nothing() -> None:
    house = House()
    house.after(arrived(R1), admitted(R1))
    assert house.after(admitted(R1)) == []
    assert house.caches[E1].pool.tokens_free == 20


def test_a_preempted_request_is_allocated_anew_where_it_goes_on() -> None:
    house = House()
    house.after(arrived(R1, "1", "12"), admitted(R1), first_token(R1), preempted(R1))
    assert house.after(admitted(R1)) == [Allocated(R1, E1, 20, 2)]
    assert house.after(aborted(R1, final=False), admitted(R1, E2)) == [Allocated(R1, E2, 20, 0)]
    assert house.after(preempted(R1, E2)) == [Freed(R1, E2, 20)], "its prefill there was not over"


def test_who_is_admitted_elsewhere_holds_nothing_here_any_more() -> None:
    house = House()
    house.after(arrived(R1), admitted(R1))
    assert house.after(admitted(R1, E2)) == [Freed(R1, E1, 20), Allocated(R1, E2, 20, 0)]
    assert house.after(admitted(R1, ELSEWHERE)) == [Freed(R1, E2, 20)]
    assert house.after(finished(R1, ELSEWHERE)) == []


def test_memory_that_is_not_there_is_refused_with_the_amounts() -> None:
    house = House()
    house.after(arrived(R1), admitted(R1, tokens=30), arrived(R2))
    [refused] = house.after(admitted(R2))
    assert isinstance(refused, Refused)
    assert (refused.name, refused.engine_id) == ("r2", E1)
    assert isinstance(refused.error, BudgetExceeded)
    assert house.after(finished(R2)) == []
    assert house.after(arrived(R2), admitted(R2, E2)) == [Allocated(R2, E2, 20, 0)]


@pytest.mark.parametrize("end", [finished(R1), preempted(R1), aborted(R1)], ids=["finished", "preempted", "aborted"])
def test_memory_that_is_being_read_is_freed_when_nobody_reads_it_any_more(end: Event) -> None:
    house = House()
    house.after(arrived(R1, "1", "12"), admitted(R1), first_token(R1))
    pool, handle = house.caches[E1].pool, house.caches[E1].handle("r1")
    pool.pin(handle)
    [refused] = house.after(end)
    assert isinstance(refused, Refused)
    assert isinstance(refused.error, Pinned)
    assert house.after(arrived(R2, "1", "12")) == []
    pool.unpin(handle)
    assert house.after(admitted(R2)) == [Freed(R1, E1, 4), Allocated(R2, E1, 20, 2)]


def test_who_comes_back_while_its_memory_is_being_read_waits_for_it() -> None:
    house = House()
    house.after(arrived(R1), admitted(R1))
    pool, handle = house.caches[E1].pool, house.caches[E1].handle("r1")
    pool.pin(handle)
    house.after(preempted(R1))
    [refused] = house.after(admitted(R1))
    assert isinstance(refused, Refused)
    pool.unpin(handle)
    assert house.after(admitted(R1)) == [Freed(R1, E1, 20), Allocated(R1, E1, 20, 0)]


def test_memory_that_somebody_else_gave_back_is_said_once() -> None:
    house = House()
    house.after(arrived(R1), admitted(R1))
    house.caches[E1].free("r1")
    [refused] = house.after(finished(R1))
    assert isinstance(refused, Refused)
    assert isinstance(refused.error, DoubleFree)
    assert house.after(finished(R1)) == []


def test_memory_that_is_being_read_is_gone_with_its_engine() -> None:
    house = House()
    house.after(arrived(R1), admitted(R1))
    house.caches[E1].pool.pin(house.caches[E1].handle("r1"))
    house.after(finished(R1))
    assert house.after(EngineRemoved(engine_id=E1)) == [Freed(R1, E1, 0)]
    assert house.after(finished(R1)) == []


def test_slices_of_another_length_are_not_looked_for() -> None:
    house = House()
    house.after(arrived(R1, "1", slice_tokens=16), admitted(R1), finished(R1), arrived(R2, "1"))
    assert house.after(admitted(R2)) == [Allocated(R2, E1, 20, 0)]


def test_of_too_many_requests_the_oldest_is_served_as_if_nothing_were_cached() -> None:
    house = House(requests_max=1)
    house.after(arrived(R1, "1"), admitted(R1), finished(R1), arrived(R1, "1"), arrived(R2, "1"))
    assert house.after(admitted(R1)) == [Allocated(R1, E1, 20, 0)]
    assert house.after(admitted(R2, tokens=8)) == [Allocated(R2, E1, 8, 1)]


def test_moves_go_to_the_engine_they_are_for() -> None:
    carried: list[TransferOrdered] = []
    house = House(carried=carried)
    assert house.after(ordered()) == [Migrating("m1", E1)]
    assert house.after(ordered(ELSEWHERE)) == []
    assert carried == [ordered()]
    house.after(TransferCancelled(order="m1", engine_id=E1, reason=CancelReason.TOO_LATE))
    house.after(TransferCancelled(order="m2", engine_id=ELSEWHERE, reason=CancelReason.TOO_LATE))
    assert house.cancelled == ["m1"]


def test_a_move_that_nothing_can_carry_out_is_refused() -> None:
    [refused] = House().after(ordered())
    assert isinstance(refused, Refused)
    assert isinstance(refused.error, TierUnavailable)
    assert refused.name == "m1"


EVENTS = st.one_of(
    st.sampled_from([arrived(name, *slices) for name in (R1, R2) for slices in ((), ("1",), ("1", "12"), ("1", "13"))]),
    st.builds(admitted, st.sampled_from([R1, R2]), st.sampled_from([E1, E2, ELSEWHERE]), st.sampled_from([1, 20, 39])),
    st.sampled_from([one(name) for one in (finished, preempted, aborted, first_token) for name in (R1, R2)]),
    st.sampled_from(list(ENDS.values())),
)


@settings(deadline=None)
@given(st.lists(EVENTS, max_size=40))
def test_in_any_order_nobody_holds_twice_and_when_all_ended_nothing_is_held(events: list[Event]) -> None:
    house = House()
    holds: dict[RequestId, EngineId] = {}
    for event in events:
        for done in house.after(event):
            match done:
                case Allocated():
                    assert done.request_id not in holds
                    holds[done.request_id] = done.engine_id
                case Freed():
                    assert holds.pop(done.request_id) == done.engine_id
                case _:
                    assert isinstance(done, Refused)
        for name, cache in house.caches.items():
            assert {request for request in (R1, R2) if request in cache} == {
                request for request, engine in holds.items() if engine == name
            }
    house.after(aborted(R1), aborted(R2))
    for cache in house.caches.values():
        assert cache.alloc("all", 40) == 0, "nothing leaks"
