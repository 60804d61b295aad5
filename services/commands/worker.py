"""`tidegate worker NAME...`: workers by name, in this process."""

import asyncio
import os
from functools import partial
from importlib import import_module

import click

from services.commands.options import Settings, with_output, with_settings
from services.runtime.config_sources import meant
from services.runtime.output import Exit, Output

WORKERS = {
    "clock": "services.clock",
    "admission": "services.admission",
    "sensor": "services.sensor",
    "projector": "services.projector",
    "auditor": "services.auditor",
    "ingest": "services.ingest",
    "quota": "services.quota",
    "eviction": "services.eviction",
    "migration": "services.migration",
    "prefetch": "services.prefetch",
    "desk": "services.desk",
}
"""Name -> the module whose `run(config, *, log, stop)` it is."""
RELOADING = {"sensor"}
"""Those that take changed settings while they run: `run(..., follow)`."""


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@with_settings
@with_output
def command(names: tuple[str, ...], settings: Settings, out: Output) -> int:
    """Run workers until SIGTERM or Ctrl-C: clock, admission, quota, eviction, migration, prefetch, sensor,
    projector, auditor, ingest, desk.

    Exit code 3: another instance has taken an actor over.
    """
    from services.runtime.aio import run

    for name in names:
        if name not in WORKERS:
            raise click.UsageError(f"there is no worker {name!r}{meant(name, list(WORKERS))}: {', '.join(WORKERS)}")
    run(_work(names, settings))
    out.remark(f"{' '.join(names)}: stopped in good order")
    return Exit.FINE


async def _work(names: tuple[str, ...], settings: Settings) -> None:
    from services.runtime import reload
    from services.runtime.config_sources import default_file
    from services.runtime.frame import framed, log_to_stderr

    config = settings.load()
    log_to_stderr(config, "+".join(names))
    follow = partial(reload.follow, settings.load, settings.file or default_file(os.environ))
    async with framed(config, "-".join(names)) as frame, asyncio.TaskGroup() as group:
        for name in names:
            run = import_module(WORKERS[name]).run
            if name in RELOADING:
                run = partial(run, follow=follow)
            group.create_task(run(config, log=frame.log, stop=frame.stop), name=name)
