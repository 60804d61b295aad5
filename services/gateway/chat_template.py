"""A model's chat template, rendered as the model's makers do it: jinja in a sandbox, with their few extras."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import msgspec
from jinja2 import TemplateError
from jinja2.exceptions import TemplateRuntimeError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

RENDERED_CHARS_MAX: Final = 64 * 1024 * 1024
_NAMED_TOKENS: Final = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class ChatTemplate:
    """Turns messages into the prompt that the engine will see."""

    def __init__(self, source: str, tokens: dict[str, str]) -> None:
        """Raises jinja2.TemplateError when the template cannot be compiled."""
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _now
        self._template = environment.from_string(source)
        self._tokens = tokens

    def render(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool) -> str:
        """The prompt's text. Raises jinja2.TemplateError where the template refuses the messages."""
        text = self._template.render(
            messages=messages, tools=None, documents=None, add_generation_prompt=add_generation_prompt, **self._tokens
        )
        if len(text) > RENDERED_CHARS_MAX:
            raise TemplateRuntimeError(f"rendered to more than {RENDERED_CHARS_MAX} characters")
        return text


def find(folder: Path) -> ChatTemplate | None:
    """The template in a tokenizer folder: chat_template.jinja, else `chat_template` in tokenizer_config.json.
    None when there is none, or none that can be compiled here."""
    config_path = folder / "tokenizer_config.json"
    config: dict[str, Any] = msgspec.json.decode(config_path.read_bytes()) if config_path.is_file() else {}
    own_file = folder / "chat_template.jinja"
    source = own_file.read_text(encoding="utf-8") if own_file.is_file() else _source_in(config)
    if not source:
        return None
    try:
        return ChatTemplate(source, {name: text for name in _NAMED_TOKENS if (text := _token_text(config.get(name)))})
    except TemplateError:
        return None


def _source_in(config: dict[str, Any]) -> str:
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {str(each.get("name")): each.get("template") for each in template if isinstance(each, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else ""


def _token_text(token: Any) -> str:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja's own filter escapes HTML characters; templates expect plain JSON.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)  # noqa: DTZ005 - the day where the engine stands, as the template asks
