"""Predicted beside actual: per request, engine, tenant, predictor and device, in the views and as metrics."""

import pytest
from msgspec.structs import replace
from prometheus_client import CollectorRegistry, generate_latest

from events.base import NS_PER_S, EngineId, Event, ModelId, Recorded, RequestId, RequestKind, TenantId
from events.control import ActorStarted
from events.decisions import (
    MiscoverageNoticed,
    PreemptReason,
    RequestAdmitted,
    RequestPreempted,
    ShareReason,
    SharesSet,
    TenantQuotaSet,
)
from events.engine import Capability, DeviceMeasured, EngineKind, EngineMeasured, EngineRegistered, EngineRemoved
from events.request import FirstTokenSeen, RequestFinished
from services.runtime import view_metrics
from services.runtime import views as views_module
from services.runtime.view_metrics import ViewsCollector
from services.runtime.view_rows import Enforced, FinishedRow, Promise, Stage, View
from services.runtime.views import OTHERS, POOL, Views
from tests.services.runtime import toy

E1, R1 = EngineId("e1"), RequestId("r1")
ARRIVED = toy.arrived(1, 100)
REGISTERED = EngineRegistered(
    engine_id=E1, kind=EngineKind.SIMULATED, models=(ModelId("m"),), kv_blocks=100, block_tokens=16, block_bytes=1_000
)
ADMITTED = RequestAdmitted(
    request_id=R1, engine_id=E1, output_tokens_predicted=60, output_tokens_low=10, kv_cache_tokens=160,
    kv_bytes_reserved=10_000, ttft_predicted_ns=NS_PER_S, slo_slack_ns=2 * NS_PER_S, embedding_workspace_bytes=3_000,
    cached_tokens_predicted=32, predictor="quantile",
)  # fmt: skip
FINISHED = RequestFinished(
    request_id=R1, engine_id=E1, prompt_tokens=100, output_tokens=40, cached_tokens=16, kv_cache_tokens=140,
    ttft_ns=NS_PER_S, e2e_ns=2 * NS_PER_S, preemptions=1, slo_slack_ns=-NS_PER_S, embedding_workspace_bytes=2_000,
)  # fmt: skip
PREEMPTED = RequestPreempted(request_id=R1, engine_id=E1, for_request=RequestId("r2"), reason=PreemptReason.MORE_URGENT)
MEASURED = EngineMeasured(
    engine_id=E1, running=1, waiting=0, kv_used_ppm=250_000, preemptions_total=4, evictions_total=7,
    embedding_bytes=5_000, directive_version=3,
)  # fmt: skip


def after(*events: Event) -> Views:
    views = Views()
    for seq, event in enumerate(events, start=1):
        views.take(Recorded(seq=seq, item=0, event=event, ts_ns=seq))
    return views


def told(views: Views) -> list[str]:
    registry = CollectorRegistry()
    registry.register(ViewsCollector(views))
    return generate_latest(registry).decode().splitlines()


def test_a_finished_request_stands_with_what_was_predicted_of_it() -> None:
    row = after(REGISTERED, ARRIVED, ADMITTED, FINISHED).tables[View.FINISHED][R1]
    assert row == FinishedRow(
        tenant="t", model="m", kind="llm", engine="e1",
        predicted=Promise(
            output_tokens_low=10, output_tokens=60, kv_cache_tokens=160, kv_bytes=10_000,
            embedding_workspace_bytes=3_000, cached_tokens=32, ttft_ns=NS_PER_S, slo_slack_ns=2 * NS_PER_S,
            predictor="quantile",
        ),
        output_tokens=40, kv_cache_tokens=140, kv_bytes=9_000, embedding_workspace_bytes=2_000, cached_tokens=16,
        ttft_ns=NS_PER_S, slo_slack_ns=-NS_PER_S, evictions=0, preemptions=1,
    )  # fmt: skip


def test_only_the_newest_finished_requests_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views_module, "FINISHED_MAX", 2)
    each = [RequestId(f"r{number}") for number in range(4)]
    views = after(
        REGISTERED,
        *(replace(event, request_id=name) for name in each for event in (ARRIVED, ADMITTED, FINISHED)),  # type: ignore[type-var]
    )
    assert list(views.tables[View.FINISHED]) == each[2:]
    assert (View.FINISHED, each[0]) in views.changed, "the store is told that it is gone"


