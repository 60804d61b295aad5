"""`tidegate quota`: how engines are divided and what tenants may hold, shown and set while it runs."""

from typing import TYPE_CHECKING, Any

import click
import msgspec

from events.base import PPM
from services.commands.options import Settings, with_output, with_settings
from services.commands.policy import Effect, effect, ordered, said_of
from services.runtime.output import Exit, Output, table

if TYPE_CHECKING:
    from services.runtime.orders import EngineShares, Orders, Quotas

ACTOR = "quota"


class _Set(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an order, and how things stand now."""

    seq: int
    taken_in: dict[str, bool]
    quotas: Any


@click.group()
def command() -> None:
    """Shares of LLM requests and embedding jobs, and tenants' quotas of KV memory.

    Engines preallocate their memory: a share is a cap that admission keeps, on the blocks of LLM requests and on the
    workspace of embedding jobs in flight.
    """


@command.command()
@click.option("--pool", help="Which pool; the configured one if not given.")
@with_settings
@with_output
def show(pool: str | None, settings: Settings, out: Output) -> int:
    """How every engine is divided, within which bounds, and what tenants may hold."""
    from services.runtime.aio import run

    told = run(ordered(settings, pool, lambda orders: orders.quotas()))
    out.result(told, lambda console: _print(console, told))
    return Exit.FINE


@command.command(name="set")
@click.option("--tenant", help="Whose requests are limited.")
@click.option("--kv-bytes", help="How much KV they hold at most in the pool: 8GiB; 0 = no limit.")
@click.option(
    "--engine", help="Whose embedding share is bounded; all engines without bounds of their own if not given."
)
@click.option("--embedding-min", help="Its least: 10%.")
@click.option("--embedding-max", help="Its most: 40%.")
@click.option("--pool", help="Which pool; the configured one if not given.")
@with_settings
@with_output
def change(
    tenant: str | None, kv_bytes: str | None, engine: str | None, embedding_min: str | None,
    embedding_max: str | None, pool: str | None, settings: Settings, out: Output,
) -> int:  # fmt: skip
    """Limit a tenant (--tenant, --kv-bytes), or bound the embedding share ([--engine], --embedding-min and -max).

    Equal bounds fix the share.
    """
    from services.runtime.aio import run
    from services.runtime.amounts import bytes_of, ppm_of

    of_tenant = tenant is not None and kv_bytes is not None
    of_share = embedding_min is not None and embedding_max is not None
    others = (engine, embedding_min, embedding_max) if of_tenant else (tenant, kv_bytes)
    if not (of_tenant or of_share) or any(one is not None for one in others):
        raise click.UsageError("give --tenant and --kv-bytes; or --embedding-min and --embedding-max (and --engine)")
    try:
        amounts = (bytes_of(kv_bytes or "0"), ppm_of(embedding_min or "0%"), ppm_of(embedding_max or "0%"))
    except ValueError as error:
        raise click.UsageError(str(error)) from error

    async def order(orders: "Orders") -> _Set:
        limit, low_ppm, high_ppm = amounts
        if of_tenant:
            seq = await orders.limit_tenant(tenant or "", limit)
        else:
            seq = await orders.bound_shares(engine or "", low_ppm, high_ppm)
        taken_in = (await effect(orders, seq, [ACTOR])).taken_in
        return _Set(seq=seq, taken_in=taken_in, quotas=await orders.quotas())

    told = run(ordered(settings, pool, order))
    out.result(told, lambda console: _say(console, told))
    return Exit.FINE


def _say(console: Any, told: _Set) -> None:
    console.print(said_of(Effect(seq=told.seq, taken_in=told.taken_in)))
    _print(console, told.quotas)


def _print(console: Any, told: "Quotas") -> None:
    rows = [(one.engine or "(pool)", *_shares(one)) for one in told.engines]
    console.print(table(("engine", "LLM", "embedding", "bounds", "why"), rows))
    if told.tenants:
        console.print(table(("tenant", "KV bytes at most"), [(name, str(most)) for name, most in told.tenants.items()]))


def _shares(one: "EngineShares") -> tuple[str, str, str, str]:
    bounds = ""
    if one.embedding_min_ppm is not None:
        bounds = f"{_percent(one.embedding_min_ppm)} to {_percent(one.embedding_max_ppm)}"
    return _percent(one.llm_ppm), _percent(one.embedding_ppm), bounds, one.reason.replace("_", " ")


def _percent(ppm: int | None) -> str:
    return "no cap" if ppm is None else f"{ppm * 100 / PPM:.1f} %"
