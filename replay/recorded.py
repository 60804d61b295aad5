"""What a recorded log says of its world, so that it can be run again: engines, what was asked of them, and when.

A recorded log knows the length of an answer only where it was given. For a request that had none (refused, aborted, or
still running at the end) it is drawn from the answers that its tenant's requests to that model had; never less than
what was streamed. Turns of one session wait for the answer that the one before them had, as long as they did then. A
turn that came before that answer, or after a refusal, comes at its own time.
"""

from collections.abc import Iterable
from random import Random
from typing import Any

import msgspec

from events import codec
from events.base import EngineId, Event, Recorded, RequestId, SessionId
from events.control import ActorStarted, PolicyConfigured
from events.decisions import HolderLost, RequestAdmitted, RequestRejected
from events.engine import EngineHealthChanged, EngineRegistered, EngineRemoved, Health, StepModel
from events.log.base import Message
from events.request import (
    AbortReason,
    DispatchStarted,
    HolderBeat,
    OutputTraced,
    RequestAborted,
    RequestArrived,
    RequestFinished,
)
from events.slice import TierMeasured
from policies.catalog import ACTORS
from replay.engines.tiers import TierSizes, sizes_of
from replay.replayer import Source
from replay.workloads.base import Arrival
from replay.workloads.facts import arrivals_of


class NotModelled(ValueError):
    """The log cannot be run again: it says too little of its engines, or nothing arrives."""


class Lengths(msgspec.Struct, frozen=True, kw_only=True):
    """Where the lengths of answers come from: how many of them were seen, traced, or drawn from those seen."""

    seen: int
    traced: int
    drawn: int


class World(msgspec.Struct, kw_only=True):
    """A log's world. `settings` by actor are those in force at the last arrival, `changed` how often they changed after
    the first; actors that never ran are off. `control_ns` is the mean way from a decision to its engine (None: nobody
    went it). `span_ns` is from the first arrival, at `first_ns`, to the last record. `waiting_turns` wait for the
    answer before them. `rejected_return`: who was rejected came back as the same request. `left_out` counts, by word,
    what happened and is not done again."""

    engines: list[EngineRegistered]
    tiers: dict[EngineId, TierSizes]
    arrivals: list[Arrival]
    settings: dict[str, dict[str, Any]]
    changed: int
    control_ns: int | None
    first_ns: int
    span_ns: int
    lengths: Lengths
    waiting_turns: int
    rejected_return: bool
    left_out: dict[str, int]


def world_of(source: Source, *, seed: int = 1, step_model: StepModel | None = None) -> World:
    """Read a log's world, in two readings. `seed` is of the lengths that are drawn, `step_model` for engines that told
    none."""
    read = _Reading()
    for message in source:
        read.take(message)
    arrivals, lengths = _with_lengths(arrivals_of(source), read, Random(seed))  # noqa: S311
    arrivals = [_chained(one, read) for one in arrivals]
    engines = [msgspec.structs.replace(one, step=one.step or step_model) for one in read.engines.values()]
    way_ns = sum(read.ways) // len(read.ways) if read.ways else None
    tiers = {name: sizes_of(found.values()) for name, found in read.tiers.items() if name in read.engines}
    return World(
        engines=engines, tiers={name: size for name, size in tiers.items() if size is not None},
        arrivals=arrivals, settings=read.in_force(), changed=read.changed,
        control_ns=way_ns, first_ns=read.first_ns, span_ns=max(1, read.last_ns - read.first_ns), lengths=lengths,
        waiting_turns=sum(one.after != "" for one in arrivals), rejected_return=read.rejected_return,
        left_out=dict(sorted(read.left_out.items())),
    )  # fmt: skip


def check(world: World) -> None:
    """Raises NotModelled, with what is missing, where the world cannot be run again."""
    if not world.arrivals:
        raise NotModelled("nothing arrives in this log")
    if not world.engines:
        raise NotModelled("no engine is registered in this log")
    for engine in world.engines:
        if engine.step is None:
            raise NotModelled(f"engine {engine.engine_id} told no step times: name a step model for it")


