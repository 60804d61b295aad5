"""`tidegate gateway`: the front door as a process of its own."""

import asyncio
import os
from contextlib import AsyncExitStack

import click

from services.commands.options import Settings, with_output, with_settings
from services.runtime.output import Exit, Output


@click.command()
@click.option("--quiet", is_flag=True, help="Do not say where it serves.")
@with_settings
@with_output
def command(quiet: bool, settings: Settings, out: Output) -> int:
    """Serve OpenAI's API and plain events until SIGTERM or Ctrl-C.

    Engines that are added to or removed from the settings file are taken in without a restart (also by SIGHUP).
    """
    from services.runtime.aio import run

    run(_serve(settings, None if quiet else out))
    return Exit.FINE


async def _serve(settings: Settings, out: Output | None) -> None:
    from services.gateway import main
    from services.runtime import reload, servers
    from services.runtime.config import Config
    from services.runtime.config_sources import default_file
    from services.runtime.frame import framed, log_to_stderr

    config = settings.load()
    log_to_stderr(config, "gateway")
    file = settings.file or default_file(os.environ)

    async with AsyncExitStack() as stack:
        frame = await stack.enter_async_context(framed(config, "gateway"))

        def ready(gateway: main.Gateway) -> None:
            async def take(changed: Config) -> object:
                return await gateway.reload(changed.engines)

            following = asyncio.create_task(reload.follow(settings.load, file, take))
            stack.callback(following.cancel)
            stack.enter_context(servers.open_door(config, gateway.url))
            if out is not None:
                value = {"url": gateway.url, "pool": config.pool}
                out.result(value, lambda console: console.print(f"gateway: {gateway.url}/v1"))

        await main.run(config, log=frame.log, stop=frame.stop, nats=frame.client, on_ready=ready)
