"""Counting and naming prompts: as the engine would, or marked as a guess."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from events.base import ModelId
from kvstore.fingerprint import fingerprints
from services.gateway import chat_template, openai
from services.gateway.tokens import MEDIA_TOKENS, Counted, Tokens
from services.runtime.config import ConfigError, ModelConfig
from tests.services.gateway.http_rig import byte_tokenizer

KEY = b"k" * 32
USER = {"role": "user", "content": "hello"}
CHAT_TEXT = "user: hello\nassistant:"


@pytest.fixture
async def tokens(tmp_path: Path) -> AsyncIterator[Tokens]:
    """One token per byte, and one before; the model `blind` has no tokenizer."""
    folder = byte_tokenizer(tmp_path)
    models = [ModelConfig(name="tiny", tokenizer=str(folder)), ModelConfig(name="blind")]
    counting = Tokens(models, threads=1)
    yield counting
    counting.close()


def asked(path: str, body: dict[str, Any], model: str = "tiny") -> openai.Asked:
    return openai.read(path, msgspec.json.encode({"model": model, **body}))


@pytest.mark.parametrize(
    ("path", "body", "count", "inputs"),
    [
        (openai.COMPLETIONS, {"prompt": "hello"}, 5, 1),
        (openai.COMPLETIONS, {"prompt": "héllo"}, 6, 1),
        (openai.COMPLETIONS, {"prompt": ["ab", "cde"]}, 5, 2),
        (openai.COMPLETIONS, {"prompt": [5, 6, 7]}, 3, 1),
        (openai.COMPLETIONS, {"prompt": [[5, 6, 7], [8]]}, 4, 2),
        (openai.CHAT, {"messages": [USER]}, 1 + len(CHAT_TEXT), 1),
        (openai.CHAT, {"messages": [{**USER, "content": [{"type": "text", "text": "hello"}]}]}, 1 + len(CHAT_TEXT), 1),
        (openai.CHAT, {"messages": [USER], "add_generation_prompt": False}, 1 + len("user: hello\n"), 1),
        (openai.CHAT, {"messages": [USER], "tools": []}, 1 + len(CHAT_TEXT), 1),
        (openai.EMBEDDINGS, {"input": "hello"}, 5, 1),
        (openai.EMBEDDINGS, {"input": ["a", "b", "c"]}, 3, 3),
        (openai.COMPLETIONS, {"prompt": "x" * 5_000}, 5_000, 1),
    ],
)
async def test_prompt_is_counted_as_the_engine_counts_it(
    tokens: Tokens, path: str, body: dict[str, Any], count: int, inputs: int
) -> None:
    counted = await tokens.count(asked(path, body), key=KEY)
    assert (counted.tokens, counted.inputs, counted.estimated) == (count, inputs, False)


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [USER], "tools": [{"type": "function"}]},
        {"messages": [USER], "chat_template_kwargs": {"enable_thinking": False}},
        {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": []}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]},
        {"messages": [USER], "truncate_prompt_tokens": 5},
        {"messages": [USER], "add_generation_prompt": "yes"},
    ],
)
async def test_what_the_plain_template_does_not_show_is_a_marked_guess(tokens: Tokens, body: dict[str, Any]) -> None:
    counted = await tokens.count(asked(openai.CHAT, body), key=KEY)
    assert counted.estimated
    assert counted.tokens >= 1
    assert counted.slices == ()


async def test_model_without_tokenizer_is_guessed_but_token_ids_are_taken_as_they_are(tokens: Tokens) -> None:
    guessed = await tokens.count(asked(openai.COMPLETIONS, {"prompt": "x" * 398}, "blind"), key=KEY)
    given = await tokens.count(asked(openai.COMPLETIONS, {"prompt": [1] * 300}, "blind"), key=KEY)
    several = await tokens.count(asked(openai.EMBEDDINGS, {"input": ["a", "b"]}, "blind"), key=KEY)
    assert guessed == Counted(100, 1, estimated=True)
    assert (given.tokens, given.estimated, len(given.slices)) == (300, False, 1)
    assert (several.inputs, several.estimated) == (2, True)


async def test_picture_weighs_as_a_picture_not_as_its_bytes(tokens: Tokens) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 400_000}}
    counted = await tokens.count(asked(openai.CHAT, {"messages": [{"role": "user", "content": [picture]}]}), key=KEY)
    assert MEDIA_TOKENS <= counted.tokens < MEDIA_TOKENS + 100


async def test_fingerprints_are_those_of_the_tokens_under_the_domains_key(tokens: Tokens) -> None:
    text = "a tide of words " * 50
    counted = await tokens.count(asked(openai.COMPLETIONS, {"prompt": text}), key=KEY)
    other = await tokens.count(asked(openai.COMPLETIONS, {"prompt": text}), key=b"o" * 32)
    ids = tokens._local["tiny"].tokenizer.encode(text).ids
    assert counted.slices == fingerprints(ids, key=KEY)
    assert len(counted.slices) == 3
    assert not set(counted.slices) & set(other.slices)


@pytest.mark.parametrize("body", [{"prompt": ["a" * 300, "b" * 300]}, {"prompt": "short"}])
async def test_several_prompts_and_short_ones_have_no_name(tokens: Tokens, body: dict[str, Any]) -> None:
    assert (await tokens.count(asked(openai.COMPLETIONS, body), key=KEY)).slices == ()


async def test_engine_is_asked_where_the_model_says_so() -> None:
    heard: list[tuple[str, str, bytes]] = []

    async def ask_engine(model: ModelId, path: str, body: bytes) -> list[int] | None:
        heard.append((model, path, body))
        return list(range(300)) if b"yes" in body else None

    tokens = Tokens([ModelConfig(name="tiny", tokenizer="engine")], threads=1, ask_engine=ask_engine)
    told = await tokens.count(asked(openai.COMPLETIONS, {"prompt": "yes"}), key=KEY)
    silent = await tokens.count(asked(openai.COMPLETIONS, {"prompt": "no"}), key=KEY)
    ids = await tokens.count(asked(openai.COMPLETIONS, {"prompt": [1, 2]}), key=KEY)
    tokens.close()
    assert (told.tokens, told.estimated, len(told.slices)) == (300, False, 1)
    assert silent.estimated
    assert ids.tokens == 2
    assert len(heard) == 2, "token ids need nobody"


def test_missing_tokenizer_names_its_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as wrong:
        Tokens([ModelConfig(name="tiny", tokenizer=str(tmp_path / "nowhere"))], threads=1)
    assert wrong.value.key == "models.tiny.tokenizer"


async def test_saved_truncation_does_not_shorten_a_count(tmp_path: Path) -> None:
    folder = byte_tokenizer(tmp_path)
    saved = msgspec.json.decode((folder / "tokenizer.json").read_bytes())
    saved["truncation"] = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    (folder / "tokenizer.json").write_bytes(msgspec.json.encode(saved))
    tokens = Tokens([ModelConfig(name="tiny", tokenizer=str(folder))], threads=1)
    counted = await tokens.count(asked(openai.COMPLETIONS, {"prompt": "hello tide"}), key=KEY)
    tokens.close()
    assert counted.tokens == 10


# The template.


def template_in(folder: Path, **config: Any) -> chat_template.ChatTemplate | None:
    (folder / "tokenizer_config.json").write_bytes(msgspec.json.encode(config))
    return chat_template.find(folder)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ bos_token }}|{{ eos_token }}", "<s>|</s>"),
        ("{{ messages | tojson }}", '[{"role": "user", "content": "<é>"}]'),
        ("{% for m in messages %}\n  {% if loop.first %}x{% endif %}\n{% endfor %}", "x"),
        ("{% for m in messages %}{% break %}{% endfor %}ok", "ok"),
        ("{{ tools is none }}", "True"),
        ("{{ strftime_now('%Y') | length }}", "4"),
    ],
)
def test_template_renders_as_the_models_makers_do(tmp_path: Path, source: str, text: str) -> None:
    template = template_in(tmp_path, chat_template=source, bos_token="<s>", eos_token={"content": "</s>"})
    assert template is not None
    assert template.render([{"role": "user", "content": "<é>"}], add_generation_prompt=True) == text


def test_own_file_wins_and_named_templates_have_a_default(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    template = template_in(tmp_path, chat_template=named)
    assert template is not None
    assert template.render([], add_generation_prompt=True) == "d"
    (tmp_path / "chat_template.jinja").write_text("file")
    template = chat_template.find(tmp_path)
    assert template is not None
    assert template.render([], add_generation_prompt=True) == "file"


@pytest.mark.parametrize("config", [{}, {"chat_template": "{% nonsense %}"}, {"chat_template": 5}])
def test_no_usable_template_is_no_template(tmp_path: Path, config: dict[str, Any]) -> None:
    assert template_in(tmp_path, **config) is None


@pytest.mark.parametrize(
    "source",
    ["{{ raise_exception('no') }}", "{{ messages.append(1) }}", "{{ ''.__class__.__mro__ }}", "{{ 1 / 0 }}"],
)
async def test_template_that_refuses_or_misbehaves_leaves_a_guess(tmp_path: Path, source: str) -> None:
    folder = byte_tokenizer(tmp_path)
    (folder / "chat_template.jinja").write_text(source)
    tokens = Tokens([ModelConfig(name="tiny", tokenizer=str(folder))], threads=1)
    counted = await tokens.count(asked(openai.CHAT, {"messages": [USER]}), key=KEY)
    tokens.close()
    assert counted.estimated
