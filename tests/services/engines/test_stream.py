"""Counting tokens and finding usage in an event stream, however the network cuts it."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.engines import stream as streams
from services.engines.base import Chunk
from services.engines.stream import EventStream, TooLong

ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
WORD = b'data: {"choices":[{"index":0,"delta":{"content":"\\n\\ndata: {\\"usage\\":{"},"finish_reason":null}]}\n\n'
LAST = b'data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":"length"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":3,"total_tokens":8}}\n\n'
DONE = b"data: [DONE]\n\n"
WHOLE = ROLE + WORD + WORD + LAST + USAGE + DONE


@given(cuts=st.lists(st.integers(0, len(WHOLE)), max_size=12))
def test_what_is_learned_does_not_depend_on_where_the_network_cuts(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(WHOLE)]
    stream = EventStream(role_first=True)
    chunks: list[Chunk] = []
    for start, end in pairwise(edges):
        chunks += stream.take(WHOLE[start:end])

    assert b"".join(chunk.data for chunk in chunks) == WHOLE
    assert sum(chunk.tokens for chunk in chunks) == 3
    [told] = [chunk for chunk in chunks if chunk.usage is not None]
    assert told.data == USAGE
    assert told.usage is not None
    assert (told.usage.prompt_tokens, told.usage.output_tokens, told.usage.finish_reason) == (5, 3, "length")
    assert stream.done


def test_usage_beside_choices_is_passed_as_any_other_event() -> None:
    both = b'data: {"choices":[{"index":0,"text":"a"}],"usage":{"prompt_tokens":5,"completion_tokens":1}}\n\n'
    [chunk] = EventStream(role_first=False).take(both)

    assert chunk.usage is None
    assert chunk.tokens == 1


def test_stream_without_its_last_word_is_not_done() -> None:
    stream = EventStream(role_first=True)
    assert b"".join(chunk.data for chunk in stream.take(ROLE + WORD)) == ROLE + WORD
    assert not stream.done


def test_endless_event_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "EVENT_BYTES_MAX", 100)
    with pytest.raises(TooLong):
        list(EventStream(role_first=True).take(b"x" * 101))
