"""`tidegate engine`: start a vLLM server with Tidegate's plugin in it, or show how."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from services.commands.options import Settings, with_output, with_settings
from services.runtime.config import Config, ConfigError, EngineConfig, LaunchConfig
from services.runtime.config_sources import meant
from services.runtime.output import Exit, Output

if TYPE_CHECKING:
    from services.engines.vllm_command import Launch

PORT_DEFAULT = 8_000


@click.group()
def command() -> None:
    """vLLM servers with Tidegate's memory inside: tiers below the device, slices in the log, its policies' choices."""


@command.command()
@click.argument("engine_id", metavar="ENGINE_ID")
@click.option("--model", help="What vLLM loads, a folder or a name; for an engine that the settings do not name.")
@click.option("--python", help="The interpreter of vLLM's environment.")
@click.option("--port", type=click.IntRange(1, 65_535), help=f"Where it listens on 127.0.0.1 (default {PORT_DEFAULT}).")
@click.option("--dram", help="Its DRAM tier: 8GiB.")
@click.option("--ssd", help="Its SSD tier: 100GiB; 0 = none.")
@click.option("--ssd-dir", help="The folder of its SSD tier.")
@click.option("--print", "print_only", is_flag=True, help="Show the command and start nothing.")
@click.argument("args", nargs=-1, type=click.UNPROCESSED, metavar="[-- VLLM_ARGS...]")
@with_settings
@with_output
def launch(
    engine_id: str, model: str | None, python: str | None, port: int | None, dram: str | None, ssd: str | None,
    ssd_dir: str | None, print_only: bool, args: tuple[str, ...], settings: Settings, out: Output,
) -> int:  # fmt: skip
    """Start an engine of the settings ([[engines]] with `agent = true`, and [engines.vllm]), or the one that the
    options describe. Ends with it; SIGTERM and Ctrl-C are passed on, and nothing of it stays behind.

    Exit codes: 0 it ended well, 1 it failed, 2 something that it needs is missing (said line by line).
    """
    from services.engines import vllm_checks, vllm_command

    config = settings.load()
    said = {"model": model, "python": python, "ssd_dir": ssd_dir, "args": list(args) or None}
    engine = _with_options(_engine(config, engine_id, model), port, dram, ssd, said)
    found = vllm_checks.ask((engine.vllm or LaunchConfig()).python)
    path = "" if isinstance(found, str) else vllm_checks.plugin_path(found)
    nats_url = _nats_url(config, needed=engine.agent and not print_only)
    how = vllm_command.launch(config, engine, plugin_path=path, nats_url=nats_url)
    if print_only:
        value = {"argv": how.argv, "env": {name: how.env[name] for name in how.env if not how.is_secret(name)}}
        out.result(value, lambda console: console.print(how.shell(), markup=False, soft_wrap=True))
        return Exit.FINE
    lacks = vllm_checks.lacks(engine, how.folders, found)
    if lacks:
        for lack in lacks:
            out.remark(f"engine {engine_id}: {lack}")
        if out.as_json:
            out.line({"ok": False, "lacks": [lack._asdict() for lack in lacks]})
        return Exit.BAD_INPUT
    return _run(config, engine, how, out)


def _engine(config: Config, engine_id: str, model: str | None) -> EngineConfig:
    """The engine of the settings, or one made up of the options."""
    found = next((each for each in config.engines if each.id == engine_id), None)
    if found is not None:
        if not found.url:
            raise click.UsageError(f"engine {engine_id!r} is simulated: it runs in the gateway")
        return found
    if model is None:
        known = [each.id for each in config.engines]
        raise click.UsageError(
            f"the settings name no engine {engine_id!r}{meant(engine_id, known)}: --config FILE, or --model"
        )
    url = f"http://127.0.0.1:{PORT_DEFAULT}"
    return EngineConfig(id=engine_id, models=[Path(model).name], url=url, agent=True, vllm=LaunchConfig(model=model))


def _with_options(
    engine: EngineConfig, port: int | None, dram: str | None, ssd: str | None, said: Mapping[str, object]
) -> EngineConfig:
    """What the command line says goes before the settings."""
    from services.runtime.amounts import bytes_of

    if any(amount is not None and amount.lstrip().startswith("-") for amount in (dram, ssd)):
        raise click.UsageError("a tier has no less than 0 bytes")
    how = msgspec.structs.replace(engine.vllm or LaunchConfig(), **{k: v for k, v in said.items() if v is not None})
    try:
        return msgspec.structs.replace(
            engine,
            vllm=how,
            url=f"http://127.0.0.1:{port}" if port else engine.url,
            dram_bytes=bytes_of(dram) if dram else engine.dram_bytes,
            ssd_bytes=bytes_of(ssd) if ssd else engine.ssd_bytes,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _nats_url(config: Config, *, needed: bool) -> str:
    """Where the log is. Raises LogError where that is needed and nobody said."""
    from services.runtime import servers

    if not needed and not config.nats.url and servers.running(config) is None:
        return ""
    return servers.nats_url(config)


def _run(config: Config, engine: EngineConfig, how: "Launch", out: Output) -> int:
    from services.engines import vllm_checks, vllm_command
    from services.runtime import process_group
    from services.runtime.aio import run
    from services.runtime.state_dir import locked

    name = vllm_command.transfer_id(config, engine)
    vllm_checks.make(how.folders)
    with locked(how.folders.own, what=f"engine {engine.id}"):
        vllm_checks.forget_crash(name)
        out.remark(f"engine {engine.id}: starting at {engine.url}, its folder is {how.folders.own}")
        try:
            status = run(process_group.run(how.argv, {**os.environ, **how.env}))
        except OSError as error:
            raise ConfigError(
                f"{how.argv[0]}: {error.strerror}", where="settings", key="engines.vllm.python"
            ) from error
        finally:
            vllm_checks.forget_crash(name)
    out.remark(f"engine {engine.id}: ended{f' ({status})' if status else ''}")
    return Exit.NO if status else Exit.FINE