def test_an_engine_tells_what_is_used_beside_what_is_promised() -> None:
    row = after(REGISTERED, ARRIVED, ADMITTED, MEASURED).tables[View.ENGINES][E1]
    assert (row.kv_cache_usage_bytes, row.kv_bytes_reserved) == (25_000, 10_000)
    assert (row.embedding_bytes, row.embedding_bytes_reserved) == (5_000, 3_000)
    assert (row.eviction_count, row.preemptions, row.directive_version) == (7, 4, 3)


def test_a_preempted_request_holds_nothing_and_is_counted_until_it_goes_on() -> None:
    views = after(REGISTERED, ARRIVED, ADMITTED, PREEMPTED)
    engine, row = views.tables[View.ENGINES][E1], views.tables[View.REQUESTS][R1]
    assert (row.stage, row.evictions, row.engine) == (Stage.PREEMPTED, 1, "")
    assert (engine.preempted, engine.admitted, engine.kv_bytes_reserved, engine.embedding_bytes_reserved) == (
        1,
        0,
        0,
        0,
    )
    views.take(
        Recorded(seq=9, item=0, event=replace(ADMITTED, resumed=True, kv_cache_tokens=999, kv_bytes_reserved=8_000))
    )
    assert (row.stage, row.engine, row.kv_bytes_reserved) == (Stage.ADMITTED, "e1", 8_000)
    assert row.predicted.kv_cache_tokens == 160, "what was predicted at first is what it is held against"
    views.take(Recorded(seq=10, item=0, event=FINISHED))
    assert views.tables[View.FINISHED][R1].evictions == 1
    assert (engine.admitted, engine.kv_bytes_reserved) == (0, 0)


@pytest.mark.parametrize(("can_preempt", "stage", "reserved"), [
    (False, Stage.STREAMING, 10_000), (True, Stage.PREEMPTED, 0),
])  # fmt: skip
def test_a_first_token_after_the_order_means_that_it_came_too_late_for_an_engine_that_cannot(
    can_preempt: bool, stage: Stage, reserved: int
) -> None:
    engine = replace(REGISTERED, capability=Capability(can_preempt=can_preempt))
    views = after(engine, ARRIVED, ADMITTED, PREEMPTED, FirstTokenSeen(request_id=R1, engine_id=E1, ttft_ns=1))
    assert views.tables[View.REQUESTS][R1].stage is stage
    assert views.tables[View.ENGINES][E1].kv_bytes_reserved == reserved


def test_an_engine_that_left_and_came_back_holds_nothing_of_before() -> None:
    gone = EngineRemoved(engine_id=E1)
    views = after(REGISTERED, ARRIVED, ADMITTED, gone, REGISTERED, FINISHED)
    row = views.tables[View.ENGINES][E1]
    assert (row.admitted, row.kv_bytes_reserved, row.embedding_bytes_reserved) == (0, 0, 0)
    assert views.tables[View.TENANTS]["t"].kv_bytes == 0


def test_a_tenants_bytes_stand_beside_its_quota() -> None:
    quota = TenantQuotaSet(tenant=TenantId("t"), kv_bytes_max=50_000)
    views = after(REGISTERED, quota, ARRIVED, ADMITTED)
    row = views.tables[View.TENANTS]["t"]
    assert (row.kv_bytes, row.kv_bytes_max) == (10_000, 50_000)
    views.take(Recorded(seq=9, item=0, event=FINISHED))
    assert row.kv_bytes == 0


@pytest.mark.parametrize("first", [0, 1], ids=["engine first", "share first"])
def test_a_share_is_told_in_bytes_with_how_it_holds(first: int) -> None:
    share = SharesSet(engine_id=E1, llm_ppm=700_000, embedding_ppm=300_000, reason=ShareReason.ARMED)
    both: list[Event] = [REGISTERED, share]
    views = after(both[first], both[1 - first])
    row = views.tables[View.SHARES][E1]
    assert (row.llm_bytes, row.embedding_bytes, row.enforced) == (70_000, 30_000, Enforced.CAP)
    assert 'tidegate_share_ratio{enforced="cap",engine="e1",kind="llm"} 0.7' in told(views)
    views.take(Recorded(seq=9, item=0, event=replace(share, reason=ShareReason.LIFTED)))
    assert not views.tables[View.SHARES]


def test_the_pools_share_stands_beside_those_of_engines_and_goes_with_none() -> None:
    pool = SharesSet(engine_id=EngineId(""), llm_ppm=1_000_000, embedding_ppm=0, reason=ShareReason.ARMED)
    one = replace(pool, engine_id=E1)
    assert list(after(pool, one, EngineRemoved(engine_id=E1)).tables[View.SHARES]) == [POOL]


