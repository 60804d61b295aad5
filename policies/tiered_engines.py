"""The engines that report their slices: what they are, what they hold in which tier, what computing costs there.

What actors that move slices know of engines. An engine's agent may be heard before the engine is registered (it starts
with it, and the house notices later), so what it reports is kept from the first word on; until the engine is
registered, and says that it reports (`Capability.reports_slices`), nothing is moved there.

What computing costs comes from the engine's StepModel. Where there is none, first tokens are held against a nominal
one, and until enough of them were seen nobody knows (0).
"""

from typing import Final

import msgspec

from events.base import PPM, EngineId, Event, ModelId
from events.decisions import Move, TransferOrdered
from events.engine import EngineHealthChanged, EngineRegistered, EngineRemoved, Health, StepModel
from events.slice import SlicesCleared, SlicesHit, SlicesRemoved, SlicesStored, Tier, TierMeasured
from policies import tier_index
from policies.memory.gate import fetch_ns
from policies.needs import Need
from policies.predictors.ttft import NOMINAL, SAMPLES_MIN, Correction, prefill_pairs, take_in, work_ns
from policies.tier_index import SLICE_FACTS, Gauge, TierIndex

ENGINES_MAX = 256
"""Engines known at a time, registered or only heard of. Those only heard of make room for others, the first of them
first; registered ones do not."""
ENGINE_FACTS: Final[tuple[type[Event], ...]] = (EngineRegistered, EngineRemoved, EngineHealthChanged, *SLICE_FACTS)
"""What they are known from."""
_UNMEASURED: Final = Gauge()


class TieredEngine(msgspec.Struct, kw_only=True):
    """One engine. `registered`: it belongs to the pool, else it was only heard of. `lost`: it does not answer."""

    models: tuple[ModelId, ...] = ()
    step: StepModel | None = None
    batch_tokens: int = 1
    registered: bool = False
    lost: bool = False
    index: TierIndex = msgspec.field(default_factory=TierIndex)
    correction: Correction = msgspec.field(default_factory=Correction)

    def works(self) -> bool:
        """Whether orders make sense there."""
        return self.registered and not self.lost


TieredEngines = dict[EngineId, TieredEngine]
"""By id, in the order in which they were heard of."""


def heed(engines: TieredEngines, event: Event, now_ns: int) -> None:
    """Take one of ENGINE_FACTS in."""
    match event:
        case EngineRegistered():
            _registered(engines, event)
        case EngineRemoved():
            engines.pop(event.engine_id, None)
        case EngineHealthChanged() if event.engine_id in engines:
            engines[event.engine_id].lost = event.health is Health.LOST
        case SlicesStored() | SlicesRemoved() | SlicesCleared() | SlicesHit() | TierMeasured():
            if event.engine_id not in engines and _has_room(engines):
                engines[event.engine_id] = TieredEngine()
            if event.engine_id in engines:
                tier_index.heed(engines[event.engine_id].index, event, now_ns)
        case _:
            pass


def _has_room(engines: TieredEngines) -> bool:
    """Whether one more can be known: an agent that is heard after its engine left must keep no other out for ever."""
    if len(engines) >= ENGINES_MAX:
        stranger = next((name for name, engine in engines.items() if not engine.registered), None)
        if stranger is None:
            return False
        del engines[stranger]
    return True


def _registered(engines: TieredEngines, event: EngineRegistered) -> None:
    if not event.capability.reports_slices:
        engines.pop(event.engine_id, None)
        return
    if event.engine_id not in engines and not _has_room(engines):
        return
    engine = engines.setdefault(event.engine_id, TieredEngine())
    engine.models, engine.step = event.models, event.step
    engine.batch_tokens = max(1, event.capability.batch_tokens_max)
    engine.registered, engine.lost = True, False


def learn(engines: TieredEngines, engine_id: EngineId, need: Need | None, now_ns: int) -> None:
    """The first token of a request came from an engine that it was sent to: what computing costs there is learned."""
    engine = engines.get(engine_id)
    if engine is None or need is None or need.engine_id != engine_id or not need.sent_ns:
        return
    predicted_ns = _work_ns(engine, prompt=need.prompt_tokens, cached=min(need.cached_tokens, need.prompt_tokens - 1))
    seen_ns = max(0, now_ns - need.sent_ns)
    take_in(engine.correction, seen_ns=seen_ns, predicted_ns=predicted_ns, modelled=engine.step is not None)


def recompute_ns(engine: TieredEngine, *, first: int, slices: int, slice_tokens: int) -> int:
    """What computing so many slices of a prompt takes there, behind the `first` ones before them; 0 where nobody knows
    yet."""
    if engine.step is None and engine.correction.samples < SAMPLES_MIN:
        return 0
    raw_ns = _work_ns(engine, prompt=(first + slices) * slice_tokens, cached=first * slice_tokens)
    return raw_ns if engine.step is not None else raw_ns * engine.correction.ratio_ppm // PPM


def _work_ns(engine: TieredEngine, *, prompt: int, cached: int) -> int:
    return work_ns(
        engine.step or NOMINAL, tokens=prompt - cached, pairs=prefill_pairs(prompt=prompt, cached=cached),
        batch_tokens=engine.batch_tokens, context=0, seqs=0,
    )  # fmt: skip


def gauge(engine: TieredEngine, tier: Tier) -> Gauge:
    """What was last measured of a tier; all zeros where nothing was, which is a tier of no size."""
    return engine.index.gauges.get(tier, _UNMEASURED)


def link_ns(engine: TieredEngine, move: Move, bytes_: int, *, peer_bytes_per_s: int = 0) -> int:
    """How long a move takes its link, without what waits there: reading from SSD, writing to it, or sending to a
    peer. A drop takes none."""
    ssd = gauge(engine, Tier.SSD)
    match move:
        case Move.PROMOTE:
            return fetch_ns(bytes_, 0, ssd.read_bytes_per_s)
        case Move.DEMOTE:
            return fetch_ns(bytes_, 0, ssd.write_bytes_per_s)
        case Move.REPLICATE:
            return fetch_ns(bytes_, 0, peer_bytes_per_s)
        case Move.DROP:
            return 0


def missing(engines: TieredEngines, order: TransferOrdered) -> bool:
    """Whether some of its slices are not where an order wants them (of a drop: are still there), as last reported."""
    engine = engines.get(order.to_engine or order.engine_id)
    tier = order.from_tier if order.to_tier is None else order.to_tier
    if engine is None:
        return True
    return any(tier_index.holds(engine.index, slice_id, tier) is (order.move is Move.DROP) for slice_id in order.slices)


def described(engine: TieredEngine) -> dict[str, dict[str, int]]:
    """Its tiers in plain values, for `explain`."""
    return {
        tier.value: {
            "used_ppm": now.bytes_used * PPM // now.bytes_max if now.bytes_max else 0,
            "read_bytes_per_s": now.read_bytes_per_s,
            "read_queue_bytes": now.read_queue_bytes,
        }
        for tier, now in engine.index.gauges.items()
    }
