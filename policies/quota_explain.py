"""What quota looks at when it decides: plain values, for people and for reports."""

from typing import Any, Final

import msgspec

from events.base import PPM, EngineId, Event
from policies import share_control
from policies.quota_state import Engine, State, bounds_of, stale, wanted_ppm
from policies.settings import Switch

ENFORCED: Final = (
    "The engine preallocates its KV memory, so no byte moves between the kinds. Admission keeps the share as a cap: on"
    " the predicted peak of the blocks of LLM requests, and on the workspace of embedding jobs in flight. What is above"
    " it waits (`share`); the first request of a kind may be larger than its share."
)
UNDIVIDED: Final = "It serves one kind only: there is nothing to divide, and no cap holds."
UNARMED: Final = "No share was set since the pool began or caps were lifted: no cap holds."


def explain(state: State, event: Event, now_ns: int) -> dict[str, Any]:
    """Every engine with its share, its bounds, what its load wants and why, and how the share is enforced there.
    Changes nothing."""
    late = stale(state, now_ns)
    return {
        "now_ns": now_ns,
        "event": event.event_kind(),
        "settings": msgspec.to_builtins(state.settings),
        "armed": state.settings.enabled is Switch.ON and bool(state.engines) and not late,
        "stale": list(late),
        "engines": [_engine(state, engine_id, engine) for engine_id, engine in state.engines.items()],
        "tenants": [{"tenant": name, "kv_bytes_max": most} for name, most in state.tenants.items()],
    }


def _engine(state: State, engine_id: EngineId, engine: Engine) -> dict[str, Any]:
    row: dict[str, Any] = {"engine_id": engine_id, "kv_bytes": engine.kv_bytes, "ready": engine.ready}
    if not engine.serves_both():
        return row | {"divided": False, "enforced": UNDIVIDED}
    bounds, share, wants = bounds_of(state, engine_id), state.shares.get(engine_id), engine.wants
    row |= {
        "divided": True,
        "enforced": ENFORCED if share is not None else UNARMED,
        "embedding_min_ppm": bounds.low_ppm,
        "embedding_max_ppm": bounds.high_ppm,
        "embedding_wanted_ppm": wants.embedding_ppm,
        "embedding_forecast_ppm": wants.floor_ppm,
        "llm_urgency": wants.llm_urgency,
        "embedding_urgency": wants.embedding_urgency,
        "llm_deficit_ppm": engine.books.llm.deficit_ppm,
        "embedding_deficit_ppm": engine.books.embedding.deficit_ppm,
    }
    if share is None:
        return row
    next_ppm = share_control.moved(
        share, wanted_ppm(wants, share.embedding_ppm), low_ppm=bounds.low_ppm, high_ppm=bounds.high_ppm,
        deadband_ppm=state.settings.deadband_ppm, step_max_ppm=state.settings.step_max_ppm,
    )  # fmt: skip
    return row | {
        "embedding_ppm": share.embedding_ppm,
        "embedding_next_ppm": next_ppm,
        "gain_ppm": share.gain_ppm,
        "llm_bytes_max": engine.kv_bytes - engine.kv_bytes * share.embedding_ppm // PPM,
        "embedding_bytes_max": engine.kv_bytes * share.embedding_ppm // PPM,
    }
