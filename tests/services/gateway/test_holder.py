"""The holder without HTTP: what it says, in which order, and how each request ends."""

import asyncio

import pytest

from events.base import NS_PER_S, EngineId, Event, HolderId, RequestId
from events.decisions import DeferReason, HolderLost, RejectReason, RequestAdmitted, RequestDeferred, RequestRejected
from events.request import (
    AbortReason,
    FinishReason,
    HolderBeat,
    RequestAborted,
    RequestArrived,
    RequestExpired,
    RequestFinished,
)
from services.engines.base import Chunk, EngineError, Usage
from services.gateway.errors import DROPPED_REASON, Refusal
from services.gateway.held import Route
from services.gateway.holder import Limits
from services.runtime.config import OnLogDown
from tests.services.gateway.rig import (
    Collected,
    ScriptedEngine,
    admit_to,
    admitted,
    answer,
    heard,
    kinds,
    lost,
    records,
    rig,
    say_decisions,
)

SERVED = ["request_arrived", "request_admitted", "dispatch_started", "first_token_seen", "request_finished"]


async def test_admitted_request_is_served_and_stands_in_the_log_with_its_causes() -> None:
    engine = ScriptedEngine("e1", answer("a", "b", "c", usage=Usage(12, 3, cached_tokens=4, finish_reason="length")))
    async with rig(engine, decide=admit_to("e1")) as house:
        sink = Collected()
        await house.holder.serve(house.ask(), sink)
        events = await house.events()

        assert kinds(events) == SERVED
        assert sink.data == [b"a", b"b", b"c"]
        assert sink.route is not None
        assert sink.route.decided
        finished = events[-1]
        assert isinstance(finished, RequestFinished)
        assert (finished.prompt_tokens, finished.output_tokens, finished.cached_tokens) == (12, 3, 4)
        assert finished.kv_cache_tokens == 15
        assert finished.finish_reason is FinishReason.LENGTH
        assert 0 < finished.ttft_ns <= finished.e2e_ns
        decision = next(each for each in await records(house.log) if each.actor == "admission")
        causes = [each.cause for each in await records(house.log) if each.event.event_kind() in SERVED[2:]]
        assert causes == [str(decision.at)] * 3
        assert isinstance(decision.event, RequestAdmitted)
        assert [call.output_expected for call in engine.calls] == [decision.event.output_tokens_predicted]


async def test_engine_is_called_only_once_the_dispatch_stands_in_the_log() -> None:
    engine = ScriptedEngine("e1", answer("a"))
    async with rig(engine, decide=admit_to("e1")) as house:
        subjects_at_call: list[str] = []
        engine.on_submit = lambda: subjects_at_call.extend(m.subject for m in house.log._messages)
        await house.holder.serve(house.ask(), Collected())

    assert subjects_at_call[-1].endswith("dispatch_started")
    assert engine.calls[0].body == b"to e1"


@pytest.mark.parametrize(
    ("reason", "retry_after_ns", "status", "headers"),
    [
        (RejectReason.QUEUE_FULL, 1_500_000_000, 429, {"retry-after": "2"}),
        (RejectReason.SLO_INFEASIBLE, 0, 429, {"x-should-retry": "false"}),
        (RejectReason.KV_BUDGET, 1, 429, {"retry-after": "1"}),
        (RejectReason.DEADLINE_PASSED, 5_000_000_000, 429, {"retry-after": "5"}),
        (RejectReason.NO_ENGINE, 0, 503, {"retry-after": "1"}),
        (RejectReason.TOO_LONG, 0, 400, {}),
    ],
)
async def test_rejection_becomes_its_status_and_calls_no_engine(
    reason: RejectReason, retry_after_ns: int, status: int, headers: dict[str, str]
) -> None:
    def decide(event: Event) -> list[Event]:
        if not isinstance(event, RequestArrived):
            return []
        return [RequestRejected(request_id=event.request_id, reason=reason, retry_after_ns=retry_after_ns)]

    engine = ScriptedEngine("e1", answer("a"))
    async with rig(engine, decide=decide) as house:
        with pytest.raises(Refusal) as refused:
            await house.holder.serve(house.ask(), Collected())

        assert refused.value.status == status
        assert refused.value.headers == {DROPPED_REASON: str(reason), **headers}
        assert engine.calls == []
        assert kinds(await house.events()) == ["request_arrived", "request_rejected"]


