"""`tidegate cache`: where slices are, how they are used, and which of them stay; from the registry, or from a log."""

import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click
import msgspec

from events.base import PoolId
from services.commands.cache_heatmap import demo, heatmap
from services.commands.options import Settings, with_output, with_settings
from services.commands.policy import Effect, effect, ordered, said_of
from services.runtime.output import Exit, Output

if TYPE_CHECKING:
    from kvstore.registry.base import Position, Prefix, Registry, SliceInfo, TierRow
    from services.runtime.config import Config
    from services.runtime.orders import Orders

T = TypeVar("T")

JOURNAL = click.Path(path_type=Path, dir_okay=False)
ACTOR = "eviction"
TOP = 20
SLICE = re.compile(r"[0-9a-f]{32}|k[0-9a-f]+")  # A fingerprint; or of an engine that could not tell one.
from_log = click.option("--log", "path", type=JOURNAL, help="Look at the end of this journal instead.")
of_pool = click.option("--pool", help="Which pool; the configured one if not given.")


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """The tiers of all engines, and how far the registry is (None: nobody writes it)."""

    position: "Position | None"
    tiers: "list[TierRow]"


class Top(msgspec.Struct, frozen=True, kw_only=True):
    """The hottest slices, the hottest first, and those that are pinned; at which pool time."""

    now_ns: int
    hot: "list[SliceInfo]"
    pinned: "list[SliceInfo]"


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What engines have of a prompt, the longest first, and where each of its slices is; at which pool time."""

    now_ns: int
    slices: int
    prefixes: "list[Prefix]"
    each: "list[SliceInfo]"


@click.group()
def command() -> None:
    """Slices of KV: where they are, how they are used, which of them stay.

    Read from the registry that the projector keeps in Redis, or from a journal with --log. What is shown is what
    engines last said.
    """


command.add_command(heatmap)
command.add_command(demo)


@command.command()
@from_log
@of_pool
@with_settings
@with_output
def stats(path: Path | None, pool: str | None, settings: Settings, out: Output) -> int:
    """Every engine's tiers: how full, hits and misses, evictions, failures, damaged slices."""
    from services.commands.cache_text import show_stats

    async def ask(registry: "Registry") -> Stats:
        return Stats(position=await registry.position(), tiers=await registry.tiers())

    told = _asked(settings, pool, path, ask)
    out.result(told, lambda console: show_stats(told, console))
    return Exit.FINE if told.position is not None else Exit.NO


@command.command()
@click.option("-n", "--count", type=click.IntRange(1, 1_024), default=TOP, show_default=True, help="So many.")
@from_log
@of_pool
@with_settings
@with_output
def top(count: int, path: Path | None, pool: str | None, settings: Settings, out: Output) -> int:
    """The hottest slices with their holders, and those that are pinned."""
    from services.commands.cache_text import show_top

    async def ask(registry: "Registry") -> Top:
        return Top(now_ns=await _now_ns(registry), hot=await registry.hot(count), pinned=await registry.pinned())

    told = _asked(settings, pool, path, ask)
    out.result(told, lambda console: show_top(told, console))
    return Exit.FINE


