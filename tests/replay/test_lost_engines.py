"""An engine with tiers dies in the middle of requests, loads and transfers: what is promised for that holds in virtual
time, from any seed. Its slices are lost but for what was whole on its SSD, requests are offered again once, orders that
died with it are not answered, and nobody is served what is not there."""

from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from functools import cache
from random import Random
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest

from events.base import NS_PER_MS, NS_PER_S, EngineId, Event, Recorded, RequestId, SliceId
from events.decisions import RequestAdmitted, TransferOrdered
from events.engine import EngineRegistered
from events.request import AbortReason, RequestAborted, RequestArrived
from events.slice import SlicesHit, SlicesStored, Tier, TransferFinished
from policies.catalog import ACTORS
from policies.predictors.step_time import FS_PER_NS
from replay.cluster import START_NS, Run, simulate
from replay.costmodel import registered
from replay.engines.carrier import Carrier
from replay.engines.changes import named
from replay.engines.job import Outcome
from replay.engines.light import LightEngine
from replay.engines.loads import Loads
from replay.engines.tiers import TierSizes
from replay.faults import Fault, FaultKind, TransferFaults
from replay.fleet import Fleet
from replay.verify import verify
from replay.workloads.mixed import LLM_MODEL, Mixed, mixed
from tests.replay.test_cluster import is_end, records

SHAPE = Mixed(
    seconds=60, sessions=20, bursts=0, waves=0, turns=((1, 4, 8),), document_tokens=((1, 3_000, 20_000),),
    think_ms=((1, 2_000, 8_000),),
)  # fmt: skip
"""Long prompts that come again when they have been pushed out."""
BEHIND = TierSizes(dram_bytes=2 << 30, ssd_bytes=12 << 30, ssd_write_bytes_per_s=1_000_000_000)
POOL = [registered(f"e{number}", [LLM_MODEL], kv_tokens=40_000, reports_slices=True) for number in (1, 2)]
OUT_NS = 2 * NS_PER_S


class Death(NamedTuple):
    """What an engine was in the middle of: requests that waited for slices, orders that it carried out, slices half
    written to its SSD; `whole` are those that it had there."""

    engine_id: EngineId
    loads: int
    orders: int
    writes: int
    whole: tuple[Hashable, ...]


def played(seed: int, faults: tuple[Fault, ...] = ()) -> Run:
    return simulate(
        [one for one in mixed(seed, SHAPE) if one.model == LLM_MODEL], POOL, faults=faults,
        tiers={one.engine_id: BEHIND for one in POOL},
        transfer_faults=TransferFaults(seed=seed, failing_ppm=100_000, stalling_ppm=50_000),
    )  # fmt: skip


