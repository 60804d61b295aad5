"""The whole house in virtual time, in one process: arrivals, holders, deciders and engines around one log.

The deciders are the live ones, driven by `advance`; engines are of the kind that `build` makes; a holder does what a
gateway does, and writes the same facts in the same order. The log goes through the codec, so a run is a journal that
`verify` accepts. Nothing reads a clock: events stand in a heap by (time, kind, number), so a run is a function of its
arguments.

What lies between log and engine (network, the holder's own work) is `control_ns` for every decision.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from heapq import heappop, heappush
from typing import Any

from events.base import NS_PER_MS, NS_PER_S, Cause, EngineId, Event, HolderId, PoolId, RequestId
from events.control import Ticked
from events.decisions import (
    EngineDirected,
    HolderLost,
    RequestAdmitted,
    RequestDeferred,
    RequestPreempted,
    RequestRejected,
    TransferCancelled,
    TransferOrdered,
    WakeAsked,
)
from events.engine import EngineHealthChanged, EngineRegistered, Health
from events.log.base import Message
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
from policies.catalog import ACTORS
from replay.engines.base import EngineBuilder, VirtualEngine
from replay.engines.job import Finished, FirstToken, Outcome, Refused, Tokens
from replay.engines.light import light_engine
from replay.engines.tier_cache import TierCache
from replay.engines.tiers import TierSizes
from replay.faults import Fault, FaultKind, TransferFaults
from replay.held import Held
from replay.score import Scores, score
from replay.turns import Turns
from replay.virtual_log import VirtualLog
from replay.workloads.base import Arrival
from replay.workloads.facts import arrived
from replay.workloads.slo import SLO_DEFAULT, Slo

START_NS = NS_PER_S
"""Pool time at which a run begins: no record stands at time 0."""
CONTROL_NS = NS_PER_MS
DRAIN_MAX_NS = 1_800 * NS_PER_S
"""How long after its last arrival a run goes on while requests are open; those that still are then stay unfinished."""
PROGRESS_EVERY_NS = 10 * NS_PER_S


class _Turn(IntEnum):
    """At the same time, in this order: what was decided takes effect, requests arrive (so that they share the step
    that begins now), engines, what goes wrong, the second's facts, then requests whose time is up."""

    EFFECT = 0
    ARRIVAL = 1
    ENGINE = 2
    FAULT = 3
    SECOND = 4
    EXPIRY = 5


@dataclass(slots=True)
class Run:
    """A finished run: its log, what it was worth, and the digest over every byte of it. `unsent` are the requests of
    its window that were never sent."""

    pool: PoolId
    messages: list[Message]
    scores: Scores
    digest: str
    ended_ns: int
    unsent: list[Arrival] = field(default_factory=list)


@dataclass(slots=True)
class _Engine:
    """An engine's place: what it is, what stands behind its memory, and what runs there now (None = lost); `ssd` is
    what outlives that. `armed_ns` is the event that counts."""

    registered: EngineRegistered
    tiers: TierSizes | None
    running: VirtualEngine | None = None
    ssd: TierCache | None = None
    armed_ns: int = -1
    known_lost: bool = False


@dataclass(slots=True)
class _Wanted:
    """How a run is to be done."""

    control_ns: int
    retry_rejected: bool
    slo: Slo
    on_progress: Callable[[int, int], None] | None
    tiers: Mapping[EngineId, TierSizes]
    transfer_faults: TransferFaults | None
    build: EngineBuilder
    retried: dict[str, None] = field(default_factory=dict)


