"""What people and dashboards want to know of a pool right now, folded from its log. Pure; nobody decides by it.

A view is a table of small JSON values by field (`view_rows`). `changed` says what to write down again.
"""

from bisect import bisect_left
from typing import Any, Final

import msgspec

from events.base import NS_PER_S, PPM, Event, Recorded, RequestKind
from events.control import ActorStarted, IngestRefused, PolicyConfigured, ShadowCompared, Ticked
from events.decisions import (
    HolderLost,
    MiscoverageNoticed,
    RequestAdmitted,
    RequestDeferred,
    RequestPreempted,
    RequestRejected,
    ShareReason,
    SharesSet,
    TenantQuotaSet,
    TransferCancelled,
    TransferOrdered,
)
from events.engine import (
    DeviceMeasured,
    DevicesUnseen,
    EngineHealthChanged,
    EngineMeasured,
    EngineRegistered,
    EngineRemoved,
)
from events.request import (
    DispatchStarted,
    FirstTokenSeen,
    HolderStopped,
    RequestAborted,
    RequestArrived,
    RequestExpired,
    RequestFinished,
)
from events.slice import ChoiceMade, TransferFinished
from policies.admission_settings import AdmissionSettings
from services.runtime.view_rows import (
    DeviceRow,
    EngineRow,
    FinishedRow,
    PredictorRow,
    Promise,
    RequestRow,
    ShadowRow,
    ShareRow,
    Stage,
    TenantRow,
    View,
)

