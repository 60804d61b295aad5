"""The whole house in virtual time, in one process: arrivals, holders, deciders and engines around one log.

The deciders are the live ones, driven by `advance`; engines are of the kind that `build` makes; a holder does what a
gateway does, and writes the same facts in the same order. The log goes through the codec, so a run is a journal that
`verify` accepts. Nothing reads a clock: events stand in a heap by (time, kind, number), so a run is a function of its
arguments.

What lies between log and engine (network, the holder's own work) is `control_ns` for every decision.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
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
from events.engine import EngineRegistered
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
from replay import garbage
from replay.agenda import Agenda, Turn
from replay.engines.base import EngineBuilder
from replay.engines.job import Finished, FirstToken, Outcome, Refused, Tokens
from replay.engines.light import light_engine
from replay.engines.tiers import TierSizes
from replay.faults import Fault, FaultKind, TransferFaults
from replay.fleet import Fleet
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
class _Wanted:
    """How a run is to be done."""

    control_ns: int
    retry_rejected: bool
    slo: Slo
    on_progress: Callable[[int, int], None] | None
    on_message: Callable[[Message], None] | None
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
    retry_rejected: bool | None = None,
    closed_loop: bool = False,
    until_ns: int = 0,
    build: EngineBuilder = light_engine,
    tiers: Mapping[EngineId, TierSizes] | None = None,
    transfer_faults: TransferFaults | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    on_message: Callable[[Message], None] | None = None,
) -> Run:
    """Run a workload to its end.

    `settings` are by actor, as in the configuration. `retry_rejected`: a rejected request comes back once after its
    Retry-After, with a fresh deadline; else rejected is missed (None: it comes back in a closed loop). `closed_loop`:
    turns wait for the answers before them. `until_ns` after the start nothing is sent any more, and the window
    of the scores is from the start to then; who is counted stands in `replay.turns`. `tiers` by engine: what stands
    behind its memory (nothing where none is named), with transfers that go as `transfer_faults` says.
    `on_message` hears every message of the log when it is written; `on_progress(requests ended, requests in all)` is
    called every few pool seconds, when all is answered, and may raise to stop the run: what was heard until then is a
    log like any other.

    Raises ValueError for a bad setting, when no engine serves any of the models, or when a turn waits for a request
    that is not there. A request for a model that none serves is rejected, as it would be live.
    """
    turns = Turns(arrivals, closed_loop=closed_loop, until_ns=until_ns)
    wanted = _Wanted(
        control_ns=control_ns, retry_rejected=closed_loop if retry_rejected is None else retry_rejected, slo=slo,
        on_progress=on_progress, on_message=on_message, tiers=tiers or {}, transfer_faults=transfer_faults, build=build,
    )  # fmt: skip
    cluster = _Cluster(turns, engines, PoolId(pool), holders, wanted)
    with garbage.seldom_looked_for():
        cluster.begin(settings or {}, faults)
        cluster.run()
        log, unsent = cluster.log, turns.unsent()
        scores = score(log.messages, unsent=unsent, window_ns=until_ns)
    return Run(log.pool, log.messages, scores, log.digest, log.now_ns, unsent)


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
        self._wanted = wanted
        self._agenda = Agenda()
        self.log = VirtualLog(pool, ACTORS, self._on_decision, on_message=wanted.on_message, settings_stay=True)
        self._fleet = Fleet(
            engines, wanted.tiers, build=wanted.build, faults=wanted.transfer_faults, log=self.log,
            agenda=self._agenda, on_outcomes=self._take_outcomes,
        )  # fmt: skip
        self._turns = turns
        self._holders = [HolderId(f"gw-{number}") for number in range(1, holders + 1)]
        self._silent: list[HolderId] = []
        self._open: dict[RequestId, Held] = {}
        self._ticks = self._next_holder = self._to_come = self._last_ns = 0
        self._progress_ns = START_NS
        asked = sorted({arrival.model for arrival in turns.window})
        if asked and not self._fleet.serves_any(asked):
            raise ValueError(f"no engine serves {', '.join(asked)}")

    # Time.

    def begin(self, settings: Mapping[str, Mapping[str, Any]], faults: Sequence[Fault]) -> None:
        """Owners start, engines register, and everything that is known beforehand is put into the heap."""
        self.log.now_ns = START_NS
        self.log.start(settings)
        self._fleet.start()
        self._tick()
        for arrival in self._turns.at_own_time():
            self._expect(START_NS + arrival.at_ns, arrival)
        for fault in faults:
            self._agenda.at(START_NS + fault.at_ns, Turn.FAULT, partial(self._strike, fault))
        self._agenda.at(START_NS + NS_PER_S, Turn.SECOND, self._second)

    def run(self) -> None:
        """Until every request has ended."""
        while self._agenda and (self._open or self._to_come or self._silent):
            at_ns, act = self._agenda.take()
            if at_ns > self._last_ns + DRAIN_MAX_NS:
                break
            assert at_ns >= self.log.now_ns, "time does not go back"
            self.log.now_ns = at_ns
            act()
        self._fleet.measure()
        for holder in self._holders:
            self._say(holder, HolderStopped(holder=holder))
        self._tick()

    def _second(self) -> None:
        """What is said every second: engines, holders, then the clock."""
        self._agenda.at(self.log.now_ns + NS_PER_S, Turn.SECOND, self._second)
        self._fleet.measure()
        for holder in self._holders:
            self._beat(holder)
        self._tick()
        if self._wanted.on_progress is not None and self.log.now_ns - self._progress_ns >= PROGRESS_EVERY_NS:
            self._progress_ns = self.log.now_ns
            self._wanted.on_progress(self._turns.sent_count - len(self._open), len(self._turns.window))

    def _tick(self) -> None:
        self._ticks += 1
        self.log.say("clock", "clock-sim", Ticked(n=self._ticks))

    def _beat(self, holder: HolderId) -> None:
        progress = tuple(
            Progress(request_id=request_id, output_tokens=tokens)
            for request_id, tokens in self._fleet.progress()
            if tokens and self._open[request_id].arrived.holder == holder
        )
        self._say(holder, HolderBeat(holder=holder, epoch="1", progress=progress))

    def _say(self, holder: HolderId, event: Event, cause: str = "") -> Cause:
        return self.log.say("gateway", holder, event, cause)

    # A request at its holder.

    def _expect(self, at_ns: int, arrival: Arrival, attempt: int = 0) -> None:
        self._to_come += 1
        self._last_ns = max(self._last_ns, at_ns)
        self._agenda.at(at_ns, Turn.ARRIVAL, partial(self._arrive, arrival, attempt))

    def _arrive(self, arrival: Arrival, attempt: int) -> None:
        self._to_come -= 1
        if not self._holders:
            return  # Every door is gone: it never gets into the log.
        self._turns.sent(arrival)
        self._next_holder += 1
        holder = self._holders[self._next_holder % len(self._holders)]
        self._offer(arrival, holder, attempt, self.log.now_ns)

    def _offer(self, arrival: Arrival, holder: HolderId, attempt: int, arrived_ns: int) -> None:
        """Write the arrival; its deadline counts from `arrived_ns`."""
        engine = self._fleet.described(arrival.model)
        event = arrived(arrival, engine, holder=holder, now_ns=arrived_ns, slo=self._wanted.slo, attempt=attempt)
        request = Held(arrival, event, arrived_ns)
        self._open[event.request_id] = request
        self._agenda.at(
            max(event.deadline_ns, self.log.now_ns), Turn.EXPIRY, partial(self._expire, event.request_id, request)
        )
        self._say(holder, event)

    def _expire(self, request_id: RequestId, request: Held) -> None:
        if self._open.get(request_id) is not request or request.answered or request.gave_way:
            return
        until_ns = request.held_until_ns()
        if until_ns > self.log.now_ns:
            self._agenda.at(until_ns, Turn.EXPIRY, partial(self._expire, request_id, request))
            return
        del self._open[request_id]
        self._say(
            request.arrived.holder,
            RequestExpired(request_id=request_id, waited_ns=self.log.now_ns - request.arrived_ns),
        )
        self._give_up(request)

    def _on_decision(self, decision: Event, place: Cause) -> None:
        effect_ns = self.log.now_ns + self._wanted.control_ns
        match decision:
            case RequestAdmitted() | RequestRejected():
                request = self._open.get(decision.request_id)
                if request is None or request.answered or request.arrived.attempt != decision.attempt:
                    return
                request.answered, request.cause = True, str(place)
                self._agenda.at(effect_ns, Turn.EFFECT, partial(self._carry_out, decision, request))
            case RequestPreempted():
                request = self._open.get(decision.request_id)
                if request is None or request.arrived.attempt != decision.attempt:
                    return
                request.answered, request.gave_way = False, True
                self._agenda.at(effect_ns, Turn.EFFECT, partial(self._preempt, decision, request))
            case EngineDirected():
                self._agenda.at(effect_ns, Turn.EFFECT, partial(self._fleet.direct, decision))
            case TransferOrdered() | TransferCancelled():
                self._agenda.at(effect_ns, Turn.EFFECT, partial(self._fleet.order, decision))
            case RequestDeferred() if decision.request_id in self._open:
                self._open[decision.request_id].deferred_until_ns = decision.until_ns
            case WakeAsked(at_ns=at_ns):
                self._agenda.at(max(at_ns, self.log.now_ns), Turn.SECOND, self._tick)
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
                return
        self._give_up(request)

    def _dispatch(self, decision: RequestAdmitted, request: Held) -> None:
        if request.engine_id is None:
            request.engine_id = decision.engine_id  # Else its stream began there, and goes on there.
        started = DispatchStarted(request_id=decision.request_id, engine_id=request.engine_id)
        self._say(request.arrived.holder, started, request.cause)
        if request.first_ns:
            is_there = self._fleet.resume(request.engine_id, decision.request_id)
        else:
            is_there = self._fleet.submit(request.engine_id, request.as_asked(decision))
        if not is_there:
            self._break_off(decision.request_id, request)

    def _preempt(self, decision: RequestPreempted, request: Held) -> None:
        """Before its first token the call is closed; after it the engine parks it, where it can. An order that comes
        too late (it ended, or its stream began on an engine that cannot preempt) is not carried out."""
        engine_id = decision.engine_id
        if self._open.get(decision.request_id) is not request:
            return
        if not request.first_ns:
            if self._fleet.abort(engine_id, decision.request_id):
                request.engine_id = None
        elif self._fleet.registered(engine_id).capability.can_preempt:
            self._fleet.preempt(engine_id, decision.request_id)
        else:
            request.answered = True

    # What engines say of a request.

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
                        request.finished(outcome, self._fleet.registered(engine_id)),
                        request.cause,
                    )
                    for at_ns, arrival in self._turns.answered(outcome.request_id, outcome.at_ns - START_NS):
                        self._expect(START_NS + at_ns, arrival)
                case Refused():
                    self._abort(outcome.request_id, request, AbortReason.ENGINE_REFUSED)
                case Tokens():
                    raise AssertionError("engines of a cluster tell first and last tokens only")

    def _abort(self, request_id: RequestId, request: Held, reason: AbortReason, *, final: bool = True) -> None:
        del self._open[request_id]
        event = RequestAborted(
            request_id=request_id, reason=reason, engine_id=request.engine_id or EngineId(""), final=final
        )
        self._say(request.arrived.holder, event, request.cause)
        if final:
            self._give_up(request)

    def _give_up(self, request: Held) -> None:
        """It has no answer, and will have none: who worked on its session may begin another."""
        for at_ns, arrival in self._turns.given_up(request.arrival, self.log.now_ns - START_NS):
            self._expect(START_NS + at_ns, arrival)

    # What goes wrong.

    def _strike(self, fault: Fault) -> None:
        match fault.kind:
            case FaultKind.ENGINE_LOST:
                self._lose_engine(fault.pick, fault.for_ns)
            case FaultKind.HOLDER_LOST if self._holders:
                self._lose_holder(self._holders[fault.pick % len(self._holders)])
            case FaultKind.CLIENT_GONE if self._open:
                request_id = list(self._open)[fault.pick % len(self._open)]
                request = self._open[request_id]
                self._end_in_engine(request_id, request)
                self._abort(request_id, request, AbortReason.CLIENT_GONE)
            case _:
                pass

    def _lose_engine(self, pick: int, for_ns: int) -> None:
        engine_id = self._fleet.lose(pick, for_ns)
        if engine_id is None:
            return
        for request_id, request in list(self._open.items()):
            if request.engine_id == engine_id:
                self._break_off(request_id, request)

    def _break_off(self, request_id: RequestId, request: Held) -> None:
        """The engine of a request is gone: before the first token it is offered again, once."""
        again = not request.first_ns and not request.arrived.attempt
        self._abort(request_id, request, AbortReason.ENGINE_LOST, final=not again)
        if again:
            self._offer(request.arrival, request.arrived.holder, 1, request.arrived_ns)

    def _lose_holder(self, holder: HolderId) -> None:
        """It says nothing any more; its connections close, so engines stop its work."""
        self._holders.remove(holder)
        self._silent.append(holder)
        for request_id, request in list(self._open.items()):
            if request.arrived.holder == holder:
                self._end_in_engine(request_id, request)
                del self._open[request_id]

    def _end_in_engine(self, request_id: RequestId, request: Held) -> None:
        if request.engine_id is not None:
            self._fleet.abort(request.engine_id, request_id)
