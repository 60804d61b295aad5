"""A house for tests of admission: engines without margins, and short words for what it says."""

from typing import Any

from events.decisions import (
    DeferReason,
    RejectReason,
    RequestAdmitted,
    RequestDeferred,
    RequestRejected,
)
from events.engine import EngineRegistered
from events.request import RequestArrived
from policies.admission import ADMISSION
from tests.policies.words import (
    EXACT,
    MS,
    S,
    arrived,
    engine,
    first_token,
    tick,
)
from tests.spec import Said, Spec, at, given, said

E1 = (engine("e1"),)
BOTH = (engine("e1"), engine("e2"))


def house(*events: Any, engines: tuple[EngineRegistered, ...] = E1, decoding: RequestArrived | None = None) -> Spec:
    """Engines without margins at START_NS. `decoding` was admitted before, and gave its first token just now, just as
    the model predicts, so that no correction blurs the round numbers."""
    spec = given(ADMISSION, EXACT, tick(0), *engines)
    if decoding is not None:
        prefill_ns = -(-decoding.prompt_tokens // 100) * 10 * MS
        spec.after(at(-prefill_ns, decoding), at(0, first_token(decoding.request_id)))
    return spec.after(at(0, tick(1)), *events)


def admitted(name: str, engine_id: str = "e1", **more: Any) -> Said:
    return said(RequestAdmitted, request_id=name, engine_id=engine_id, **more)


def deferred(name: str, reason: DeferReason, **more: Any) -> Said:
    return said(RequestDeferred, request_id=name, reason=reason, **more)


def rejected(name: str, reason: RejectReason, **more: Any) -> Said:
    return said(RequestRejected, request_id=name, reason=reason, **more)


def full(*more: Any) -> Spec:
    """600 of 1,000 tokens are taken by `a`, and `b` with 500 waits."""
    return house(arrived("b", 490, out=10, slack=10 * S), *more, decoding=arrived("a", 500, out=100))
