"""`tidegate config`: what the settings are, who said them, and whether they hold."""

from collections.abc import Iterator
from typing import Any

import click

from services.commands.options import Settings, with_output, with_settings
from services.runtime.config import Config, ConfigError, masked
from services.runtime.config_sources import Key, dotted
from services.runtime.output import Exit, Output, table


@click.group()
def command() -> None:
    """Show or check the settings."""


@command.command()
@with_settings
@with_output
def show(settings: Settings, out: Output) -> None:
    """Every setting as it stands, and who said it. Secrets are masked."""
    config, gathered = settings.gather()
    plain = masked(config)
    rows = [(dotted(key), _written(value), gathered.said(key)) for key, value in _flat(plain, ())]
    out.result(plain, lambda console: console.print(table(("setting", "value", "said by"), rows)))


@command.command()
@with_settings
@with_output
def check(settings: Settings, out: Output) -> int:
    """Whether the settings hold; the first that does not is named."""
    try:
        config = settings.load()
    except ConfigError as error:
        if not out.as_json:
            raise
        out.line({"ok": False, "where": error.where, "key": error.key, "what": error.what, "allowed": error.allowed})
        return Exit.BAD_INPUT
    counts = {"engines": len(config.engines), "models": len(config.models), "tenants": len(config.tenants)}
    out.result({"ok": True, "pool": config.pool, **counts}, lambda console: console.print(_summary(config)))
    return Exit.FINE


def _summary(config: Config) -> str:
    named = ", ".join(f"{engine.id} ({engine.kind})" for engine in config.engines) or "none"
    return f"ok: pool {config.pool}; engines: {named}; {len(config.models)} models, {len(config.tenants)} tenants"


def _flat(value: Any, key: Key) -> Iterator[tuple[Key, Any]]:
    """Every leaf; empty lists and tables are leaves too, so that nothing is left out."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flat(inner, (*key, name))
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        for index, inner in enumerate(value):
            yield from _flat(inner, (*key, index))
    else:
        yield key, value


def _written(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)
