"""The engines of a run in virtual time: who runs, what each is told, and what is heard of it, written into the log.

An engine is looked at when something can next come out of it, and every second. One that is lost says nothing, which
is seen at the next second; what it had in SSD is there when it comes back.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from events.base import EngineId, Event, RequestId
from events.decisions import EngineDirected, TransferCancelled, TransferOrdered
from events.engine import EngineHealthChanged, EngineRegistered, Health
from replay.agenda import Agenda, Turn
from replay.engines.base import EngineBuilder, VirtualEngine
from replay.engines.job import Outcome, SimRequest
from replay.engines.tier_cache import TierCache
from replay.engines.tiers import TierSizes
from replay.faults import TransferFaults
from replay.virtual_log import VirtualLog


@dataclass(slots=True)
class _Place:
    """An engine's place: what it is, what stands behind its memory, and what runs there now (None = lost); `ssd` is
    what outlives that. `armed_ns` is when it is looked at next (-1 = it is not)."""

    registered: EngineRegistered
    tiers: TierSizes | None
    running: VirtualEngine | None = None
    ssd: TierCache | None = None
    armed_ns: int = -1
    known_lost: bool = False


class Fleet:
    """`on_outcomes` hears what came out of an engine, in order of time. Engines are known by their ids; one that is not
    known, or is lost, does nothing that it is told."""

    def __init__(
        self, engines: Sequence[EngineRegistered], tiers: Mapping[EngineId, TierSizes], *, build: EngineBuilder,
        faults: TransferFaults | None, log: VirtualLog, agenda: Agenda, on_outcomes: Callable[[list[Outcome]], None],
    ) -> None:  # fmt: skip
        self._places = {one.engine_id: _Place(one, tiers.get(one.engine_id)) for one in engines}
        self._serving: dict[str, EngineRegistered] = {model: one for one in reversed(engines) for model in one.models}
        self._build, self._faults = build, faults
        self._log, self._agenda, self._on_outcomes = log, agenda, on_outcomes

    def start(self) -> None:
        """All of them start, and say what they are."""
        for place in self._places.values():
            self._start(place)

    def serves_any(self, models: Sequence[str]) -> bool:
        """Whether one of the models is served at all."""
        return any(model in self._serving for model in models)

    def described(self, model: str) -> EngineRegistered:
        """The first engine that serves the model, else the first of all: admission says that none does."""
        return self._serving.get(model) or next(iter(self._serving.values()))

    def registered(self, engine_id: EngineId) -> EngineRegistered:
        """What this engine is."""
        return self._places[engine_id].registered

    def progress(self) -> Iterator[tuple[RequestId, int]]:
        """Output tokens so far of every request inside an engine."""
        for place in self._places.values():
            if place.running is not None:
                yield from place.running.progress()

    # What engines are told.

    def submit(self, engine_id: EngineId, request: SimRequest) -> bool:
        """Begin a request; False where the engine is lost."""
        return self._tell(engine_id, lambda engine, now_ns: engine.submit(request, now_ns))

    def resume(self, engine_id: EngineId, request_id: RequestId) -> bool:
        """Go on with a parked request; False where the engine is lost."""
        return self._tell(engine_id, lambda engine, now_ns: engine.resume(request_id, now_ns))

    def preempt(self, engine_id: EngineId, request_id: RequestId) -> bool:
        """Park a request; False where the engine is lost."""
        return self._tell(engine_id, lambda engine, now_ns: engine.preempt(request_id, now_ns))

    def abort(self, engine_id: EngineId, request_id: RequestId) -> bool:
        """End a request without an answer; False where the engine is lost."""
        return self._tell(engine_id, lambda engine, now_ns: engine.abort(request_id, now_ns))

    def direct(self, decision: EngineDirected) -> None:
        """Choose by this from now on."""
        place = self._places[decision.engine_id]
        if place.running is not None:
            place.running.direct(decision)

    def order(self, decision: TransferOrdered | TransferCancelled) -> None:
        """An engine that is lost, or has left, answers nothing; whoever ordered sees that it is gone."""
        place = self._places.get(decision.engine_id)
        if place is not None and place.running is not None:
            place.running.order(decision, self._log.now_ns)
            self._tell_slices(place, measure=False)
            self._arm(place)

    def _tell(self, engine_id: EngineId, what: Callable[[VirtualEngine, int], object]) -> bool:
        place = self._places[engine_id]
        if place.running is None:
            return False
        what(place.running, self._log.now_ns)
        self._arm(place)
        return True

    # What is heard of them.

    def measure(self) -> None:
        """What every engine says each second; of one that was lost since, that it is."""
        for place in self._places.values():
            if place.running is None:
                if not place.known_lost:
                    place.known_lost = True
                    self._tell_health(place, Health.LOST)
                continue
            self._on_outcomes(place.running.run_until(self._log.now_ns))
            self._say(place.running.measured())
            self._tell_slices(place, measure=True)
            self._arm(place)

    def _arm(self, place: _Place) -> None:
        """See to it that the engine is looked at when something can next come out of it."""
        next_ns = place.running.next_ns() if place.running is not None else None
        if next_ns is None or next_ns == place.armed_ns:
            return
        place.armed_ns = next_ns
        self._agenda.at(next_ns, Turn.ENGINE, partial(self._look, place, next_ns))

    def _look(self, place: _Place, armed_ns: int) -> None:
        if place.armed_ns != armed_ns or place.running is None:
            return
        place.armed_ns = -1
        self._on_outcomes(place.running.run_until(self._log.now_ns))
        self._tell_slices(place, measure=False)
        self._arm(place)

    def _tell_slices(self, place: _Place, *, measure: bool) -> None:
        if place.tiers is not None and place.running is not None:
            for event in place.running.slice_facts(measure=measure):
                self._say(event)

    def _tell_health(self, place: _Place, health: Health) -> None:
        self._say(EngineHealthChanged(engine_id=place.registered.engine_id, health=health))

    def _say(self, event: Event) -> None:
        self._log.say("sensor", "sensor-sim", event)

    # Coming and going.

    def lose(self, pick: int, for_ns: int) -> EngineId | None:
        """The engine number `pick` (modulo those there are) is gone for so long: its id; None if it was gone
        already."""
        place = list(self._places.values())[pick % len(self._places)]
        if place.running is None:
            return None
        # It was looked at when something could come out of it; now is later. What comes out now nobody hears.
        place.running.run_until(self._log.now_ns)
        place.ssd = place.running.ssd()
        place.running, place.known_lost, place.armed_ns = None, False, -1
        self._agenda.at(self._log.now_ns + for_ns, Turn.FAULT, partial(self._return, place))
        return place.registered.engine_id

    def _return(self, place: _Place) -> None:
        self._start(place)
        self._tell_health(place, Health.READY)

    def _start(self, place: _Place) -> None:
        """It starts, anew or for the first time, and says what it is."""
        place.running = self._build(
            place.registered, now_ns=self._log.now_ns, tiers=place.tiers, ssd=place.ssd, faults=self._faults,
            peer=self._running,
        )  # fmt: skip
        self._say(place.registered)
        self._tell_slices(place, measure=True)

    def _running(self, engine_id: EngineId) -> VirtualEngine | None:
        place = self._places.get(engine_id)
        return place.running if place is not None else None
