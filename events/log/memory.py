"""The log in memory: what virtual time and most tests run on. Same promises, nothing survives the process."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Self

from events.base import LogDamaged, LogError, PoolId
from events.log.base import Fence, FenceBroken, Message
from events.subjects import matches


class MemoryLog:
    """See `events.log.base.Log`. `messages_max` bounds it (LogError when full)."""

    def __init__(self, pool: PoolId, *, messages_max: int = 10_000_000) -> None:
        self.pool = pool
        self._messages: list[Message] = []
        self._seq_of: dict[str, int] = {}
        self._messages_max = messages_max
        self._grown = asyncio.Event()

    @classmethod
    def of(cls, pool: PoolId, messages: Iterable[Message]) -> Self:
        """A log that holds these messages already, numbered from 1."""
        log = cls(pool)
        log._messages.extend(messages)
        return log

    async def append(
        self, subject: str, body: bytes, *, msg_id: str = "", fence: Fence | None = None,
        headers: dict[str, str] | None = None,
    ) -> int:  # fmt: skip
        if msg_id and msg_id in self._seq_of:
            return self._seq_of[msg_id]
        if fence is not None and self._last_seq(fence.pattern) != fence.last_seq:
            raise FenceBroken(f"{fence.pattern} is not at {fence.last_seq}", where="memory")
        if len(self._messages) >= self._messages_max:
            raise LogError("the log is full", where="memory", mend=f"raise messages_max ({self._messages_max})")
        seq = len(self._messages) + 1
        self._messages.append(Message(seq, subject, body, dict(headers or {})))
        if msg_id:
            self._seq_of[msg_id] = seq
        self._grown.set()
        self._grown = asyncio.Event()
        return seq

    async def read(self, *, after: int = 0, pattern: str = ">", follow: bool = False) -> AsyncIterator[list[Message]]:
        at = after
        if at > len(self._messages):
            what = f"the log ends at {len(self._messages)}, but {at} was already read"
            raise LogDamaged(what, where="memory")
        while True:
            batch = self._messages[at:]
            grown = self._grown
            at = max(at, len(self._messages))
            if pattern != ">":
                batch = [message for message in batch if matches(pattern, message.subject)]
            if batch:
                yield batch
            elif follow:
                await grown.wait()
            elif at >= len(self._messages):
                return

    async def last(self, pattern: str = ">") -> Message | None:
        return next((m for m in reversed(self._messages) if matches(pattern, m.subject)), None)

    async def get(self, seq: int) -> Message | None:
        return self._messages[seq - 1] if 0 < seq <= len(self._messages) else None

    async def close(self) -> None:
        """Nothing is held."""

    def _last_seq(self, pattern: str) -> int:
        return next((m.seq for m in reversed(self._messages) if matches(pattern, m.subject)), 0)