def defer_to_the_deadline(event: Event) -> list[Event]:
    if isinstance(event, RequestArrived):
        return [RequestDeferred(request_id=event.request_id, until_ns=event.deadline_ns, reason=DeferReason.KV_BUDGET)]
    return []


async def test_deferred_request_waits_for_the_next_word() -> None:
    async with rig(ScriptedEngine("e1", answer("a")), decide=defer_to_the_deadline) as house:
        ask = house.ask()
        serving = asyncio.create_task(house.holder.serve(ask, Collected()))
        deferred = await heard(house.log, lambda event: isinstance(event, RequestDeferred))
        assert not serving.done()
        await say_decisions(house.log, [admitted(ask.arrived)], str(deferred.at))
        await serving

        assert kinds(await house.events())[-1] == "request_finished"


async def test_deferred_request_is_not_left_waiting_when_no_tick_comes_any_more() -> None:
    async with rig(ScriptedEngine("e1", answer("a")), decide=defer_to_the_deadline) as house:
        house.clock.speed = 20
        house.clock.follow(house.clock.now_ns())  # The last one.
        async with asyncio.timeout(5):
            with pytest.raises(Refusal) as refused:
                await house.holder.serve(house.ask(slo_ms=8_000), Collected())
        assert refused.value.code == "expired"
        *_, expired = await house.events()
        assert isinstance(expired, RequestExpired)
        assert expired.waited_ns >= 8 * NS_PER_S


async def test_request_without_any_decision_expires_by_the_holders_own_clock() -> None:
    async with rig(ScriptedEngine("e1", answer("a"))) as house:
        with pytest.raises(Refusal) as refused:
            await house.holder.serve(house.ask(slo_ms=10), Collected())

        assert refused.value.status == 503
        arrived, expired = await house.events()
        assert isinstance(arrived, RequestArrived)
        assert isinstance(expired, RequestExpired)
        assert expired.waited_ns >= 10_000_000


async def test_engine_lost_before_the_first_token_is_offered_again_once() -> None:
    dead, alive = ScriptedEngine("e1", [lost()]), ScriptedEngine("e2", answer("a"))
    async with rig(dead, alive, decide=admit_to("e1", "e2")) as house:
        sink = Collected()
        await house.holder.serve(house.ask(), sink)
        events = await house.events()

        assert kinds(events) == [*SERVED[:3], "request_aborted", *SERVED]
        aborted, again = events[3], events[4]
        assert isinstance(aborted, RequestAborted)
        assert (aborted.final, aborted.reason) == (False, AbortReason.ENGINE_LOST)
        assert isinstance(again, RequestArrived)
        assert again.attempt == 1
        assert sink.data == [b"a"]


@pytest.mark.parametrize(
    ("first", "second", "attempts"),
    [
        pytest.param([lost()], [lost("e2")], 2, id="lost twice"),
        pytest.param([Chunk(b"a", tokens=1), lost()], [], 1, id="lost after the first token"),
    ],
)
async def test_lost_engine_ends_the_request_for_good(first: list, second: list, attempts: int) -> None:  # type: ignore[type-arg]
    engines = ScriptedEngine("e1", first), ScriptedEngine("e2", second)
    async with rig(*engines, decide=admit_to("e1", "e2")) as house:
        with pytest.raises(Refusal) as refused:
            await house.holder.serve(house.ask(), Collected())

        assert (refused.value.status, refused.value.code) == (503, "engine_lost")
        events = await house.events()
        assert kinds(events).count("request_arrived") == attempts
        assert isinstance(events[-1], RequestAborted)
        assert events[-1].final
        assert house.holder.holding == 0


