"""Bodies: read as little as needed, changed as little as possible."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway import openai

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
OTHER_KEYS = st.text(min_size=1, max_size=8).filter(
    lambda key: key not in {*msgspec.structs.asdict(openai.Body(model="")), "messages", "cache_salt"}
)


def without(body: dict[str, Any]) -> dict[str, Any]:
    """A body less what may be changed."""
    kept = {key: value for key, value in body.items() if key not in ("cache_salt", "priority", "stream_options")}
    options = {key: value for key, value in (body.get("stream_options") or {}).items() if key != "include_usage"}
    return kept | ({"stream_options": options} if options else {})


@given(
    more=st.dictionaries(OTHER_KEYS, VALUES, max_size=5),
    stream=st.booleans(),
    options=st.none() | st.fixed_dictionaries({"include_usage": st.booleans(), "x": st.integers()}),
    salt=st.sampled_from(["", "salt"]),
    priority=st.none() | st.integers(-5, 5),
    ascii_only=st.booleans(),
)
def test_engines_body_differs_in_the_listed_fields_alone(
    more: dict[str, Any],
    stream: bool,
    options: dict[str, Any] | None,
    salt: str,
    priority: int | None,
    ascii_only: bool,
) -> None:
    sent = {"model": "m", "messages": [], "stream": stream, "stream_options": options, "cache_salt": "own", **more}
    asked = openai.read(openai.CHAT, json.dumps(sent, ensure_ascii=ascii_only).encode())
    got = json.loads(asked.engine_body(cache_salt=salt, priority=priority))

    assert without(got) == without(sent)
    assert got.get("cache_salt", "") == salt
    assert got.get("priority") == priority
    if stream:
        assert got["stream_options"]["include_usage"] is True


def test_body_that_needs_no_change_is_the_very_same_bytes() -> None:
    data = b' { "model" : "m", "messages":[] }\n'
    assert openai.read(openai.CHAT, data).engine_body() is data


def test_fields_changed_are_listed() -> None:
    assert openai.FIELDS_CHANGED == ("cache_salt", "stream_options.include_usage", "priority", "kv_transfer_params")


@pytest.mark.parametrize(
    ("path", "body", "tokens_max"),
    [
        (openai.CHAT, {"messages": []}, 0),
        (openai.CHAT, {"messages": [], "max_tokens": 7, "max_completion_tokens": 5}, 5),
        (openai.COMPLETIONS, {"prompt": "a"}, openai.COMPLETION_TOKENS_DEFAULT),
        (openai.COMPLETIONS, {"prompt": "a", "max_tokens": 7}, 7),
        (openai.EMBEDDINGS, {"input": "a", "max_tokens": 7}, 0),
    ],
)
def test_cap_on_output_tokens(path: str, body: dict[str, Any], tokens_max: int) -> None:
    assert openai.read(path, msgspec.json.encode({"model": "m", **body})).tokens_max == tokens_max


def test_embeddings_never_stream() -> None:
    assert not openai.read(openai.EMBEDDINGS, b'{"model":"m","input":"a","stream":true}').stream
