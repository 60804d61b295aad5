"""What all readers of traces share: how they fail, how files are opened, and how fast a trace can be played."""

import gzip
import zlib
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, ClassVar, TypeVar, cast

import msgspec

from events.base import NS_PER_MS
from replay.workloads.base import Arrival
from replay.workloads.sessions import Session

LINE_BYTES_MAX = 1 << 20
PROGRESS_EVERY = 256
_GZIP_HEAD = b"\x1f\x8b"
SPEED_MIN, SPEED_MAX = 0.001, 10_000
ANSWER_NS_PER_TOKEN = 22 * NS_PER_MS
"""What an answer took, per token, where a trace does not say: the mean over all recorded coding-agent requests whose
time is known (`replay.traces.weka`)."""

TOKENS_MAX = 10_000_000
"""No prompt and no answer is longer."""

Row = TypeVar("Row")
OnProgress = Callable[[int, int], None]
"""Called now and then with the bytes read and the bytes in all, of the file as it is stored."""


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """What a file held: requests at times of their own (`arrivals`), or sessions whose begins are yet to be drawn.

    `left_out` counts requests that no engine of the stated context would have taken.
    """

    form: str
    arrivals: list[Arrival] = msgspec.field(default_factory=list)
    sessions: list[Session] = msgspec.field(default_factory=list)
    left_out: int = 0

    @property
    def estimated(self) -> bool:
        """Whether lengths were guessed from text, not counted by a tokenizer."""
        return any(arrival.estimated for arrival in self.arrivals)


class TraceError(Exception):
    """A trace cannot be read: file, line (0 = the file as a whole), what is wrong, and the mend."""

    exit_code: ClassVar[int] = 2

    def __init__(self, what: str, *, file: str, line: int, mend: str) -> None:
        super().__init__(what)
        self.what, self.file, self.line, self.mend = what, file, line, mend

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.what}: {self.mend}"


def microspeed(speed: float, path: Path) -> int:
    """The speed in millionths. Raises TraceError for one that cannot be."""
    if not SPEED_MIN <= speed <= SPEED_MAX:
        mend = f"give a speed from {SPEED_MIN} to {SPEED_MAX}"
        raise TraceError(f"speed {speed} cannot be", file=str(path), line=0, mend=mend)
    return round(speed * 1_000_000)


def lines_of(
    path: Path, *, of: str, suffix: str, on_progress: OnProgress | None, line_bytes_max: int = LINE_BYTES_MAX
) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers from 1; unpacked where the file is gzipped, and without the mark
    that some programs begin a text with.

    `of` is whose trace it is meant to be, `suffix` how such a file is named. Raises TraceError."""
    number = 0
    try:
        size = path.stat().st_size
        with path.open("rb") as stored, _unpacked(path, stored) as lines:
            while line := lines.readline(line_bytes_max):
                number += 1
                if number == 1:
                    line = line.removeprefix(BOM_UTF8)
                if len(line) >= line_bytes_max:
                    mend = f"a row has at most {line_bytes_max} bytes; is this {of} trace?"
                    raise TraceError("the line is too long", file=str(path), line=number, mend=mend)
                if line.strip():
                    yield number, line
                if on_progress is not None and number % PROGRESS_EVERY == 0:
                    on_progress(stored.tell() if stored.seekable() else 0, size)  # A pipe does not say where it is.
            if on_progress is not None:
                on_progress(size, size)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        mend = "fetch the file again: it is cut short or no gzip file"
        raise TraceError(str(error), file=str(path), line=number + 1, mend=mend) from error
    except OSError as error:
        what = error.strerror or str(error)
        mend = f"give the path of a trace ({suffix} or {suffix}.gz)"
        raise TraceError(what, file=str(path), line=0, mend=mend) from error


def decoded(decode: Callable[[bytes], Row], line: bytes, *, path: Path, number: int, fields: str) -> Row:
    """A line as what it has to be; `fields` says what that is. Raises TraceError."""
    try:
        return decode(line)
    except msgspec.ValidationError as error:
        raise TraceError(str(error), file=str(path), line=number, mend=f"a row has {fields}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        mend = f"each line is one JSON object with {fields}"
        raise TraceError(f"not JSON ({error})", file=str(path), line=number, mend=mend) from error


def _unpacked(path: Path, stored: BufferedReader) -> BinaryIO:
    """Packed is what is called so, and what begins so under another name."""
    packed = path.suffix == ".gz" or stored.peek(len(_GZIP_HEAD)).startswith(_GZIP_HEAD)
    return cast(BinaryIO, gzip.GzipFile(fileobj=stored) if packed else stored)
