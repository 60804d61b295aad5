"""What can be learned from an engine's event stream without parsing it: where events end, how many tokens came,
what it used. Everything else passes as bytes.

Text inside JSON cannot look like what is searched for here: its quotes and line ends are escaped.
"""

from typing import Final

import msgspec

from services.engines.base import Chunk, Usage

EVENT_BYTES_MAX: Final = 8 * 1024 * 1024
CONTENT_TYPE: Final = "text/event-stream; charset=utf-8"
_END: Final = b"\n\n"
_DONE: Final = b"data: [DONE]"
_EVENT: Final = b"data: {"
_NEXT_EVENT: Final = b"\ndata: {"
_FINISH: Final = b'"finish_reason":"'


class StreamOptions(msgspec.Struct, frozen=True):
    """Of a body's `stream_options`, what matters here."""

    include_usage: bool | None = None


class PromptDetails(msgspec.Struct, frozen=True):
    """`usage.prompt_tokens_details`."""

    cached_tokens: int | None = None


class UsageBody(msgspec.Struct, frozen=True):
    """`usage` as OpenAI and vLLM write it."""

    prompt_tokens: int = -1
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None


class Choice(msgspec.Struct, frozen=True):
    """Of a choice, how it ended."""

    finish_reason: str | None = None


class Answer(msgspec.Struct, frozen=True):
    """Of an answer or an event, what is kept."""

    choices: list[Choice] = msgspec.field(default_factory=list)
    usage: UsageBody | None = None


_answer = msgspec.json.Decoder(Answer).decode


class TooLong(ValueError):
    """One event is longer than EVENT_BYTES_MAX."""


def usage_of(answer: Answer, *, finish_reason: str = "") -> Usage | None:
    """The usage that an answer states, None if it states none."""
    if answer.usage is None:
        return None
    details = answer.usage.prompt_tokens_details
    ended = [choice.finish_reason for choice in answer.choices if choice.finish_reason]
    return Usage(
        prompt_tokens=answer.usage.prompt_tokens,
        output_tokens=answer.usage.completion_tokens or 0,
        cached_tokens=(details.cached_tokens or 0) if details else 0,
        finish_reason=ended[-1] if ended else finish_reason,
    )


def whole_answer(data: bytes, *, content_type: str) -> Chunk:
    """A non-stream answer as one piece."""
    try:
        usage = usage_of(_answer(data))
    except (msgspec.DecodeError, UnicodeDecodeError):
        usage = None
    tokens = usage.output_tokens if usage else 0
    return Chunk(data, tokens=tokens, usage=usage, content_type=content_type)


class EventStream:
    """Takes what the network gives; `take` returns pieces that are whole events. `done` once `[DONE]` was there.

    A chat's first event carries the role and no token: `role_first`.
    """

    def __init__(self, *, role_first: bool) -> None:
        self.done = False
        self._empty_events = 1 if role_first else 0
        self._rest = b""
        self._finish_reason = ""

    def take(self, data: bytes) -> list[Chunk]:
        """The pieces that are complete with `data`. Raises TooLong."""
        if self._rest:
            data = self._rest + data
        end = data.rfind(_END) + len(_END)
        if end < len(_END):
            end = 0
        piece, self._rest = data[:end], data[end:]
        if len(self._rest) > EVENT_BYTES_MAX:
            raise TooLong(f"an event of more than {EVENT_BYTES_MAX} bytes")
        if not piece:
            return []
        if _DONE in piece and piece.rstrip().endswith(_DONE):
            self.done = True
        if (at := piece.rfind(_FINISH)) >= 0:
            start = at + len(_FINISH)
            self._finish_reason = piece[start : piece.find(b'"', start)].decode("ascii", "replace")
        if b'"usage":{' in piece or b'"usage": {' in piece:
            return self._with_usage(piece)
        return [self._plain(piece)]

    def _plain(self, piece: bytes) -> Chunk:
        events = piece.count(_NEXT_EVENT) + piece.startswith(_EVENT)
        empty = min(self._empty_events, events)
        self._empty_events -= empty
        return Chunk(piece, tokens=events - empty, content_type=CONTENT_TYPE)

    def _with_usage(self, piece: bytes) -> list[Chunk]:
        """The event that has usage and no choices stands alone; one that has both is passed as any other."""
        chunks, plain = [], b""
        for event in piece.split(_END)[:-1]:
            usage = self._usage_in(event)
            if usage is None:
                plain += event + _END
                continue
            if plain:
                chunks.append(self._plain(plain))
                plain = b""
            chunks.append(Chunk(event + _END, usage=usage, content_type=CONTENT_TYPE))
        if plain:
            chunks.append(self._plain(plain))
        return chunks

    def _usage_in(self, event: bytes) -> Usage | None:
        if not event.startswith(_EVENT) or b'"usage":' not in event:
            return None
        try:
            answer = _answer(event[len(b"data: ") :])
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        return None if answer.choices else usage_of(answer, finish_reason=self._finish_reason)
