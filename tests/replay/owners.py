"""A small actor and its owners: what makes logs for the tests of the replayer, without any server."""

from collections.abc import Mapping
from typing import Any

import msgspec

from events import codec, subjects
from events.base import (
    NS_PER_MS,
    NS_PER_S,
    Cause,
    EngineId,
    Event,
    HolderId,
    ModelId,
    PoolId,
    RequestId,
    TenantId,
)  # fmt: skip
from events.control import ActorStarted, EventQuarantined, PolicyConfigured, Ticked
from events.decisions import DeferReason, RejectReason, RequestAdmitted, RequestDeferred, RequestRejected
from events.log.base import Message
from events.request import FirstTokenSeen, HolderBeat, RequestArrived, RequestFinished
from policies.admission import ADMISSION
from policies.decider import Decider, advance, begin
from replay.costmodel import registered

POOL = PoolId("toy")


class Slots(msgspec.Struct):
    """Requests in service, and those that wait, oldest first."""

    slots: int = 2
    waiting_max: int = 3
    running: int = 0
    waiting: list[str] = msgspec.field(default_factory=list)


def evolve(state: Slots, event: Event, _now_ns: int) -> None:
    match event:
        case RequestAdmitted(request_id=request_id):
            state.running += 1
            if request_id in state.waiting:
                state.waiting.remove(request_id)
        case RequestDeferred(request_id=request_id):
            state.waiting.append(request_id)
        case RequestFinished():
            if event.output_tokens == 666:
                raise ValueError("a poisonous amount")
            state.running = max(0, state.running - 1)
        case _:
            pass


def decide(state: Slots, event: Event, now_ns: int) -> list[Event]:
    match event:
        case RequestArrived(request_id=request_id):
            if state.running < state.slots:
                return [admitted(request_id)]
            if len(state.waiting) < state.waiting_max:
                return [RequestDeferred(request_id=request_id, until_ns=now_ns, reason=DeferReason.SEQS_MAX)]
            return [RequestRejected(request_id=request_id, reason=RejectReason.QUEUE_FULL)]
        case RequestFinished() | Ticked():
            free = max(0, state.slots - state.running)
            return [admitted(request_id) for request_id in state.waiting[:free]]
        case _:
            return []


def configure(state: Slots, settings: Mapping[str, Any]) -> None:
    for key, value in settings.items():
        if key != "slots" or not isinstance(value, int):
            raise ValueError(f"{key}={value!r} is no setting of the toy")
        state.slots = value


def admitted(request_id: str) -> RequestAdmitted:
    return RequestAdmitted(
        request_id=RequestId(request_id), engine_id=EngineId("e1"), output_tokens_predicted=1, kv_cache_tokens=2,
        kv_bytes_reserved=3, ttft_predicted_ns=4, slo_slack_ns=5,
    )  # fmt: skip


TOY: Decider[Slots] = Decider(
    name="toy", state=Slots, initial=Slots, evolve=evolve, decide=decide, configure=configure,
    explain=lambda state, _event, _now_ns: {"running": state.running},
    takes=frozenset({RequestArrived, RequestFinished, Ticked}),
)  # fmt: skip
DECIDERS: dict[str, Decider[Any]] = {"toy": TOY}


def arrived(request_id: str, *, prompt_tokens: int = 10, now_ns: int = 0) -> RequestArrived:
    return RequestArrived(
        request_id=RequestId(request_id), tenant=TenantId("t"), model=ModelId("m"), holder=HolderId("gw"),
        prompt_tokens=prompt_tokens, slo_ttft_ns=NS_PER_S, deadline_ns=now_ns + NS_PER_S,
    )  # fmt: skip


def finished(request_id: str, *, output_tokens: int = 3, engine_id: str = "e1") -> RequestFinished:
    return RequestFinished(
        request_id=RequestId(request_id), engine_id=EngineId(engine_id), prompt_tokens=10,
        output_tokens=output_tokens, ttft_ns=1, e2e_ns=2,
    )  # fmt: skip


def configured(slots: int) -> PolicyConfigured:
    return PolicyConfigured(actor="toy", settings={"slots": slots})


