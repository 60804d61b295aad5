"""The shapes of OpenAI's API: what a body asks for, and the body that an engine gets.

A body is parsed as little as its routing needs; the rest stays bytes. The engine gets the client's body but for
FIELDS_CHANGED: every other value is the very bytes that came (big integers, escapes and all); where something had
to change, only the white space between the outermost keys may differ, and of a key that stands twice the last one
is kept, as every JSON reader keeps it.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from events.base import ModelId, RequestKind
from services.engines.stream import StreamOptions
from services.gateway.errors import invalid

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
EMBEDDINGS: Final = "/v1/embeddings"
PATHS: Final = (CHAT, COMPLETIONS, EMBEDDINGS)

FIELDS_CHANGED: Final = ("cache_salt", "stream_options.include_usage", "priority", "kv_transfer_params")
"""What may differ between the client's body and the engine's:
`cache_salt` is derived on the server from the tenant's cache domain, whatever the client sent (kind vllm only);
`stream_options.include_usage` is set on streams (and the usage event is kept from a client that did not ask);
`priority` is taken out, and set only for an engine that takes it;
`kv_transfer_params` are replaced by hints, for an engine with an agent only (`services.engines.vllm.hinted`)."""

COMPLETION_TOKENS_DEFAULT: Final = 16
"""What OpenAI and vLLM generate for /v1/completions when the body names no max_tokens."""
CHOICES_MAX: Final = 128
INPUTS_MAX: Final = 2_048
TOKENS_MAX: Final = 100_000_000
PRIORITY_MAX: Final = 2**31 - 1

Fields = dict[str, msgspec.Raw]
_fields = msgspec.json.Decoder(Fields).decode
_ABSENT: Final = msgspec.Raw(b"")
_NULL: Final = b"null"


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """Of a body, what routing needs."""

    model: str
    stream: bool | None = None
    n: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    priority: int | None = None
    stream_options: StreamOptions | None = None
    session_id: str | None = None


_body = msgspec.json.Decoder(Body).decode


class Asked(NamedTuple):
    """A valid body. `tokens_max` caps the output tokens of one choice (0 = none given); `priority` is the body's (the
    lower, the sooner: vLLM's rule), None when it says nothing; `prompt` is the prompt, input or messages, raw."""

    path: str
    kind: RequestKind
    model: ModelId
    stream: bool
    wants_usage: bool
    choices: int
    tokens_max: int
    priority: int | None
    session: str
    prompt: bytes
    fields: Fields
    original: bytes

    def engine_body(self, *, cache_salt: str = "", priority: int | None = None) -> bytes:
        """The body for an engine. `cache_salt` "" sends none, `priority` None sends none."""
        fields = self.fields
        changes: dict[str, Any] = {}
        if cache_salt:
            changes["cache_salt"] = msgspec.Raw(msgspec.json.encode(cache_salt))
        if priority is not None:
            changes["priority"] = msgspec.Raw(b"%d" % priority)
        if self.stream and not self.wants_usage:
            changes["stream_options"] = _with_usage(fields.get("stream_options", _ABSENT))
        dropped = ("priority" in fields and priority is None) or ("cache_salt" in fields and not cache_salt)
        if not changes and not dropped:
            return self.original
        kept = {key: value for key, value in fields.items() if key not in ("cache_salt", "priority")}
        return msgspec.json.encode(kept | changes)


def read(path: str, data: bytes) -> Asked:
    """Check a body. Refusal 400 says what is wrong, naming the field and never quoting a value."""
    try:
        if not data.isascii():
            data.decode()
        fields, body = _fields(data), _body(data)
    except msgspec.ValidationError as error:
        raise _wrong(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise invalid("the body is not JSON", code="invalid_json") from None
    choices = _between("n", body.n, 1, CHOICES_MAX, otherwise=1)
    stream = bool(body.stream) and path != EMBEDDINGS
    return Asked(
        path=path,
        kind=RequestKind.EMBEDDING if path == EMBEDDINGS else RequestKind.LLM,
        model=ModelId(body.model),
        stream=stream,
        wants_usage=bool(body.stream_options and body.stream_options.include_usage),
        choices=choices,
        tokens_max=_tokens_max(path, body),
        priority=_priority(body.priority),
        session=body.session_id or "",
        prompt=_prompt(path, fields),
        fields=fields,
        original=data,
    )


def _tokens_max(path: str, body: Body) -> int:
    if path == EMBEDDINGS:
        return 0
    name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    given = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    default = COMPLETION_TOKENS_DEFAULT if path == COMPLETIONS else 0
    return _between(name, given, 0, TOKENS_MAX, otherwise=default)


def _priority(given: int | None) -> int | None:
    return None if given is None else _between("priority", given, -PRIORITY_MAX, PRIORITY_MAX, otherwise=0)


def _between(name: str, value: int | None, low: int, high: int, *, otherwise: int) -> int:
    if value is None:
        return otherwise
    if not low <= value <= high:
        raise invalid(f"{name}: allowed is {low} to {high}", param=name)
    return value


def _prompt(path: str, fields: Mapping[str, msgspec.Raw]) -> bytes:
    names = {CHAT: ("messages",), COMPLETIONS: ("prompt", "prompt_embeds"), EMBEDDINGS: ("input", "messages")}[path]
    for name in names:
        raw = bytes(fields.get(name, _ABSENT))
        if raw and raw != _NULL:
            if not raw.startswith(b"[" if name == "messages" else (b"[", b'"')):
                needed = "a list of messages" if name == "messages" else "text or a list"
                raise invalid(f"{name}: {needed} is needed", param=name, code="invalid_type")
            return raw
    raise invalid(f"{names[0]}: missing", param=names[0], code="missing_required_parameter")


def _with_usage(raw: msgspec.Raw) -> msgspec.Raw:
    options = bytes(raw)
    fields = _fields(options) if options and options != _NULL else {}
    return msgspec.Raw(msgspec.json.encode({**fields, "include_usage": msgspec.Raw(b"true")}))


def _wrong(error: msgspec.ValidationError) -> Exception:
    """msgspec names types and the path, never the value."""
    text = str(error)
    what, _, where = text.partition(" - at `$.")
    param = where.rstrip("`")
    if not param and "required field" in text:
        param = text.split("`")[1]
        return invalid(f"{param}: missing", param=param, code="missing_required_parameter")
    return invalid(f"{param or 'body'}: {what[0].lower()}{what[1:]}", param=param, code="invalid_type")
