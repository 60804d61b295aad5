"""Bytes to events and back: every word survives, and nothing that stands in a log can stop its reader."""

import types
import typing
from enum import Enum
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from events import codec, upcast
from events.base import Event, Recorded, Unknown
from events.codec import EVENTS, MALFORMED, Said
from events.control import Ticked
from events.request import RequestArrived

INT64 = st.integers(-(2**63), 2**63 - 1)
PLAIN = st.recursive(
    st.none() | st.booleans() | INT64 | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of a field's type, as the words use types: numbers fit 64 bits, settings are plain values."""
    if kind is Any:
        return PLAIN
    if kind is int:
        return INT64
    if isinstance(kind, typing.NewType):
        return values(kind.__supertype__)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return st.one_of([st.none() if part is types.NoneType else values(part) for part in typing.get_args(kind)])
    if typing.get_origin(kind) is tuple:
        return st.lists(values(typing.get_args(kind)[0]), max_size=3).map(tuple)
    if typing.get_origin(kind) is dict:
        return st.dictionaries(st.text(max_size=5), values(typing.get_args(kind)[1]), max_size=3)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return structs(kind)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return st.sampled_from(kind)
    assert kind in (str, bool), f"no values for {kind}"
    return st.text(max_size=8) if kind is str else st.booleans()


def structs(cls: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    return st.builds(cls, **{field.name: values(field.type) for field in msgspec.structs.fields(cls)})


def body(*raws: dict[str, Any], owner: str = "o1", ts_ns: int = 17) -> bytes:
    return msgspec.json.encode({"owner": owner, "ts_ns": ts_ns, "said": [{"event": raw} for raw in raws]})


def decoded(*raws: dict[str, Any]) -> list[Event]:
    return [recorded.event for recorded in codec.decode(1, "tg.v1.p.fact.clock.ticked", body(*raws))]


@pytest.mark.parametrize("cls", EVENTS, ids=lambda cls: cls.event_tag())
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_every_event_survives_the_way_through_bytes(cls: type[Event], data: st.DataObject) -> None:
    event = data.draw(structs(cls))
    said = [Said(event=event, cause="3.0"), Said(event=event)]
    subject = "tg.v1.p.decision.admission.several"
    got = codec.decode(7, subject, codec.encode(owner="o1", ts_ns=17, said=said))
    assert got == [
        Recorded(seq=7, item=item, event=event, actor="admission", owner="o1", cause=cause, ts_ns=17)
        for item, cause in enumerate(["3.0", ""])
    ]


def test_every_tag_is_named_once_and_carries_its_version() -> None:
    tags = [cls.event_tag() for cls in EVENTS]
    assert len(set(tags)) == len(tags)
    assert [tag for tag in tags if not tag.endswith(".v1")] == []
    assert len({cls.event_kind() for cls in EVENTS}) == len(tags)


def test_the_body_can_be_read_by_a_person() -> None:
    written = codec.encode(owner="c1", ts_ns=17, said=[Said(event=Ticked(n=3))])
    assert written == b'{"owner":"c1","ts_ns":17,"said":[{"event":{"type":"ticked.v1","n":3}}]}'


def test_an_unknown_tag_is_unknown_in_its_place_and_the_rest_goes_on() -> None:
    got = decoded({"type": "ticked.v1", "n": 1}, {"type": "nova.v9", "x": 1}, {"type": "ticked.v1", "n": 2})
    assert got == [Ticked(n=1), Unknown(raw_tag="nova.v9"), Ticked(n=2)]


@pytest.mark.parametrize(
    ("raw", "tag"),
    [
        ({"type": "ticked.v1", "n": "three"}, "invalid:ticked.v1"),
        ({"type": "ticked.v1"}, "invalid:ticked.v1"),
        (
            {"type": "engine_health_changed.v1", "engine_id": "e1", "health": "tired"},
            "invalid:engine_health_changed.v1",
        ),
        ({"n": 3}, ""),
        ({"type": 5}, "5"),
    ],
)
def test_a_known_tag_with_a_wrong_field_is_unknown_and_says_so(raw: dict[str, Any], tag: str) -> None:
    assert decoded(raw) == [Unknown(raw_tag=tag)]


def test_a_field_that_came_later_is_ignored_and_one_that_is_missing_has_its_default() -> None:
    assert decoded({"type": "ticked.v1", "n": 3, "colour": "blue", "more": {"a": [1]}}) == [Ticked(n=3)]
    [event] = decoded(
        {"type": "request_arrived.v1", "request_id": "r1", "tenant": "t", "model": "m", "holder": "gw-1",
         "prompt_tokens": 5, "slo_ttft_ns": 1, "deadline_ns": 2},
    )  # fmt: skip
    assert isinstance(event, RequestArrived)
    assert (event.attempt, event.slices, event.kind) == (0, (), "llm")


@given(st.binary(max_size=200))
@example(b"")
@example(b"{}")
@example(b"[]")
@example(b'{"owner":"\xff","ts_ns":1,"said":[]}')
@example(b'{"owner":"o","ts_ns":1,"said":[]}')
@example(b'{"owner":"o","ts_ns":1.5,"said":[{"event":{"type":"ticked.v1","n":1}}]}')
@example(b'{"owner":"o","ts_ns":1,"said":[{"event":[]}]}')
@example(b"[" * 100_000)
@example(b'{"owner":"o","ts_ns":1,"said":[{"event":{"type":"x","a":' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}}]}")
def test_bytes_that_are_no_envelope_are_one_malformed_record(raw: bytes) -> None:
    assert codec.decode(5, "tg.v1.p.decision.quota.several", raw) == [
        Recorded(seq=5, item=0, event=Unknown(raw_tag=MALFORMED), actor="quota")
    ]


