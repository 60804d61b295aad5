"""How many tokens a prompt has, and what its prefixes are called: counted at the edge, once, carried along.

Counted with the model's own tokenizer and chat template as vLLM does it (completions and inputs with special
tokens, chat without: the template writes them), or asked from the engine. Where neither can tell (tools, images, an
unknown template) the count is a guess by bytes, marked `estimated`, without fingerprints.
No text leaves this module: counts and keyed fingerprints do.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from jinja2 import TemplateError
from tokenizers import Tokenizer

from events.base import ModelId, SliceId
from kvstore.fingerprint import SLICE_TOKENS, fingerprints
from services.gateway import chat_template, openai
from services.gateway.errors import invalid
from services.runtime.config import ConfigError, ModelConfig

ENGINE: Final = "engine"
BYTES_PER_TOKEN: Final = 4
"""The guess: rather too many tokens than too few for European text."""
MEDIA_TOKENS: Final = 1_024
"""The guess for an image or sound that stands in the body: it weighs by pixel, not by byte."""
INLINE_BYTES_MAX: Final = 2_048
"""A prompt this short is counted on the spot: a thread costs more than it saves."""
INLINE_IDS_BYTES_MAX: Final = 128 * 1024
"""So are token ids of this size, which need no tokenizer."""
TOKEN_ID_MAX: Final = 2**32 - 1
TokenId = Annotated[int, msgspec.Meta(ge=0, le=TOKEN_ID_MAX)]
PLAIN_CHAT: Final = frozenset({"role", "content", "name"})
TEMPLATE_FIELDS: Final = (
    "tools", "functions", "documents", "chat_template", "chat_template_kwargs", "continue_final_message",
    "truncate_prompt_tokens", "mm_processor_kwargs", "reasoning_effort",
)  # fmt: skip
"""With any of these the prompt is not what the plain template renders."""

TEMPLATE_FAILS: Final = (
    TemplateError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError,
)  # fmt: skip
"""A template is a program of somebody else's: what it may raise."""

AskEngine = Callable[[ModelId, str, bytes], Awaitable[list[int] | None]]
"""model, path, body -> the prompt's token ids as an engine sees them, or None."""

_MEDIA = re.compile(rb'"data:[^"]*"')
_strings = msgspec.json.Decoder(str | list[str]).decode
_ids = msgspec.json.Decoder(list[TokenId]).decode
_lists_of_ids = msgspec.json.Decoder(list[list[TokenId]]).decode
_messages = msgspec.json.Decoder(list[dict[str, Any]]).decode
_flag = msgspec.json.Decoder(bool | None).decode


class Counted(NamedTuple):
    """A prompt's size and names. `tokens` counts all inputs together; `slices` only a single prompt has."""

    tokens: int
    inputs: int = 1
    estimated: bool = False
    slices: tuple[SliceId, ...] = ()
    slice_tokens: int = SLICE_TOKENS


class _Unclear(Exception):
    """The prompt cannot be tokenised here."""


class Tokens:
    """Counts the prompts of all models, in `threads` threads."""

    def __init__(self, models: Sequence[ModelConfig], *, threads: int, ask_engine: AskEngine | None = None) -> None:
        """Raises ConfigError for a tokenizer folder that cannot be read."""
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tokens")
        self._ask_engine = ask_engine
        self._by_engine = frozenset(model.name for model in models if model.tokenizer == ENGINE)
        self._local = {
            model.name: _open(model) for model in models if model.tokenizer and model.tokenizer != ENGINE
        }  # fmt: skip

    async def count(self, asked: openai.Asked, *, key: bytes) -> Counted:
        """Count and fingerprint a prompt under a cache domain's key. Refusal 400 for a prompt of a wrong type."""
        if len(asked.prompt) <= (INLINE_IDS_BYTES_MAX if _holds_ids(asked.prompt[:64]) else INLINE_BYTES_MAX):
            counted = self._count(asked, key)
        else:
            counted = await asyncio.get_running_loop().run_in_executor(self._pool, self._count, asked, key)
        if not counted.estimated or asked.model not in self._by_engine or self._ask_engine is None:
            return counted
        ids = await self._ask_engine(asked.model, asked.path, asked.original)
        return counted if ids is None else _named(asked, [ids], key)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _count(self, asked: openai.Asked, key: bytes) -> Counted:
        try:
            return _named(asked, _token_ids(asked, self._local.get(asked.model)), key)
        except _Unclear:
            return _estimate(asked)


class _Local(NamedTuple):
    tokenizer: Tokenizer
    template: chat_template.ChatTemplate | None