async def test_engines_refusal_goes_to_the_client_as_it_is() -> None:
    refusal = EngineError("no", engine_id=EngineId("e1"), lost=False, status=422, body=b'{"error":"its own"}')
    async with rig(ScriptedEngine("e1", [refusal]), decide=admit_to("e1")) as house:
        with pytest.raises(Refusal) as refused:
            await house.holder.serve(house.ask(), Collected())

        assert (refused.value.status, refused.value.body()) == (422, b'{"error":"its own"}')
        assert kinds(await house.events())[-1] == "request_aborted"


async def test_engine_that_this_gateway_does_not_know_counts_as_lost() -> None:
    async with rig(ScriptedEngine("e2", answer("a")), decide=admit_to("elsewhere", "e2")) as house:
        await house.holder.serve(house.ask(), Collected())

        assert kinds(await house.events())[-1] == "request_finished"


async def test_client_that_goes_away_aborts_the_engines_work() -> None:
    engine = ScriptedEngine("e1", [Chunk(b"a", tokens=1), asyncio.Event()])
    async with rig(engine, decide=admit_to("e1")) as house:
        sink = Collected()
        ask = house.ask()
        serving = asyncio.create_task(house.holder.serve(ask, sink))
        await sink.got.wait()
        house.holder.abort(ask.arrived.request_id, AbortReason.CLIENT_GONE)
        with pytest.raises(Refusal):
            await serving

        assert engine.closed_early.is_set()
        last = (await house.events())[-1]
        assert isinstance(last, RequestAborted)
        assert (last.reason, last.output_tokens, last.final) == (AbortReason.CLIENT_GONE, 1, True)


async def test_cancelled_caller_ends_its_request_and_stays_cancelled() -> None:
    async with rig(ScriptedEngine("e1", [asyncio.Event()]), decide=admit_to("e1")) as house:
        serving = asyncio.create_task(house.holder.serve(house.ask(), Collected()))
        await heard(house.log, lambda event: event.event_kind() == "dispatch_started")
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving

        last = (await house.events())[-1]
        assert isinstance(last, RequestAborted)
        assert last.reason is AbortReason.CLIENT_GONE


async def test_holder_that_was_given_up_ends_what_is_named() -> None:
    async with rig(ScriptedEngine("e1", [Chunk(b"a", tokens=1), asyncio.Event()]), decide=admit_to("e1")) as house:
        sink = Collected()
        ask = house.ask()
        serving = asyncio.create_task(house.holder.serve(ask, sink))
        await sink.got.wait()
        lost_now = HolderLost(holder=HolderId("g1"), requests=(ask.arrived.request_id,))
        await say_decisions(house.log, [lost_now], "1.0")
        with pytest.raises(Refusal):
            await serving

        assert "request_aborted" not in kinds(await house.events()), "admission has ended it already"


async def test_requests_that_came_after_the_loss_go_on_and_are_not_lost_again() -> None:
    """A holder that beats under another epoch while admission holds requests of it has lost them all."""
    gate = asyncio.Event()
    async with rig(ScriptedEngine("e1", [gate, *answer("a")]), decide=admit_to("e1")) as house:
        serving = asyncio.create_task(house.holder.serve(house.ask(), Collected()))
        await heard(house.log, lambda event: event.event_kind() == "dispatch_started")
        first = await heard(house.log, lambda event: isinstance(event, HolderBeat))
        await say_decisions(house.log, [HolderLost(holder=HolderId("g1"), requests=(RequestId("old"),))], "1.0")
        house.holder.take(await heard(house.log, lambda event: isinstance(event, HolderLost)))
        gate.set()
        await serving
        await heard(house.log, lambda event: isinstance(event, RequestFinished))
        assert isinstance(first.event, HolderBeat)
        beats = [each.event for each in await records(house.log) if isinstance(each.event, HolderBeat)]
        assert len(beats) >= 2, "it says at once that it is there"
        assert {beat.epoch for beat in beats} == {first.event.epoch}


async def test_whatever_breaks_a_request_frees_what_it_reserved() -> None:
    class Broken(Collected):
        async def begin(self, route: Route, first: Chunk) -> None:
            raise UnicodeEncodeError("latin-1", "x", 0, 1, "a header that cannot be sent")

    async with rig(ScriptedEngine("e1", answer("a")), decide=admit_to("e1")) as house:
        with pytest.raises(UnicodeEncodeError):
            await house.holder.serve(house.ask(), Broken())
        await heard(house.log, lambda event: isinstance(event, RequestAborted))
        assert house.holder.holding == 0


