"""What a client with its own data plane may say: checked, completed, and turned into the fact that goes into the log.

A client speaks for itself alone: its requests are named `<client>/<id>`, its holder is `client-<client>`, its tenant
is what the configuration says, whatever stands in the message. Unknown fields (a prompt, say) are never kept.
"""

import secrets
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

import msgspec

from events import subjects
from events.base import NS_PER_MS, Event, HolderId, RequestId, RequestKind
from events.request import (
    DispatchStarted,
    FirstTokenSeen,
    HolderBeat,
    HolderStopped,
    OutputPredicted,
    RequestAborted,
    RequestArrived,
    RequestFinished,
)
from services.gateway.tenants import Tenants
from services.runtime.config import ModelConfig

BODY_BYTES_MAX: Final = 256 * 1024
REQUEST_ID_MAX: Final = 192
TEXT_MAX: Final = 128
SLICES_MAX: Final = 4_096
PROGRESS_MAX: Final = 4_096
AMOUNT_MAX: Final = 2**62
SIGNED: Final = ("priority", "slo_slack_ns")
"""Amounts that may be below 0."""
_TOKEN: Final = f"1 to {subjects.TOKEN_MAX} of A-Z a-z 0-9 _ -"
KINDS: Final[dict[str, type[Event]]] = {
    cls.event_kind(): cls
    for cls in (
        RequestArrived, DispatchStarted, FirstTokenSeen, RequestFinished, RequestAborted, HolderBeat, HolderStopped,
        OutputPredicted,
    )
}  # fmt: skip


class RefuseReason(StrEnum):
    """Why a message was kept out of the log: bounded, so that it can label a metric."""

    BAD_CLIENT = "bad_client"
    UNKNOWN_KIND = "unknown_kind"
    TOO_LARGE = "too_large"
    NOT_JSON = "not_json"
    INVALID = "invalid"
    FOREIGN = "foreign"
    BUSY = "busy"
    LOG_DOWN = "log_down"


class IngestRefusal(Exception):
    """A message that is not let in; `mend` says what to send instead. Quotes no value of the message."""

    def __init__(self, reason: RefuseReason, what: str, *, mend: str) -> None:
        super().__init__(what)
        self.reason, self.what, self.mend = reason, what, mend


class IngestRules:
    """Reads messages of one pool."""

    def __init__(self, *, tenants: Tenants, models: Mapping[str, ModelConfig]) -> None:
        self._tenants, self._models = tenants, models

    def read(self, client: str, kind: str, body: bytes, *, now_ns: int) -> Event:
        """The fact that a message says. Raises IngestRefusal."""
        if not _is_token(client):
            raise IngestRefusal(RefuseReason.BAD_CLIENT, "the client's name cannot stand in the log", mend=_TOKEN)
        cls = KINDS.get(kind)
        if cls is None:
            known = ", ".join(KINDS)
            raise IngestRefusal(RefuseReason.UNKNOWN_KIND, "this kind is not taken", mend=f"one of {known}")
        if len(body) > BODY_BYTES_MAX:
            mend = f"at most {BODY_BYTES_MAX} bytes; the prompt stays with you"
            raise IngestRefusal(RefuseReason.TOO_LARGE, "the message is too large", mend=mend)
        raw = _object(body)
        tag = raw.setdefault("type", cls.event_tag())
        if tag not in (cls.event_tag(), kind):
            mend = f"leave `type` out, or say {cls.event_tag()}"
            raise IngestRefusal(RefuseReason.INVALID, "`type` is not the subject's kind", mend=mend)
        raw["type"] = cls.event_tag()
        self._complete(raw, cls, client, now_ns)
        try:
            event: Event = msgspec.convert(raw, cls)
        except msgspec.ValidationError as error:
            raise IngestRefusal(RefuseReason.INVALID, str(error), mend=f"the fields of {cls.__name__}") from None
        _check_limits(event)
        return event

    def _complete(self, raw: dict[str, Any], cls: type[Event], client: str, now_ns: int) -> None:
        """Set what is not the client's to say, fill in what it may leave out."""
        holder = holder_of(client)
        if "holder" in cls.__struct_fields__:
            if raw.get("holder", holder) not in (holder, client):
                raise IngestRefusal(RefuseReason.FOREIGN, "`holder` is another one's", mend=f"leave it out: {holder}")
            raw["holder"] = holder
        if "request_id" in cls.__struct_fields__:
            given = raw.get("request_id") or (secrets.token_hex(8) if cls is RequestArrived else "")
            raw["request_id"] = request_id_of(client, given)
        if cls is HolderBeat and isinstance(raw.get("progress"), list):
            raw["progress"] = [_progress(client, each) for each in raw["progress"]]
        if cls is OutputPredicted:
            raw.setdefault("source", client)
        if cls is RequestArrived:
            self._complete_arrival(raw, client, now_ns)

    def _complete_arrival(self, raw: dict[str, Any], client: str, now_ns: int) -> None:
        tenant = self._tenants.of_client(client)
        raw["tenant"] = tenant.id
        model = self._models.get(str(raw.get("model"))) or ModelConfig(name=str(raw.get("model")))
        raw.setdefault("priority", tenant.priority)
        if isinstance(raw.get("session"), str) and raw["session"]:
            raw["session"] = tenant.name_of(raw["session"])
        raw.setdefault("slo_ttft_ns", model.slo_ttft_ms * NS_PER_MS)
        if raw.get("kind", RequestKind.LLM) == RequestKind.LLM:
            raw.setdefault("slo_tpot_ns", model.slo_tpot_ms * NS_PER_MS)
        if isinstance(raw["slo_ttft_ns"], int):
            raw.setdefault("deadline_ns", now_ns + raw["slo_ttft_ns"])