@contextmanager
def moments() -> Iterator[dict[str, list[int]]]:
    """When loads and orders begin, and when an engine is looked at that writes to its SSD."""
    seen: dict[str, list[int]] = {"loads": [], "orders": [], "writes": []}
    begin, order, run_until = Loads.begin, Carrier.order, LightEngine.run_until

    def begun(self: Loads, *args: Any) -> None:
        before = len(self)
        begin(self, *args)
        if len(self) > before:
            seen["loads"].append(self._tiers.links.now_fs // FS_PER_NS)

    def ordered(self: Carrier, asked: TransferOrdered) -> None:
        order(self, asked)
        if self.is_busy:
            seen["orders"].append(self._tiers.links.now_fs // FS_PER_NS)

    def looked_at(self: LightEngine, now_ns: int) -> list[Outcome]:
        came = run_until(self, now_ns)
        if _death_of(self).writes:
            seen["writes"].append(now_ns)
        return came

    with (
        patch.object(Loads, "begin", begun),
        patch.object(Carrier, "order", ordered),
        patch.object(LightEngine, "run_until", looked_at),
    ):
        yield seen


@contextmanager
def deaths() -> Iterator[list[Death]]:
    """What each engine that is lost was in the middle of."""
    found: list[Death] = []
    lose = Fleet.lose

    def told(self: Fleet, pick: int, for_ns: int) -> EngineId | None:
        running = {place.registered.engine_id: place.running for place in self._places.values()}
        engine_id = lose(self, pick, for_ns)
        if engine_id is not None:
            one = running[engine_id]
            assert isinstance(one, LightEngine)
            assert one._now_ns == self._log.now_ns, "it dies as it is now, not as it was when it was looked at last"
            found.append(_death_of(one))
        return engine_id

    with patch.object(Fleet, "lose", told):
        yield found


def _death_of(one: LightEngine) -> Death:
    slow = one._slow
    assert slow is not None
    ssd = slow.tiers.ssd
    assert ssd is not None
    return Death(one.engine_id, len(slow.loads), len(slow._carrier._open), len(ssd._coming), tuple(ssd._kept))


@cache
def begun(seed: int) -> dict[str, list[int]]:
    with moments() as seen:
        played(seed)
    return seen


def killed(seed: int, amid: str) -> tuple[Run, list[Death]]:
    """Both engines die a millisecond after one of them began a load, or an order, or was seen to write: until then the
    run is the one in which nobody dies, so it is known when something will be on its way."""
    seen = begun(seed)[amid]
    at_ns = seen[Random(seed).randrange(len(seen) // 2)] + NS_PER_MS - START_NS  # Much is still to come then.
    faults = [Fault(at_ns=at_ns, kind=FaultKind.ENGINE_LOST, pick=pick, for_ns=OUT_NS) for pick in range(len(POOL))]
    with deaths() as found:
        return played(seed, tuple(faults)), found


@pytest.mark.parametrize("amid", ["loads", "orders", "writes"])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_promised_for_an_engine_that_dies_amid_a_transfer_holds(seed: int, amid: str) -> None:
    run, found = killed(seed, amid)

    assert [one.engine_id for one in found] == [one.engine_id for one in POOL]
    assert sum(getattr(one, amid) for one in found) > 0, "one of them was in the middle of it"
    said = records(run)
    assert verify(run.messages, run.pool, ACTORS).identical
    assert_every_request_ends_once_and_is_offered_again_once(said)
    for death in found:
        own = [one.event for one in said if getattr(one.event, "engine_id", None) == death.engine_id]
        again = [place for place, event in enumerate(own) if isinstance(event, EngineRegistered)][1]
        assert_slices_are_lost_but_for_whole_ones_on_ssd(own[again:], death)
        assert_orders_died_with_it(own, again)


def assert_every_request_ends_once_and_is_offered_again_once(said: list[Recorded]) -> None:
    ended = Counter(one.event.request_id for one in said if is_end(one.event))  # type: ignore[attr-defined]
    assert set(ended.values()) == {1}
    broken_off, again, admitted = Counter[RequestId](), Counter[RequestId](), Counter[RequestId]()
    for one in said:
        match one.event:
            case RequestAborted(request_id=request_id, reason=AbortReason.ENGINE_LOST, final=False):
                broken_off[request_id] += 1
            case RequestArrived(request_id=request_id, attempt=attempt) if attempt:
                again[request_id] += 1
            case RequestAdmitted(request_id=request_id, attempt=attempt, resumed=False) if attempt:
                admitted[request_id] += 1
            case _:
                pass
    assert broken_off == again
    assert set(again.values()) <= {1}
    assert set(admitted) <= set(again)


def assert_slices_are_lost_but_for_whole_ones_on_ssd(said: list[Event], death: Death) -> None:
    """What it says when it is there again: what is hit was stored, or was found whole on the disk."""
    there: dict[Tier, set[SliceId]] = {tier: set() for tier in Tier}
    first = next(event for event in said if isinstance(event, SlicesStored))
    whole = {name for names in named(list(death.whole)) for name in names}
    assert not whole or (first.tier, set(first.slices) <= whole) == (Tier.SSD, True)
    for event in said:
        match event:
            case SlicesStored():
                there[event.tier] |= set(event.slices)
            case SlicesHit():
                assert set(event.slices) <= there[event.tier], "nobody is served what is not there"
            case _:
                pass
    assert whole <= there[Tier.SSD], "what was whole is found again"


def assert_orders_died_with_it(said: list[Event], again: int) -> None:
    before = {event.order for event in said[:again] if isinstance(event, TransferOrdered)}
    answered = [event.order for event in said[again:] if isinstance(event, TransferFinished)]
    assert not before & set(answered)
    assert len(set(answered)) == len(answered), "the others are answered once"
