"""Options of commands that read traces: what the file is, and what its reader is told."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.core import ParameterSource

F = TypeVar("F", bound=Callable[..., Any])

NAME_CHARS_MAX = 256

FORMATS = ("journal", "azure", "mooncake", "weka", "lmcache", "jsonl", "csv")
TABLES = ("jsonl", "csv")
MEANT_FOR = {
    "mapped": TABLES, "time_unit": TABLES, "prefix_tokens": TABLES, "unit_tokens": ("weka", "lmcache"),
    "context_tokens": ("weka",), "begins_over": ("weka",), "tenant": FORMATS[1:], "model": FORMATS[1:],
}  # fmt: skip
"""Option -> the formats that it means something to. A seed may be given to any: where nothing is drawn it changes
nothing."""


class Name(click.types.StringParamType):
    """Of a tenant or a model: something that can be read."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The name as it is. Fails for none at all, for a very long one, and for what no terminal shows."""
        name = super().convert(value, param, ctx)
        if not (name.strip() and name.isprintable() and len(name) <= NAME_CHARS_MAX):
            self.fail(f"{name[:NAME_CHARS_MAX]!r}: give 1 to {NAME_CHARS_MAX} printable characters", param, ctx)
        return name


def with_reading(command: F) -> F:
    """Give the command the options of readers, and a `reading: Reading`."""

    @click.option("--map", "mapped", multiple=True, metavar="FIELD=COLUMN",
                  help="jsonl, csv: the column that a field is in, where it has another name.")  # fmt: skip
    @click.option("--time-unit", type=click.Choice(["s", "ms", "us", "ns"]), default="s", show_default=True,
                  help="jsonl, csv: the unit of all times.")  # fmt: skip
    @click.option("--prefix-tokens", type=click.IntRange(min=1), default=512, show_default=True,
                  help="jsonl, csv: tokens that one id of a prefix stands for.")  # fmt: skip
    @click.option("--unit-tokens", type=click.IntRange(min=1), default=256, show_default=True,
                  help="weka, lmcache: tokens per id of a prefix.")  # fmt: skip
    @click.option("--context-tokens", type=click.IntRange(min=1), default=131_072, show_default=True,
                  help="weka: prompts that fill it are left out.")  # fmt: skip
    @click.option("--tenant", type=Name(), default="default", show_default=True, help="For rows that name none.")
    @click.option("--model", type=Name(), default="llama-3-8b", show_default=True, help="For rows that name none.")
    @click.option("--limit", type=click.IntRange(min=1), help="Only the first so many rows (weka: sessions).")
    @click.option("--seed", type=int, default=1, show_default=True, help="weka: draws when sessions begin.")
    @click.option("--begins-over", type=click.IntRange(min=1), default=3_600, show_default=True, metavar="SECONDS",
                  help="weka: sessions begin evenly over so long.")  # fmt: skip
    @functools.wraps(command)
    def with_all(
        *args: Any, mapped: tuple[str, ...], time_unit: str, prefix_tokens: int, unit_tokens: int, context_tokens: int,
        tenant: str, model: str, limit: int | None, seed: int, begins_over: int, **named: Any,
    ) -> Any:  # fmt: skip
        from replay.traces.formats import Reading
        from replay.traces.table import Columns

        _refuse_for_others(named["form"])
        columns = Columns(of=_mapping(mapped), time_unit=time_unit, prefix_tokens=prefix_tokens)
        reading = Reading(
            limit=limit or 0, tenant=tenant, model=model, context_tokens_max=context_tokens, unit_tokens=unit_tokens,
            columns=columns, seed=seed, begins_over_s=begins_over,
        )  # fmt: skip
        return command(*args, reading=reading, **named)

    return with_all  # type: ignore[return-value]


def _refuse_for_others(form: str) -> None:
    """Raises UsageError for an option that was given and that this format has no use for."""
    context = click.get_current_context()
    for option in context.command.params:
        formats = MEANT_FOR.get(option.name or "", FORMATS)
        if form not in formats and context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE:
            what = f"{option.opts[0]} says nothing of a file of --format {form}"
            raise click.UsageError(f"{what}: it is for {', '.join(formats)}")


def _mapping(mapped: tuple[str, ...]) -> dict[str, str]:
    pairs = [text.partition("=") for text in mapped]
    for text, (field, sign, column) in zip(mapped, pairs, strict=True):
        if not (field and sign and column):
            raise click.UsageError(f"--map {text}: say it as FIELD=COLUMN")
    columns = {field.strip(): column.strip() for field, _, column in pairs}
    if len(columns) < len(pairs):
        raise click.UsageError(f"--map {' '.join(mapped)}: a field is in one column")
    return columns
