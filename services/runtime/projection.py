"""Keeps the views in Redis up to date with the log. Redis away: tried again, reading goes on. Redis emptied: noticed
at the next write, and everything is written anew."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import ClassVar, Final, Protocol, assert_never

from events import codec
from events.base import LogDamaged, LogError, Recorded
from events.log.base import Log
from services.runtime.view_rows import View
from services.runtime.view_store import StoreError, Written
from services.runtime.views import Views

WRITE_EVERY_S: Final = 0.05
RETRY_S: Final = 0.5

logger = logging.getLogger(__name__)


class Store(Protocol):
    """Where views are written: see ViewStore."""

    async def write(self, views: Views, changed: list[tuple[View, str]] | None) -> Written:
        """Raises StoreError."""
        ...


class Replaced(LogError):
    """Another projector writes this pool's views now."""

    exit_code: ClassVar[int] = 3


class Projection:
    """Folds the whole log (nothing is kept between starts) and writes what changed, at most every WRITE_EVERY_S.

    Nothing is written before `from_seq` is reached, so that the views never go back in time. Each of `beside` is given
    every record, too.
    """

    def __init__(
        self, log: Log, store: Store, *, views: Views, from_seq: int, beside: Sequence[Callable[[Recorded], None]] = ()
    ) -> None:
        self._log, self._store, self._views, self._from_seq = log, store, views, from_seq
        self._takers = (views.take, *beside)
        self._moved = asyncio.Event()
        self._all = True
        self._failing = False

    async def read(self) -> None:
        """Follow the log. Never ends. Raises LogDamaged."""
        while True:
            try:
                async for batch in self._log.read(after=self._views.seq, follow=True):
                    for message in batch:
                        for recorded in codec.decode(message.seq, message.subject, message.body):
                            for take in self._takers:
                                take(recorded)
                    self._moved.set()
            except LogDamaged:
                raise
            except LogError as error:
                logger.warning("the projector cannot read the log: %s", error)
                await asyncio.sleep(RETRY_S)

    async def write(self) -> None:
        """Write what changed. Never ends. Raises Replaced."""
        while True:
            await self._moved.wait()
            self._moved.clear()
            if self._views.seq < self._from_seq:
                continue
            if not await self._write_once():
                self._moved.set()
            await asyncio.sleep(RETRY_S if self._failing else WRITE_EVERY_S)

    async def _write_once(self) -> bool:
        """Whether the server now holds all that is known here."""
        changed, self._views.changed = self._views.changed, {}
        try:
            written = await self._store.write(self._views, None if self._all else list(changed))
        except StoreError as error:
            if not self._failing:
                logger.warning("the views stand still: %s", error)
            self._failing = True
            self._views.changed = changed | self._views.changed
            return False
        if self._failing:
            logger.warning("the views go on")
        self._failing = False
        match written:
            case Written.WRITTEN | Written.BEFORE:
                self._all = False
                return True
            case Written.LOST:
                logger.warning("Redis does not hold the views any more: they are written anew")
                self._all = True
                return False
            case Written.REPLACED:
                raise Replaced("another projector writes the views", where=f"pool {self._log.pool}")
            case _:
                assert_never(written)
