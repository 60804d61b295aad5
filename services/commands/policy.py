"""`tidegate policy`: the settings of every actor, shown as they stand in the log, and changed while it runs."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import click
import msgspec

from events.base import PoolId
from services.commands.options import Settings, with_output, with_settings
from services.commands.shadow import promote, shadow
from services.runtime.output import Exit, Output, table

if TYPE_CHECKING:
    from services.runtime.orders import ActorPolicy, Orders

T = TypeVar("T")


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an order: the message in which it stands, and which of the actors that it concerns have taken it
    in by now. The others do when they next run."""

    seq: int
    taken_in: dict[str, bool]


@click.group()
def command() -> None:
    """Settings of policies: show them, change them live, take a preset, or try others beside them first.

    A change is a fact in the log; it holds from there on, also after a restart, unless the configuration that the actor
    is started with names the same key.
    """


command.add_command(shadow)
command.add_command(promote)


@command.command()
@click.argument("actor", required=False, default="")
@click.option("--pool", help="Which pool; the configured one if not given.")
@with_settings
@with_output
def show(actor: str, pool: str | None, settings: Settings, out: Output) -> int:
    """Every setting of ACTOR, or of all actors, as it stands now."""
    from services.runtime.aio import run

    told = run(ordered(settings, pool, lambda orders: orders.policies(actor)))
    out.result(told, lambda console: console.print(_table(told)))
    return Exit.FINE


@command.command(name="set")
@click.argument("actor")
@click.argument("changes", nargs=-1, required=True, metavar="KEY=VALUE...")
@click.option("--pool", help="Which pool; the configured one if not given.")
@with_settings
@with_output
def change(actor: str, changes: tuple[str, ...], pool: str | None, settings: Settings, out: Output) -> int:
    """Change settings of ACTOR, live: all of them or, where one does not hold, none.

    Values of ..._ns take ns, us, ms, s; values of ..._ppm take % as well.
    """
    from services.runtime.aio import run

    wanted = _wanted(changes)

    async def order(orders: "Orders") -> Effect:
        return await effect(orders, await orders.configure(actor, wanted), [actor])

    told = run(ordered(settings, pool, order))
    out.result(told, lambda console: console.print(said_of(told)))
    return Exit.FINE


@command.command()
@click.argument("name")
@click.option("--pool", help="Which pool; the configured one if not given.")
@with_settings
@with_output
def preset(name: str, pool: str | None, settings: Settings, out: Output) -> int:
    """Take a preset, live: what it does not name goes back to its default, in every actor."""
    from policies.catalog import ACTORS
    from services.runtime.aio import run

    async def order(orders: "Orders") -> Effect:
        return await effect(orders, await orders.preset(name), list(ACTORS))

    told = run(ordered(settings, pool, order))
    out.result(told, lambda console: console.print(said_of(told)))
    return Exit.FINE


@command.command()
@with_output
def presets(out: Output) -> int:
    """The presets, each with the settings that are not the default."""
    from policies.catalog import PRESETS

    rows = [
        (name, actor, ", ".join(f"{key}={value}" for key, value in changes.items()))
        for name, actors in PRESETS.items()
        for actor, changes in (actors or {"": {}}).items()
    ]
    out.result(PRESETS, lambda console: console.print(table(("preset", "actor", "settings"), rows)))
    return Exit.FINE


async def ordered(settings: Settings, pool: str | None, order: "Callable[[Orders], Awaitable[T]]") -> T:
    """Let an order be done on the pool's log. Raises ConfigError, LogError, Refused."""
    from services.runtime.orders import taking_orders
    from services.runtime.servers import open_log

    config = settings.load()
    async with (
        open_log(config, PoolId(pool or config.pool)) as log,
        taking_orders(log, speed=config.speed) as orders,
    ):
        return await order(orders)


async def effect(orders: "Orders", seq: int, actors: list[str]) -> Effect:
    """Wait until those of the actors that run have taken message `seq` in."""
    from services.runtime.actor_position import taken_in

    log = orders.log
    return Effect(seq=seq, taken_in={actor: await taken_in(log.client, log.pool, actor, seq) for actor in actors})


def said_of(told: Effect) -> str:
    """An effect in words."""
    words = [f"written at {told.seq}"]
    for actor, taken in told.taken_in.items():
        words.append(f"{actor} goes by it" if taken else f"nobody runs {actor} now: it holds from its next start on")
    return "; ".join(words)


def _wanted(changes: tuple[str, ...]) -> dict[str, int | str]:
    from services.runtime.amounts import setting_of

    wanted: dict[str, int | str] = {}
    for text in changes:
        key, sign, value = text.partition("=")
        if not (key and sign):
            raise click.UsageError(f"{text!r}: write KEY=VALUE")
        wanted[key] = setting_of(key, value)
    return wanted


def _table(told: "list[ActorPolicy]") -> object:
    rows = [
        (one.actor, key, str(value), "changed" if key in one.changed else "")
        for one in told
        for key, value in one.settings.items()
    ]
    return table(("actor", "setting", "value", ""), rows)
