"""What a log promises, whichever kind it is."""

from collections.abc import AsyncIterator
from typing import NamedTuple, Protocol

from events.base import LogError, PoolId


class Message(NamedTuple):
    """One message of a pool's stream as it is stored. `headers` holds the `Tg-` ones only."""

    seq: int
    subject: str
    body: bytes
    headers: dict[str, str]


class Fence(NamedTuple):
    """Append only if `last_seq` is still the newest message under `pattern` (0 = there is none)."""

    pattern: str
    last_seq: int


class FenceBroken(LogError):
    """The fence did not hold: somebody else wrote under the pattern. Nothing was appended."""


class Log(Protocol):
    """One pool's messages in one order, numbered 1, 2, 3 without gaps; never edited, never dropped.

    Every call may raise LogError (unreachable, full, refused). An append that raised anything but FenceBroken
    has an unknown outcome: say it again with the same `msg_id`, and it stands once.
    """

    pool: PoolId

    async def append(
        self,
        subject: str,
        body: bytes,
        *,
        msg_id: str = "",
        fence: Fence | None = None,
        headers: dict[str, str] | None = None,
    ) -> int:
        """Write one message; its seq once it is stored. A `msg_id` said before gives the first one's seq."""
        ...  # fmt: skip

    def read(self, *, after: int = 0, pattern: str = ">", follow: bool = False) -> AsyncIterator[list[Message]]:
        """Batches of one or more messages after seq `after`, in order, each once. With `follow` it never
        ends: it waits at the end; else it ends with the message that is the last one when it gets there.
        Raises LogDamaged when a seq is missing (only where `pattern` takes all) or the log ends before `after`."""
        ...

    async def last(self, pattern: str = ">") -> Message | None:
        """The newest message under a pattern."""
        ...

    async def get(self, seq: int) -> Message | None:
        """The message at `seq`."""
        ...

    async def close(self) -> None:
        """Give back what is held; what was acknowledged stays."""
        ...
