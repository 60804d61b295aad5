"""An engine's own journal of its choices, as it is written: see replay/choice_journal.py for what stands in it.

Only the agent's thread writes. A journal is written beside its name, as `<name>.partial`, handed to the operating
system after every batch (so that it outlives the process), and gets its name when it is full or the engine ends. When
the folder takes nothing any more the journal breaks off there; that is said and counted, and the engine goes on.
"""

import logging
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from events.base import EngineId, LogDamaged
from events.log.sealed import SealedWriter
from replay.choice_journal import (
    PARTIAL,
    START,
    VERSION,
    ChoiceReader,
    End,
    Header,
    Line,
    NoChoices,
    files_of,
    first_number,
    name_of,
    sealed,
)
from replay.code_version import code_version
from services.vllm_plugin.bridge import Entry

FILE_BYTES_MAX: Final = 16 * 1024 * 1024
"""A journal of so many bytes behind its snapshot is full, and one of as many as its snapshot where that is more: the
next one begins, with a snapshot that the engine has to make."""
FILES_MAX: Final = 64
"""Journals that are kept; of more, the oldest is deleted."""
GAP: Final = 1 << 32
"""Numbers passed over after a journal that cannot be read: more than it can hold, so that none is used twice."""
BEGUN: Final = ".begun"
"""What a journal is called until its first line is in it: nobody meets one without."""
FOLDER_MODE: Final = 0o700

logger = logging.getLogger("tidegate.engine")


class ChoiceJournal:
    """The journals of one engine in one folder. `written` counts entries, `lost` those that could not be written."""

    def __init__(
        self, folder: Path, engine_id: EngineId, *, bytes_max: int = FILE_BYTES_MAX, files_max: int = FILES_MAX
    ) -> None:
        self._folder, self._engine_id = folder, engine_id
        self._bytes_max, self._files_max = bytes_max, files_max
        self._file: BinaryIO | None = None
        self._sealed: SealedWriter | None = None
        self._path, self._run = folder, secrets.token_hex(6)
        self._digest = START
        self._last = 0
        self._full, self._full_bytes = False, 0
        self.written = self.lost = 0

    def last_number(self) -> int:
        """The number of the last entry that any journal in the folder holds; numbers go on from there."""
        newest: list[Path] = []
        try:
            newest = files_of(self._folder)[-1:]
            return ChoiceReader(newest[0]).pass_over() if newest else 0
        except FileNotFoundError:
            return 0
        except (NoChoices, LogDamaged) as error:
            logger.warning("the newest journal of choices cannot be read to its end: %s", error)
            return first_number(newest[0]) + GAP
        except OSError as error:
            self._failed(error)
            return 0

    @property
    def broken(self) -> bool:
        """Whether nothing can be written now: it takes a snapshot to begin anew."""
        return self._file is None

    def is_full(self) -> bool:
        """Whether the next one should begin, by a snapshot; said once of each journal."""
        full = self._file is not None and self._file.tell() >= self._full_bytes and not self._full
        self._full = self._full or full
        return full

    def write(self, entries: Sequence[Entry]) -> None:
        """Write them and hand them to the operating system."""
        try:
            for entry in entries:
                self._write(entry)
            if entries and self._sealed is not None:
                self._sealed.flush()
        except OSError as error:
            self.lost += len(entries)
            self._failed(error)

    def close(self) -> None:
        """End the journal in good order. Again does nothing."""
        if self._file is None or self._sealed is None:
            return
        try:
            self._put(End(self._last))
            self._sealed.finish()
            self._file.close()
            self._path.replace(self._path.with_name(self._path.name.removesuffix(PARTIAL)))
            self._file = self._sealed = None
        except OSError as error:
            self._failed(error)

    def _write(self, entry: Entry) -> None:
        if entry.snapshot:
            self.close()
            self._open(entry)
        elif self._file is None or entry.op is None:
            self.lost += 1
        else:
            self._put(Line(entry.number, entry.op, entry.choice))
            self._last = entry.number
            self.written += 1

    def _open(self, entry: Entry) -> None:
        self._folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        for path in files_of(self._folder)[: -self._files_max + 1 or None]:
            path.unlink()
        self._path = self._folder / (name_of(entry.number + 1) + PARTIAL)
        begun = self._folder / BEGUN
        self._file = begun.open("wb")
        self._sealed, self._digest, self._last = SealedWriter(self._file), START, entry.number
        self._full = False
        snapshot = msgspec.Raw(entry.snapshot)
        self._put(Header(VERSION, self._engine_id, self._run, code_version(), entry.number, snapshot))
        self._sealed.flush()
        begun.replace(self._path)
        first_bytes = self._file.tell()
        self._full_bytes = first_bytes + max(first_bytes, self._bytes_max)

    def _put(self, entry: Header | Line | End) -> None:
        line, self._digest = sealed(entry, self._digest)
        assert self._sealed is not None, "a journal is open"
        self._sealed.write(line)

    def _failed(self, error: OSError) -> None:
        """What was written stays, as a journal that breaks off."""
        logger.warning("the journal of choices cannot be written: %s (%s)", error.strerror or error, self._folder)
        file, self._file, self._sealed = self._file, None, None
        if file is not None:
            with suppress(OSError):
                file.close()
