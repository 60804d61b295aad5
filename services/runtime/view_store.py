"""The views in Redis (>= 7) or Valkey, single node or cluster: every write is one call of one script in the server.

The script holds each write against the position that stands there, (epoch, seq): what was written before is passed
over, a projector that another has replaced is told so, and a server that lost its memory asks for everything.
All keys of a pool share a hash tag, so they lie in one slot of a cluster.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from events.base import PoolId
from services.runtime.view_rows import View
from services.runtime.views import Views

POSITION: Final = "position"

# KEYS: position, then the views. ARGV: epoch, seq, now_ns, "all" or "some", then (view index, field, value) for what
# is there and ("-" + view index, field, "") for what is gone.
# Numbers are compared as numbers: a seq below 2^53 is exact in Lua.
_WRITE: Final = """
local epoch, seq = tonumber(redis.call('HGET', KEYS[1], 'epoch')), tonumber(redis.call('HGET', KEYS[1], 'seq'))
local new_epoch, new_seq = tonumber(ARGV[1]), tonumber(ARGV[2])
if epoch and (epoch > new_epoch) then return 'replaced' end
if ARGV[4] == 'some' then
  if epoch ~= new_epoch then return 'lost' end
  if seq >= new_seq then return 'before' end
else
  if epoch == new_epoch and seq > new_seq then return 'before' end
  for index = 2, #KEYS do redis.call('DEL', KEYS[index]) end
end
for at = 5, #ARGV, 3 do
  local view = tonumber(ARGV[at])
  if view < 0 then redis.call('HDEL', KEYS[1 - view], ARGV[at + 1])
  else redis.call('HSET', KEYS[1 + view], ARGV[at + 1], ARGV[at + 2]) end
end
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'seq', ARGV[2], 'now_ns', ARGV[3])
return 'written'
"""


class Written(StrEnum):
    """What the server says to a write. `lost`: it does not hold what this projector wrote before."""

    WRITTEN = "written"
    BEFORE = "before"
    LOST = "lost"
    REPLACED = "replaced"


class StoreError(Exception):
    """Redis failed. `where` is its address without the password."""

    def __init__(self, what: str, *, where: str) -> None:
        super().__init__(what)
        self.what, self.where = what, where

    def __str__(self) -> str:
        return f"{self.what} ({self.where})"


class ViewStore:
    """One pool's views, written by one projector. `epoch` grows from projector to projector."""

    def __init__(self, redis: Redis, pool: PoolId, *, epoch: int, where: str) -> None:
        self._epoch, self._where = epoch, where
        self._views = tuple(View)
        self._keys = [key(pool, POSITION), *(key(pool, view) for view in self._views)]
        self._script = redis.register_script(_WRITE)

    async def write(self, views: Views, changed: Iterable[tuple[View, str]] | None) -> Written:
        """Write `changed` fields, or with None all of them instead of what is there. Raises StoreError."""
        number = {view: index for index, view in enumerate(self._views, start=1)}
        fields = ((view, field) for view in self._views for field in views.tables[view])
        arguments: list[str | int | bytes] = [
            self._epoch, views.seq, views.now_ns, "all" if changed is None else "some",
        ]  # fmt: skip
        for view, field in fields if changed is None else changed:
            value = views.value(view, field)
            arguments += [-number[view], field, b""] if value is None else [number[view], field, value]
        try:
            answer = await self._script(keys=self._keys, args=arguments)
        except (RedisError, OSError) as error:
            raise StoreError(f"a view could not be written: {error}", where=self._where) from error
        return Written(answer.decode() if isinstance(answer, bytes) else answer)


def key(pool: PoolId, name: str) -> str:
    """Where something of a pool lies."""
    return f"tg:{{{pool}}}:{name}"
