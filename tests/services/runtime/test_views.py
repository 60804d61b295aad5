"""The views fold a log; what they hold is right after any log, and the same however it is cut into batches."""

import msgspec
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from events.base import EngineId, Event, HolderId, ModelId, Recorded, RequestId
from events.control import IngestRefused, ShadowCompared, Ticked
from events.decisions import DeferReason, HolderLost, RejectReason, RequestAdmitted, RequestDeferred, RequestRejected
from events.engine import (
    EngineHealthChanged,
    EngineKind,
    EngineMeasured,
    EngineRegistered,
    EngineRemoved,
    Health,
)
from events.request import (
    AbortReason,
    DispatchStarted,
    FirstTokenSeen,
    HolderStopped,
    RequestAborted,
    RequestExpired,
    RequestFinished,
)
from services.runtime import views as views_module
from services.runtime.view_metrics import ViewsCollector
from services.runtime.view_rows import Stage, TenantRow, View
from services.runtime.views import Views
from tests.services.runtime import toy

E1, R1 = EngineId("e1"), RequestId("r1")
ARRIVED = toy.arrived(1, 100)
REGISTERED = EngineRegistered(
    engine_id=E1, kind=EngineKind.VLLM, models=(ModelId("m"),), kv_blocks=10, block_tokens=16, block_bytes=100
)
ADMITTED = RequestAdmitted(
    request_id=R1, engine_id=E1, output_tokens_predicted=50, kv_cache_tokens=150, kv_bytes_reserved=400,
    ttft_predicted_ns=1, slo_slack_ns=1,
)  # fmt: skip
FINISHED = RequestFinished(request_id=R1, engine_id=E1, prompt_tokens=100, output_tokens=40, ttft_ns=1, e2e_ns=2)
DEFERRED = RequestDeferred(request_id=R1, until_ns=5, reason=DeferReason.KV_BUDGET)


def after(*events: Event) -> Views:
    views = Views()
    for seq, event in enumerate(events, start=1):
        views.take(Recorded(seq=seq, item=0, event=event, ts_ns=seq))
    return views


@pytest.mark.parametrize(
    ("events", "stage"),
    [
        ([ARRIVED], Stage.ARRIVED),
        ([ARRIVED, DEFERRED], Stage.DEFERRED),
        ([ARRIVED, DEFERRED, ADMITTED], Stage.ADMITTED),
        ([ARRIVED, ADMITTED, DispatchStarted(request_id=R1, engine_id=E1)], Stage.DISPATCHED),
        ([ARRIVED, ADMITTED, FirstTokenSeen(request_id=R1, engine_id=E1, ttft_ns=1)], Stage.STREAMING),
        ([ARRIVED, ADMITTED, RequestAborted(request_id=R1, reason=AbortReason.ENGINE_LOST, final=False), ARRIVED],
         Stage.ARRIVED),
    ],
)  # fmt: skip
def test_a_request_is_as_far_as_the_log_says(events: list[Event], stage: Stage) -> None:
    views = after(REGISTERED, *events)
    assert views.tables[View.REQUESTS][R1].stage is stage
    reserved = 400 if stage in (Stage.ADMITTED, Stage.DISPATCHED, Stage.STREAMING) else 0
    assert views.tables[View.ENGINES][E1].kv_bytes_reserved == reserved
    assert views.tables[View.TENANTS]["t"].in_flight == 1


@pytest.mark.parametrize(
    ("end", "outcome"),
    [
        (FINISHED, "finished"),
        (RequestRejected(request_id=R1, reason=RejectReason.KV_BUDGET), "rejected"),
        (RequestAborted(request_id=R1, reason=AbortReason.CLIENT_GONE), "aborted"),
        (RequestExpired(request_id=R1, waited_ns=1), "aborted"),
        (HolderLost(holder=HolderId("h"), requests=(R1,)), "aborted"),
        (HolderStopped(holder=HolderId("h")), "aborted"),
    ],
)
def test_however_a_request_ends_nothing_of_it_stays_reserved_and_it_is_counted_once(end: Event, outcome: str) -> None:
    views = after(REGISTERED, ARRIVED, ADMITTED, end, end)
    assert not views.tables[View.REQUESTS]
    engine, tenant = views.tables[View.ENGINES][E1], views.tables[View.TENANTS]["t"]
    assert (engine.admitted, engine.kv_bytes_reserved) == (0, 0)
    assert (tenant.arrived, tenant.in_flight, getattr(tenant, outcome)) == (1, 0, 1)
    assert tenant.finished + tenant.rejected + tenant.aborted == 1


