"""Reads Mooncake request traces: rows of {timestamp, input_length, output_length, hash_ids}, plain or gzipped.

`timestamp` counts milliseconds from the start of the trace and never goes back; `hash_ids` name the prompt's
512-token blocks, chained and global, so that equal ids mean equal prefixes.
Source: kvcache-ai/Mooncake, FAST25 traces.
"""

from pathlib import Path
from typing import Annotated

import msgspec

from events.base import NS_PER_MS
from replay.traces.base import TOKENS_MAX, OnProgress, TraceError, decoded, lines_of, microspeed
from replay.traces.times import Times
from replay.workloads.base import Arrival

BLOCK_TOKENS = 512
_FIELDS = "timestamp, input_length, output_length, hash_ids"


class Row(msgspec.Struct, frozen=True):
    """One request as it stands in the trace."""

    timestamp: Annotated[int, msgspec.Meta(ge=0)]
    input_length: Annotated[int, msgspec.Meta(ge=1, le=TOKENS_MAX)]
    output_length: Annotated[int, msgspec.Meta(ge=0, le=TOKENS_MAX)]
    hash_ids: tuple[Annotated[int, msgspec.Meta(ge=0)], ...]


_decode = msgspec.json.Decoder(Row).decode


def read_mooncake(
    path: Path,
    *,
    limit: int = 0,
    speed: float = 1.0,
    tenant: str = "default",
    model: str = "llama-3-8b",
    on_progress: OnProgress | None = None,
) -> list[Arrival]:
    """The first `limit` rows (0 = all) as arrivals, `speed` times as fast as they were, counted from the first.

    `on_progress(bytes read, bytes in all)` is called now and then (bytes of the file as it is stored). Raises
    TraceError for whatever is not such a trace; nothing is skipped.
    """
    millionths = microspeed(speed, path)
    arrivals: list[Arrival] = []
    times, start_ms = Times(path, "timestamp", unit_ns=NS_PER_MS), -1
    for number, line in lines_of(path, of="a Mooncake", suffix=".jsonl", on_progress=on_progress):
        row = _row(path, number, line)
        if start_ms < 0:
            start_ms = row.timestamp
        times.check(number, row.timestamp)
        arrivals.append(
            Arrival(
                at_ns=(row.timestamp - start_ms) * NS_PER_MS * 1_000_000 // millionths,
                request_id=f"t{number}",
                tenant=tenant,
                model=model,
                prompt_tokens=row.input_length,
                output_tokens=max(1, row.output_length),
                prefix=row.hash_ids,
                prefix_tokens=BLOCK_TOKENS,
            )
        )
        if limit and len(arrivals) >= limit:
            break
    if not arrivals:
        raise TraceError("no rows", file=str(path), line=0, mend=f"a row is one JSON object with {_FIELDS}")
    return arrivals


def _row(path: Path, number: int, line: bytes) -> Row:
    row = decoded(_decode, line, path=path, number=number, fields=_FIELDS)
    blocks = -(-row.input_length // BLOCK_TOKENS)
    if len(row.hash_ids) > blocks:
        what = f"{len(row.hash_ids)} hash_ids for {row.input_length} tokens"
        mend = f"a prompt has one id per {BLOCK_TOKENS} tokens, {blocks} here"
        raise TraceError(what, file=str(path), line=number, mend=mend)
    return row
