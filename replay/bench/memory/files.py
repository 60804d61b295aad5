"""A report on disk: one file of JSON that is read again, two of CSV, and the page."""

from pathlib import Path
from typing import ClassVar, Final

import msgspec

from replay.bench.memory.csv import cells_csv, runs_csv
from replay.bench.memory.html import page
from replay.bench.memory.report import SCHEMA, Report

JSON_NAME: Final = "report.json"
PAGE_NAME: Final = "report.html"
CELLS_NAME: Final = "cells.csv"
RUNS_NAME: Final = "runs.csv"
BYTES_MAX: Final = 512 * 1024 * 1024


class ReportError(Exception):
    """A file is no report that can be read here; the text says why."""

    exit_code: ClassVar[int] = 2


class _Schema(msgspec.Struct):
    schema: int = 0


def write_report(report: Report, folder: Path) -> None:
    """All files of a report into a folder, which is made where it is not there. Each is written beside its name and
    then renamed, so that none is ever half there. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / JSON_NAME, msgspec.json.encode(report))
    _replace(folder / CELLS_NAME, cells_csv(report).encode())
    _replace(folder / RUNS_NAME, runs_csv(report).encode())
    _replace(folder / PAGE_NAME, page(report).encode())


def read_report(path: Path) -> Report:
    """The report in a file, or in a folder that `write_report` wrote. Raises ReportError."""
    file = path / JSON_NAME if path.is_dir() else path
    try:
        if file.stat().st_size > BYTES_MAX:
            raise ReportError(f"{file}: larger than {BYTES_MAX:,} bytes: that is no report")
        body = file.read_bytes()
    except OSError as error:
        raise ReportError(f"{file}: {error.strerror or error}") from error
    try:
        schema = msgspec.json.decode(body, type=_Schema).schema
        if schema > SCHEMA:
            raise ReportError(f"{file}: written by a newer Tidegate (schema {schema}, this one reads {SCHEMA}): update")
        return msgspec.json.decode(body, type=Report)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ReportError(f"{file}: no report of a memory benchmark: {error}") from error


def _replace(path: Path, body: bytes) -> None:
    beside = path.with_name(path.name + ".new")
    beside.write_bytes(body)
    beside.replace(path)
