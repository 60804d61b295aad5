"""Reads Azure LLM inference traces: CSV with the columns TIMESTAMP, ContextTokens, GeneratedTokens, plain or gzipped.

`TIMESTAMP` is a date and time of day with up to nine decimals, with or without an offset from UTC, and never goes back.
Nothing is known of the prompts but their lengths, so no prefix is shared.
Source: Azure/AzurePublicDataset, AzureLLMInferenceTrace_*.csv of 2023 and 2024 (Patel et al., "Splitwise", ISCA 2024).
"""

import re
from datetime import UTC, datetime
from pathlib import Path

from events.base import NS_PER_S
from replay.traces.base import TOKENS_MAX, OnProgress, TraceError, lines_of, microspeed
from replay.traces.times import check_span
from replay.workloads.base import Arrival

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_HEADER = ",".join(COLUMNS)
_STAMP = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)?", re.ASCII)


def read_azure(
    path: Path,
    *,
    limit: int = 0,
    speed: float = 1.0,
    tenant: str = "default",
    model: str = "llama-3-8b",
    on_progress: OnProgress | None = None,
) -> list[Arrival]:
    """The first `limit` rows (0 = all) as arrivals, `speed` times as fast as they were, counted from the first.

    Raises TraceError for whatever is not such a trace; nothing is skipped.
    """
    millionths = microspeed(speed, path)
    arrivals: list[Arrival] = []
    start_ns = last_ns = 0
    headed = False
    for number, line in lines_of(path, of="an Azure", suffix=".csv", on_progress=on_progress):
        cells = _cells(path, number, line)
        if not headed:
            if tuple(cells) != COLUMNS:
                raise TraceError("no header", file=str(path), line=number, mend=f"the first line is {_HEADER}")
            headed = True
            continue
        at_ns, prompt_tokens, output_tokens = _row(path, number, cells)
        if not arrivals:
            start_ns = last_ns = at_ns
        if at_ns < last_ns:
            what = f"{cells[0]} comes after a later row"
            raise TraceError(what, file=str(path), line=number, mend="sort the trace by TIMESTAMP")
        check_span(path, number, COLUMNS[0], at_ns - start_ns)
        last_ns = at_ns
        arrivals.append(
            Arrival(
                at_ns=(at_ns - start_ns) * 1_000_000 // millionths, request_id=f"t{number}", tenant=tenant, model=model,
                prompt_tokens=prompt_tokens, output_tokens=output_tokens,
            )
        )  # fmt: skip
        if limit and len(arrivals) >= limit:
            break
    if not arrivals:
        raise TraceError("no rows", file=str(path), line=0, mend=f"after the header, a row is {_HEADER}")
    return arrivals


def _cells(path: Path, number: int, line: bytes) -> list[str]:
    try:
        return [cell.strip() for cell in line.decode().split(",")]
    except UnicodeDecodeError as error:
        raise TraceError(f"not text ({error})", file=str(path), line=number, mend=f"a row is {_HEADER}") from error


def _row(path: Path, number: int, cells: list[str]) -> tuple[int, int, int]:
    if len(cells) != len(COLUMNS):
        what = f"{len(cells)} cells"
        raise TraceError(what, file=str(path), line=number, mend=f"a row has {len(COLUMNS)}: {_HEADER}")
    prompt_tokens = _tokens(path, number, COLUMNS[1], cells[1])
    if prompt_tokens < 1:
        what = f"{COLUMNS[1]} is {cells[1]}"
        raise TraceError(what, file=str(path), line=number, mend="a prompt has at least one token")
    return _stamp_ns(path, number, cells[0]), prompt_tokens, max(1, _tokens(path, number, COLUMNS[2], cells[2]))


def _tokens(path: Path, number: int, column: str, cell: str) -> int:
    if not (cell.isascii() and cell.isdecimal() and len(cell) <= len(str(TOKENS_MAX)) and int(cell) <= TOKENS_MAX):
        mend = f"give a whole number from 0 to {TOKENS_MAX}"
        raise TraceError(f"{column} is {cell!r}", file=str(path), line=number, mend=mend)
    return int(cell)


def _stamp_ns(path: Path, number: int, cell: str) -> int:
    found = _STAMP.fullmatch(cell)
    mend = "a TIMESTAMP looks like 2023-11-16 18:15:46.6805900"
    if found is None:
        raise TraceError(f"TIMESTAMP is {cell!r}", file=str(path), line=number, mend=mend)
    seconds, decimals, offset = found.groups()
    try:
        moment = datetime.fromisoformat(seconds + (offset or "+00:00"))
    except ValueError as error:
        raise TraceError(f"TIMESTAMP is {cell!r} ({error})", file=str(path), line=number, mend=mend) from error
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * NS_PER_S + int((decimals or "0").ljust(9, "0"))
