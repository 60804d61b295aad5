"""Requests that still want their prompts' KV: from their arrival until their first token, or their end.

What moves slices goes by it: they are brought where they are wanted, and not taken away from there.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

import msgspec

from events.base import EngineId, Event, ModelId, RequestId, RequestKind, SessionId, SliceId, TenantId
from events.decisions import HolderLost, RequestAdmitted, RequestDeferred, RequestPreempted, RequestRejected
from events.request import FirstTokenSeen, RequestAborted, RequestArrived, RequestExpired, RequestFinished
from policies.slice_book import chain_of

OPEN_MAX = 2_048
"""Requests remembered, the newest."""
NEED_FACTS: Final[tuple[type[Event], ...]] = (
    RequestArrived, RequestDeferred, RequestAdmitted, RequestPreempted, FirstTokenSeen, RequestRejected,
    RequestFinished, RequestAborted, RequestExpired, HolderLost,
)  # fmt: skip
"""What they are known from."""


class Need(msgspec.Struct, kw_only=True):
    """One request. `waits`: it is deferred. `until_ns` is when it wants its slices at the latest: until it may wait
    for, then its deadline, or when its first token is predicted where that is later (it is served late).
    `engine_id` is where it was sent ("" = not yet), at `sent_ns`, with `cached_tokens` of its prompt taken to be
    there."""

    model: ModelId
    tenant: TenantId
    session: SessionId
    slices: tuple[SliceId, ...]
    slice_tokens: int
    prompt_tokens: int
    deadline_ns: int
    until_ns: int
    waits: bool = False
    engine_id: EngineId = EngineId("")
    sent_ns: int = 0
    cached_tokens: int = 0
    counted: bool = False


class Needs(msgspec.Struct):
    """By request, in the order in which they came; and those that were served their first token and have not ended,
    with the engine that did. `slices` are those that requests want which wait or were sent, with how many do
    (`Need.counted`)."""

    open: dict[RequestId, Need] = msgspec.field(default_factory=dict)
    begun: dict[RequestId, Need] = msgspec.field(default_factory=dict)
    slices: dict[SliceId, int] = msgspec.field(default_factory=dict)


def heed(needs: Needs, event: Event, now_ns: int) -> None:
    """Take one of NEED_FACTS in."""
    match event:
        case RequestArrived() if event.kind is RequestKind.LLM:
            _arrived(needs, event)
        case RequestDeferred():
            if (need := needs.open.get(event.request_id)) is not None:
                need.waits, need.until_ns = True, event.until_ns or need.until_ns
                _count(needs, need)
        case RequestAdmitted():
            if (need := needs.open.get(event.request_id)) is not None:
                need.waits, need.engine_id, need.sent_ns = False, event.engine_id, now_ns
                need.cached_tokens = event.cached_tokens_predicted
                need.until_ns = max(need.deadline_ns, now_ns + event.ttft_predicted_ns)
                _count(needs, need)
        case RequestPreempted():
            _preempted(needs, event)
        case FirstTokenSeen():
            if (need := needs.open.pop(event.request_id, None)) is not None:
                _uncount(needs, need)
                need.engine_id = event.engine_id
                needs.begun[event.request_id] = need
                if len(needs.begun) > OPEN_MAX:
                    del needs.begun[next(iter(needs.begun))]
        case RequestRejected() | RequestFinished() | RequestExpired() | RequestAborted():
            _end(needs, [event.request_id])
        case HolderLost():
            _end(needs, event.requests)
        case _:
            pass


def _arrived(needs: Needs, event: RequestArrived) -> None:
    if not event.slices:
        return
    _end(needs, [event.request_id])
    needs.open[event.request_id] = Need(
        model=event.model, tenant=event.tenant, session=event.session, slices=chain_of(event),
        slice_tokens=max(1, event.slice_tokens), prompt_tokens=event.prompt_tokens,
        deadline_ns=event.deadline_ns, until_ns=event.deadline_ns,
    )  # fmt: skip
    _keep_newest(needs)


def _keep_newest(needs: Needs) -> None:
    if len(needs.open) > OPEN_MAX:
        _end(needs, [next(iter(needs.open))])


def _count(needs: Needs, need: Need) -> None:
    """Its slices are wanted."""
    if not need.counted:
        need.counted = True
        for slice_id in need.slices:
            needs.slices[slice_id] = needs.slices.get(slice_id, 0) + 1


def _uncount(needs: Needs, need: Need) -> None:
    """They are not, any more, as far as this one goes."""
    if need.counted:
        need.counted = False
        for slice_id in need.slices:
            left = needs.slices[slice_id] - 1
            if left:
                needs.slices[slice_id] = left
            else:
                del needs.slices[slice_id]


def _preempted(needs: Needs, event: RequestPreempted) -> None:
    """It wants its prompt again: anywhere if it had no first token, else where its stream is."""
    begun = needs.begun.pop(event.request_id, None)
    need = begun or needs.open.pop(event.request_id, None)
    if need is not None:
        need.waits, need.engine_id = True, event.engine_id if begun is not None else EngineId("")
        needs.open[event.request_id] = need
        _count(needs, need)
        _keep_newest(needs)


def _end(needs: Needs, ended: Iterable[RequestId]) -> None:
    for request_id in ended:
        if (need := needs.open.pop(request_id, None)) is not None:
            _uncount(needs, need)
        needs.begun.pop(request_id, None)


def wanted(needs: Needs) -> Iterator[tuple[RequestId, Need]]:
    """Those that wait or were sent and have no first token: the oldest first."""
    return ((name, need) for name, need in needs.open.items() if need.waits or need.engine_id)


def slices_wanted(
    needs: Needs, engine_id: EngineId, models: tuple[ModelId, ...], *, most: int = OPEN_MAX
) -> dict[SliceId, None]:
    """The slices that requests of these models want which are, or may come to be, on this engine; of so many requests
    in all, the oldest."""
    found: dict[SliceId, None] = {}
    for _, need in islice(wanted(needs), most):
        if need.model in models and need.engine_id in ("", engine_id):
            found.update(dict.fromkeys(need.slices))
    return found