async def test_of_an_answer_in_one_piece_no_first_token_is_said() -> None:
    """It would be the time of the whole answer, and predictions would be held against it."""
    async with rig(ScriptedEngine("e1", answer("a")), decide=admit_to("e1")) as house:
        await house.holder.serve(house.ask(stream=False), Collected())
        await heard(house.log, lambda event: event.event_kind() == "request_finished")
        assert "first_token_seen" not in kinds(await house.events())


async def test_loss_of_another_holder_changes_nothing_here() -> None:
    gate = asyncio.Event()
    async with rig(ScriptedEngine("e1", [gate, *answer("a")]), decide=admit_to("e1")) as house:
        serving = asyncio.create_task(house.holder.serve(house.ask(), Collected()))
        await heard(house.log, lambda event: event.event_kind() == "dispatch_started")
        await say_decisions(house.log, [HolderLost(holder=HolderId("other"))], "1.0")
        gate.set()
        await serving


async def test_beats_tell_how_far_streams_are() -> None:
    engine = ScriptedEngine("e1", [Chunk(b"abc", tokens=3), asyncio.Event()])
    async with rig(engine, decide=admit_to("e1")) as house:
        sink = Collected()
        serving = asyncio.create_task(house.holder.serve(house.ask(), sink))
        await sink.got.wait()
        house.holder._say_beat()
        beat = await heard(house.log, lambda event: isinstance(event, HolderBeat) and bool(event.progress))
        assert isinstance(beat.event, HolderBeat)
        assert [(each.request_id, each.output_tokens) for each in beat.event.progress] == [(RequestId("r1"), 3)]
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def test_holder_takes_no_more_than_its_limit() -> None:
    limits = Limits(requests_max=1)
    async with rig(ScriptedEngine("e1", [asyncio.Event()]), decide=admit_to("e1"), limits=limits) as house:
        first = asyncio.create_task(house.holder.serve(house.ask(), Collected()))
        await heard(house.log, lambda event: event.event_kind() == "dispatch_started")
        with pytest.raises(Refusal) as refused:
            await house.holder.serve(house.ask(), Collected())

        assert (refused.value.status, refused.value.headers["retry-after"]) == (503, "1")
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)


async def test_one_request_id_is_served_once_at_a_time() -> None:
    async with rig(ScriptedEngine("e1", [asyncio.Event()]), decide=admit_to("e1")) as house:
        first = asyncio.create_task(house.holder.serve(house.ask(request_id="same"), Collected()))
        await heard(house.log, lambda event: event.event_kind() == "dispatch_started")
        with pytest.raises(Refusal) as refused:
            await house.holder.serve(house.ask(request_id="same"), Collected())
        assert refused.value.status == 409
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)


async def test_stopping_holder_ends_its_requests_and_says_so() -> None:
    async with rig(ScriptedEngine("e1", [Chunk(b"a", tokens=1), asyncio.Event()]), decide=admit_to("e1")) as house:
        sink = Collected()
        serving = asyncio.create_task(house.holder.serve(house.ask(), sink))
        await sink.got.wait()
        await house.holder.stop()
        with pytest.raises(Refusal):
            await serving
        with pytest.raises(Refusal):
            await house.holder.serve(house.ask(), Collected())

        assert kinds(await house.events())[-2:] == ["request_aborted", "holder_stopped"]


# The log goes down.


async def down(house: object) -> None:
    """Returns when the holder has noticed."""
    house.log.off = True  # type: ignore[attr-defined]
    house.holder._say_beat()  # type: ignore[attr-defined]
    await house.holder.health.up_until(asyncio.Future())  # type: ignore[attr-defined]


async def test_log_down_refuses_with_retry_after_and_recovers_by_itself() -> None:
    async with rig(ScriptedEngine("e1", answer("a")), decide=admit_to("e1")) as house:
        await down(house)
        with pytest.raises(Refusal) as refused:
            await house.holder.serve(house.ask(), Collected())
        assert (refused.value.status, refused.value.code) == (503, "log_down")
        assert int(refused.value.headers["retry-after"]) >= 1

        house.log.off = False
        await house.events()
        await house.holder.serve(house.ask(), Collected())
        assert kinds(await house.events()) == SERVED


