"""`tidegate policy shadow` and `promote`: a second policy beside the live one, and its settings as the live ones."""

from typing import TYPE_CHECKING, Any

import click

from events.base import PoolId
from services.commands.options import Settings, with_output, with_settings
from services.runtime.output import Exit, Output, table

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from rich.console import Console

    from replay.tried import Candidate
    from services.runtime.config import Config
    from services.runtime.orders import Orders, Promoted
    from services.shadow import ShadowStatus

WORDS_MIN = 100
"""So much is to be compared before a shadow's settings are taken."""
CHANGES_SHOWN_MAX = 8


class NoShadow(Exception):
    """None runs beside this pool."""

    exit_code = Exit.NO


@click.group()
def shadow() -> None:
    """A second policy beside the live one: asked at every step, and nobody goes by it.

    What it would decide: nats sub 'tg.shadow.>'. What differs: status, the log (shadow_compared), views and metrics.
    """


@shadow.command()
@click.option("--policy", metavar="NAME", help="A preset; what the log says, with the changes, if not given.")
@click.option("--pool", help="Which pool; the configured one if not given.")
@with_settings
@with_output
def start(policy: str | None, pool: str | None, settings: Settings, out: Output) -> int:
    """Run a shadow until it is stopped (Ctrl-C, SIGTERM, or `stop`).

    --set ACTOR.KEY=VALUE says what it changes. It stands where the actors stand, whatever it would have done before:
    its settings change from its start on, as they would if they were promoted then.
    """
    from services.commands.whatif import candidates, split
    from services.runtime.aio import run

    changes, rest = split(settings)
    wanted = candidates((policy,) if policy is not None else (), changes)
    if not wanted or wanted[0].is_control:
        raise click.UsageError("name what to try: --policy NAME, or --set ACTOR.KEY=VALUE")
    run(_run(wanted[0], pool, rest, out))
    return Exit.FINE


async def _run(of: "Candidate", pool: str | None, settings: Settings, out: Output) -> None:
    import msgspec

    from services import shadow as shadows
    from services.runtime.frame import framed, log_to_stderr

    config: Config = settings.load()
    config = msgspec.structs.replace(config, pool=pool or config.pool)
    log_to_stderr(config, "shadow")
    async with framed(config, "shadow") as frame:
        await shadows.run(
            config, of, log=frame.log, stop=frame.stop,
            on_start=lambda status: out.result(status, lambda console: console.print(_begun(status))),
        )  # fmt: skip


def _begun(status: "ShadowStatus") -> str:
    since = max((one.since_seq for one in status.actors), default=0)
    actors = ", ".join(one.actor for one in status.actors)
    return f"{status.policy} beside {actors} of pool {status.pool}, compared from behind record {since} on"


@shadow.command()
@click.option("--pool", help="Which pool; the configured one if not given.")
@with_settings
@with_output
def status(pool: str | None, settings: Settings, out: Output) -> int:
    """What the running shadow tries, and what differs so far."""
    from services.shadow import status_of

    return _ask(status_of, pool, settings, out)


@shadow.command()
@click.option("--pool", help="Which pool; the configured one if not given.")
@with_settings
@with_output
def stop(pool: str | None, settings: Settings, out: Output) -> int:
    """End the running shadow; what it found stays in the log."""
    from services.shadow import stop_of

    return _ask(stop_of, pool, settings, out)


def _ask(ask: "Callable[[Any, PoolId], Awaitable[ShadowStatus | None]]", pool: str | None, settings: Settings,
         out: Output) -> int:  # fmt: skip
    from services.runtime.aio import run
    from services.runtime.servers import open_log

    async def asked() -> "ShadowStatus":
        config = settings.load()
        async with open_log(config, PoolId(pool or config.pool)) as log:
            found = await ask(log.client, log.pool)
        if found is None:
            raise NoShadow(f"no shadow runs beside pool {pool or config.pool}")
        return found

    found = run(asked())
    out.result(found, lambda console: _show(found, console))
    return Exit.FINE


def _show(found: "ShadowStatus", console: "Console") -> None:
    from services.commands.whatif_text import COUNTED, COUNTED_SAID

    console.print(f"{found.policy} beside pool {found.pool} ({found.name})")
    rows = [
        (one.actor, str(one.since_seq), str(one.seq), *(str(getattr(one.found, name)) for name in COUNTED))
        for one in found.actors
    ]
    console.print(table(("actor", "since", "read to", *COUNTED.values()), rows))
    console.print(COUNTED_SAID, style="dim")
    changes = sorted(
        ((one.actor, change) for one in found.actors for change in one.found.changes), key=lambda pair: -pair[1].count
    )
    rows = [
        (actor, c.recorded, "elsewhere" if c.elsewhere else c.tried, str(c.count), c.first)
        for actor, c in changes[:CHANGES_SHOWN_MAX]
    ]
    if rows:
        console.print(table(("actor", "recorded", "tried", "times", "first at"), rows))
    for one in found.actors:
        if one.found.failed:
            console.print(f"{one.actor}: breaks at {one.found.failed}")


@click.command()
@click.option("--least", type=click.IntRange(min=0), default=WORDS_MIN, show_default=True,
              help="Refuse where the shadow compared fewer decisions, repeated ones left out.")  # fmt: skip
@click.option("--pool", help="Which pool; the configured one if not given.")
@with_settings
@with_output
def promote(least: int, pool: str | None, settings: Settings, out: Output) -> int:
    """Make what the newest shadow tried the live settings: all of them or, where one does not hold, none.

    They stand in the log with the shadow's last report as their cause.
    """
    from services.commands.policy import effect, ordered, said_of
    from services.runtime.aio import run

    async def order(orders: "Orders") -> "tuple[Promoted, str]":
        done = await orders.promote(words_min=least)
        return done, said_of(await effect(orders, done.seq, [one.actor for one in done.reports]))

    done, text = run(ordered(settings, pool, order))
    out.result(done, lambda console: console.print(f"{done.policy}: {text}"))
    return Exit.FINE
