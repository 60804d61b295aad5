"""Who keeps the payload: says that a request arrived, waits for the decision, and only then calls the engine.

    RequestArrived -> (decision) -> DispatchStarted -> engine -> FirstTokenSeen -> RequestFinished | RequestAborted

Write first, act second: no engine is called for a decision that does not stand in the log, nor before
DispatchStarted does. Two exceptions, both bounded and marked: while the log is down a request may pass undecided
(`on_log_down = pass`), and a request whose slack has passed is answered by this machine's own clock.

A request that is preempted before its answer began has its call closed, and waits for the next word as it did for the
first. After that its stream stays open, and the engine keeps it, without its KV, until the next word (`_park`).
HTTP is not known here: a request comes as an `Ask`, its answer goes to a `Sink`.
"""

import asyncio
import logging
import secrets
from contextlib import aclosing
from typing import Final, NamedTuple, assert_never

import msgspec

from events.base import NS_PER_S, Cause, EngineId, Event, HolderId, LogError, Recorded, RequestId
from events.decisions import HolderLost, RequestAdmitted, RequestDeferred, RequestPreempted, RequestRejected
from events.request import (
    AbortReason,
    DispatchStarted,
    FirstTokenSeen,
    HolderBeat,
    HolderStopped,
    Progress,
    RequestAborted,
    RequestExpired,
)
from services.engines.base import EngineError, InferenceBackend
from services.engines.open import Engines
from services.gateway.engine_book import EngineBook
from services.gateway.errors import Refusal, rejected, unavailable
from services.gateway.gateway_metrics import GatewayMetrics, Preempted
from services.gateway.held import NO_ENGINE, Ask, Held, Route, Sink, Word
from services.gateway.log_health import LogHealth
from services.runtime.config import OnLogDown
from services.runtime.facts import FactWriter
from services.runtime.pool_clock import PoolClock

ATTEMPT_MAX: Final = 1
"""A request whose engine was lost is offered again once."""
DECISION_WAIT_MIN_S: Final = 0.25
"""Wall time that admission has at least: its own word is better than this clock's, and the log's round trip does not
run faster in accelerated time."""
DEFERRED_GRACE_NS: Final = NS_PER_S
"""A deferred request that runs out of time is rejected by admission at its next tick."""
RETRY_AFTER_LOG_DOWN_S: Final = 2
STOP_WAIT_S: Final = 5.0
"""How long a stopping holder waits for clients that are slow to take their last words."""

logger = logging.getLogger(__name__)


class Limits(NamedTuple):
    """How much a holder takes, and what it does while the log is down."""

    requests_max: int = 4_096
    on_log_down: OnLogDown = OnLogDown.REFUSE


