"""Reads traces that are plain tables: JSON lines or CSV, plain or gzipped, with any names of columns.

Fields are `time`, `prompt_tokens` and `output_tokens`, and where they are there `request_id`, `kind` (llm, embedding),
`tenant`, `model`, `tokens_max`, `inputs`, `priority`, `session`, `prefix`, and for closed loops either `after` (the
request whose end this one waited for) with `think_time`, or `took` (how long the answer took), with which the turns of
a session wait for each other. A mapping says which column a field is in, where its name is another.

`prefix` names the prompt's leading units of `prefix_tokens` tokens: a list in JSON, words in CSV. Ids may be numbers or
any text, of blocks or of whole prefixes: they are chained here, so that an id means all before it too.

Example: {"time": 1.5, "prompt_tokens": 700, "output_tokens": 40, "prefix": ["a1", "b7"], "session": "s1"}
"""

import csv
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

from events.base import RequestKind
from replay.traces.base import TOKENS_MAX, OnProgress, Trace, TraceError, decoded, lines_of
from replay.traces.times import Times
from replay.workloads.base import Arrival
from replay.workloads.sessions import chained

REQUIRED = ("time", "prompt_tokens", "output_tokens")
OPTIONAL = (
    "request_id", "kind", "tenant", "model", "tokens_max", "inputs", "priority", "session", "prefix", "after",
    "think_time", "took",
)  # fmt: skip
FIELDS = REQUIRED + OPTIONAL
UNITS_NS: dict[str, int] = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
TIME_MAX = 10**20
INPUTS_MAX = 100_000
PRIORITY_MAX = 1_000_000
NAME_CHARS_MAX = 256
LINE_BYTES_MAX = 64 << 20
CHAIN_BYTES = 8

_TIME = re.compile(r"\d{1,21}(\.\d{1,18})?(e[+-]?\d{1,2})?", re.ASCII | re.IGNORECASE)

Row = Mapping[str, Any]


class Columns(msgspec.Struct, frozen=True, kw_only=True):
    """How a table says things: which column a field is in (its own name where nothing is said), the unit of all its
    times, and the tokens that one id of a prefix stands for."""

    of: dict[str, str] = msgspec.field(default_factory=dict)
    time_unit: str = "s"
    prefix_tokens: int = 512


def read_table(
    path: Path, *, form: str, columns: Columns, limit: int = 0, tenant: str = "default", model: str = "llama-3-8b",
    on_progress: OnProgress | None = None,
) -> Trace:  # fmt: skip
    """The first `limit` rows (0 = all) as arrivals, counted from the first; `form` is jsonl or csv.

    Raises TraceError for whatever is no such table, and for a mapping that cannot be; nothing is skipped.
    """
    _check(path, columns)
    reader = _Reader(path, columns, tenant=tenant, model=model)
    rows = _csv_rows if form == "csv" else _json_rows
    lines = lines_of(path, of=f"a {form}", suffix=f".{form}", on_progress=on_progress, line_bytes_max=LINE_BYTES_MAX)
    arrivals: list[Arrival] = []
    took_ns: list[int] = []
    for number, row in rows(path, lines):
        reader.number = number
        arrivals.append(reader.arrival(row))
        took_ns.append(reader.took_ns(row))
        if limit and len(arrivals) >= limit:
            break
    if not arrivals:
        raise TraceError("no rows", file=str(path), line=0, mend=f"a row has {', '.join(REQUIRED)}")
    return Trace(form=form, arrivals=chained(arrivals, took_ns) if reader.chains else arrivals)


def _check(path: Path, columns: Columns) -> None:
    for field in columns.of:
        if field not in FIELDS:
            mend = f"map one of {', '.join(FIELDS)}"
            raise TraceError(f"there is no field {field!r} to map", file=str(path), line=0, mend=mend)
    if columns.time_unit not in UNITS_NS:
        mend = f"one of {', '.join(UNITS_NS)}"
        raise TraceError(f"no unit of time is called {columns.time_unit!r}", file=str(path), line=0, mend=mend)
    if columns.prefix_tokens < 1:
        raise TraceError("an id stands for no tokens", file=str(path), line=0, mend="give at least 1 token per id")