def holder_of(client: str) -> HolderId:
    """The holder that stands for a client."""
    return HolderId(f"client-{client}")


def request_id_of(client: str, given: Any) -> RequestId:
    """A client's request as the log names it: `<client>/<id>`. Raises IngestRefusal for what is no id."""
    prefix = f"{client}/"
    own = given.removeprefix(prefix) if isinstance(given, str) else ""
    if not 0 < len(own) <= REQUEST_ID_MAX or "/" in own or not (own.isascii() and own.isprintable()):
        mend = f"a text of 1 to {REQUEST_ID_MAX} printable ASCII characters without `/`, or {prefix}<id>"
        raise IngestRefusal(RefuseReason.INVALID, "`request_id` is missing or not allowed", mend=mend)
    return RequestId(prefix + own)


def _is_token(text: str) -> bool:
    try:
        subjects.token(text, what="client")
    except ValueError:
        return False
    return True


def _object(body: bytes) -> dict[str, Any]:
    try:
        raw = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise IngestRefusal(RefuseReason.NOT_JSON, "the message is not JSON", mend="one JSON object") from None
    if not isinstance(raw, dict):
        raise IngestRefusal(RefuseReason.NOT_JSON, "the message is not an object", mend="one JSON object")
    return raw


def _progress(client: str, each: Any) -> Any:
    if isinstance(each, list) and each:
        return [request_id_of(client, each[0]), *each[1:]]
    return each


def _check_limits(event: Event) -> None:
    """Amounts are not negative and fit 63 bits, texts and lists are short: one client cannot fill the log."""
    for name in event.__struct_fields__:
        value = getattr(event, name)
        if isinstance(value, bool):
            continue
        if isinstance(value, int):
            low = -AMOUNT_MAX if name in SIGNED else 0
            if not low <= value <= AMOUNT_MAX:
                raise _over(name, f"{low} to {AMOUNT_MAX}")
        elif isinstance(value, str) and name != "request_id" and len(value) > TEXT_MAX:
            raise _over(name, f"at most {TEXT_MAX} characters")
        elif isinstance(value, tuple):
            _check_list(name, value)
    if isinstance(event, RequestArrived) and (event.prompt_tokens < 1 or event.slice_tokens < 1 or event.inputs < 1):
        raise _over("prompt_tokens, slice_tokens, inputs", "1 or more")


def _check_list(name: str, values: tuple[Any, ...]) -> None:
    longest = SLICES_MAX if name == "slices" else PROGRESS_MAX
    if len(values) > longest:
        raise _over(name, f"at most {longest} entries")
    if any(isinstance(value, str) and len(value) > TEXT_MAX for value in values):
        raise _over(name, f"entries of at most {TEXT_MAX} characters")


def _over(name: str, allowed: str) -> IngestRefusal:
    return IngestRefusal(RefuseReason.INVALID, f"`{name}` is outside its limits", mend=allowed)
