"""Quota: how an engine's KV memory is divided between LLM requests and embedding jobs, and what a tenant may hold.

Once a period every engine that serves both kinds is looked at. Urgency of a kind = weighted slack deficit (how late
its answers come) + queue pressure (the memory that its requests hold or wait for). The embedding share moves towards
its part of the urgency of both, or to what is forecast of embedding jobs where that is more, within its bounds, not
for less than the deadband, by bounded steps, and more carefully the more it swings (`policies.share_control`). It does
not fall below the upper end of the forecast, and without embedding jobs it rests at its least.

Nothing is set before every engine was measured since the start (nor since settings changed), and nothing moves while
facts are stale: until then no cap holds that was not set before. Who switches the module off lifts the caps. An
operator's bounds hold at once; a tenant's quota is what the operator asks for.

How a share is enforced: engines preallocate their KV memory, so no byte moves between the kinds. A share is a cap that
admission keeps: on the predicted peak of the blocks of LLM requests, and on the workspace of embedding jobs in flight.

Example: an engine with a share of 5 %. Embedding jobs that want 40 % of its memory arrive while LLM requests hold 60 %:
their part of the urgency is 40 %, so the share goes to 15, 25, 35, 40 %. When they are gone it comes back to 5 %.

This is Algorithm 2 of the work plan; proportional shares by weighted demand are those of Waldspurger and Weihl
("Lottery Scheduling", 1994), bounds and work conservation as in cgroups' memory.low and memory.max.
"""

from events.base import PPM, EngineId, Event
from events.control import Ticked
from events.decisions import (
    HolderLost,
    RequestAdmitted,
    RequestDeferred,
    RequestPreempted,
    RequestRejected,
    ShareReason,
    SharesSet,
    TenantQuotaSet,
)
from events.engine import EngineHealthChanged, EngineMeasured, EngineRegistered, EngineRemoved
from events.quota import ShareBoundsAsked, TenantQuotaAsked
from events.request import FirstTokenSeen, RequestAborted, RequestArrived, RequestExpired, RequestFinished
from policies import share_control
from policies.decider import Decider
from policies.quota_explain import explain
from policies.quota_state import (
    ACTOR,
    POOL,
    TENANTS_MAX,
    Engine,
    State,
    are_bounds,
    bounds_of,
    configure,
    evolve,
    initial,
    stale,
    wanted_ppm,
)
from policies.settings import Switch


def decide(state: State, event: Event, now_ns: int) -> list[Event]:
    """What follows from an event that was just taken in."""
    match event:
        case Ticked() if state.settings.enabled is Switch.OFF:
            return [_lifted(state, engine_id) for engine_id in state.shares]
        case Ticked() if state.due and state.engines and not stale(state, now_ns):
            return _divided(state, {engine_id: _moved(state, engine_id) for engine_id in _both(state)})
        case ShareBoundsAsked() if are_bounds(event) and state.settings.enabled is Switch.ON:
            return _divided(state, {engine_id: _bounded(state, engine_id) for engine_id in _both(state)})
        case EngineRegistered() if event.engine_id in state.shares and event.engine_id not in _both(state):
            return [_lifted(state, event.engine_id)]
        case TenantQuotaAsked() if event.kv_bytes_max >= 0:
            if event.tenant in state.tenants or len(state.tenants) < TENANTS_MAX:
                return [TenantQuotaSet(tenant=event.tenant, kv_bytes_max=event.kv_bytes_max)]
            return []
        case _:
            return []


def _both(state: State) -> dict[EngineId, Engine]:
    return {engine_id: engine for engine_id, engine in state.engines.items() if engine.serves_both()}


def _moved(state: State, engine_id: EngineId) -> SharesSet | None:
    """Where a share goes at the end of a period; None = it stays."""
    bounds, wants = bounds_of(state, engine_id), state.engines[engine_id].wants
    share = state.shares.get(engine_id)
    if share is None:
        first_ppm = min(max(wants.embedding_ppm, bounds.low_ppm), bounds.high_ppm)
        return _shares(state, engine_id, first_ppm, ShareReason.ARMED)
    chosen = state.settings
    to_ppm = share_control.moved(
        share, wanted_ppm(wants, share.embedding_ppm), low_ppm=bounds.low_ppm, high_ppm=bounds.high_ppm,
        deadband_ppm=chosen.deadband_ppm, step_max_ppm=chosen.step_max_ppm,
    )  # fmt: skip
    if to_ppm == share.embedding_ppm:
        return None
    return _shares(state, engine_id, to_ppm, ShareReason.LOAD_MOVED)


def _bounded(state: State, engine_id: EngineId) -> SharesSet | None:
    """What bounds make of a share at once; None = it stays, or was never set."""
    share = state.shares.get(engine_id)
    if share is None:
        return None
    bounds = bounds_of(state, engine_id)
    to_ppm = min(max(share.embedding_ppm, bounds.low_ppm), bounds.high_ppm)
    if to_ppm == share.embedding_ppm:
        return None
    return _shares(state, engine_id, to_ppm, ShareReason.BOUNDS_ASKED)


def _shares(state: State, engine_id: EngineId, embedding_ppm: int, reason: ShareReason) -> SharesSet:
    wants = state.engines[engine_id].wants
    return SharesSet(
        engine_id=engine_id, llm_ppm=PPM - embedding_ppm, embedding_ppm=embedding_ppm, reason=reason,
        llm_urgency=wants.llm_urgency, embedding_urgency=wants.embedding_urgency,
    )  # fmt: skip


def _divided(state: State, said: dict[EngineId, SharesSet | None]) -> list[Event]:
    """What is said of engines; and where something is, of the pool: what their shares add up to."""
    changed = [one for one in said.values() if one is not None]
    if not changed:
        return []
    total = part = llm = embedding = 0
    for engine_id, engine in state.engines.items():
        one, share = said.get(engine_id), state.shares.get(engine_id)
        if engine.serves_both():
            embedding_ppm = one.embedding_ppm if one is not None else share.embedding_ppm if share is not None else 0
        else:
            embedding_ppm = PPM if engine.embedding else 0
        total += engine.kv_bytes
        part += engine.kv_bytes * embedding_ppm
        llm += engine.wants.llm_urgency
        embedding += engine.wants.embedding_urgency
    embedding_ppm = part // total
    pool = SharesSet(
        engine_id=POOL, llm_ppm=PPM - embedding_ppm, embedding_ppm=embedding_ppm, reason=changed[0].reason,
        llm_urgency=llm, embedding_urgency=embedding,
    )  # fmt: skip
    return [*changed, pool]


def _lifted(state: State, engine_id: EngineId) -> SharesSet:
    embedding_ppm = state.shares[engine_id].embedding_ppm
    return SharesSet(
        engine_id=engine_id, llm_ppm=PPM - embedding_ppm, embedding_ppm=embedding_ppm, reason=ShareReason.LIFTED
    )


QUOTA: Decider[State] = Decider(
    name=ACTOR,
    state=State,
    initial=initial,
    evolve=evolve,
    decide=decide,
    configure=configure,
    explain=explain,
    takes=frozenset({
        RequestArrived, RequestAdmitted, RequestDeferred, RequestRejected, RequestPreempted, FirstTokenSeen,
        RequestFinished, RequestAborted, RequestExpired, HolderLost, EngineRegistered, EngineRemoved,
        EngineHealthChanged, EngineMeasured, ShareBoundsAsked, TenantQuotaAsked, Ticked,
    }),
)  # fmt: skip
"""Quota with its default settings."""