@command.command()
@click.argument("slices", nargs=-1, metavar="[SLICE...]")
@click.option(
    "--request",
    type=click.Path(path_type=Path, allow_dash=True, dir_okay=False),
    help="An OpenAI request body (prompt, token ids or messages) whose slices are meant; - is stdin.",
)
@click.option("--text", help="A prompt whose slices are meant, as /v1/completions takes it.")
@click.option("--model", default="", help="Which model's tokenizer counts --text.")
@click.option("--tenant", default="", help="In whose cache domain; tenant `default` if not given.")
@from_log
@of_pool
@with_settings
@with_output
def lookup(
    slices: tuple[str, ...], request: Path | None, text: str | None, model: str, tenant: str, path: Path | None,
    pool: str | None, settings: Settings, out: Output,
) -> int:  # fmt: skip
    """The longest prefix of a prompt that each engine has, by tier. Exit code 1 when nobody has any of it.

    SLICE... are the prompt's slices, first to last, as `tidegate watch` shows them in request_arrived. Or give the
    prompt itself: its slices are named as the gateway does it, with the tenant's key.
    """
    from events.base import SliceId
    from services.commands.cache_text import show_lookup

    if sum((bool(slices), request is not None, text is not None)) != 1:
        raise click.UsageError("name slices, or give a prompt by --request or by --text")
    if text is not None and not model:
        raise click.UsageError("--text needs --model: its tokenizer counts")
    if slices:
        if wrong := next((name for name in slices if not SLICE.fullmatch(name)), None):
            raise click.UsageError(f"{wrong!r} is no slice (32 hex digits, as `tidegate cache top` shows them)")
        ids: Sequence[SliceId] = [SliceId(name) for name in slices]
    else:
        from services.prompt_slices import slices_of

        ids = slices_of(settings.load(), _body(request, text, model), tenant=tenant)

    async def ask(registry: "Registry") -> Found:
        [prefixes] = await registry.longest_prefixes([ids])
        each = await registry.slices(ids)
        return Found(now_ns=await _now_ns(registry), slices=len(ids), prefixes=prefixes, each=each)

    told = _asked(settings, pool, path, ask)
    out.result(told, lambda console: show_lookup(told, console))
    return Exit.FINE if told.prefixes else Exit.NO


@command.command()
@click.argument("slices", nargs=-1, required=True, metavar="SLICE...")
@click.option(
    "--for", "duration", default="10m", show_default=True, help="How long, of pool time: 30s, 10m; 0 lets go."
)
@of_pool
@with_settings
@with_output
def pin(slices: tuple[str, ...], duration: str, pool: str | None, settings: Settings, out: Output) -> int:
    """Keep slices where they are for a while: engines that go by directives do not evict them.

    A pin is a fact in the log. Nothing is fetched for it, and it does not outlive an engine's restart on its tiers.
    """
    from services.runtime.aio import run
    from services.runtime.amounts import ns_of

    try:
        for_ns = ns_of(duration)
    except ValueError as error:
        raise click.UsageError(f"--for: {error}") from error

    async def order(orders: "Orders") -> Effect:
        return await effect(orders, await orders.pin(slices, for_ns), [ACTOR])

    told = run(ordered(settings, pool, order))
    out.result(told, lambda console: console.print(said_of(told)))
    return Exit.FINE


def _asked(settings: Settings, pool: str | None, path: Path | None, ask: "Callable[[Registry], Awaitable[T]]") -> T:
    """What the registry of a pool says, or a journal's end. Raises ConfigError, LogError, RegistryError."""
    from services.runtime.aio import run

    if path is not None and pool is not None:
        raise click.UsageError("--log and --pool name two logs: give one")

    async def work() -> T:
        async with _of_journal(path) if path is not None else _of_pool(settings.load(), pool) as registry:
            return await ask(registry)

    return run(work())


async def _now_ns(registry: "Registry") -> int:
    position = await registry.position()
    return position.now_ns if position is not None else 0


@asynccontextmanager
async def _of_journal(path: Path) -> "AsyncIterator[Registry]":
    from kvstore.registry.memory import MemoryRegistry
    from replay.journal_source import JournalSource
    from services.access_pattern import book_of
    from services.runtime.registry_feed import all_of

    registry = MemoryRegistry()
    await registry.write(all_of(book_of(JournalSource(path))))
    yield registry


@asynccontextmanager
async def _of_pool(config: "Config", pool: str | None) -> "AsyncIterator[Registry]":
    from kvstore.registry.redis import RedisRegistry
    from services.runtime.config import without_password
    from services.runtime.servers import redis_url

    url = redis_url(config)
    registry = RedisRegistry.open(url, PoolId(pool or config.pool), where=without_password(url))
    try:
        yield registry
    finally:
        await registry.close()


def _body(request: Path | None, text: str | None, model: str) -> bytes:
    if text is not None:
        return msgspec.json.encode({"model": model, "prompt": text})
    assert request is not None, "the caller has checked that one is given"
    if str(request) == "-":
        return sys.stdin.buffer.read()
    try:
        return request.read_bytes()
    except OSError as error:
        raise click.UsageError(f"--request {request}: {error.strerror}") from error