def _json_rows(path: Path, lines: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, Row]]:
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    for number, text in lines:
        yield number, decoded(decode, text, path=path, number=number, fields=", ".join(REQUIRED))


def _csv_rows(path: Path, lines: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, Row]]:
    header: list[str] = []
    for number, text in lines:
        try:
            cells = next(csv.reader([text.decode().rstrip("\r\n")], strict=True))
        except (UnicodeDecodeError, csv.Error) as error:
            what = f"not a row of CSV ({error})"
            raise TraceError(what, file=str(path), line=number, mend="a row is one line of cells and commas") from error
        if not header:
            header = [cell.strip() for cell in cells]
            if len(set(header)) != len(header):
                mend = "give every column a name of its own"
                raise TraceError("two columns have one name", file=str(path), line=number, mend=mend)
            continue
        if len(cells) != len(header):
            what, mend = f"{len(cells)} cells", f"a row has {len(header)}: {','.join(header)}"
            raise TraceError(what, file=str(path), line=number, mend=mend)
        yield number, {name: cell.strip() or None for name, cell in zip(header, cells, strict=True)}


class _Reader:
    """Rows to arrivals, one after another; `number` is the line that the row stands in."""

    def __init__(self, path: Path, columns: Columns, *, tenant: str, model: str) -> None:
        self._path, self._columns, self._tenant, self._model = path, columns, tenant, model
        self._unit_ns = UNITS_NS[columns.time_unit]
        self._times = Times(path, self._column("time"), unit_ns=self._unit_ns)
        self._start: Fraction | None = None
        self._seen: dict[str, None] = {}
        self.number = 0
        self.chains = False

    def arrival(self, row: Row) -> Arrival:
        """The request of a row. Raises TraceError."""
        if self._start is None:
            self._check_mapping(row)
        time = self._time(row, "time")
        self._times.check(self.number, time)
        self._start = time if self._start is None else self._start
        kind = self._kind(row)
        embedding = kind is RequestKind.EMBEDDING
        prompt = self._count(row, "prompt_tokens", least=1)
        output = self._count(row, "output_tokens", least=0, default=0 if embedding else None)
        request_id = self._request_id(row)
        after = self._name(row, "after", "")
        if after and after not in self._seen:
            raise self._refused(f"it waits for {after!r}", "a request waits for one above it, by its request_id")
        self._seen[request_id] = None
        return Arrival(
            at_ns=round((time - self._start) * self._unit_ns),
            request_id=request_id,
            kind=kind,
            tenant=self._name(row, "tenant", self._tenant),
            model=self._name(row, "model", self._model),
            prompt_tokens=prompt,
            output_tokens=0 if embedding else max(1, output),
            tokens_max=self._count(row, "tokens_max", least=0, default=0),
            prefix=self._prefix(row, prompt),
            prefix_tokens=self._columns.prefix_tokens,
            inputs=self._count(row, "inputs", least=1, most=INPUTS_MAX, default=1),
            priority=self._count(row, "priority", least=-PRIORITY_MAX, most=PRIORITY_MAX, default=0),
            session=self._name(row, "session", ""),
            after=after,
            think_ns=round(self._time(row, "think_time") * self._unit_ns) if after else 0,
        )

    def took_ns(self, row: Row) -> int:
        """How long the answer took, where the table says it."""
        if row.get(self._column("took")) is None:
            return 0
        if row.get(self._column("after")) is not None:
            raise self._refused("it has both `after` and `took`", "say what a turn waits for in one way")
        self.chains = True
        return round(self._time(row, "took") * self._unit_ns)

    def _column(self, field: str) -> str:
        return self._columns.of.get(field, field)

    def _check_mapping(self, row: Row) -> None:
        """What is mapped is there, in the first row at least."""
        for field, column in self._columns.of.items():
            if column not in row:
                raise self._missing(row, field)

    def _cell(self, row: Row, field: str) -> Any:
        """What stands there; None where it is left empty."""
        column = self._column(field)
        cell = row.get(column)
        if cell is None and field in REQUIRED:
            raise (
                self._refused(f"{column!r} is empty", "every row has one")
                if column in row
                else self._missing(row, field)
            )
        return cell

    def _missing(self, row: Row, field: str) -> TraceError:
        mend = f"map it by --map {field}=COLUMN; the columns are {', '.join(row)}"
        return self._refused(f"there is no {self._column(field)!r}", mend)

    def _time(self, row: Row, field: str) -> Fraction:
        cell = self._cell(row, field)
        if cell is None:
            return Fraction(0)
        if isinstance(cell, bool) or _TIME.fullmatch(str(cell)) is None or (time := Fraction(str(cell))) > TIME_MAX:
            what = f"{self._column(field)} is {cell!r}"
            raise self._refused(what, f"give a time of at least 0, in {self._columns.time_unit}")
        return time

    def _count(self, row: Row, field: str, *, least: int, most: int = TOKENS_MAX, default: int | None = None) -> int:
        if default is not None and row.get(self._column(field)) is None:
            return default
        cell = self._cell(row, field)
        count = int(cell) if isinstance(cell, str) and _whole(cell) else cell
        if isinstance(count, bool) or not isinstance(count, int) or not least <= count <= most:
            raise self._refused(f"{self._column(field)} is {cell!r}", f"give a whole number from {least} to {most}")
        return count

    def _name(self, row: Row, field: str, default: str) -> str:
        cell = self._cell(row, field)
        if cell is None:
            return default
        if isinstance(cell, bool) or not isinstance(cell, str | int) or len(str(cell)) > NAME_CHARS_MAX:
            raise self._refused(
                f"{self._column(field)} is {cell!r}", f"give a name of up to {NAME_CHARS_MAX} characters"
            )
        return str(cell)

    def _request_id(self, row: Row) -> str:
        request_id = self._name(row, "request_id", f"t{self.number}")
        if request_id in self._seen:
            raise self._refused(f"{request_id!r} is there twice", "give every request an id of its own")
        return request_id

    def _kind(self, row: Row) -> RequestKind:
        name = self._name(row, "kind", RequestKind.LLM)
        try:
            return RequestKind(name)
        except ValueError as error:
            mend = f"one of {', '.join(RequestKind)}"
            raise self._refused(f"{self._column('kind')} is {name!r}", mend) from error

    def _prefix(self, row: Row, prompt: int) -> tuple[int, ...]:
        """Chained, so that it does not matter whether ids are of blocks or of whole prefixes."""
        cell = self._cell(row, "prefix")
        names = cell.split() if isinstance(cell, str) else cell
        if names is None:
            return ()
        if not isinstance(names, list) or not all(isinstance(one, str | int) for one in names):
            raise self._refused(f"{self._column('prefix')} is no list of ids", "give a list of numbers or names")
        units = -(-prompt // self._columns.prefix_tokens)
        if len(names) > units:
            what = f"{self._column('prefix')} has {len(names)} ids for {prompt} tokens"
            raise self._refused(
                what, f"{units} at most where one stands for {self._columns.prefix_tokens}: --prefix-tokens"
            )
        chain, ids = blake2b(digest_size=CHAIN_BYTES), list[int]()
        for name in names:
            chain.update(f"{name}\n".encode())
            ids.append(int.from_bytes(chain.digest()))
        return tuple(ids)

    def _refused(self, what: str, mend: str) -> TraceError:
        return TraceError(what, file=str(self._path), line=self.number, mend=mend)


def _whole(cell: str) -> bool:
    digits = cell.removeprefix("-")
    return digits.isascii() and digits.isdecimal() and len(digits) <= len(str(TOKENS_MAX))
