"""What a client with its own data plane may say, rule by rule."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from events.base import Event
from events.request import DispatchStarted, HolderBeat, OutputPredicted, RequestArrived, RequestFinished
from services.gateway.ingest_rules import (
    AMOUNT_MAX,
    BODY_BYTES_MAX,
    KINDS,
    SLICES_MAX,
    IngestRefusal,
    IngestRules,
    RefuseReason,
)
from services.gateway.tenants import Tenants
from services.runtime.config import ModelConfig, TenantConfig

RULES = IngestRules(
    tenants=Tenants([TenantConfig(name="acme", clients=["app"], priority=4)], secret=b"s"),
    models={"tiny": ModelConfig(name="tiny", slo_ttft_ms=700, slo_tpot_ms=30)},
)
ARRIVAL: dict[str, Any] = {"request_id": "r1", "model": "tiny", "prompt_tokens": 10}


def read(kind: str, body: Any, client: str = "app") -> Event:
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return RULES.read(client, kind, data, now_ns=1_000)


def arrived(body: dict[str, Any], client: str = "app") -> RequestArrived:
    event = read("request_arrived", body, client)
    assert isinstance(event, RequestArrived)
    return event


def test_short_arrival_is_completed() -> None:
    event = arrived(ARRIVAL)
    assert (event.request_id, event.holder, event.tenant, event.priority) == ("app/r1", "client-app", "acme", 4)
    assert (event.slo_ttft_ns, event.slo_tpot_ns) == (700_000_000, 30_000_000)
    assert event.deadline_ns == 700_001_000


def test_arrival_without_an_id_gets_one() -> None:
    first, second = arrived({**ARRIVAL, "request_id": ""}), arrived({"model": "tiny", "prompt_tokens": 1})
    assert first.request_id != second.request_id
    assert first.request_id.startswith("app/")


def test_full_name_of_a_request_is_taken_as_well() -> None:
    event = read("dispatch_started", {"request_id": "app/r1", "engine_id": "e1"})
    assert isinstance(event, DispatchStarted)
    assert event.request_id == "app/r1"


@pytest.mark.parametrize("word", [{"tenant": "other"}, {"prompt": "secret text"}, {"messages": []}])
def test_tenant_is_not_the_clients_to_say_and_prompts_are_not_kept(word: dict[str, Any]) -> None:
    assert arrived({**ARRIVAL, **word}) == arrived(ARRIVAL)


def test_every_message_that_the_documentation_shows_is_taken() -> None:
    page = (Path(__file__).parents[3] / "docs" / "events.md").read_text()
    shown = re.findall(r"tg\.in\.default\.my-app\.(\w+)[ \\\n']+({.*})", page)
    assert {kind for kind, _ in shown} == KINDS.keys() - {"holder_stopped"}
    for kind, body in shown:
        assert read(kind, body.encode(), client="my-app").event_kind() == kind


def test_stranger_is_the_default_tenant() -> None:
    assert arrived(ARRIVAL, client="stranger").tenant == "default"


def test_session_name_is_keyed() -> None:
    session = arrived({**ARRIVAL, "session": "alice@example.org"}).session
    assert session
    assert "alice" not in session


def test_progress_speaks_of_the_clients_own_requests() -> None:
    beat = read("holder_beat", {"progress": [["r1", 5], ["app/r2", 6]]})
    assert isinstance(beat, HolderBeat)
    assert beat.holder == "client-app"
    assert [each.request_id for each in beat.progress] == ["app/r1", "app/r2"]


def test_slack_may_be_below_zero_and_nothing_else_that_a_client_reports() -> None:
    body = {"request_id": "r1", "engine_id": "e1", "prompt_tokens": 1, "output_tokens": 1, "ttft_ns": 1, "e2e_ns": 1}
    late = read("request_finished", body | {"slo_slack_ns": -5})
    assert isinstance(late, RequestFinished)
    assert late.slo_slack_ns == -5
    with pytest.raises(IngestRefusal):
        read("request_finished", body | {"kv_cache_tokens": -5})


@pytest.mark.parametrize(
    ("kind", "body", "reason"),
    [
        ("request_arrived", b"{nope", RefuseReason.NOT_JSON),
        ("request_arrived", b"\xff", RefuseReason.NOT_JSON),
        ("request_arrived", b"[]", RefuseReason.NOT_JSON),
        ("request_arrived", b"[" * 100_000, RefuseReason.NOT_JSON),
        ("request_arrived", b" " * (BODY_BYTES_MAX + 1), RefuseReason.TOO_LARGE),
        ("request_admitted", ARRIVAL, RefuseReason.UNKNOWN_KIND),
        ("request_expired", {}, RefuseReason.UNKNOWN_KIND),
        ("ticked", {"n": 1}, RefuseReason.UNKNOWN_KIND),
        ("nonsense", {}, RefuseReason.UNKNOWN_KIND),
        ("request_arrived", {**ARRIVAL, "type": "ticked.v1"}, RefuseReason.INVALID),
        ("request_arrived", {"request_id": "r1", "prompt_tokens": 1}, RefuseReason.INVALID),
        ("request_arrived", {**ARRIVAL, "prompt_tokens": "ten"}, RefuseReason.INVALID),
        ("request_arrived", {**ARRIVAL, "prompt_tokens": 0}, RefuseReason.INVALID),
        ("request_arrived", {**ARRIVAL, "prompt_tokens": -1}, RefuseReason.INVALID),
        ("request_arrived", {**ARRIVAL, "prompt_tokens": AMOUNT_MAX + 1}, RefuseReason.INVALID),
        ("request_arrived", {**ARRIVAL, "slo_ttft_ns": "soon"}, RefuseReason.INVALID),
        ("request_arrived", {**ARRIVAL, "slice_tokens": 0}, RefuseReason.INVALID),
        ("request_arrived", {**ARRIVAL, "slices": ["s"] * (SLICES_MAX + 1)}, RefuseReason.INVALID),
        ("request_arrived", {**ARRIVAL, "slices": ["s" * 1_000]}, RefuseReason.INVALID),
        ("request_arrived", {**ARRIVAL, "objective": "x" * 1_000}, RefuseReason.INVALID),
        ("request_arrived", {**ARRIVAL, "model": "m" * 1_000}, RefuseReason.INVALID),
        ("request_arrived", {**ARRIVAL, "request_id": 5}, RefuseReason.INVALID),
        ("request_arrived", {**ARRIVAL, "request_id": "\N{GRINNING FACE}"}, RefuseReason.INVALID),
        ("request_arrived", {**ARRIVAL, "request_id": "x" * 1_000}, RefuseReason.INVALID),
        ("request_arrived", {**ARRIVAL, "request_id": "line\nbreak"}, RefuseReason.INVALID),
        ("request_arrived", {**ARRIVAL, "request_id": "other/r1"}, RefuseReason.INVALID),
        ("dispatch_started", {"engine_id": "e1"}, RefuseReason.INVALID),
        ("request_finished", {"request_id": "r1", "engine_id": "e1"}, RefuseReason.INVALID),
        ("request_arrived", {**ARRIVAL, "holder": "gateway-1"}, RefuseReason.FOREIGN),
        ("holder_beat", {"holder": "client-other"}, RefuseReason.FOREIGN),
        ("holder_stopped", {"holder": "gateway-1"}, RefuseReason.FOREIGN),
        ("holder_beat", {"progress": [["other/r1", 5]]}, RefuseReason.INVALID),
        ("holder_beat", {"progress": ["r1"]}, RefuseReason.INVALID),
    ],
)
def test_bad_message_is_refused_with_its_mend(kind: str, body: Any, reason: RefuseReason) -> None:
    with pytest.raises(IngestRefusal) as refused:
        read(kind, body)
    assert refused.value.reason is reason
    assert refused.value.mend


@pytest.mark.parametrize("client", ["a b", "a*", "", "ä", "x" * 65])
def test_client_name_that_cannot_stand_in_the_log_is_refused(client: str) -> None:
    with pytest.raises(IngestRefusal) as refused:
        read("request_arrived", ARRIVAL, client)
    assert refused.value.reason is RefuseReason.BAD_CLIENT


def test_refusal_quotes_no_value() -> None:
    for body in ({**ARRIVAL, "prompt_tokens": "purple"}, {**ARRIVAL, "request_id": "purple/x"}, b'{"purple'):
        with pytest.raises(IngestRefusal) as refused:
            read("request_arrived", body)
        assert "purple" not in refused.value.what + refused.value.mend


def test_a_prediction_names_its_source_where_the_client_does_not() -> None:
    said = {"request_id": "r1", "output_tokens_low": 40, "output_tokens_high": 300}
    for more, source in (({}, "app"), ({"source": "model-7"}, "model-7")):
        event = read("output_predicted", said | more)
        assert isinstance(event, OutputPredicted)
        assert (event.request_id, event.source, event.output_tokens_high) == ("app/r1", source, 300)


def test_clients_say_eight_kinds() -> None:
    assert sorted(KINDS) == [
        "dispatch_started", "first_token_seen", "holder_beat", "holder_stopped", "output_predicted",
        "request_aborted", "request_arrived", "request_finished",
    ]  # fmt: skip
