"""A request that is taken off its engine: what its holder does, in every state that it can be in then."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest
from msgspec.structs import replace

from events.base import Event, HolderId, Recorded
from events.decisions import DeferReason, HolderLost, RejectReason, RequestDeferred, RequestPreempted, RequestRejected
from events.request import AbortReason, DispatchStarted, RequestAborted, RequestArrived, RequestExpired, RequestFinished
from services.engines.base import Chunk
from services.gateway.errors import Refusal
from services.gateway.holder import Limits
from services.runtime.config import OnLogDown
from tests.services.gateway.rig import (
    Collected,
    Rig,
    ScriptedEngine,
    admit_to,
    admitted,
    answer,
    heard,
    kinds,
    lost,
    preempted,
    rig,
    say_decisions,
)

HEAD = ["request_arrived", "request_admitted", "dispatch_started"]
OVER = ["request_preempted", "request_admitted", "dispatch_started"]
TAIL = ["first_token_seen", "request_finished"]


class Served(NamedTuple):
    """A request that is being served, and where its answer goes."""

    house: Rig
    arrived: RequestArrived
    sink: Collected
    serving: asyncio.Task[None]

    async def say(self, *decisions: Event) -> Recorded:
        """Admission says something; returns once it stands in the log."""
        await say_decisions(self.house.log, list(decisions), "1.0")
        return await self.heard(lambda event: event == decisions[-1])

    async def heard(self, wanted: Callable[[Event], bool]) -> Recorded:
        return await heard(self.house.log, wanted)

    async def dispatched(self, times: int) -> None:
        """Until so many dispatches stand in the log."""
        async with asyncio.timeout(5):
            while kinds(await self.house.events()).count("dispatch_started") < times:  # noqa: ASYNC110
                await asyncio.sleep(0)


@asynccontextmanager
async def served(*engines: ScriptedEngine, limits: Limits | None = None, slo_ms: int = 10_000) -> AsyncIterator[Served]:
    async with rig(*engines, decide=admit_to("e1", "e2"), limits=limits) as house:
        ask, sink = house.ask(slo_ms=slo_ms), Collected()
        serving = asyncio.create_task(house.holder.serve(ask, sink))
        yield Served(house, ask.arrived, sink, serving)
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        assert house.holder.holding == 0


def before_its_token() -> ScriptedEngine:
    """The first call hangs before its first token; the second answers."""
    engine = ScriptedEngine("e1", [asyncio.Event()])

    def called() -> None:
        if len(engine.calls) > 1:
            engine.script = answer("a")

    engine.on_submit = called
    return engine


def in_its_stream(*, can_preempt: bool = True) -> tuple[ScriptedEngine, asyncio.Event]:
    """The first token comes, the rest when the gate is opened."""
    gate = asyncio.Event()
    engine = ScriptedEngine("e1", [Chunk(b"a", tokens=1), gate, *answer("b", "c")])
    engine.can_preempt = can_preempt
    return engine, gate


# Before the first token: the call is closed.


async def test_before_its_first_token_its_call_is_closed_and_it_waits_for_the_next_word() -> None:
    engine = before_its_token()
    async with served(engine) as one:
        await one.dispatched(1)
        await one.say(preempted(one.arrived))
        await asyncio.wait_for(engine.closed_early.wait(), 5)
        assert not one.serving.done()
        await one.say(admitted(one.arrived))
        await one.serving
        events = await one.house.events()

    assert kinds(events) == [*HEAD, *OVER, *TAIL]
    assert one.sink.data == [b"a"]
    assert engine.told == [], "nothing is asked of an engine that can simply be left"


async def test_it_goes_to_another_engine_when_the_next_word_says_so() -> None:
    async with served(before_its_token(), ScriptedEngine("e2", answer("b"))) as one:
        await one.dispatched(1)
        await one.say(preempted(one.arrived), admitted(one.arrived, "e2"))
        await one.serving
        finished = (await one.house.events())[-1]

    assert isinstance(finished, RequestFinished)
    assert finished.engine_id == "e2"
    assert one.sink.data == [b"b"]


async def test_it_is_not_called_when_it_is_taken_off_before_its_dispatch_stands_in_the_log() -> None:
    engine = ScriptedEngine("e1", answer("a"))
    async with rig(engine) as house:
        ask, sink = house.ask(), Collected()
        serving = asyncio.create_task(house.holder.serve(ask, sink))
        arrived = await heard(house.log, lambda event: isinstance(event, RequestArrived))
        await say_decisions(house.log, [admitted(ask.arrived), preempted(ask.arrived)], str(arrived.at))
        await heard(house.log, lambda event: isinstance(event, RequestPreempted))
        await house.events()
        assert engine.calls == []
        await say_decisions(house.log, [admitted(ask.arrived)], str(arrived.at))
        await serving
        assert len(engine.calls) == 1


async def test_it_is_taken_off_as_often_as_the_log_says() -> None:
    engine = ScriptedEngine("e1", [asyncio.Event()])
    async with served(engine) as one:
        for times in range(1, 4):
            await one.dispatched(times)
            await one.say(preempted(one.arrived), admitted(one.arrived))
        await one.dispatched(4)
        engine.script = answer("a")
        await one.say(preempted(one.arrived), admitted(one.arrived))
        await one.serving
        assert kinds(await one.house.events())[-2:] == TAIL


async def test_its_rejection_is_told_to_the_client() -> None:
    async with served(before_its_token()) as one:
        await one.dispatched(1)
        evicted = RequestRejected(request_id=one.arrived.request_id, reason=RejectReason.EVICTED_DEADLINE_PASSED)
        await one.say(preempted(one.arrived), evicted)
        with pytest.raises(Refusal) as refused:
            await one.serving

    assert (refused.value.status, refused.value.code) == (429, "evicted_deadline_passed")


async def test_a_deferral_keeps_it_waiting_as_it_does_any_other() -> None:
    async with served(before_its_token(), slo_ms=50) as one:
        await one.dispatched(1)
        until_ns = one.house.clock.now_ns() + 10**10
        deferred = RequestDeferred(request_id=one.arrived.request_id, until_ns=until_ns, reason=DeferReason.KV_BUDGET)
        await one.say(preempted(one.arrived), deferred)
        await asyncio.sleep(0.1)  # Its deadline passes: what is shown is that nothing happens.
        await one.say(admitted(one.arrived))
        await one.serving
        assert kinds(await one.house.events())[-1] == "request_finished"


async def test_without_a_next_word_it_expires_by_the_holders_own_clock() -> None:
    async with served(before_its_token(), slo_ms=50) as one:
        one.house.clock.speed = 20
        await one.dispatched(1)
        await one.say(preempted(one.arrived))
        with pytest.raises(Refusal) as refused:
            await one.serving
        assert isinstance((await one.house.events())[-1], RequestExpired)

    assert refused.value.code == "expired"


# In its stream: it stays open.


async def test_in_its_stream_the_engine_keeps_it_and_it_goes_on_where_it_stood() -> None:
    engine, gate = in_its_stream()
    async with served(engine) as one:
        await one.sink.got.wait()
        await one.say(preempted(one.arrived, output_tokens=1))
        await engine.preempted.wait()
        gate.set()
        assert one.sink.data == [b"a"]
        resumed = await one.say(replace(admitted(one.arrived), resumed=True))
        await one.serving
        events = await one.house.events()

    assert kinds(events) == [*HEAD, "first_token_seen", *OVER, "request_finished"]
    assert engine.told == ["preempt r1", "resume r1"]
    assert one.sink.data == [b"a", b"b", b"c"]
    assert len(engine.calls) == 1, "it is the same call"
    finished = await heard(one.house.log, lambda event: isinstance(event, RequestFinished))
    assert finished.cause == str(resumed.at)


async def test_it_goes_on_only_once_its_dispatch_stands_in_the_log() -> None:
    engine, gate = in_its_stream()
    async with served(engine) as one:
        await one.sink.got.wait()
        await one.say(preempted(one.arrived, output_tokens=1))
        before: list[int] = []
        resume = engine.resume

        async def resume_seen(request_id: str) -> None:
            before.append(sum(message.subject.endswith("dispatch_started") for message in one.house.log._messages))
            await resume(one.arrived.request_id)

        engine.resume = resume_seen  # type: ignore[assignment,method-assign]
        await engine.preempted.wait()
        gate.set()
        await one.say(replace(admitted(one.arrived), resumed=True))
        await one.serving

    assert before == [2]


async def test_orders_that_follow_each_other_at_once_are_all_kept() -> None:
    engine, gate = in_its_stream()
    async with served(engine) as one:
        await one.sink.got.wait()
        order, again = preempted(one.arrived, output_tokens=1), replace(admitted(one.arrived), resumed=True)
        await one.say(order, again, order, again, order)
        await engine.preempted.wait()
        gate.set()
        await one.say(again)
        await one.serving
        assert kinds(await one.house.events())[-1] == "request_finished"

    assert engine.told[-1] == "resume r1"
    assert one.sink.data == [b"a", b"b", b"c"]


async def test_an_order_that_comes_too_late_for_an_engine_that_cannot_is_not_carried_out() -> None:
    engine, gate = in_its_stream(can_preempt=False)
    async with served(engine) as one:
        await one.sink.got.wait()
        await one.say(preempted(one.arrived))
        gate.set()
        await one.serving
        events = await one.house.events()

    assert kinds(events) == [*HEAD, "first_token_seen", "request_preempted", "request_finished"]
    assert engine.told == []


async def test_a_stream_that_is_evicted_for_good_ends() -> None:
    engine, _ = in_its_stream()
    async with served(engine) as one:
        await one.sink.got.wait()
        evicted = RequestRejected(request_id=one.arrived.request_id, reason=RejectReason.EVICTED_DEADLINE_PASSED)
        await one.say(preempted(one.arrived, output_tokens=1), evicted)
        with pytest.raises(Refusal):
            await one.serving
    assert engine.closed_early.is_set()


async def test_a_stream_cannot_move_so_a_word_that_names_another_engine_is_waited_out() -> None:
    engine, gate = in_its_stream()
    async with served(engine, ScriptedEngine("e2", answer("z"))) as one:
        await one.sink.got.wait()
        resumed = replace(admitted(one.arrived), resumed=True)
        await one.say(preempted(one.arrived), admitted(one.arrived, "e2"), resumed)
        await engine.preempted.wait()
        gate.set()
        await one.serving
        started = [event for event in await one.house.events() if isinstance(event, DispatchStarted)]

    assert [event.engine_id for event in started] == ["e1", "e1"]
    assert one.sink.data == [b"a", b"b", b"c"]


async def test_an_order_for_an_engine_that_it_is_not_on_changes_nothing() -> None:
    engine, gate = in_its_stream()
    async with served(engine) as one:
        await one.sink.got.wait()
        await one.say(preempted(one.arrived, "e2"), replace(preempted(one.arrived), attempt=1))
        gate.set()
        await one.serving

    assert engine.told == []


# However it ends meanwhile, it ends cleanly.


async def client_gone(one: Served) -> None:
    one.house.holder.abort(one.arrived.request_id, AbortReason.CLIENT_GONE)


async def shut_down(one: Served) -> None:
    await one.house.holder.stop()


async def holder_lost(one: Served) -> None:
    await one.say(HolderLost(holder=HolderId("g1"), requests=(one.arrived.request_id,)))


@pytest.mark.parametrize(
    ("end", "said"), [(client_gone, "request_aborted"), (shut_down, "holder_stopped"), (holder_lost, "holder_lost")]
)
@pytest.mark.parametrize("began", [False, True], ids=["before its token", "in its stream"])
async def test_a_request_that_waits_again_can_end_at_any_time(
    began: bool, end: Callable[[Served], asyncio.Future[None]], said: str
) -> None:
    engine = in_its_stream()[0] if began else before_its_token()
    async with served(engine) as one:
        await (one.sink.got.wait() if began else one.dispatched(1))
        await one.say(preempted(one.arrived, output_tokens=int(began)))
        await one.house.events()
        await end(one)
        with pytest.raises(Refusal):
            await one.serving
        assert kinds(await one.house.events())[-1] == said
    assert engine.closed_early.is_set(), "what it held in the engine is free"


async def test_client_that_leaves_in_the_moment_of_the_order_leaves_nothing_behind() -> None:
    engine = before_its_token()
    async with served(engine) as one:
        await one.dispatched(1)
        place = await one.heard(lambda event: isinstance(event, DispatchStarted))
        one.house.holder.take(replace(place, event=preempted(one.arrived)))
        one.serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await one.serving
        aborted = (await one.house.events())[-1]

    assert isinstance(aborted, RequestAborted)
    assert aborted.reason is AbortReason.CLIENT_GONE


async def test_engine_that_is_lost_while_it_keeps_a_stream_ends_it() -> None:
    engine = ScriptedEngine("e1", [Chunk(b"a", tokens=1), asyncio.Event()])
    engine.can_preempt = True

    async def fails(request_id: str) -> bool:
        raise lost()

    engine.preempt = fails  # type: ignore[assignment,method-assign]
    async with served(engine) as one:
        await one.sink.got.wait()
        await one.say(preempted(one.arrived, output_tokens=1))
        with pytest.raises(Refusal):
            await one.serving
        aborted = (await one.house.events())[-1]

    assert isinstance(aborted, RequestAborted)
    assert (aborted.reason, aborted.final) == (AbortReason.ENGINE_LOST, True)


@pytest.mark.parametrize("on_log_down", list(OnLogDown))
async def test_a_kept_stream_goes_on_without_the_log_only_where_requests_pass_undecided(on_log_down: OnLogDown) -> None:
    engine, gate = in_its_stream()
    async with served(engine, limits=Limits(on_log_down=on_log_down)) as one:
        await one.sink.got.wait()
        await one.say(preempted(one.arrived, output_tokens=1))
        await engine.preempted.wait()
        gate.set()
        one.house.log.off = True
        one.house.holder._say_beat()
        await one.house.holder.health.up_until(asyncio.Future())
        if on_log_down is OnLogDown.REFUSE:
            assert engine.told == ["preempt r1"]
            one.house.log.off = False
            await one.say(replace(admitted(one.arrived), resumed=True))
        await one.serving
        one.house.log.off = False
        await one.house.events()

    assert one.sink.data == [b"a", b"b", b"c"]