class _Reading:
    """What one reading of the log finds."""

    def __init__(self) -> None:
        self.engines: dict[EngineId, EngineRegistered] = {}
        self.tiers: dict[EngineId, dict[str, TierMeasured]] = {}
        self.ways: list[int] = []
        self.after: dict[RequestId, tuple[RequestId, int]] = {}
        self.finished: dict[RequestId, int] = {}
        self.traced: dict[RequestId, None] = {}
        self.streamed: dict[RequestId, int] = {}
        self.left_out: dict[str, int] = {}
        self.first_ns = self.last_ns = self.changed = 0
        self._states = {actor: decider.initial() for actor, decider in ACTORS.items()}
        self._ran: dict[str, None] = {}
        self._fresh = True
        self._settings: dict[str, dict[str, Any]] = {}
        self.rejected_return = False
        self._admitted: dict[RequestId, int] = {}
        self._rejected: dict[RequestId, None] = {}
        self._sessions: dict[RequestId, SessionId] = {}
        self._answered: dict[SessionId, tuple[RequestId, int]] = {}

    def take(self, message: Message) -> None:
        """Take one message in."""
        for recorded in codec.decode(message.seq, message.subject, message.body):
            self.last_ns = max(self.last_ns, recorded.ts_ns)
            self._of_house(recorded)
            self._of_request(recorded.event, recorded.ts_ns)

    def in_force(self) -> dict[str, dict[str, Any]]:
        """By actor, as things stood at the last arrival."""
        off = {"enabled": "off"}
        return {
            actor: self._settings.get(actor, off) for actor in ACTORS if actor in self._settings or actor != "admission"
        }

    def _of_house(self, recorded: Recorded) -> None:
        match recorded.event:
            case EngineRegistered() as event:
                self.engines[event.engine_id] = event
            case EngineRemoved(engine_id=engine_id) if engine_id in self.engines:
                del self.engines[engine_id]
                self._leave_out("engines removed (not there from the start)")
            case TierMeasured() as event:
                self.tiers.setdefault(event.engine_id, {})[event.tier] = event
            case EngineHealthChanged(health=Health.LOST):
                self._leave_out("engines lost")
            case HolderLost():
                self._leave_out("holders lost")
            case ActorStarted(settings=settings):
                self._configure(recorded.actor, settings)
            case PolicyConfigured(actor=actor, settings=settings):
                self._configure(actor, settings)
            case _:
                pass

    def _of_request(self, event: Event, ts_ns: int) -> None:
        match event:
            case RequestArrived():
                self._arrived(event, ts_ns)
            case RequestRejected():
                self._rejected[event.request_id] = None
            case OutputTraced():
                self.traced[event.request_id] = None
            case RequestAdmitted():
                self._admitted[event.request_id] = ts_ns
            case DispatchStarted() if event.request_id in self._admitted:
                self.ways.append(max(0, ts_ns - self._admitted.pop(event.request_id)))
            case HolderBeat():
                for one in event.progress:
                    self._streamed(one.request_id, one.output_tokens)
            case RequestFinished():
                self.finished[event.request_id] = event.output_tokens
                session = self._sessions.get(event.request_id)
                if session is not None:
                    self._answered[session] = (event.request_id, ts_ns)
            case RequestAborted():
                self._streamed(event.request_id, event.output_tokens)
                if event.reason is AbortReason.CLIENT_GONE:
                    self._leave_out("clients gone")
            case _:
                pass

    def _arrived(self, event: RequestArrived, ts_ns: int) -> None:
        if event.attempt:
            # Live it is offered again after its engine was lost, in a closed loop after its Retry-After, too.
            self.rejected_return |= event.request_id in self._rejected
            return
        if not self.first_ns:
            self.first_ns, self.changed = ts_ns, 0
        if self._fresh:
            self._settings = {actor: msgspec.to_builtins(self._states[actor].settings) for actor in self._ran}
            self._fresh = False
        if not event.session:
            return
        self._sessions[event.request_id] = event.session
        if event.session in self._answered:
            before, end_ns = self._answered[event.session]
            self.after[event.request_id] = (before, ts_ns - end_ns)

    def _configure(self, actor: str, settings: dict[str, Any]) -> None:
        if actor not in ACTORS:
            return
        self._ran[actor] = None
        before = msgspec.to_builtins(self._states[actor].settings)
        try:
            ACTORS[actor].configure(self._states[actor], settings)
        except ValueError:
            self._leave_out("settings that this version does not know")
        self._fresh = True
        self.changed += before != msgspec.to_builtins(self._states[actor].settings)

    def _streamed(self, request_id: RequestId, tokens: int) -> None:
        self.streamed[request_id] = max(tokens, self.streamed.get(request_id, 0))

    def _leave_out(self, what: str) -> None:
        self.left_out[what] = self.left_out.get(what, 0) + 1


def _with_lengths(arrivals: Iterable[Arrival], read: _Reading, rng: Random) -> tuple[list[Arrival], Lengths]:
    """The arrivals with the lengths that their answers had, or have now."""
    arrivals, seen = list(arrivals), list[int]()
    answers: dict[tuple[str, ...], list[int]] = {}
    for one in arrivals:
        length = read.finished.get(RequestId(one.request_id))
        if length is not None:
            seen.append(length)
            for group in ((one.tenant, one.model), (one.model,)):
                answers.setdefault(group, []).append(length)
    drawn, out = 0, list[Arrival]()
    for one in arrivals:
        request_id = RequestId(one.request_id)
        length = one.output_tokens if request_id in read.traced else read.finished.get(request_id)
        if length is None:
            drawn += 1
            like = answers.get((one.tenant, one.model)) or answers.get((one.model,)) or [one.output_tokens]
            least = read.streamed.get(request_id, 0)
            length = rng.choice([tokens for tokens in like if tokens >= least] or [least])
            length = min(length, one.tokens_max) if one.tokens_max else length
        out.append(msgspec.structs.replace(one, output_tokens=length))
    traced = sum(one.request_id in read.traced for one in arrivals)
    return out, Lengths(seen=len(arrivals) - traced - drawn, traced=traced, drawn=drawn)


def _chained(arrival: Arrival, read: _Reading) -> Arrival:
    """A turn behind the answer it waited for; where the trace itself says so, that stands."""
    found = read.after.get(RequestId(arrival.request_id))
    if found is None or arrival.after:
        return arrival
    after, think_ns = found
    return msgspec.structs.replace(arrival, after=after, think_ns=think_ns)
