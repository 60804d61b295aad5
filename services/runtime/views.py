"""What people and dashboards want to know of a pool right now, folded from its log. Pure; nobody decides by it.

A view is a table of small JSON values by field. `changed` says what to write down again.
"""

from enum import StrEnum
from typing import Any, Final

import msgspec

from events.base import Event, Recorded
from events.control import IngestRefused, Ticked
from events.decisions import HolderLost, RequestAdmitted, RequestDeferred, RequestRejected
from events.engine import EngineHealthChanged, EngineMeasured, EngineRegistered, EngineRemoved
from events.request import (
    DispatchStarted,
    FirstTokenSeen,
    HolderStopped,
    RequestAborted,
    RequestArrived,
    RequestExpired,
    RequestFinished,
)

TENANTS_MAX: Final = 10_000
"""Tenants that are told apart; those beyond are counted as one."""
OTHERS: Final = "others"
WITH_REASON: Final = (RequestAdmitted, RequestDeferred, RequestRejected, RequestAborted, IngestRefused)
"""Events that are counted by reason: there it is one of few words. Elsewhere it is free text."""


class View(StrEnum):
    """The tables. In Redis: `tg:{<pool>}:<view>`."""

    ENGINES = "engines"
    REQUESTS = "requests"
    TENANTS = "tenants"
    COUNTERS = "counters"


class Stage(StrEnum):
    """How far a request is."""

    ARRIVED = "arrived"
    DEFERRED = "deferred"
    ADMITTED = "admitted"
    DISPATCHED = "dispatched"
    STREAMING = "streaming"


_STAGE: Final[dict[type[Event], Stage]] = {
    RequestDeferred: Stage.DEFERRED, DispatchStarted: Stage.DISPATCHED, FirstTokenSeen: Stage.STREAMING,
}  # fmt: skip


class RequestRow(msgspec.Struct, kw_only=True):
    """A request that has not ended."""

    tenant: str
    model: str
    kind: str
    holder: str
    stage: Stage
    arrived_ns: int
    engine: str = ""
    kv_bytes_reserved: int = 0
    output_tokens_predicted: int = 0


class EngineRow(msgspec.Struct, kw_only=True):
    """An engine: what it is, what it says of itself, and what admission has promised away of it."""

    kind: str = ""
    models: tuple[str, ...] = ()
    kv_bytes: int = 0
    health: str = ""
    running: int = 0
    waiting: int = 0
    kv_used_ppm: int = 0
    admitted: int = 0
    kv_bytes_reserved: int = 0
    output_tokens_predicted: int = 0
    output_tokens_actual: int = 0


class TenantRow(msgspec.Struct, kw_only=True):
    """A tenant's requests since the log began."""

    arrived: int = 0
    finished: int = 0
    rejected: int = 0
    aborted: int = 0
    in_flight: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0