class Holder:
    """One holder of one process. `run` and `health.watch` must be running while `serve` is used."""

    def __init__(
        self,
        name: HolderId,
        *,
        writer: FactWriter,
        engines: Engines,
        book: EngineBook,
        clock: PoolClock,
        health: LogHealth,
        metrics: GatewayMetrics,
        limits: Limits,
    ) -> None:
        self.name, self.health = name, health
        self._writer, self._engines, self._book, self._clock = writer, engines, book, clock
        self._metrics, self._limits = metrics, limits
        self._held: dict[RequestId, Held] = {}
        self._epoch = secrets.token_hex(4)
        self._stopping = False

    @property
    def holding(self) -> int:
        """Requests in its hands."""
        return len(self._held)

    async def serve(self, ask: Ask, sink: Sink) -> None:
        """Serve one request: its answer goes to the sink. Raises Refusal where there is none, or where it broke off
        (the sink knows whether it had begun). Cancelling the caller ends the request as `aborted_client_gone`."""
        held = self._take(ask)
        try:
            await self._serve(held, sink)
        except asyncio.CancelledError:
            raise self._aborted(held) from None
        except Refusal:
            raise
        except Exception:
            # Whatever it is: what the request reserved is free, and its answer reaches nobody.
            self._say_aborted(held, AbortReason.CLIENT_GONE)
            raise
        finally:
            del self._held[ask.arrived.request_id]
            if held.parking is not None:
                held.parking.cancel()

    def abort(self, request_id: RequestId, reason: AbortReason) -> None:
        """End a request: its engine call is closed, `serve` raises Refusal. No error when it is not here."""
        held = self._held.get(request_id)
        if held is not None and held.ended is None:
            held.ended = reason
            held.task.cancel()

    def take(self, recorded: Recorded) -> None:
        """A record of admission's decisions."""
        match recorded.event:
            case RequestAdmitted() | RequestRejected() as decision:
                held = self._held.get(decision.request_id)
                if held is not None and held.attempt == decision.attempt and not held.word.done():
                    self._take_word(held, Word(decision, str(recorded.at)))
            case RequestDeferred() as deferral:
                held = self._held.get(deferral.request_id)
                if held is not None and held.attempt == deferral.attempt:
                    # In steady time: a holder answers by its own clock, also when no tick comes any more.
                    held.deferred_until_ns = self._clock.steady_ns() + deferral.until_ns - self._clock.now_ns()
            case RequestPreempted() as order:
                held = self._held.get(order.request_id)
                if held is not None and held.attempt == order.attempt:
                    self._take_off(held, order.engine_id)
            case HolderLost(holder=self.name) as lost:
                self._was_lost(lost)
            case _:
                pass

    async def beat(self) -> None:
        """Say every pool second that this holder is alive, and how far its streams are, until it stops."""
        while not self._stopping:
            if not self.health.is_down:
                self._say_beat()
            self._metrics.beat(self.holding, self._writer.waiting)
            await self._engines.close_retired()
            await asyncio.sleep(self._clock.wall_s(NS_PER_S))

    async def stop(self) -> None:
        """End every request (`aborted_shutdown`) and say that this holder leaves in good order."""
        self._stopping = True
        tasks = [held.task for held in self._held.values()]
        for request_id in list(self._held):
            self.abort(request_id, AbortReason.SHUTDOWN)
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_WAIT_S)
        self._say(HolderStopped(holder=self.name))

    # One request.

    def _take(self, ask: Ask) -> Held:
        if self._stopping:
            raise unavailable("the gateway is stopping", code="stopping")
        if len(self._held) >= self._limits.requests_max:
            raise unavailable("too many requests are waiting here", code="requests_max", reason="requests_max")
        request_id = ask.arrived.request_id
        if request_id in self._held:
            raise Refusal(409, "a request with this id is being served", code="duplicate_request_id")
        task = asyncio.current_task()
        assert task is not None, "serve runs in a task"
        held = Held(ask=ask, task=task, word=asyncio.get_running_loop().create_future())
        self._held[request_id] = held
        return held

    async def _serve(self, held: Held, sink: Sink) -> None:
        route = await self._offered(held)
        while True:
            try:
                if await self._ran(held, route, sink):
                    break
            except EngineError as error:
                self._engine_failed(held, error)
                held.offer_again()
                route = await self._offered(held)
            else:
                route = await self._decided(held)
        finished = held.finished(speed=self._clock.speed)
        self._say(finished, held.cause)
        self._metrics.finished(held.ask.arrived.model, finished, deadline_ns=held.ask.arrived.slo_ttft_ns)

    async def _offered(self, held: Held) -> Route:
        """Say that it arrived; where it goes. Raises Refusal as `_decided` does."""
        if self.health.is_down:
            return self._undecided(held, said=False)
        self._say(msgspec.structs.replace(held.ask.arrived, attempt=held.attempt))
        return await self._decided(held)

    async def _decided(self, held: Held) -> Route:
        """Where this attempt goes, which stands in the log. Raises Refusal when it is rejected, or nobody decided in
        time."""
        arrived = held.ask.arrived
        while True:
            word = await self._word(held)
            if word is None:
                return self._undecided(held, said=True)
            match word.decision:
                case RequestAdmitted(engine_id=engine_id) as decision:
                    route = Route(engine_id, word.at)
                    held.output_expected = decision.output_tokens_predicted
                case RequestRejected() as decision:
                    self._metrics.ended(arrived.model, str(decision.reason))
                    raise rejected(decision, self._clock)
                case other:
                    assert_never(other)
            held.engine_id, held.cause = route
            dispatched = DispatchStarted(request_id=arrived.request_id, engine_id=route.engine_id)
            stored = await self._stored(dispatched, route.cause)
            if not (held.word.done() and held.word.result() is word):
                continue  # It was taken off again before it got there.
            # Else the decision stands, but nobody could be told that it is carried out.
            if stored or self._limits.on_log_down is OnLogDown.PASS:
                return route
            self._say_aborted(held, AbortReason.EXPIRED)
            raise _log_down()

    async def _word(self, held: Held) -> Word | None:
        """The decision; None when the log keeps it from coming. Raises Refusal when the slack passed without one."""
        while True:
            wait_s = self._wait_s(held)
            if wait_s > 0:
                await self.health.up_until(held.word, timeout_s=wait_s)
            if held.word.done():
                return held.word.result()
            if self.health.is_down:
                return None
            if self._wait_s(held) <= 0:
                if self.health.is_failing and self._limits.on_log_down is OnLogDown.PASS:
                    return None  # Down in a moment; who was told to pass does not refuse those who came just before.
                raise self._expired(held)

    def _wait_s(self, held: Held) -> float:
        """Wall seconds that are left for a decision."""
        left_ns = held.ask.arrived.deadline_ns - held.ask.arrived_ns - self._waited_ns(held)
        if held.deferred_until_ns:
            left_ns = max(left_ns, held.deferred_until_ns - self._clock.steady_ns()) + DEFERRED_GRACE_NS
        return max(self._clock.wall_s(left_ns), DECISION_WAIT_MIN_S - held.age_s())

    async def _ran(self, held: Held, route: Route, sink: Sink) -> bool:
        """Call the engine and pass its answer on; False when the call was closed before the answer began, because the
        request was taken off the engine. Raises EngineError."""
        held.engine_id, held.cause = route
        held.calling = True
        try:
            await self._run(held, route, sink)
        except asyncio.CancelledError:
            if not held.closing or held.task.uncancel():
                raise  # Somebody else ends it, perhaps at the same time.
            held.engine_id, held.cause = NO_ENGINE, ""
            return False
        finally:
            held.calling = held.closing = False
        return True

    async def _run(self, held: Held, route: Route, sink: Sink) -> None:
        with self._engines.lend(route.engine_id) as backend:
            if backend is None:
                raise EngineError("not known to this gateway", engine_id=route.engine_id, lost=True)
            if held.ask.call.stream:
                await self._stream(held, route, backend, sink)
            else:
                await self._answer(held, route, backend, sink)

    async def _stream(self, held: Held, route: Route, backend: InferenceBackend, sink: Sink) -> None:
        ask, speed = held.ask, self._clock.speed
        async with aclosing(backend.submit(held.call())) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                if held.took(chunk, speed=speed):
                    self._first_token(held)
                if not chunk.data or (ask.keeps_usage and chunk.usage is not None):
                    continue
                if not held.began:
                    held.began = True
                    await sink.begin(route, chunk)
                await sink.send(chunk.data)

    async def _answer(self, held: Held, route: Route, backend: InferenceBackend, sink: Sink) -> None:
        async with aclosing(backend.submit(held.call())) as chunks:  # type: ignore[type-var]
            answer = await anext(chunks)
        held.took(answer, speed=self._clock.speed)  # When its first token was made nobody saw: so nobody says it.
        held.began = True
        await sink.begin(route, answer)
        await sink.send(answer.data)

    def _engine_failed(self, held: Held, error: EngineError) -> None:
        """Returns when the request may be offered again; else raises Refusal, its end said."""
        model = held.ask.arrived.model
        if not error.lost:
            self._say_aborted(held, AbortReason.ENGINE_REFUSED)
            self._metrics.ended(model, str(AbortReason.ENGINE_REFUSED))
            message = f"the engine refused: {error.what}"
            raise Refusal(error.status, message, code="engine_refused", body=error.body) from error
        logger.warning("%s", error)
        self._book.broke_off(error.engine_id)
        again = held.attempt < ATTEMPT_MAX and not held.began and not self._stopping
        self._say_aborted(held, AbortReason.ENGINE_LOST, final=not again)
        if not again:
            self._metrics.ended(model, str(AbortReason.ENGINE_LOST))
            raise unavailable("the engine was lost while it answered", code="engine_lost") from error
        self._metrics.retried(model)

    def _undecided(self, held: Held, *, said: bool) -> Route:
        """While the log is down: the engine with the fewest calls from here, or Refusal 503.

        What happens is said all the same: the facts wait, bounded, and stand in the log when it is back."""
        arrived = held.ask.arrived
        if self._limits.on_log_down is OnLogDown.PASS and (engine_id := self._least_busy(held)):
            if not said:
                self._say(msgspec.structs.replace(arrived, attempt=held.attempt))
            self._say(DispatchStarted(request_id=arrived.request_id, engine_id=engine_id))
            self._metrics.passed(arrived.model)
            return Route(engine_id)
        if said:
            self._say(RequestExpired(request_id=arrived.request_id, waited_ns=self._waited_ns(held)))
        self._metrics.ended(arrived.model, "log_down")
        raise _log_down()

    def _least_busy(self, held: Held) -> EngineId | None:
        """Of the engines that serve this here; each gets at most as many calls as it runs sequences."""
        arrived = held.ask.arrived
        free = [
            (self._engines.calls(each.engine_id), each.engine_id)
            for each in self._book.serving(arrived.model, arrived.kind)
            if each.engine_id in self._engines and self._engines.calls(each.engine_id) < each.capability.seqs_max
        ]
        return min(free)[1] if free else None

    # A request that is taken off its engine.

    def _take_word(self, held: Held, word: Word) -> None:
        """A stream cannot move. A word that sends it elsewhere was said before admission had heard of its first token;
        it hears of it by `first_token_seen`, and the word after that is the one to go by."""
        match word.decision:
            case RequestAdmitted(engine_id=engine_id) if held.began and engine_id != held.engine_id:
                pass
            case _:
                held.word.set_result(word)

    def _take_off(self, held: Held, engine_id: EngineId) -> None:
        """Its place there is for another request. Whoever has begun to answer can be stopped only by the engine: else
        the order comes too late, and the log hears so by `first_token_seen`."""
        if held.engine_id not in (NO_ENGINE, engine_id) or not held.word.done():
            return  # It does not run there; or it waits already.
        model, backend = held.ask.arrived.model, self._engines.get(engine_id)
        if not held.began:
            self._metrics.preempted(model, Preempted.CLOSED)
            deadline_ns = held.ask.arrived.deadline_ns - held.ask.arrived_ns + held.ask.mono_ns * self._clock.speed
            held.wait_again(until_ns=max(deadline_ns, self._clock.steady_ns()))
            if held.calling:
                held.closing = True
                held.task.cancel()
        elif backend is not None and backend.get_capability().can_preempt:
            self._metrics.preempted(model, Preempted.PARKED)
            held.wait_again()
            if held.parking is None or held.parking.done():
                held.parking = asyncio.create_task(self._park(held, backend), name=f"parked-{model}")
        else:
            self._metrics.preempted(model, Preempted.TOO_LATE)

    async def _park(self, held: Held, backend: InferenceBackend) -> None:
        """Keep a stream open while its engine gives its memory to others. It goes on when the log says so, or without
        the log where requests pass undecided; until then its client waits."""
        request_id = held.ask.arrived.request_id
        try:
            while await backend.preempt(request_id):  # Else it has ended meanwhile.
                word = await self._resumed(held)
                if word is None:
                    self.abort(request_id, AbortReason.EXPIRED)
                    return
                await backend.resume(request_id)
                if held.word is word:
                    return
        except EngineError as error:
            logger.warning("%s", error)
            self.abort(request_id, AbortReason.ENGINE_LOST)

    async def _resumed(self, held: Held) -> asyncio.Future[Word] | None:
        """The word with which it goes on, once that it does stands in the log; None when it is evicted for good."""
        request_id = held.ask.arrived.request_id
        while True:
            waiting = held.word
            await self.health.up_until(waiting)
            if not waiting.done():
                if self._limits.on_log_down is OnLogDown.PASS:
                    return waiting
                await waiting
            word = waiting.result()
            if isinstance(word.decision, RequestRejected):
                return None
            held.cause = word.at
            # Not stored means that the log went down: the word stands in it, and streams go on without the log.
            await self._stored(DispatchStarted(request_id=request_id, engine_id=held.engine_id), word.at)
            if held.word is waiting:
                return waiting  # Else it was taken off again before it went on.

    # What is said.

    def _first_token(self, held: Held) -> None:
        request_id = held.ask.arrived.request_id
        self._say(FirstTokenSeen(request_id=request_id, engine_id=held.engine_id, ttft_ns=held.ttft_ns), held.cause)

    def _expired(self, held: Held) -> Refusal:
        self._say(RequestExpired(request_id=held.ask.arrived.request_id, waited_ns=self._waited_ns(held)))
        self._metrics.ended(held.ask.arrived.model, "expired")
        return unavailable("no decision came in time", code="expired", reason="expired")

    def _aborted(self, held: Held) -> BaseException:
        """What a cancelled `serve` raises: who cancelled from outside sees the cancellation again."""
        reason = held.ended or (AbortReason.SHUTDOWN if self._stopping else AbortReason.CLIENT_GONE)
        if not held.lost:
            self._say_aborted(held, reason)
        self._metrics.ended(held.ask.arrived.model, "holder_lost" if held.lost else str(reason))
        if held.ended is None:
            return asyncio.CancelledError()
        held.task.uncancel()
        return unavailable("the request was ended by the gateway", code=str(reason))

    def _say_aborted(self, held: Held, reason: AbortReason, *, final: bool = True) -> None:
        aborted = RequestAborted(
            request_id=held.ask.arrived.request_id,
            reason=reason,
            engine_id=held.engine_id,
            output_tokens=held.output_tokens,
            final=final,
        )
        self._say(aborted, held.cause)

    def _say_beat(self) -> None:
        progress = tuple(
            Progress(request_id, held.output_tokens) for request_id, held in self._held.items() if held.output_tokens
        )
        self._say(HolderBeat(holder=self.name, epoch=self._epoch, progress=progress))

    def _say(self, event: Event, cause: str = "") -> None:
        """Queue a fact. A full queue loses it, counted: streams go on without the log, they do not fill memory."""
        try:
            self._writer.say(event, cause)
        except LogError:
            self._metrics.fact_lost(event.event_kind())

    async def _stored(self, event: Event, cause: str) -> bool:
        """Whether a fact stands in the log; False when the log went down meanwhile (it is said later)."""
        try:
            storing = self._writer.store(event, cause)
        except LogError as error:
            logger.warning("a dispatch could not be stored: %s", error)
            return False
        storing.add_done_callback(_storing_ended)
        await self.health.up_until(storing)
        return storing.done() and storing.exception() is None

    def _was_lost(self, lost: HolderLost) -> None:
        """Admission gave this holder up: what it names has ended there, so it ends here. What it does not name came
        after that, and is decided as ever."""
        logger.warning("admission took this holder for lost: %d of %d requests end", len(lost.requests), self.holding)
        for request_id in lost.requests:
            held = self._held.get(request_id)
            if held is not None:
                held.lost = held.attempt == 0  # One that was offered again may stand after the loss: that is said.
                self.abort(request_id, AbortReason.EXPIRED)
        self._say_beat()

    def _waited_ns(self, held: Held) -> int:
        return self._clock.steady_ns() - held.ask.mono_ns * self._clock.speed


def _storing_ended(storing: "asyncio.Future[Cause]") -> None:
    if storing.exception() is not None:
        logger.warning("a dispatch could not be stored: %s", storing.exception())


def _log_down() -> Refusal:
    return unavailable(
        "the event log takes nothing now", code="log_down", reason="log_down", retry_after_s=RETRY_AFTER_LOG_DOWN_S
    )