def simulate(
    arrivals: Sequence[Arrival],
    engines: Sequence[EngineRegistered],
    *,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    pool: str = "sim",
    slo: Slo = SLO_DEFAULT,
    holders: int = 1,
    faults: Sequence[Fault] = (),
    control_ns: int = CONTROL_NS,
    retry_rejected: bool = False,
    closed_loop: bool = False,
    until_ns: int = 0,
    build: EngineBuilder = light_engine,
    tiers: Mapping[EngineId, TierSizes] | None = None,
    transfer_faults: TransferFaults | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Run:
    """Run a workload to its end.

    `settings` are by actor, as in the configuration. `retry_rejected`: a rejected request comes back once after its
    Retry-After, with a fresh deadline (default: rejected is missed). `closed_loop`: turns wait for the answers before
    them, and what is rejected comes back once, too. `until_ns` after the start nothing is sent any more, and the window
    of the scores is from the start to then; who is counted stands in `replay.turns`. `tiers` by engine: what stands
    behind its memory (nothing where none is named), with transfers that go as `transfer_faults` says.
    `on_progress(requests ended, requests in all)` is called every few pool seconds. Raises ValueError for a bad
    setting, when no engine serves any of the models, or when a turn waits for a request that is not there. A request
    for a model that none serves is rejected, as it would be live.
    """
    turns = Turns(arrivals, closed_loop=closed_loop, until_ns=until_ns)
    wanted = _Wanted(
        control_ns=control_ns, retry_rejected=retry_rejected or closed_loop, slo=slo, on_progress=on_progress,
        tiers=tiers or {}, transfer_faults=transfer_faults, build=build,
    )  # fmt: skip
    cluster = _Cluster(turns, engines, PoolId(pool), holders, wanted)
    cluster.begin(settings or {}, faults)
    cluster.run()
    log, unsent = cluster.log, turns.unsent()
    return Run(
        log.pool, log.messages, score(log.messages, unsent=unsent, window_ns=until_ns), log.digest, log.now_ns, unsent
    )


class _Cluster:
    """The event heap and everything that it moves."""

    def __init__(
        self,
        turns: Turns,
        engines: Sequence[EngineRegistered],
        pool: PoolId,
        holders: int,
        wanted: _Wanted,
    ) -> None:
        self.log = VirtualLog(pool, ACTORS, self._on_decision)
        self._wanted = wanted
        self._turns = turns
        self._engines = {one.engine_id: _Engine(one, wanted.tiers.get(one.engine_id)) for one in engines}
        self._serving: dict[str, EngineRegistered] = {model: one for one in reversed(engines) for model in one.models}
        self._holders = [HolderId(f"gw-{number}") for number in range(1, holders + 1)]
        self._silent: list[HolderId] = []
        self._open: dict[RequestId, Held] = {}
        self._heap: list[tuple[int, int, int, Callable[[], None]]] = []
        self._number = self._ticks = self._turn = self._to_come = self._last_ns = 0
        self._progress_ns = START_NS
        asked = sorted({arrival.model for arrival in turns.window})
        if asked and not self._serving.keys() & set(asked):
            raise ValueError(f"no engine serves {', '.join(asked)}")

    # Time.

    def begin(self, settings: Mapping[str, Mapping[str, Any]], faults: Sequence[Fault]) -> None:
        """Owners start, engines register, and everything that is known beforehand is put into the heap."""
        self.log.now_ns = START_NS
        self.log.start(settings)
        for one in self._engines.values():
            self._start_engine(one)
        self._tick()
        for arrival in self._turns.at_own_time():
            self._expect(START_NS + arrival.at_ns, arrival)
        for fault in faults:
            self._at(START_NS + fault.at_ns, _Turn.FAULT, partial(self._strike, fault))
        self._at(START_NS + NS_PER_S, _Turn.SECOND, self._second)

    def run(self) -> None:
        """Until every request has ended."""
        while self._heap and (self._open or self._to_come or self._silent):
            at_ns, _, _, act = heappop(self._heap)
            if at_ns > self._last_ns + DRAIN_MAX_NS:
                break
            assert at_ns >= self.log.now_ns, "time does not go back"
            self.log.now_ns = at_ns
            act()
        self._measure()
        for holder in self._holders:
            self._say(holder, HolderStopped(holder=holder))
        self._tick()

    def _at(self, at_ns: int, turn: _Turn, act: Callable[[], None]) -> None:
        self._number += 1
        heappush(self._heap, (at_ns, turn, self._number, act))

    def _second(self) -> None:
        """What is said every second: engines, holders, then the clock."""
        self._at(self.log.now_ns + NS_PER_S, _Turn.SECOND, self._second)
        self._measure()
        for holder in self._holders:
            self._beat(holder)
        self._tick()
        if self._wanted.on_progress is not None and self.log.now_ns - self._progress_ns >= PROGRESS_EVERY_NS:
            self._progress_ns = self.log.now_ns
            self._wanted.on_progress(self._turns.sent_count - len(self._open), len(self._turns.window))

    def _tick(self) -> None:
        self._ticks += 1
        self.log.say("clock", "clock-sim", Ticked(n=self._ticks))

    def _measure(self) -> None:
        for one in self._engines.values():
            if one.running is None:
                if not one.known_lost:
                    one.known_lost = True
                    self._tell_health(one, Health.LOST)
                continue
            self._take_outcomes(one.running.run_until(self.log.now_ns))
            self.log.say("sensor", "sensor-sim", one.running.measured())
            self._tell_slices(one, measure=True)
            self._arm(one)

    def _beat(self, holder: HolderId) -> None:
        progress = tuple(
            Progress(request_id=request_id, output_tokens=tokens)
            for one in self._engines.values()
            if one.running is not None
            for request_id, tokens in one.running.progress()
            if tokens and self._open[request_id].arrived.holder == holder
        )
        self._say(holder, HolderBeat(holder=holder, epoch="1", progress=progress))

    def _say(self, holder: HolderId, event: Event, cause: str = "") -> Cause:
        return self.log.say("gateway", holder, event, cause)

    # A request at its holder.

    def _expect(self, at_ns: int, arrival: Arrival, attempt: int = 0) -> None:
        self._to_come += 1
        self._last_ns = max(self._last_ns, at_ns)
        self._at(at_ns, _Turn.ARRIVAL, partial(self._arrive, arrival, attempt))

    def _arrive(self, arrival: Arrival, attempt: int) -> None:
        self._to_come -= 1
        if not self._holders:
            return  # Every door is gone: it never gets into the log.
        self._turns.sent(arrival)
        self._turn += 1
        holder = self._holders[self._turn % len(self._holders)]
        self._offer(arrival, holder, attempt, self.log.now_ns)

    def _offer(self, arrival: Arrival, holder: HolderId, attempt: int, arrived_ns: int) -> None:
        """Write the arrival; its deadline counts from `arrived_ns`."""
        engine = self._serving.get(arrival.model) or next(iter(self._serving.values()))  # Unserved: admission says so.
        event = arrived(arrival, engine, holder=holder, now_ns=arrived_ns, slo=self._wanted.slo, attempt=attempt)
        request = Held(arrival, event, arrived_ns)
        self._open[event.request_id] = request
        self._at(
            max(event.deadline_ns, self.log.now_ns), _Turn.EXPIRY, partial(self._expire, event.request_id, request)
        )
        self._say(holder, event)

    def _expire(self, request_id: RequestId, request: Held) -> None:
        if self._open.get(request_id) is not request or request.answered or request.gave_way:
            return
        until_ns = request.held_until_ns()
        if until_ns > self.log.now_ns:
            self._at(until_ns, _Turn.EXPIRY, partial(self._expire, request_id, request))
            return
        del self._open[request_id]
        self._say(
            request.arrived.holder,
            RequestExpired(request_id=request_id, waited_ns=self.log.now_ns - request.arrived_ns),
        )

    def _on_decision(self, decision: Event, place: Cause) -> None:
        effect_ns = self.log.now_ns + self._wanted.control_ns
        match decision:
            case RequestAdmitted() | RequestRejected():
                request = self._open.get(decision.request_id)
                if request is None or request.answered or request.arrived.attempt != decision.attempt:
                    return
                request.answered, request.cause = True, str(place)
                self._at(effect_ns, _Turn.EFFECT, partial(self._carry_out, decision, request))
            case RequestPreempted():
                request = self._open.get(decision.request_id)
                if request is None or request.arrived.attempt != decision.attempt:
                    return
                request.answered, request.gave_way = False, True
                self._at(effect_ns, _Turn.EFFECT, partial(self._preempt, decision, request))
            case EngineDirected():
                self._at(effect_ns, _Turn.EFFECT, partial(self._direct, decision))
            case TransferOrdered() | TransferCancelled():
                self._at(effect_ns, _Turn.EFFECT, partial(self._order, decision))
            case RequestDeferred() if decision.request_id in self._open:
                self._open[decision.request_id].deferred_until_ns = decision.until_ns
            case WakeAsked(at_ns=at_ns):
                self._at(max(at_ns, self.log.now_ns), _Turn.SECOND, self._tick)
            case HolderLost(holder=holder) if holder in self._silent:
                self._silent.remove(holder)
            case _:
                pass

    def _carry_out(self, decision: RequestAdmitted | RequestRejected, request: Held) -> None:
        if self._open.get(decision.request_id) is not request:
            return
        if isinstance(decision, RequestAdmitted):
            self._dispatch(decision, request)
            return
        if request.first_ns:  # It was preempted, and its first token came before the order did.
            self._end_in_engine(decision.request_id, request)
            self._abort(decision.request_id, request, AbortReason.EXPIRED)
            return
        del self._open[decision.request_id]
        name = request.arrival.request_id
        if self._wanted.retry_rejected and decision.retry_after_ns and name not in self._wanted.retried:
            self._wanted.retried[name] = None
            back_ns = self.log.now_ns + decision.retry_after_ns
            if self._turns.is_open(back_ns - START_NS):
                self._expect(back_ns, request.arrival, 1)

    def _dispatch(self, decision: RequestAdmitted, request: Held) -> None:
        if request.engine_id is None:
            request.engine_id = decision.engine_id  # Else its stream began there, and goes on there.
        engine = self._engines[request.engine_id]
        started = DispatchStarted(request_id=decision.request_id, engine_id=request.engine_id)
        self._say(request.arrived.holder, started, request.cause)
        if engine.running is None:
            self._break_off(decision.request_id, request)
            return
        if request.first_ns:
            engine.running.resume(decision.request_id, self.log.now_ns)
        else:
            engine.running.submit(request.as_asked(decision), self.log.now_ns)
        self._arm(engine)

    def _preempt(self, decision: RequestPreempted, request: Held) -> None:
        """Before its first token the call is closed; after it the engine parks it, where it can. An order that comes
        too late (it ended, or its stream began on an engine that cannot preempt) is not carried out."""
        engine = self._engines[decision.engine_id]
        if self._open.get(decision.request_id) is not request or engine.running is None:
            return
        if not request.first_ns:
            engine.running.abort(decision.request_id, self.log.now_ns)
            request.engine_id = None
        elif engine.registered.capability.can_preempt:
            engine.running.preempt(decision.request_id, self.log.now_ns)
        else:
            request.answered = True
        self._arm(engine)

    def _direct(self, decision: EngineDirected) -> None:
        engine = self._engines[decision.engine_id]
        if engine.running is not None:
            engine.running.direct(decision)

    def _order(self, decision: TransferOrdered | TransferCancelled) -> None:
        """An engine that is lost, or has left, answers nothing; whoever ordered sees that it is gone."""
        engine = self._engines.get(decision.engine_id)
        if engine is not None and engine.running is not None:
            engine.running.order(decision, self.log.now_ns)
            self._tell_slices(engine, measure=False)
            self._arm(engine)

    # Engines.

    def _start_engine(self, engine: _Engine) -> None:
        """It starts, anew or for the first time, and says what it is; what it had in SSD is there still."""
        engine.running = self._wanted.build(
            engine.registered, now_ns=self.log.now_ns, tiers=engine.tiers, ssd=engine.ssd,
            faults=self._wanted.transfer_faults, peer=self._peer,
        )  # fmt: skip
        self.log.say("sensor", "sensor-sim", engine.registered)
        self._tell_slices(engine, measure=True)

    def _peer(self, engine_id: EngineId) -> VirtualEngine | None:
        engine = self._engines.get(engine_id)
        return engine.running if engine is not None else None

    def _tell_slices(self, engine: _Engine, *, measure: bool) -> None:
        if engine.tiers is not None and engine.running is not None:
            for event in engine.running.slice_facts(measure=measure):
                self.log.say("sensor", "sensor-sim", event)

    def _arm(self, engine: _Engine) -> None:
        """See to it that the engine is looked at when something can next come out of it."""
        next_ns = engine.running.next_ns() if engine.running is not None else None
        if next_ns is None or next_ns == engine.armed_ns:
            return
        engine.armed_ns = next_ns
        self._at(next_ns, _Turn.ENGINE, partial(self._look, engine, next_ns))

    def _look(self, engine: _Engine, armed_ns: int) -> None:
        if engine.armed_ns != armed_ns or engine.running is None:
            return
        engine.armed_ns = -1
        self._take_outcomes(engine.running.run_until(self.log.now_ns))
        self._tell_slices(engine, measure=False)
        self._arm(engine)

    def _take_outcomes(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            assert outcome.at_ns == self.log.now_ns, "an engine is looked at when something comes out"
            request = self._open[outcome.request_id]
            engine_id = request.engine_id
            assert engine_id is not None, "only what was dispatched comes back"
            match outcome:
                case FirstToken():
                    request.first_ns = outcome.at_ns
                    ttft_ns = outcome.at_ns - request.arrived_ns
                    event = FirstTokenSeen(request_id=outcome.request_id, engine_id=engine_id, ttft_ns=ttft_ns)
                    self._say(request.arrived.holder, event, request.cause)
                case Finished():
                    del self._open[outcome.request_id]
                    self._say(
                        request.arrived.holder,
                        request.finished(outcome, self._engines[engine_id].registered),
                        request.cause,
                    )
                    for at_ns, arrival in self._turns.answered(outcome.request_id, outcome.at_ns - START_NS):
                        self._expect(START_NS + at_ns, arrival)
                case Refused():
                    self._abort(outcome.request_id, request, AbortReason.ENGINE_REFUSED)
                case Tokens():
                    raise AssertionError("engines of a cluster tell first and last tokens only")

    def _tell_health(self, engine: _Engine, health: Health) -> None:
        event = EngineHealthChanged(engine_id=engine.registered.engine_id, health=health)
        self.log.say("sensor", "sensor-sim", event)

    def _abort(self, request_id: RequestId, request: Held, reason: AbortReason, *, final: bool = True) -> None:
        del self._open[request_id]
        event = RequestAborted(
            request_id=request_id, reason=reason, engine_id=request.engine_id or EngineId(""), final=final
        )
        self._say(request.arrived.holder, event, request.cause)

    # What goes wrong.

    def _strike(self, fault: Fault) -> None:
        match fault.kind:
            case FaultKind.ENGINE_LOST:
                engine = list(self._engines.values())[fault.pick % len(self._engines)]
                self._lose_engine(engine, fault.for_ns)
            case FaultKind.HOLDER_LOST if self._holders:
                self._lose_holder(self._holders[fault.pick % len(self._holders)])
            case FaultKind.CLIENT_GONE if self._open:
                request_id = list(self._open)[fault.pick % len(self._open)]
                request = self._open[request_id]
                self._end_in_engine(request_id, request)
                self._abort(request_id, request, AbortReason.CLIENT_GONE)
            case _:
                pass

    def _lose_engine(self, engine: _Engine, for_ns: int) -> None:
        if engine.running is None:
            return
        engine.ssd = engine.running.ssd()
        engine.running, engine.known_lost, engine.armed_ns = None, False, -1
        self._at(self.log.now_ns + for_ns, _Turn.FAULT, partial(self._return_engine, engine))
        engine_id = engine.registered.engine_id
        for request_id, request in list(self._open.items()):
            if request.engine_id == engine_id:
                self._break_off(request_id, request)

    def _break_off(self, request_id: RequestId, request: Held) -> None:
        """The engine of a request is gone: before the first token it is offered again, once."""
        again = not request.first_ns and not request.arrived.attempt
        self._abort(request_id, request, AbortReason.ENGINE_LOST, final=not again)
        if again:
            self._offer(request.arrival, request.arrived.holder, 1, request.arrived_ns)

    def _return_engine(self, engine: _Engine) -> None:
        self._start_engine(engine)
        self._tell_health(engine, Health.READY)

    def _lose_holder(self, holder: HolderId) -> None:
        """It says nothing any more; its connections close, so engines stop its work."""
        self._holders.remove(holder)
        self._silent.append(holder)
        for request_id, request in list(self._open.items()):
            if request.arrived.holder == holder:
                self._end_in_engine(request_id, request)
                del self._open[request_id]

    def _end_in_engine(self, request_id: RequestId, request: Held) -> None:
        if request.engine_id is None:
            return
        engine = self._engines[request.engine_id]
        if engine.running is not None:
            engine.running.abort(request_id, self.log.now_ns)
            self._arm(engine)
