"""The live view counts what the log says and shows the newest decisions with their causes."""

from io import StringIO

from rich.console import Console

from events.base import EngineId, Event, HolderId, ModelId, Recorded, RequestId, TenantId
from events.decisions import RejectReason, RequestAdmitted, RequestRejected
from events.engine import EngineMeasured
from events.request import RequestArrived
from services.live_view import LINES_MAX, LiveView


def shown(view: LiveView) -> str:
    console = Console(width=120, file=StringIO())
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
