"""`tidegate`: the program. Commands are imported when they are called, so that it starts fast.

Exit codes: 0 fine, 1 the answer is no, 2 bad input or environment, 3 fenced, 130 interrupted.
"""

import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from services.runtime.output import Exit

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("services.commands.demo", "See it work: real servers and workers, simulated engines, one table."),
    "up": ("services.commands.up", "Start everything: servers where no URL is given, workers, gateway."),
    "gateway": ("services.commands.gateway", "The OpenAI-compatible front door alone."),
    "worker": ("services.commands.worker", "One or more workers by name, in this process."),
    "watch": ("services.commands.watch", "Follow the committed log, one line per event."),
    "replay": ("services.commands.replay", "Export, verify, import and simulate logs."),
    "trace": ("services.commands.trace", "Recorded requests: import, look at, take a part, hide names."),
    "workload": ("services.commands.workload", "Profiles of traffic: show, draw, fit one to a trace."),
    "bench": ("services.commands.bench", "Measure policies and predictors, in virtual time and on traces."),
    "explain": ("services.commands.explain", "Why a request or a decision went as it did, and what would change it."),
    "policy": ("services.commands.policy", "Show or change the settings of policies, live."),
    "quota": ("services.commands.quota", "Show or set shares of engines and quotas of tenants, live."),
    "cache": ("services.commands.cache", "Slices of KV: where they are, how they are used; pin them, draw them."),
    "engine": ("services.commands.engine", "Start a vLLM server with Tidegate's memory inside, or show how."),
    "doctor": ("services.commands.doctor", "What is installed and reachable, and the mend for what is not."),
    "config": ("services.commands.config", "Show or check the settings."),
}
"""Name -> the module whose attribute `command` it is, and one line of help."""
_SERVER = ("aiohttp", "httptools", "starlette", "tokenizers", "uvicorn")
EXTRAS: dict[str, str] = {**dict.fromkeys(_SERVER, "server"), "matplotlib": "charts"}
"""Module that not every installation has -> the extra that brings it."""


class _Lazy(click.Group):
    """A group that imports a command's module when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


def _show_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from replay.code_version import code_version

        click.echo(f"tidegate {code_version()}")
        ctx.exit()


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version,
              help="Version of the program and of the code that decides.")  # fmt: skip
def cli() -> None:
    """SLO-aware control plane for the KV-cache memory of LLM and embedding engines.

    Every decision is an event that replays bit for bit.
    """


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command and end the process with its exit code."""
    sys.exit(run(argv))


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. What goes wrong in a known way is one line on stderr."""
    try:
        code = cli.main(args=None if argv is None else list(argv), prog_name="tidegate", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return Exit.BAD_INPUT
    except click.ClickException as error:
        click.echo(f"tidegate: {error.format_message()}", err=True)
        if isinstance(error, click.UsageError) and error.ctx is not None:
            click.echo(f"try '{error.ctx.command_path} --help'", err=True)
        return Exit.BAD_INPUT
    except (KeyboardInterrupt, click.Abort):
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has enough; Python would complain about it once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FINE
    except ModuleNotFoundError as error:
        extra = EXTRAS.get(error.name or "")
        if extra is None:
            raise
        click.echo(f"tidegate: {error.name} is not installed: pip install 'tidegate[{extra}]'", err=True)
        return Exit.BAD_INPUT
    except Exception as error:
        known = known_error(error)
        if known is None and isinstance(error, OSError) and error.filename:
            click.echo(f"tidegate: {error.strerror} ({error.filename})", err=True)
            return Exit.BAD_INPUT
        if known is None and isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            click.echo(f"tidegate: {error.strerror}: free space, or write to another place", err=True)
            return Exit.BAD_INPUT
        if known is None:
            raise  # A mistake of ours: the traceback is what helps.
        click.echo(f"tidegate: {known}", err=True)
        return exit_code_of(known)
    return code if isinstance(code, int) else Exit.FINE


def known_error(error: Exception) -> Exception | None:
    """The error if it speaks for itself (its class names an exit code); of a group, the first that does."""
    if isinstance(error, ExceptionGroup):
        return next((known for inner in error.exceptions if (known := known_error(inner)) is not None), None)
    return error if isinstance(getattr(type(error), "exit_code", None), int) else None


def exit_code_of(known: Exception) -> int:
    """The exit code that a known error names."""
    code: int = type(known).exit_code  # type: ignore[attr-defined]
    return code


if __name__ == "__main__":
    main()
