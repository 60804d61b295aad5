"""From the control plane's words to an engine's memory: alloc, free and migrate go by what stands in the log.

Facts and decisions come in, in the order of the log; the last word about a request said again changes nothing.

- `request_admitted`: alloc on its engine, with what of its prompt is cached there.
- `request_preempted`, and a request's end (finished, aborted, expired, rejected, its holder lost): free. The slices of
  its prompt stay cached where its prefill was over, as the first token shows.
- `transfer_ordered`, `transfer_cancelled`: migrate, cancel.
- `engine_removed`, or an engine that is lost: all it held is gone.

What memory cannot be had for (`Refused`) the caller reports as a fact: the bridge decides nothing. Memory that a
transfer still reads is refused to be freed, too, and freed with the first event after the transfer's end.

Example: r1 arrives with slices 1, 2, is admitted to e1 with 700 tokens: Allocated, 0 cached. It finishes: Freed. r2
with slices 1, 3 is admitted to e1: Allocated, 1 cached.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from events.base import EngineId, Event, RequestId, SliceId, TenantId
from events.decisions import (
    HolderLost,
    RequestAdmitted,
    RequestPreempted,
    RequestRejected,
    TransferCancelled,
    TransferOrdered,
)
from events.engine import EngineHealthChanged, EngineRemoved, Health
from events.request import FirstTokenSeen, RequestAborted, RequestArrived, RequestExpired, RequestFinished
from events.slice import Tier
from kvstore.errors import KVError, Pinned
from kvstore.fingerprint import SLICE_TOKENS
from kvstore.stats import AccessStats

REQUESTS_MAX: Final = 65_536
"""Requests whose prompts are remembered; of more, the oldest is served as if nothing of its prompt were cached."""


class KVCacheInterface(Protocol):
    """What the control plane asks of one engine's memory (`kvstore.engine_cache` is the one in this house)."""

    def __contains__(self, name: str) -> bool:
        """Whether this request holds memory."""
        ...

    def alloc(self, name: str, num_tokens: int, *, slices: Sequence[SliceId] = (), owner: str = "") -> int:
        """Memory for a request; how many of its slices were cached. Raises KVError, and then nothing is held."""
        ...

    def free(self, name: str, *, computed: Sequence[SliceId] = ()) -> int:
        """Give it back, and keep what was computed; how many tokens' room that made. Raises KVError."""
        ...

    def migrate(self, order: TransferOrdered) -> None:
        """Have slices moved. Raises KVError."""
        ...

    def cancel(self, order: str) -> None:
        """Do not begin that order any more."""
        ...

    def clear(self) -> list[str]:
        """All is gone; the names of the requests that held memory."""
        ...


class Allocated(NamedTuple):
    """The request holds so many tokens' memory; `cached_slices` of its prompt were there."""

    request_id: RequestId
    engine_id: EngineId
    tokens: int
    cached_slices: int


class Freed(NamedTuple):
    """The request holds no memory any more; that made room for so many tokens."""

    request_id: RequestId
    engine_id: EngineId
    tokens: int


class Migrating(NamedTuple):
    """The order was handed on."""

    order: str
    engine_id: EngineId


class Refused(NamedTuple):
    """What was asked for (a request's or an order's id) could not be done."""

    name: str
    engine_id: EngineId
    error: KVError


Operation = Allocated | Freed | Migrating | Refused


class _Asked(NamedTuple):
    tenant: TenantId
    slices: tuple[SliceId, ...]


class _Held(NamedTuple):
    engine_id: EngineId
    prefilled: bool = False


_UNKNOWN: Final = _Asked(TenantId(""), ())