def test_what_a_lost_holder_is_not_said_to_have_lost_goes_on() -> None:
    views = after(REGISTERED, ARRIVED, HolderLost(holder=HolderId("h"), requests=(RequestId("old"),)))
    assert list(views.tables[View.REQUESTS]) == [R1]


def test_predicted_stands_beside_actual() -> None:
    engine = after(REGISTERED, ARRIVED, ADMITTED, FINISHED).tables[View.ENGINES][E1]
    assert (engine.output_tokens_predicted, engine.output_tokens_actual) == (50, 40)


def test_an_engine_is_what_was_last_said_of_it_and_goes_when_it_is_removed() -> None:
    measured = EngineMeasured(engine_id=E1, running=2, waiting=1, kv_used_ppm=250_000)
    views = after(REGISTERED, EngineHealthChanged(engine_id=E1, health=Health.READY), measured)
    row = views.tables[View.ENGINES][E1]
    assert (row.kv_bytes, row.health, row.running, row.kv_used_ppm) == (1000, Health.READY, 2, 250_000)
    assert not after(REGISTERED, measured, EngineRemoved(engine_id=E1)).tables[View.ENGINES]


def test_changed_names_every_field_that_is_another() -> None:
    views = after(REGISTERED, ARRIVED, ADMITTED)
    before = {(view, field): views.value(view, field) for view in View for field in views.tables[view]}
    views.changed.clear()
    views.take(Recorded(seq=9, item=0, event=FINISHED))
    now = {(view, field): views.value(view, field) for view in View for field in views.tables[view]}
    assert {key for key in before | now if before.get(key) != now.get(key)} <= set(views.changed)


def test_tenants_beyond_the_limit_are_counted_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views_module, "TENANTS_MAX", 1)
    from msgspec.structs import replace

    views = after(ARRIVED, *(replace(ARRIVED, request_id=RequestId(f"q{n}"), tenant=f"t{n}") for n in range(5)))
    assert set(views.tables[View.TENANTS]) == {"t", views_module.OTHERS}
    assert views.tables[View.TENANTS][views_module.OTHERS] == TenantRow(arrived=5, in_flight=5, prompt_tokens=500)


def test_free_text_never_becomes_a_counter() -> None:
    counters = after(
        EngineHealthChanged(engine_id=E1, health=Health.LOST, reason="whatever it said"),
        IngestRefused(client="c", reason="malformed", count=3), Ticked(n=1),
    ).tables[View.COUNTERS]  # fmt: skip
    assert counters == {"engine_health_changed": 1, "ingest_refused.malformed": 3}


def test_the_newest_report_of_a_shadow_is_what_stands() -> None:
    told = ShadowCompared(
        shadow="s", policy="adaptive", actor="admission", settings={}, code_version="", since_seq=1, to_seq=9, words=7,
        same=4, amounts=1, outcomes=2,
    )  # fmt: skip
    views = after(msgspec.structs.replace(told, words=0), told)
    row = views.tables[View.SHADOWS]["admission"]
    assert (row.policy, row.to_seq, row.words, row.outcomes) == ("adaptive", 9, 7, 2)
    registry = CollectorRegistry()
    registry.register(ViewsCollector(views))
    text = generate_latest(registry).decode()
    assert 'tidegate_shadow_words{actor="admission",verdict="outcomes"} 2.0' in text
    assert 'tidegate_shadow_words{actor="admission",verdict="standing"} 0.0' in text


def test_metrics_tell_the_views() -> None:
    registry = CollectorRegistry()
    registry.register(ViewsCollector(after(REGISTERED, ARRIVED, ADMITTED)))
    text = generate_latest(registry).decode()
    assert 'tidegate_engine_kv_reserved_ratio{engine="e1"} 0.4' in text
    assert 'tidegate_events_total{kind="request_arrived",reason=""} 1.0' in text