def test_a_predictor_is_held_against_what_came() -> None:
    late = replace(FINISHED, request_id=RequestId("r2"), output_tokens=70)
    second = [replace(event, request_id=RequestId("r2")) for event in (ARRIVED, ADMITTED)]  # type: ignore[type-var]
    noticed = MiscoverageNoticed(predictor="quantile", coverage_ppm=500_000, target_ppm=800_000, requests=200)
    views = after(REGISTERED, ARRIVED, ADMITTED, FINISHED, *second, late, noticed)
    row = views.tables[View.PREDICTORS]["quantile"]
    assert (row.asked, row.stood_in, row.finished, row.covered) == (2, 0, 2, 1)
    assert (row.alarm, row.alarms, row.target_ppm, row.coverage_ppm_late) == (True, 1, 800_000, 500_000)
    assert 'tidegate_predictor_coverage_ratio{predictor="quantile"} 0.5' in told(views)
    assert 'tidegate_predictor_miscovers{predictor="quantile"} 1.0' in told(views)
    views.take(Recorded(seq=99, item=0, event=replace(noticed, cleared=True)))
    assert (row.alarm, row.alarms) == (False, 1)


def test_a_job_without_output_says_nothing_about_a_predictor() -> None:
    embedding = replace(ARRIVED, kind=RequestKind.EMBEDDING)
    assert not after(REGISTERED, embedding, ADMITTED, FINISHED).tables[View.PREDICTORS]


@pytest.mark.parametrize(("configured", "fallbacks"), [("quantile", 1), ("constant", 0)])
def test_an_answer_of_another_predictor_than_the_configured_one_is_a_fallback(configured: str, fallbacks: int) -> None:
    started = ActorStarted(
        instance="a", code_version="1", policy_digest="d", settings={"output_predictor": configured}
    )  # fmt: skip
    views = after(started, REGISTERED, ARRIVED, replace(ADMITTED, predictor="constant"))
    assert f'tidegate_predictor_fallbacks_total{{predictor="constant"}} {fallbacks}.0' in told(views)


def test_slack_is_a_histogram_of_what_was_predicted_and_what_was_left() -> None:
    lines = told(after(REGISTERED, ARRIVED, ADMITTED, FINISHED))
    assert 'tidegate_slo_slack_seconds_bucket{le="-0.5",said="actual"} 1.0' in lines
    assert 'tidegate_slo_slack_seconds_bucket{le="-2.0",said="actual"} 0.0' in lines
    assert 'tidegate_slo_slack_seconds_bucket{le="1.0",said="predicted"} 0.0' in lines
    assert 'tidegate_slo_slack_seconds_bucket{le="2.0",said="predicted"} 1.0' in lines


def test_what_an_engine_does_not_tell_is_no_metric() -> None:
    silent = told(after(REGISTERED, replace(MEASURED, embedding_bytes=-1)))
    assert not [line for line in silent if line.startswith("tidegate_engine_embedding_workspace_bytes{")]
    assert 'tidegate_engine_embedding_workspace_bytes{engine="e1"} 5000.0' in told(after(REGISTERED, MEASURED))


def test_a_device_tells_whose_its_memory_is() -> None:
    device = DeviceMeasured(
        host="h", device=0, name="GPU", bytes_total=100, bytes_used=60, llm_bytes=40, embedding_bytes=10,
        busy_ppm=500_000,
    )  # fmt: skip
    lines = told(after(device))
    assert 'tidegate_device_memory_bytes{device="h/0",whose="llm"} 40.0' in lines
    assert 'tidegate_device_busy_ratio{device="h/0"} 0.5' in lines


def test_tenants_beyond_the_limit_are_one_in_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view_metrics, "TENANTS_MAX", 1)
    events: list[Event] = [REGISTERED]
    for number in range(3):
        name = RequestId(f"q{number}")
        events += [replace(ARRIVED, request_id=name, tenant=TenantId(f"t{number}")), replace(ADMITTED, request_id=name)]
    lines = [line for line in told(after(*events)) if line.startswith("tidegate_tenant_kv_bytes{")]
    assert lines == [
        'tidegate_tenant_kv_bytes{tenant="t0"} 10000.0', f'tidegate_tenant_kv_bytes{{tenant="{OTHERS}"}} 20000.0'
    ]  # fmt: skip
