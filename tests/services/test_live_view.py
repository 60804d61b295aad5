"""The live view counts what the log says and shows the newest decisions with their causes."""

from io import StringIO

from rich.console import Console

from events.base import EngineId, Event, HolderId, ModelId, Recorded, RequestId, TenantId
from events.decisions import (
    MiscoverageNoticed,
    PreemptReason,
    RejectReason,
    RequestAdmitted,
    RequestPreempted,
    RequestRejected,
    ShareReason,
    SharesSet,
    TenantQuotaSet,
)
from events.engine import EngineKind, EngineMeasured, EngineRegistered
from events.request import RequestArrived
from services.live_view import LINES_MAX, LiveView


def shown(view: LiveView) -> str:
    console = Console(width=160, file=StringIO())
    with console.capture() as capture:
        console.print(view.render())
    return capture.get()


def record(seq: int, event: Event, *, actor: str = "", cause: str = "") -> Recorded:
    return Recorded(seq=seq, item=0, event=event, actor=actor, cause=cause, ts_ns=seq * 1_000_000_000)


def arrived(number: int) -> RequestArrived:
    return RequestArrived(
        request_id=RequestId(f"r{number}"), tenant=TenantId("t"), model=ModelId("m"), holder=HolderId("h"),
        prompt_tokens=10, slo_ttft_ns=1, deadline_ns=2,
    )  # fmt: skip


def test_counts_reasons_memory_and_causes_are_shown() -> None:
    view = LiveView("pool demo")
    view.take(record(1, arrived(1)))
    view.take(record(2, EngineMeasured(engine_id=EngineId("e1"), running=3, waiting=4, kv_used_ppm=250_000)))
    rejected = RequestRejected(request_id=RequestId("r1"), reason=RejectReason.SLO_INFEASIBLE)
    view.take(record(3, rejected, actor="admission", cause="1.0"))
    text = shown(view)
    for part in ("arrived 1", "rejected 1", "25%", "waiting   4", "rejected_slo_infeasible 1", "because of 1.0"):
        assert part in text


def test_only_the_newest_lines_are_kept() -> None:
    view = LiveView("pool demo")
    for number in range(LINES_MAX + 3):
        admitted = RequestAdmitted(
            request_id=RequestId(f"r{number}"), engine_id=EngineId("e1"), output_tokens_predicted=1,
            kv_cache_tokens=11, kv_bytes_reserved=1, ttft_predicted_ns=1, slo_slack_ns=1,
        )  # fmt: skip
        view.take(record(number + 1, admitted, actor="admission", cause=f"{number + 1}.0"))
    text = shown(view)
    assert "r0 ->" not in text
    assert f"r{LINES_MAX + 2} ->" in text


def test_who_makes_room_how_memory_is_divided_and_who_is_warned_of() -> None:
    e1, r1 = EngineId("e1"), RequestId("r1")
    view = LiveView("pool demo")
    engine = EngineRegistered(
        engine_id=e1, kind=EngineKind.SIMULATED, models=(ModelId("m"),), kv_blocks=1_000, block_tokens=16,
        block_bytes=4_000_000,
    )  # fmt: skip
    preempted = RequestPreempted(
        request_id=r1, engine_id=e1, for_request=RequestId("r2"), reason=PreemptReason.MORE_URGENT, output_tokens=57,
        kv_bytes_freed=1_250_000_000,
    )  # fmt: skip
    resumed = RequestAdmitted(
        request_id=r1, engine_id=e1, output_tokens_predicted=1, kv_cache_tokens=1, kv_bytes_reserved=1,
        ttft_predicted_ns=1, slo_slack_ns=1, resumed=True,
    )  # fmt: skip
    share = SharesSet(engine_id=e1, llm_ppm=700_000, embedding_ppm=300_000, reason=ShareReason.ARMED)
    quota = TenantQuotaSet(tenant=TenantId("acme"), kv_bytes_max=2_000_000_000)
    alarm = MiscoverageNoticed(predictor="quantile", coverage_ppm=700_000, target_ppm=800_000, requests=200)
    view.take(record(1, engine))
    view.take(record(2, EngineMeasured(engine_id=e1, running=3, waiting=4, kv_used_ppm=250_000, evictions_total=12)))
    for seq, event in enumerate([preempted, resumed, share, quota, alarm], start=3):
        view.take(record(seq, event, actor="admission", cause="1.0"))
    text = shown(view)
    for part in (
        "preempted 1", "r1 off e1 for r2, frees 1.25 GB after 57 tokens", "r1 goes on on e1", "25% of 4.0 GB",
        "evictions 12", "e1: LLM 70% embedding 30%, armed", "tenant acme: 2.00 GB",
        "quantile misses its target: 70% of 80%", "admitted 0",
    ):  # fmt: skip
        assert part in text
    lifted = SharesSet(engine_id=e1, llm_ppm=700_000, embedding_ppm=300_000, reason=ShareReason.LIFTED)
    view.take(record(9, lifted, actor="quota", cause="1.0"))
    assert "e1 is not divided any more" in shown(view)
    assert shown(view).count("LLM 70%") == 1, "in the line that said so, not beside the engine"