class SchedulerBridge:
    """Applies the log to the memory of the engines in `caches`; what is said of other engines is not its business.

    Slices of another length than `slice_tokens` are not looked for. `stats` counts which slices were found in the
    device's memory when requests were admitted.
    """

    def __init__(
        self,
        caches: Mapping[EngineId, KVCacheInterface],
        *,
        slice_tokens: int = SLICE_TOKENS,
        stats: AccessStats | None = None,
        requests_max: int = REQUESTS_MAX,
    ) -> None:
        self._caches, self._slice_tokens, self._stats, self._requests_max = caches, slice_tokens, stats, requests_max
        self._asked: dict[RequestId, _Asked] = {}
        self._held: dict[RequestId, _Held] = {}
        self._late: dict[RequestId, tuple[SliceId, ...]] = {}  # To be freed, and what of it was computed.

    def apply(self, event: Event, *, now_ns: int = 0) -> list[Operation]:
        """Carry out what this event means for memory; what was done, in order."""
        freed = [done for name in list(self._late) for done in self._free(name) if isinstance(done, Freed)]
        return [*freed, *self._carry_out(event, now_ns)]

    def _carry_out(self, event: Event, now_ns: int) -> list[Operation]:
        match event:
            case RequestArrived():
                self._remember(event)
                return []
            case FirstTokenSeen():
                if event.request_id in self._held:
                    self._held[event.request_id] = self._held[event.request_id]._replace(prefilled=True)
                return []
            case RequestAdmitted():
                return self._admit(event, now_ns)
            case RequestPreempted():
                # It stays known: it waits, and is admitted again.
                return self._free(event.request_id)
            case RequestFinished():
                return self._end(event.request_id, finished=True)
            case RequestAborted() if not event.final:
                return self._free(event.request_id)
            case RequestAborted() | RequestExpired() | RequestRejected():
                return self._end(event.request_id)
            case HolderLost():
                return [done for request_id in event.requests for done in self._end(request_id)]
            case _:
                return self._of_engine(event)

    def _of_engine(self, event: Event) -> list[Operation]:
        match event:
            case TransferOrdered() if event.engine_id in self._caches:
                try:
                    self._caches[event.engine_id].migrate(event)
                except KVError as error:
                    return [Refused(event.order, event.engine_id, error)]
                return [Migrating(event.order, event.engine_id)]
            case TransferCancelled() if event.engine_id in self._caches:
                self._caches[event.engine_id].cancel(event.order)
            case EngineRemoved():
                return self._lose(event.engine_id)
            case EngineHealthChanged() if event.health is Health.LOST:
                return self._lose(event.engine_id)
            case _:
                pass
        return []

    def _remember(self, event: RequestArrived) -> None:
        known = event.slices if event.slice_tokens == self._slice_tokens else ()
        self._asked[event.request_id] = _Asked(event.tenant, known)
        if len(self._asked) > self._requests_max:
            del self._asked[next(iter(self._asked))]

    def _admit(self, event: RequestAdmitted, now_ns: int) -> list[Operation]:
        request_id, engine_id = event.request_id, event.engine_id
        held = self._held.get(request_id)
        if held is not None and held.engine_id == engine_id and request_id not in self._late:
            return []  # Said before.
        done = self._free(request_id)
        cache = self._caches.get(engine_id)
        if cache is None or request_id in self._held:
            return done
        asked, tokens = self._asked.get(request_id, _UNKNOWN), max(1, event.kv_cache_tokens)
        try:
            cached = cache.alloc(request_id, tokens, slices=asked.slices, owner=asked.tenant)
        except KVError as error:
            return [*done, Refused(request_id, engine_id, error)]
        self._held[request_id] = _Held(engine_id)
        self._count(asked.slices, cached, now_ns)
        return [*done, Allocated(request_id, engine_id, tokens, cached)]

    def _count(self, slices: Sequence[SliceId], cached: int, now_ns: int) -> None:
        if self._stats is not None:
            for index, slice_id in enumerate(slices):
                self._stats.record_access(slice_id, tier=Tier.HBM, is_hit=index < cached, now_ns=now_ns)

    def _end(self, request_id: RequestId, *, finished: bool = False) -> list[Operation]:
        done = self._free(request_id, finished=finished)
        self._asked.pop(request_id, None)
        return done

    def _free(self, request_id: RequestId, *, finished: bool = False) -> list[Operation]:
        held = self._held.get(request_id)
        if held is None:
            return []
        computed = self._asked.get(request_id, _UNKNOWN).slices if finished or held.prefilled else ()
        computed = self._late.get(request_id, computed)
        try:
            tokens = self._caches[held.engine_id].free(request_id, computed=computed)
        except Pinned as error:
            self._late[request_id] = computed
            return [Refused(request_id, held.engine_id, error)]
        except KVError as error:
            self._forget(request_id)  # Somebody else gave it back: it is not held any more.
            return [Refused(request_id, held.engine_id, error)]
        self._forget(request_id)
        return [Freed(request_id, held.engine_id, tokens)]

    def _lose(self, engine_id: EngineId) -> list[Operation]:
        cache = self._caches.get(engine_id)
        if cache is None:
            return []
        lost = [RequestId(name) for name in cache.clear()]
        for request_id in lost:
            self._forget(request_id)
        return [Freed(request_id, engine_id, 0) for request_id in lost]

    def _forget(self, request_id: RequestId) -> None:
        self._held.pop(request_id, None)
        self._late.pop(request_id, None)