async def test_log_down_passes_requests_undecided_bounded_and_says_them_later() -> None:
    gate = asyncio.Event()
    limits = Limits(on_log_down=OnLogDown.PASS)
    engine = ScriptedEngine("e1", [Chunk(b"a", tokens=1), gate])
    async with rig(engine, decide=admit_to("e1"), limits=limits) as house:
        await down(house)
        sinks = [Collected(), Collected()]
        passed = [asyncio.create_task(house.holder.serve(house.ask(), sink)) for sink in sinks]
        for sink in sinks:
            await sink.got.wait()
            assert sink.route is not None
            assert not sink.route.decided
        with pytest.raises(Refusal) as refused:
            await house.holder.serve(house.ask(), Collected())
        assert refused.value.code == "log_down", "two calls are all that an engine of two sequences gets"

        gate.set()
        await asyncio.gather(*passed)
        house.log.off = False
        events = await house.events()
        assert kinds(events).count("request_arrived") == kinds(events).count("request_finished") == 2


@pytest.mark.parametrize("on_log_down", list(OnLogDown))
async def test_request_that_waits_when_the_log_goes_down_is_answered(on_log_down: OnLogDown) -> None:
    async with rig(ScriptedEngine("e1", answer("a")), limits=Limits(on_log_down=on_log_down)) as house:
        sink = Collected()
        serving = asyncio.create_task(house.holder.serve(house.ask(), sink))
        await heard(house.log, lambda event: isinstance(event, RequestArrived))
        await down(house)
        if on_log_down is OnLogDown.PASS:
            await serving
            assert sink.data == [b"a"]
        else:
            with pytest.raises(Refusal):
                await serving
        house.log.off = False
        ended = "request_finished" if on_log_down is OnLogDown.PASS else "request_expired"
        assert kinds(await house.events())[-1] == ended


@pytest.mark.parametrize("on_log_down", list(OnLogDown))
async def test_request_whose_slack_ends_before_the_log_counts_as_down_is_passed_on_where_told_so(
    on_log_down: OnLogDown,
) -> None:
    limits = Limits(on_log_down=on_log_down)
    async with rig(ScriptedEngine("e1", answer("a")), limits=limits, log_down_after_s=60) as house:
        house.log.off = True
        sink = Collected()
        serving = asyncio.create_task(house.holder.serve(house.ask(slo_ms=10), sink))
        if on_log_down is OnLogDown.PASS:
            await serving
            assert sink.data == [b"a"]
        else:
            with pytest.raises(Refusal) as refused:
                await serving
            assert refused.value.code == "expired"


async def test_streams_in_flight_are_not_harmed_by_a_log_outage() -> None:
    gate = asyncio.Event()
    engine = ScriptedEngine("e1", [Chunk(b"a", tokens=1), gate, Chunk(b"b", tokens=1)])
    async with rig(engine, decide=admit_to("e1")) as house:
        sink = Collected()
        serving = asyncio.create_task(house.holder.serve(house.ask(), sink))
        await sink.got.wait()
        await down(house)
        gate.set()
        await serving
        assert sink.data == [b"a", b"b"]

        house.log.off = False
        assert kinds(await house.events()) == SERVED


async def test_full_queue_of_facts_loses_facts_not_streams() -> None:
    gate = asyncio.Event()
    engine = ScriptedEngine("e1", [Chunk(b"a", tokens=1), gate, Chunk(b"b", tokens=1)])
    async with rig(engine, decide=admit_to("e1")) as house:
        sink = Collected()
        serving = asyncio.create_task(house.holder.serve(house.ask(), sink))
        await sink.got.wait()
        await down(house)
        house.writer._queue_max = 0
        gate.set()
        await serving

        assert sink.data == [b"a", b"b"]
        assert b'tidegate_gateway_facts_lost_total{kind="request_finished"} 1.0' in house.holder._metrics.text()