class House:
    """A log of one pool that facts and owners write into."""

    def __init__(self) -> None:
        self.log: list[Message] = []
        self.now_ns = NS_PER_S
        self._ended: set[str] = set()

    def say(self, *events: Event, cause: str = "") -> None:
        """Facts, in one message."""
        self.now_ns += 1_000
        kind = events[0].event_kind() if len(events) == 1 else subjects.SEVERAL
        self._append(subjects.fact(POOL, "gateway", kind), "gw", [codec.Said(event=e, cause=cause) for e in events])

    def write(self, owner: str, said: list[codec.Said], *, actor: str = "toy") -> None:
        """Decisions, in one message."""
        kind = said[0].event.event_kind() if len(said) == 1 else subjects.SEVERAL
        self._append(subjects.decision(POOL, actor, kind), owner, said)

    def admitted(self, *, before: int) -> list[tuple[RequestId, EngineId]]:
        """Requests up to r<before> that were admitted and that this has not given yet, with their engines."""
        found = []
        for message in self.log:
            for recorded in codec.decode(message.seq, message.subject, message.body):
                event = recorded.event
                if (
                    isinstance(event, RequestAdmitted)
                    and event.request_id not in self._ended
                    and int(event.request_id[1:]) <= before
                ):
                    self._ended.add(event.request_id)
                    found.append((event.request_id, event.engine_id))
        return found

    def _append(self, subject: str, owner: str, said: list[codec.Said]) -> None:
        body = codec.encode(owner=owner, ts_ns=self.now_ns, said=said)
        self.log.append(Message(len(self.log) + 1, subject, body, {}))


class Owner:
    """An instance of an actor, as the shell runs it: rebuilds from the log, then answers what is unanswered."""

    def __init__(
        self, house: House, name: str, *, slots: int = 2, code_version: str = "1", decider: Decider[Any] = TOY,
        settings: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.house, self.name, self.decider = house, name, decider
        watermark = ""
        for message in house.log:
            for recorded in codec.decode(message.seq, message.subject, message.body):
                if recorded.actor == decider.name and recorded.cause:
                    watermark = recorded.cause
        self.answered = Cause.parse(watermark) if watermark else Cause(0, -1)
        start = ActorStarted(
            instance=name, code_version=code_version, policy_digest="", watermark=watermark,
            settings={"slots": slots} if settings is None else dict(settings), tags=decider.tags(),
        )  # fmt: skip
        house.write(name, [codec.Said(event=start)], actor=decider.name)
        self.progress = begin(decider)
        self.seen = 0

    def answer(self, *, causes_max: int = 4, messages_max: int = 1_000_000, quarantined: frozenset[Cause] = frozenset()
               ) -> None:  # fmt: skip
        """Read on to the end of the log and write what follows, at most `messages_max` messages."""
        due: list[tuple[Cause, list[Event]]] = []
        reached, self.seen = self.seen, len(self.house.log)
        for message in self.house.log[reached:]:
            for recorded in codec.decode(message.seq, message.subject, message.body):
                decisions = advance(self.decider, self.progress, recorded, quarantined=quarantined)
                if decisions and recorded.at > self.answered:
                    due.append((recorded.at, decisions))
        for start in range(0, min(len(due), messages_max * causes_max), causes_max):
            part = due[start : start + causes_max]
            said = [codec.Said(event=e, cause=str(c)) for c, es in part for e in es]
            self.house.write(self.name, said, actor=self.decider.name)

    def quarantine(self, position: str) -> None:
        self.house.write(self.name, [codec.Said(event=EventQuarantined(position=position, error="poison"))])


def a_day(*, arrivals: int = 40, owner: str = "a") -> House:
    """A plain log: one owner, some load, everything answered."""
    house = House()
    toy = Owner(house, owner)
    for n in range(arrivals):
        house.say(arrived(f"r{n}"))
        if n % 3 == 2:
            toy.answer()
            house.say(finished(f"r{n - 2}"), finished(f"r{n - 1}"))
            house.say(Ticked(n=n))
    toy.answer()
    return house


def an_admission_day(*, arrivals: int = 60, code_version: str = "", restart_every: int = 25) -> House:
    """A log of the real admission under memory pressure: two small engines, restarts with other settings."""
    house = House()
    house.say(*(registered(engine_id, ["m"], kv_tokens=4_096) for engine_id in ("e1", "e2")))
    owner = Owner(house, "a0", decider=ADMISSION, settings={}, code_version=code_version)
    for n in range(arrivals):
        house.now_ns += 20 * NS_PER_MS
        house.say(arrived(f"r{n}", prompt_tokens=300 + n % 7 * 200, now_ns=house.now_ns))
        owner.answer()
        for request_id, engine_id in house.admitted(before=n - 8):
            house.say(
                FirstTokenSeen(request_id=request_id, engine_id=engine_id, ttft_ns=NS_PER_MS),
                finished(request_id, output_tokens=50 + n % 5, engine_id=engine_id),
            )
        if n % 10 == 9:
            house.say(Ticked(n=n), HolderBeat(holder=HolderId("gw")))
        if n % restart_every == restart_every - 1:
            # What the one before owed is answered by the next, under its settings from there on.
            settings = {"queue_max": 4 + n % 3, "placement": ("least_loaded", "slo_aware")[n % 2]}
            owner = Owner(house, f"a{n}", decider=ADMISSION, settings=settings, code_version=code_version)
    owner.answer()
    return house
