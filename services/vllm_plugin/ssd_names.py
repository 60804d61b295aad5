"""What the slices on the disk are called in the log, kept beside them: a restarted engine tells what it has by name.

One line a slice: its key, that of the slice before it ("-" = none), its name. Appended when it is stored; the file is
written anew at the start, without what is gone. Names only: a line that is missing or wrong costs a slice its name
until a request brings it again, and serves nothing.
"""

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from events.base import SliceId

NAMES_FILE: Final = "names"
NOBODY: Final = "-"
_LINE: Final = re.compile(r"([0-9a-f]+) ([0-9a-f]+|-) ([0-9a-z]{1,32})")


class SsdNames:
    """The names in a folder. What the folder refuses is given up in silence: the tier itself says what is wrong."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAMES_FILE

    def read(self) -> dict[bytes, tuple[bytes | None, SliceId]]:
        """Of each key: the slice before it, and its name."""
        try:
            lines = self._path.read_text("ascii", errors="replace").splitlines()
        except OSError:
            return {}
        found = [match for match in map(_LINE.fullmatch, lines) if match is not None]
        return {
            bytes.fromhex(key): (None if parent == NOBODY else bytes.fromhex(parent), SliceId(name))
            for key, parent, name in (match.groups() for match in found)
            if len(key) % 2 == 0 and len(parent) % 2 == (parent == NOBODY)
        }

    def append(self, rows: Iterable[tuple[bytes, bytes | None, SliceId]]) -> None:
        """These are stored."""
        self._write(self._path, os.O_APPEND, rows)

    def replace(self, rows: Iterable[tuple[bytes, bytes | None, SliceId]]) -> None:
        """These and no others are stored."""
        made = self._path.with_name(f"{NAMES_FILE}.new")
        if self._write(made, os.O_TRUNC, rows):
            with suppress(OSError):
                made.replace(self._path)

    def _write(self, path: Path, how: int, rows: Iterable[tuple[bytes, bytes | None, SliceId]]) -> bool:
        lines = (f"{key.hex()} {parent.hex() if parent else NOBODY} {name}" for key, parent, name in rows)
        text = "".join(f"{line}\n" for line in lines if _LINE.fullmatch(line))
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | how, 0o600)
            with os.fdopen(fd, "w", encoding="ascii") as file:
                file.write(text)
        except OSError:
            return False
        return True
