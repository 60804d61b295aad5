"""Reads LMCache's agent traces: rows of {timestamp, input, output, session_id} with the text of prompts and answers.

`timestamp` counts microseconds from an epoch. Rows stand session by session and not quite in order of time, so they are
sorted. Nothing says how long an answer took or how many tokens it had: lengths are estimated from bytes, and prefixes
are those of the texts (`replay.traces.text`), across sessions too, since the text is all there is of them.

The turns of a session wait for each other: the think time is what lies between two of them, less `ANSWER_NS_PER_TOKEN`
for each token of the answer between.
Source: LMCache/lmcache-agent-trace (multi-agent web tasks, mini-SWE-agent, tau-bench).
"""

from pathlib import Path
from typing import Annotated

import msgspec

from kvstore.fingerprint import SLICE_TOKENS
from replay.traces.base import ANSWER_NS_PER_TOKEN, OnProgress, Trace, TraceError, decoded, lines_of
from replay.traces.text import tokens_of, units_of
from replay.workloads.base import Arrival
from replay.workloads.sessions import chained

NS_PER_US = 1_000
LINE_BYTES_MAX = 64 << 20
EPOCH_US_MIN, EPOCH_US_MAX = 10**15, 10**16
"""2001 to 2286: what is in seconds or milliseconds is below that, what is in nanoseconds above."""
_FIELDS = "timestamp (us), input, output, session_id"


class Row(msgspec.Struct, frozen=True):
    """One request as it stands in the trace."""

    timestamp: Annotated[int, msgspec.Meta(ge=0)]
    input: str
    output: str
    session_id: str


_decode = msgspec.json.Decoder(Row).decode


def lmcache_trace(
    path: Path, *, limit: int = 0, unit_tokens: int = SLICE_TOKENS, tenant: str = "default",
    model: str = "llama-3-8b", on_progress: OnProgress | None = None,
) -> Trace:  # fmt: skip
    """The first `limit` rows of the file (0 = all), in order of time. Raises TraceError; nothing is skipped."""
    rows: list[tuple[int, int, Row]] = []
    lines = lines_of(
        path, of="an LMCache agent", suffix=".jsonl", on_progress=on_progress, line_bytes_max=LINE_BYTES_MAX
    )
    for number, text in lines:
        row = _row(path, number, text)
        rows.append((row.timestamp, number, row))
        if limit and len(rows) >= limit:
            break
    if not rows:
        raise TraceError("no rows", file=str(path), line=0, mend=f"a row is one JSON object with {_FIELDS}")
    rows.sort(key=lambda each: each[:2])
    start_us = rows[0][0]
    arrivals = [
        _arrival(row, number, start_us=start_us, unit_tokens=unit_tokens, tenant=tenant, model=model)
        for _, number, row in rows
    ]
    took_ns = [one.output_tokens * ANSWER_NS_PER_TOKEN for one in arrivals]
    return Trace(form="lmcache", arrivals=chained(arrivals, took_ns))


def _arrival(row: Row, number: int, *, start_us: int, unit_tokens: int, tenant: str, model: str) -> Arrival:
    prompt = row.input.encode()
    return Arrival(
        at_ns=(row.timestamp - start_us) * NS_PER_US, request_id=f"t{number}", tenant=tenant, model=model,
        prompt_tokens=tokens_of(prompt), output_tokens=tokens_of(row.output.encode()),
        prefix=units_of(prompt, unit_tokens), prefix_tokens=unit_tokens, session=row.session_id,
        estimated=True,
    )  # fmt: skip


def _row(path: Path, number: int, text: bytes) -> Row:
    row = decoded(_decode, text, path=path, number=number, fields=_FIELDS)
    if not EPOCH_US_MIN <= row.timestamp < EPOCH_US_MAX:
        what = f"timestamp {row.timestamp} is not in microseconds since 1970"
        raise TraceError(what, file=str(path), line=number, mend="give all times in microseconds")
    return row
