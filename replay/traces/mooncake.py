"""Reads Mooncake request traces: rows of {timestamp, input_length, output_length, hash_ids}, plain or gzipped.

`timestamp` counts milliseconds from the start of the trace and never goes back; `hash_ids` name the prompt's
512-token blocks, chained and global, so that equal ids mean equal prefixes.
Source: kvcache-ai/Mooncake, FAST25 traces.
"""

import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, BinaryIO, ClassVar, cast

import msgspec

from events.base import NS_PER_MS
from replay.workloads.base import Arrival

BLOCK_TOKENS = 512
LINE_BYTES_MAX = 1 << 20
PROGRESS_EVERY = 256
SPEED_MIN, SPEED_MAX = 0.001, 10_000
_FIELDS = "timestamp, input_length, output_length, hash_ids"


class TraceError(Exception):
    """A trace cannot be read: file, line (0 = the file as a whole), what is wrong, and the mend."""

    exit_code: ClassVar[int] = 2

    def __init__(self, what: str, *, file: str, line: int, mend: str) -> None:
        super().__init__(what)
        self.what, self.file, self.line, self.mend = what, file, line, mend

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.what}: {self.mend}"


class Row(msgspec.Struct, frozen=True):
    """One request as it stands in the trace."""

    timestamp: Annotated[int, msgspec.Meta(ge=0)]
    input_length: Annotated[int, msgspec.Meta(ge=1)]
    output_length: Annotated[int, msgspec.Meta(ge=0)]
    hash_ids: tuple[Annotated[int, msgspec.Meta(ge=0)], ...]


_decode = msgspec.json.Decoder(Row).decode


def read_mooncake(
    path: Path,
    *,
    limit: int = 0,
    speed: float = 1.0,
    tenant: str = "default",
    model: str = "llama-3-8b",
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Arrival]:
    """The first `limit` rows (0 = all) as arrivals, `speed` times as fast as they were, counted from the first.

    `on_progress(bytes read, bytes in all)` is called now and then (bytes of the file as it is stored). Raises
    TraceError for whatever is not such a trace; nothing is skipped.
    """
    if not SPEED_MIN <= speed <= SPEED_MAX:
        mend = f"give a speed from {SPEED_MIN} to {SPEED_MAX}"
        raise TraceError(f"speed {speed} cannot be", file=str(path), line=0, mend=mend)
    microspeed = round(speed * 1_000_000)
    arrivals: list[Arrival] = []
    start_ms = last_ms = -1
    for number, row in _rows(path, on_progress):
        if start_ms < 0:
            start_ms = row.timestamp
        if row.timestamp < last_ms:
            what = f"timestamp {row.timestamp} comes after {last_ms}"
            raise TraceError(what, file=str(path), line=number, mend="sort the trace by timestamp")
        last_ms = row.timestamp
        arrivals.append(
            Arrival(
                at_ns=(row.timestamp - start_ms) * NS_PER_MS * 1_000_000 // microspeed,
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


def _rows(path: Path, on_progress: Callable[[int, int], None] | None) -> Iterator[tuple[int, Row]]:
    number = 0
    try:
        size = path.stat().st_size
        with path.open("rb") as stored, _unpacked(path, stored) as lines:
            while line := lines.readline(LINE_BYTES_MAX):
                number += 1
                if line.strip():
                    yield number, _row(path, number, line)
                if on_progress is not None and number % PROGRESS_EVERY == 0:
                    on_progress(stored.tell(), size)
            if on_progress is not None:
                on_progress(size, size)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        mend = "fetch the file again: it is cut short or no gzip file"
        raise TraceError(str(error), file=str(path), line=number + 1, mend=mend) from error
    except OSError as error:
        what = error.strerror or str(error)
        raise TraceError(what, file=str(path), line=0, mend="give the path of a trace (.jsonl or .jsonl.gz)") from error


def _unpacked(path: Path, stored: BinaryIO) -> BinaryIO:
    if path.suffix != ".gz":
        return stored
    return cast(BinaryIO, gzip.GzipFile(fileobj=stored))


def _row(path: Path, number: int, line: bytes) -> Row:
    if len(line) >= LINE_BYTES_MAX:
        mend = f"a row has at most {LINE_BYTES_MAX} bytes; is this a Mooncake trace?"
        raise TraceError("the line is too long", file=str(path), line=number, mend=mend)
    try:
        row = _decode(line)
    except msgspec.ValidationError as error:
        raise TraceError(str(error), file=str(path), line=number, mend=f"a row has {_FIELDS}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        mend = f"each line is one JSON object with {_FIELDS}"
        raise TraceError(f"not JSON ({error})", file=str(path), line=number, mend=mend) from error
    blocks = -(-row.input_length // BLOCK_TOKENS)
    if len(row.hash_ids) > blocks:
        what = f"{len(row.hash_ids)} hash_ids for {row.input_length} tokens"
        mend = f"a prompt has one id per {BLOCK_TOKENS} tokens, {blocks} here"
        raise TraceError(what, file=str(path), line=number, mend=mend)
    return row
