"""A journal as a source that replay can read several times."""

from collections.abc import Iterator
from pathlib import Path

from events.log.base import Message
from events.log.journal import read_journal

HELD_BYTES_MAX = 256 * 1024 * 1024
"""Bodies that are kept for the second reading; of a longer journal each reading opens the file anew."""


class JournalSource:
    """Reads a journal from its start whenever it is iterated; every record that it gives was checked.

    Raises NotAJournal at once, and JournalDamaged from the iteration that gets to the first bad record.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        header, _messages = read_journal(path)
        self.pool = header.pool
        self._held: list[Message] | None = None

    def __iter__(self) -> Iterator[Message]:
        return iter(self._held) if self._held is not None else self._read()

    def _read(self) -> Iterator[Message]:
        held: list[Message] | None = []
        size = 0
        for message in read_journal(self.path)[1]:
            if held is not None:
                held.append(message)
                size += len(message.body)
                if size > HELD_BYTES_MAX:
                    held = None
            yield message
        # Only a reading that came to the end has checked the whole file.
        self._held = held
