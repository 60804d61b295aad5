"""What a command says: one JSON value for programs (`--json`), or text and tables for people.

Results go to stdout, progress and remarks to stderr, so that a pipe sees the result alone. Colours follow the
terminal and NO_COLOR.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:  # Rich takes longer to import than most commands to run.
    from rich.console import Console

PIPE_WIDTH = 240
"""Columns of a table that no terminal shows: whoever reads it can cut, but not mend."""

Advance = Callable[[int], None]
"""`advance(done)`: how much is done by now."""


class Exit(IntEnum):
    """What the exit code of a command says."""

    FINE = 0
    NO = 1
    BAD_INPUT = 2
    FENCED = 3
    INTERRUPTED = 130


class Output:
    """The two ways to speak. `as_json`: results are JSON lines, nothing else is on stdout."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    @cached_property
    def console(self) -> "Console":
        """Where text for people goes."""
        from rich.console import Console

        console = Console(highlight=False, soft_wrap=True)
        if not console.is_terminal:
            console.width = PIPE_WIDTH
        return console

    @cached_property
    def remarks(self) -> "Console":
        """Where what is not the result goes."""
        from rich.console import Console

        return Console(stderr=True, highlight=False, soft_wrap=True)

    def result(self, value: Any, show: Callable[["Console"], None]) -> None:
        """Say a result: `value` as JSON, or whatever `show` prints."""
        if self.as_json:
            self.line(value)
        else:
            show(self.console)
            sys.stdout.flush()

    def line(self, value: Any) -> None:
        """One JSON value on a line of its own, at once."""
        sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
        sys.stdout.flush()

    def remark(self, text: str) -> None:
        """Something worth knowing that is not the result; silent with `--json`."""
        if not self.as_json:
            self.remarks.print(text, markup=False)

    @contextmanager
    def progress(self, what: str, total: int | None = None) -> Iterator[Advance]:
        """A progress bar on stderr while the block runs; none with `--json` or where nobody looks."""
        if self.as_json or not self.remarks.is_terminal:
            yield lambda _done: None
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.remarks, transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda done: bar.update(task, completed=done)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    """A plain table; cells are text, never markup."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*(Text(cell) for cell in row))
    return shown