TENANTS_MAX: Final = 10_000
"""Tenants that are told apart; those beyond are counted as one."""
OTHERS: Final = "others"
FINISHED_MAX: Final = 512
"""So many of the newest answered requests are kept, predicted beside actual."""
PREDICTORS_MAX: Final = 64
DEVICES_MAX: Final = 1_024
POOL: Final = "pool"
"""Where the share of the pool as a whole stands among those of engines."""
SLACK_BUCKETS_S: Final = (-10.0, -2.0, -0.5, 0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
WITH_REASON: Final = (
    RequestAdmitted, RequestDeferred, RequestRejected, RequestPreempted, RequestAborted, SharesSet, IngestRefused,
    TransferOrdered, TransferCancelled,
)  # fmt: skip
"""Events that are counted by reason: there it is one of few words. Elsewhere it is free text."""


_STAGE: Final[dict[type[Event], Stage]] = {
    RequestDeferred: Stage.DEFERRED, DispatchStarted: Stage.DISPATCHED,
}  # fmt: skip


class Views:
    """The views after every record that `take` was given."""

    def __init__(self) -> None:
        self.seq = 0
        self.now_ns = 0
        self.tables: dict[View, dict[str, Any]] = {view: {} for view in View}
        self.changed: dict[tuple[View, str], None] = {}
        self.slack: dict[str, list[int]] = {said: [0] * (len(SLACK_BUCKETS_S) + 1) for said in ("predicted", "actual")}
        """Finished requests by their slack at the first token, per bucket of SLACK_BUCKETS_S and beyond."""
        self._predictor = str(AdmissionSettings().output_predictor)

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
        self._take_policy(event)

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
            case RequestDeferred() | DispatchStarted():
                self._move(event.request_id, _STAGE[type(event)])
            case RequestPreempted():
                self._preempted(event)
            case FirstTokenSeen():
                self._first_token(event)
            case RequestAborted(final=False):
                self._release(event.request_id)
            case _:
                self._take_end(event)

    def _take_end(self, event: Event) -> None:
        match event:
            case RequestRejected():
                self._end(event.request_id, "rejected")
            case RequestAborted(final=True) | RequestExpired():
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
        if not event.resumed:
            row.predicted = Promise(
                output_tokens_low=event.output_tokens_low, output_tokens=event.output_tokens_predicted,
                kv_cache_tokens=event.kv_cache_tokens, kv_bytes=event.kv_bytes_reserved,
                embedding_workspace_bytes=event.embedding_workspace_bytes,
                cached_tokens=event.cached_tokens_predicted, ttft_ns=event.ttft_predicted_ns,
                slo_slack_ns=event.slo_slack_ns, predictor=event.predictor,
            )  # fmt: skip
            if event.predictor and row.kind == RequestKind.LLM:
                predictor = self._of_predictor(event.predictor)
                predictor.asked += 1
                predictor.stood_in += event.predictor != self._predictor
        self._hold(row, event.engine_id, event.kv_bytes_reserved)

    def _hold(self, row: RequestRow, engine_id: str, kv_bytes: int) -> None:
        """What is promised to a request is its own from now on."""
        row.engine, row.kv_bytes_reserved = engine_id, kv_bytes
        engine = self._engine(engine_id)
        engine.admitted += 1
        engine.kv_bytes_reserved += row.kv_bytes_reserved
        engine.embedding_bytes_reserved += row.predicted.embedding_workspace_bytes
        self._tenant(row.tenant).kv_bytes += row.kv_bytes_reserved

    def _preempted(self, event: RequestPreempted) -> None:
        row = self._move(event.request_id, Stage.PREEMPTED)
        if row is None:
            return
        self._release(event.request_id)
        row.evictions += 1
        self._engine(event.engine_id).preempted += 1

    def _first_token(self, event: FirstTokenSeen) -> None:
        row: RequestRow | None = self.tables[View.REQUESTS].get(event.request_id)
        if row is not None and row.stage is Stage.PREEMPTED:
            if self._engine(event.engine_id).can_preempt:
                return
            self._hold(row, event.engine_id, row.predicted.kv_bytes)  # The order came too late.
        self._move(event.request_id, Stage.STREAMING)

    def _finished(self, event: RequestFinished) -> None:
        row: RequestRow | None = self.tables[View.REQUESTS].get(event.request_id)
        if row is not None:
            self._tenant(row.tenant).output_tokens += event.output_tokens
            if row.engine:
                self._compare(row, event)
        self._end(event.request_id, "finished")

    def _compare(self, row: RequestRow, event: RequestFinished) -> None:
        """Predicted beside actual, per request, engine and predictor."""
        predicted, engine = row.predicted, self._engine(row.engine)
        blocks = -(-event.kv_cache_tokens // engine.block_tokens) if engine.block_tokens else 0
        engine.output_tokens_predicted += predicted.output_tokens
        engine.output_tokens_actual += event.output_tokens
        engine.kv_cache_tokens_predicted += predicted.kv_cache_tokens
        engine.kv_cache_tokens_actual += event.kv_cache_tokens
        engine.embedding_workspace_bytes_predicted += predicted.embedding_workspace_bytes
        engine.embedding_workspace_bytes_actual += event.embedding_workspace_bytes
        self._count_slack("predicted", predicted.slo_slack_ns)
        self._count_slack("actual", event.slo_slack_ns)
        if predicted.predictor and row.kind == RequestKind.LLM:
            predictor = self._of_predictor(predicted.predictor)
            predictor.finished += 1
            predictor.covered += event.output_tokens <= predicted.output_tokens
            predictor.output_tokens_predicted += predicted.output_tokens
            predictor.output_tokens_actual += event.output_tokens
        self._put(View.FINISHED, event.request_id, FinishedRow(
            tenant=row.tenant, model=row.model, kind=row.kind, engine=row.engine, predicted=predicted,
            output_tokens=event.output_tokens, kv_cache_tokens=event.kv_cache_tokens,
            kv_bytes=blocks * engine.block_bytes, embedding_workspace_bytes=event.embedding_workspace_bytes,
            cached_tokens=event.cached_tokens, ttft_ns=event.ttft_ns, slo_slack_ns=event.slo_slack_ns,
            evictions=row.evictions, preemptions=event.preemptions,
        ))  # fmt: skip
        if len(self.tables[View.FINISHED]) > FINISHED_MAX:
            self._drop(View.FINISHED, next(iter(self.tables[View.FINISHED])))

    def _count_slack(self, said: str, slack_ns: int) -> None:
        self.slack[said][bisect_left(SLACK_BUCKETS_S, slack_ns / NS_PER_S)] += 1

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
            engine.embedding_bytes_reserved -= row.predicted.embedding_workspace_bytes
        self._tenant(row.tenant).kv_bytes -= row.kv_bytes_reserved
        row.engine, row.kv_bytes_reserved = "", 0
        self._change(View.REQUESTS, request_id)

    def _take_engine(self, event: Event) -> None:
        match event:
            case EngineRegistered():
                row = self._engine(event.engine_id)
                row.kind, row.models = event.kind, tuple(event.models)
                row.kv_bytes = event.kv_blocks * event.block_bytes
                row.block_tokens, row.block_bytes = event.block_tokens, event.block_bytes
                row.can_preempt = event.capability.can_preempt
                self._weigh_share(event.engine_id)
            case EngineRemoved():
                rows = self.tables[View.REQUESTS]
                for left in [each for each, row in rows.items() if row.engine == event.engine_id]:
                    self._release(left)  # It may come back: then it holds nothing of theirs.
                self._drop(View.ENGINES, event.engine_id)
                self._drop(View.SHARES, event.engine_id)
            case EngineHealthChanged():
                self._engine(event.engine_id).health = event.health
            case EngineMeasured():
                row = self._engine(event.engine_id)
                row.running, row.waiting, row.kv_used_ppm = event.running, event.waiting, event.kv_used_ppm
                row.kv_cache_usage_bytes = row.kv_bytes * event.kv_used_ppm // PPM
                row.eviction_count, row.preemptions = event.evictions_total, event.preemptions_total
                row.embedding_bytes, row.directive_version = event.embedding_bytes, event.directive_version
                row.prefix_queries, row.prefix_hits = event.prefix_queries_total, event.prefix_hits_total
            case DeviceMeasured() | DevicesUnseen():
                self._take_device(event)
            case _:
                pass

    def _take_device(self, event: DeviceMeasured | DevicesUnseen) -> None:
        devices = self.tables[View.DEVICES]
        for known in [each for each in devices if each.partition("/")[0] == event.host]:
            if isinstance(event, DevicesUnseen) or known == event.host:
                self._drop(View.DEVICES, known)
        name = event.host if isinstance(event, DevicesUnseen) else f"{event.host}/{event.device}"
        if name not in devices and len(devices) >= DEVICES_MAX:
            return
        row = DeviceRow(unseen=event.reason) if isinstance(event, DevicesUnseen) else DeviceRow(
            name=event.name, bytes_total=event.bytes_total, bytes_used=event.bytes_used, llm_bytes=event.llm_bytes,
            embedding_bytes=event.embedding_bytes, shared_bytes=event.shared_bytes, busy_ppm=event.busy_ppm,
        )  # fmt: skip
        self._put(View.DEVICES, name, row)

    def _take_policy(self, event: Event) -> None:
        match event:
            case SharesSet(reason=ShareReason.LIFTED):
                self._drop(View.SHARES, event.engine_id or POOL)
            case SharesSet():
                row = ShareRow(llm_ppm=event.llm_ppm, embedding_ppm=event.embedding_ppm, reason=event.reason)
                self._put(View.SHARES, event.engine_id or POOL, row)
                self._weigh_share(event.engine_id)
            case TenantQuotaSet():
                self._tenant(event.tenant).kv_bytes_max = event.kv_bytes_max
            case MiscoverageNoticed():
                predictor = self._of_predictor(event.predictor)
                predictor.alarm, predictor.target_ppm = not event.cleared, event.target_ppm
                predictor.alarms += not event.cleared
                predictor.coverage_ppm_late = event.coverage_ppm
            case ShadowCompared():
                self._put(View.SHADOWS, event.actor, _shadow(event))
            case ActorStarted(settings=settings) | PolicyConfigured(actor="admission", settings=settings):
                self._predictor = str(settings.get("output_predictor", self._predictor))
            case _:
                pass

    def _weigh_share(self, engine_id: str) -> None:
        """A share in bytes, once both the share and the engine are known."""
        share: ShareRow | None = self.tables[View.SHARES].get(engine_id)
        engine: EngineRow | None = self.tables[View.ENGINES].get(engine_id)
        if share is not None and engine is not None:
            share.llm_bytes = engine.kv_bytes * share.llm_ppm // PPM
            share.embedding_bytes = engine.kv_bytes * share.embedding_ppm // PPM
            self._change(View.SHARES, engine_id)

    def _count(self, event: Event) -> None:
        reason = _word_of(event)
        times = event.count if isinstance(event, IngestRefused) else 1
        name = f"{event.event_kind()}.{reason}" if reason else event.event_kind()
        counters = self.tables[View.COUNTERS]
        counters[name] = counters.get(name, 0) + times
        self._change(View.COUNTERS, name)

    def _engine(self, engine_id: str) -> EngineRow:
        self._change(View.ENGINES, engine_id)
        row: EngineRow = self.tables[View.ENGINES].setdefault(engine_id, EngineRow())
        return row

    def _of_predictor(self, name: str) -> PredictorRow:
        predictors = self.tables[View.PREDICTORS]
        if name not in predictors and len(predictors) >= PREDICTORS_MAX:
            name = OTHERS
        self._change(View.PREDICTORS, name)
        row: PredictorRow = predictors.setdefault(name, PredictorRow())
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


def _shadow(event: ShadowCompared) -> ShadowRow:
    return ShadowRow(
        policy=event.policy, since_seq=event.since_seq, to_seq=event.to_seq, words=event.words, same=event.same,
        amounts=event.amounts, outcomes=event.outcomes, standing=event.standing, wakes=event.wakes,
        failed=event.failed, ended=event.ended,
    )  # fmt: skip


def _word_of(event: Event) -> str:
    """By what an event is counted beside its kind; "" where that alone tells."""
    match event:
        case TransferFinished():
            return event.end.value
        case ChoiceMade():
            return event.kind.value
        case _:
            return str(getattr(event, "reason", "")) if isinstance(event, WITH_REASON) else ""