class Views:
    """The views after every record that `take` was given."""

    def __init__(self) -> None:
        self.seq = 0
        self.now_ns = 0
        self.tables: dict[View, dict[str, Any]] = {view: {} for view in View}
        self.changed: dict[tuple[View, str], None] = {}

    def take(self, recorded: Recorded) -> None:
        """Fold one record in."""
        self.seq = recorded.seq
        event = recorded.event
        if isinstance(event, Ticked):
            self.now_ns = max(self.now_ns, recorded.ts_ns)
            return
        self._count(event)
        self._take_request(event, recorded.ts_ns)
        self._take_engine(event)

    def value(self, view: View, field: str) -> bytes | None:
        """What stands in a field, as JSON; None when it is gone."""
        row = self.tables[view].get(field)
        return None if row is None else msgspec.json.encode(row)

    def _take_request(self, event: Event, ts_ns: int) -> None:
        match event:
            case RequestArrived():
                self._arrived(event, ts_ns)
            case RequestAdmitted():
                self._admitted(event)
            case RequestFinished():
                self._finished(event)
            case RequestDeferred() | DispatchStarted() | FirstTokenSeen():
                self._move(event.request_id, _STAGE[type(event)])
            case RequestAborted(final=False):
                self._release(event.request_id)
            case RequestRejected():
                self._end(event.request_id, "rejected")
            case RequestAborted() | RequestExpired():
                self._end(event.request_id, "aborted")
            case HolderLost():
                for request_id in event.requests:  # What came after the loss stands before its word in the log.
                    self._end(request_id, "aborted")
            case HolderStopped():
                rows = self.tables[View.REQUESTS]
                for left in [each for each, row in rows.items() if row.holder == event.holder]:
                    self._end(left, "aborted")
            case _:
                pass

    def _arrived(self, event: RequestArrived, ts_ns: int) -> None:
        known = self.tables[View.REQUESTS].get(event.request_id)
        if known is not None:
            self._release(event.request_id)
            self._move(event.request_id, Stage.ARRIVED)
            return
        self._put(View.REQUESTS, event.request_id, RequestRow(
            tenant=event.tenant, model=event.model, kind=event.kind, holder=event.holder, stage=Stage.ARRIVED,
            arrived_ns=ts_ns,
        ))  # fmt: skip
        tenant = self._tenant(event.tenant)
        tenant.arrived += 1
        tenant.in_flight += 1
        tenant.prompt_tokens += event.prompt_tokens

    def _admitted(self, event: RequestAdmitted) -> None:
        row = self._move(event.request_id, Stage.ADMITTED)
        if row is None:
            return
        self._release(event.request_id)
        row.engine, row.kv_bytes_reserved = event.engine_id, event.kv_bytes_reserved
        row.output_tokens_predicted = event.output_tokens_predicted
        engine = self._engine(event.engine_id)
        engine.admitted += 1
        engine.kv_bytes_reserved += event.kv_bytes_reserved

    def _finished(self, event: RequestFinished) -> None:
        row: RequestRow | None = self.tables[View.REQUESTS].get(event.request_id)
        if row is not None:
            self._tenant(row.tenant).output_tokens += event.output_tokens
            if row.engine:
                engine = self._engine(row.engine)
                engine.output_tokens_predicted += row.output_tokens_predicted
                engine.output_tokens_actual += event.output_tokens
        self._end(event.request_id, "finished")

    def _end(self, request_id: str, outcome: str) -> None:
        row: RequestRow | None = self.tables[View.REQUESTS].get(request_id)
        if row is None:
            return  # It ended before: facts may come twice.
        self._release(request_id)
        self._drop(View.REQUESTS, request_id)
        tenant = self._tenant(row.tenant)
        tenant.in_flight -= 1
        setattr(tenant, outcome, getattr(tenant, outcome) + 1)

    def _release(self, request_id: str) -> None:
        """What was promised to a request is free again."""
        row: RequestRow | None = self.tables[View.REQUESTS].get(request_id)
        if row is None or not row.engine:
            return
        if row.engine in self.tables[View.ENGINES]:
            engine = self._engine(row.engine)
            engine.admitted -= 1
            engine.kv_bytes_reserved -= row.kv_bytes_reserved
        row.engine, row.kv_bytes_reserved, row.output_tokens_predicted = "", 0, 0
        self._change(View.REQUESTS, request_id)

    def _take_engine(self, event: Event) -> None:
        match event:
            case EngineRegistered():
                row = self._engine(event.engine_id)
                row.kind, row.models = event.kind, tuple(event.models)
                row.kv_bytes = event.kv_blocks * event.block_bytes
            case EngineRemoved():
                self._drop(View.ENGINES, event.engine_id)
            case EngineHealthChanged():
                self._engine(event.engine_id).health = event.health
            case EngineMeasured():
                row = self._engine(event.engine_id)
                row.running, row.waiting, row.kv_used_ppm = event.running, event.waiting, event.kv_used_ppm
            case _:
                pass

    def _count(self, event: Event) -> None:
        reason = str(getattr(event, "reason", "")) if isinstance(event, WITH_REASON) else ""
        times = event.count if isinstance(event, IngestRefused) else 1
        name = f"{event.event_kind()}.{reason}" if reason else event.event_kind()
        counters = self.tables[View.COUNTERS]
        counters[name] = counters.get(name, 0) + times
        self._change(View.COUNTERS, name)

    def _engine(self, engine_id: str) -> EngineRow:
        self._change(View.ENGINES, engine_id)
        row: EngineRow = self.tables[View.ENGINES].setdefault(engine_id, EngineRow())
        return row

    def _tenant(self, name: str) -> TenantRow:
        tenants = self.tables[View.TENANTS]
        if name not in tenants and len(tenants) >= TENANTS_MAX:
            name = OTHERS
        self._change(View.TENANTS, name)
        row: TenantRow = tenants.setdefault(name, TenantRow())
        return row

    def _move(self, request_id: str, stage: Stage) -> RequestRow | None:
        row: RequestRow | None = self.tables[View.REQUESTS].get(request_id)
        if row is not None:
            row.stage = stage
            self._change(View.REQUESTS, request_id)
        return row

    def _put(self, view: View, field: str, row: Any) -> None:
        self.tables[view][field] = row
        self._change(view, field)

    def _drop(self, view: View, field: str) -> None:
        self.tables[view].pop(field, None)
        self._change(view, field)

    def _change(self, view: View, field: str) -> None:
        self.changed[view, field] = None
