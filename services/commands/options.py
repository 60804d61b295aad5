"""Options that many commands share: how to answer, where the settings come from, and amounts that are numbers."""

import functools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

import services
from services.runtime.config import Config, gather
from services.runtime.config_sources import CONFIG_VARIABLE, PREFIX, ConfigError, Gathered, default_file, meant
from services.runtime.output import Output

F = TypeVar("F", bound=Callable[..., Any])

PRESET_FOLDERS = (
    Path(str(services.__file__)).parent / "presets",  # In a wheel.
    Path(str(services.__file__)).parents[1] / "deploy" / "presets",  # In a checkout.
)


class Amount(click.FloatRange):
    """A number within limits. Neither `nan` (which is within any) nor `inf` is one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As a FloatRange does, of what is finite."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is no amount", param, ctx)
        return number


@dataclass(frozen=True)
class Settings:
    """What the command line said about settings; `load` lays it over the environment and the file."""

    file: Path | None
    overrides: tuple[str, ...]

    def load(self) -> Config:
        """All settings. Raises ConfigError."""
        return self.gather()[0]

    def gather(self) -> tuple[Config, Gathered]:
        """All settings, and who said them. Raises ConfigError."""
        return gather(self.file, os.environ, self.overrides)

    def for_children(self) -> dict[str, str]:
        """The environment in which a child process loads the same settings: nothing secret goes through argv."""
        env = dict(os.environ)
        file = self.file or default_file(env)
        if file is not None:
            env[CONFIG_VARIABLE] = str(file.absolute())
        for text in self.overrides:
            key, _, value = text.partition("=")
            env[PREFIX + key.strip().replace(".", "__").upper()] = value
        return env


def with_force(command: F) -> F:
    """Give the command `--force`, for `refuse_overwriting`."""
    return click.option("--force", is_flag=True, help="Replace a file that is there.")(command)


def refuse_overwriting(made: Path | None, *, force: bool) -> None:
    """Raises UsageError where a file would be lost that nobody said may be. A device or a pipe loses nothing."""
    if made is not None and made.is_file() and not force:
        raise click.UsageError(f"{made} is there already: name another file, or --force")


def with_output(command: F) -> F:
    """Give the command `--json`, and an `out: Output`."""

    @click.option("--json", "as_json", is_flag=True, help="Answer in JSON, for programs.")
    @functools.wraps(command)
    def with_out(*args: Any, as_json: bool, **named: Any) -> Any:
        return command(*args, out=Output(as_json=as_json), **named)

    return with_out  # type: ignore[return-value]


def with_settings(command: F) -> F:
    """Give the command `--config`, `--preset` and `--set`, and a `settings: Settings`."""

    @click.option("--config", "file", type=click.Path(path_type=Path), help="TOML or JSON file with settings.")
    @click.option("--preset", help="A preset that comes with Tidegate, such as laptop or vllm.")
    @click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="One setting: gateway.port=9000.")
    @functools.wraps(command)
    def with_all(*args: Any, file: Path | None, preset: str | None, overrides: tuple[str, ...], **named: Any) -> Any:
        if preset is not None:
            if file is not None:
                raise click.UsageError("--config and --preset name two files: give one")
            file = preset_file(preset)
        return command(*args, settings=Settings(file, overrides), **named)

    return with_all  # type: ignore[return-value]


def preset_file(name: str) -> Path:
    """Where a preset lies. Raises ConfigError that names those that are there."""
    found = {path.stem: path for folder in PRESET_FOLDERS for path in sorted(folder.glob("*.toml"))}
    if name not in found:
        what = f"there is no preset {name!r}{meant(name, list(found))}"
        raise ConfigError(what, where="--preset", key="", allowed=", ".join(found))
    return found[name]