def _open(model: ModelConfig) -> _Local:
    folder = Path(model.tokenizer)
    path = folder / "tokenizer.json"
    if not path.is_file():
        key = f"models.{model.name}.tokenizer"
        raise ConfigError(
            f"no tokenizer.json in {folder}", where="config", key=key, allowed="a folder, `engine`, or empty"
        )
    tokenizer = Tokenizer.from_file(str(path))
    # A saved tokenizer may cut or pad to the length it was trained with; an engine does neither.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return _Local(tokenizer, chat_template.find(folder))


def _token_ids(asked: openai.Asked, local: _Local | None) -> list[list[int]]:
    """Token ids of each prompt. Raises _Unclear where they cannot be known here."""
    if any(name in asked.fields and bytes(asked.fields[name]) not in (b"null", b"[]") for name in TEMPLATE_FIELDS):
        raise _Unclear
    if asked.prompt.startswith(b"[") and "messages" not in asked.fields and _holds_ids(asked.prompt):
        return _given_ids(asked.prompt)
    if local is None:
        raise _Unclear
    if "messages" in asked.fields:
        return [_chat_ids(asked, local)]
    texts = _texts(asked.prompt)
    special = _flag_of(asked, "add_special_tokens", otherwise=True)
    return [local.tokenizer.encode(text, add_special_tokens=special).ids for text in texts]


def _chat_ids(asked: openai.Asked, local: _Local) -> list[int]:
    if local.template is None:
        raise _Unclear
    try:
        messages = [_plain(message) for message in _messages(asked.prompt)]
        generation = _flag_of(asked, "add_generation_prompt", otherwise=True)
        text = local.template.render(messages, add_generation_prompt=generation)
    except msgspec.ValidationError:
        raise invalid("messages: a list of objects is needed", param="messages") from None
    except TEMPLATE_FAILS:
        # What a template does not accept, the engine will refuse in its own words, or render in its own way.
        raise _Unclear from None
    special = _flag_of(asked, "add_special_tokens", otherwise=False)
    ids: list[int] = local.tokenizer.encode(text, add_special_tokens=special).ids
    return ids


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """A message of text alone. A single text part is that text; several are joined differently by each template."""
    content = message.get("content")
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], dict):
        part = content[0]
        content = part.get("text") if part.get("type") == "text" else None
    if not isinstance(content, str) or not PLAIN_CHAT.issuperset(message):
        raise _Unclear
    return {**message, "content": content}


def _holds_ids(prompt: bytes) -> bool:
    start = prompt.lstrip(b"[ \t\r\n")[:1]
    return start.isdigit() or start == b"-"


def _given_ids(prompt: bytes) -> list[list[int]]:
    several = prompt[1:].lstrip()[:1] == b"["
    try:
        return _limited(_lists_of_ids(prompt)) if several else [_ids(prompt)]
    except msgspec.ValidationError:
        raise invalid(f"the prompt is not a list of token ids (0 to {TOKEN_ID_MAX}), or a list of such lists") from None


def _named(asked: openai.Asked, prompts: list[list[int]], key: bytes) -> Counted:
    tokens = sum(map(len, prompts))
    # A vector's KV is not kept, and several prompts have no one prefix.
    named = len(prompts) == 1 and asked.path != openai.EMBEDDINGS
    return Counted(tokens, len(prompts), slices=fingerprints(prompts[0], key=key) if named else ())


def _estimate(asked: openai.Asked) -> Counted:
    inputs = 1
    if asked.prompt.startswith(b"[") and "messages" not in asked.fields:
        inputs = len(_texts(asked.prompt))
    media = _MEDIA.findall(asked.prompt)
    text_bytes = len(asked.prompt) - sum(map(len, media))
    return Counted(max(1, text_bytes // BYTES_PER_TOKEN + len(media) * MEDIA_TOKENS), inputs, estimated=True)


def _texts(prompt: bytes) -> list[str]:
    try:
        texts: str | list[str] = _strings(prompt)
    except msgspec.ValidationError:
        raise invalid("the prompt is not text, a list of texts, token ids or a list of them") from None
    return _limited([texts] if isinstance(texts, str) else texts)


def _limited(prompts: list[Any]) -> list[Any]:
    if not 0 < len(prompts) <= openai.INPUTS_MAX:
        raise invalid(f"the list of prompts: allowed is 1 to {openai.INPUTS_MAX}")
    return prompts


def _flag_of(asked: openai.Asked, name: str, *, otherwise: bool) -> bool:
    raw = asked.fields.get(name)
    if raw is None:
        return otherwise
    try:
        value = _flag(bytes(raw))
    except msgspec.ValidationError:
        raise _Unclear from None
    return otherwise if value is None else value