@pytest.mark.parametrize(
    ("subject", "actor"),
    [
        ("tg.v1.p.decision.admission.request_admitted", "admission"),
        ("tg.v1.p.fact.clock.ticked", ""),
        ("tg.v1.decision.decision.x", ""),
        ("tg.v1.p.decision.admission", ""),
        ("", ""),
    ],
)
def test_the_actor_is_who_the_subject_of_a_decision_names(subject: str, actor: str) -> None:
    assert codec.actor_of(subject) == actor


def test_old_words_climb_step_by_step_to_the_newest() -> None:
    table: dict[str, Any] = {
        "ticked.v-1": lambda raw: {"type": "ticked.v0", "count": raw["c"]},
        "ticked.v0": lambda raw: {"type": "ticked.v1", "n": raw["count"]},
    }
    newest = {"type": "ticked.v1", "n": 3}
    assert upcast.to_newest({"type": "ticked.v-1", "c": 3}, table) == newest
    assert upcast.to_newest({"type": "ticked.v0", "count": 3}, table) == newest
    assert upcast.to_newest(newest, table) == newest
    assert upcast.to_newest({}, table) == {}


def test_an_old_word_in_a_log_is_read_as_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(upcast.UPCASTERS, "tick.v0", lambda raw: {"type": "ticked.v1", "n": raw["count"]})
    assert decoded({"type": "tick.v0", "count": 3}, {"type": "ticked.v1", "n": 4}) == [Ticked(n=3), Ticked(n=4)]


@pytest.mark.parametrize(("depth", "readable"), [(codec.DEPTH_MAX, True), (codec.DEPTH_MAX + 1, False)])
def test_nesting_has_a_bound_of_our_own(depth: int, readable: bool) -> None:
    around = 4  # The envelope, its list, one of it, the event.
    extra: list[Any] = []
    for _ in range(depth - around - 1):
        extra = [extra]
    raw = {"type": "ticked.v1", "n": 1, "text": "[{" * codec.DEPTH_MAX, "extra": extra}
    body = msgspec.json.encode({"owner": "o", "ts_ns": 1, "said": [{"event": raw}]})
    [recorded] = codec.decode(1, "tg.v1.p.fact.clock.ticked", body)
    assert recorded.event == (Ticked(n=1) if readable else Unknown(raw_tag=MALFORMED))
