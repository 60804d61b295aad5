"""The registry of slices in Redis (>= 7) or Valkey, single node or cluster: hashes, and a library of functions in the
server, so that a write is one guarded step and the longest prefix of a prompt is one round trip.

All keys of a pool share a hash tag, so they lie in one slot of a cluster, and every function names all its keys. The
library's functions carry the digest of its code: two versions of this program on one server do not meet. A server that
does not know them (new, restarted, another node) is given them at the first call that says so.
"""

from collections.abc import Awaitable, Callable, Sequence
from hashlib import blake2b
from typing import Any, Final, Self, cast

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import MovedError, RedisError, ResponseError

from events.base import PoolId, SliceId
from kvstore.registry.base import (
    FINGERPRINT_BYTES,
    TIERS,
    Position,
    Prefix,
    RegistryError,
    SliceInfo,
    Table,
    TierRow,
    Write,
    Written,
    field_of,
    info_of,
    longest_first,
    prefix_of,
    read_tiers,
    unpack_ns,
)
from kvstore.registry.heat import heat_at, unpack_score

TIMEOUT_S: Final = 2.0
"""How long a caller waits for an answer that set no bound of its own."""
RETRIES: Final = 1
"""At once, on a new connection: the server may have been restarted since the last call."""
DETOURS_MAX: Final = 4
"""To another node and back, and a library for each."""
POSITION: Final = "position"

# write: KEYS position, then the tables. ARGV: epoch, owner, number, "anew" or "then", seq, now_ns, complete, then
# (table, field, value) for what is there and ("-" + table, field, "") for what is gone.
# prefix: KEYS holdings, slices. ARGV: a prompt's slices, the fingerprints in one string, then other names one by one
# (half the work of a look-up is to pass arguments). Answers, for each engine that holds the first slice (no other can
# have a prefix): its name, how many of the first slices are in any tier, how many in each.
# Numbers are compared as numbers: they stay below 2^53, which is exact in Lua.
_CODE: Final = """
local BATCH = 64
local WIDTH = 16

local function write(keys, args)
  local held = redis.call('HMGET', keys[1], 'epoch', 'owner', 'writes')
  local held_epoch, epoch, number = tonumber(held[1]), tonumber(args[1]), tonumber(args[3])
  if held_epoch and (held_epoch > epoch or (held_epoch == epoch and held[2] > args[2])) then return 'replaced' end
  local writes = 0
  if held_epoch == epoch and held[2] == args[2] then writes = tonumber(held[3]) end
  if writes >= number then return 'before' end
  if args[4] == 'anew' then
    for index = 2, #keys do redis.call('UNLINK', keys[index]) end
  elseif writes == 0 or writes ~= number - 1 then return 'lost' end
  for at = 8, #args, 3 do
    local place = tonumber(args[at])
    if place < 0 then redis.call('HDEL', keys[1 - place], args[at + 1])
    else redis.call('HSET', keys[1 + place], args[at + 1], args[at + 2]) end
  end
  redis.call('HSET', keys[1], 'epoch', args[1], 'owner', args[2], 'writes', args[3], 'seq', args[5],
    'now_ns', args[6], 'complete', args[7])
  return 'written'
end

local function fields(args)
  local out = {}
  for at = 1, #args[1], WIDTH do out[#out + 1] = args[1]:sub(at, at + WIDTH - 1) end
  for at = 2, #args do out[#out + 1] = args[at] end
  return out
end

local function prefix(keys, args)
  local prompt, holders, reach, names = fields(args), {}, {}, {}
  local function counts_of(name, is_first)
    if is_first and not reach[name] then
      reach[name] = {0, 0, 0, 0}
      names[#names + 1] = name
    end
    return reach[name]
  end
  local function holders_of(numbers, is_first)
    local found = {}
    for at = 1, #numbers, 2 do
      local holding = redis.call('HGET', keys[1], numbers:sub(at, at + 1))
      local counts = holding and counts_of(holding:sub(10), is_first)
      if counts then found[#found + 1] = {counts, holding:byte(1) + 1} end
    end
    holders[numbers] = found
    return found
  end
  -- Slices that follow each other mostly have the same holders: a run of them is counted at once.
  local run, length, before = nil, 0, 0
  local function take_run()
    local after, further = before + length, length == 0
    if run then
      for _, one in ipairs(holders[run] or holders_of(run, before == 0)) do
        local counts, tier = one[1], one[2]
        if counts[1] == before then counts[1] = after end
        if counts[1] == after then further = true end
        if counts[tier] == before then counts[tier] = after end
      end
    end
    before, length = after, 0
    return further
  end
  local function walk()
    for first = 1, #prompt, BATCH do
      local last = math.min(first + BATCH - 1, #prompt)
      local records = redis.call('HMGET', keys[2], unpack(prompt, first, last))
      for at = 1, last - first + 1 do
        local numbers = records[at] and records[at]:sub(13)
        if numbers ~= run then
          if not take_run() or not numbers then return end
          run = numbers
        end
        length = length + 1
      end
    end
    take_run()
  end
  walk()
  local answer = {}
  for _, name in ipairs(names) do
    answer[#answer + 1] = name
    for place = 1, 4 do answer[#answer + 1] = reach[name][place] end
  end
  return answer
end

redis.register_function('tidegate_write_@', write)
redis.register_function{function_name='tidegate_prefix_@', callback=prefix, flags={'no-writes'}}
"""
_DIGEST: Final = blake2b(_CODE.encode(), digest_size=6).hexdigest()
LIBRARY: Final = f"#!lua name=tidegate_registry_{_DIGEST}\n{_CODE.replace('@', _DIGEST)}"
WRITE: Final = f"tidegate_write_{_DIGEST}"
PREFIX: Final = f"tidegate_prefix_{_DIGEST}"
_REACH: Final = 2 + len(TIERS)
"""Values per engine in the answer of `prefix`."""
assert len(TIERS) == 3, "the library counts as many"

Call = tuple[Any, ...]


class RedisRegistry:
    """See `Registry`. `where` is the server's address, without a password."""

    def __init__(self, redis: Redis, pool: PoolId, *, where: str) -> None:
        self._redis = self._node = redis
        self._where = where
        self._position = key(pool, POSITION)
        self._keys = {table: key(pool, table) for table in Table}
        self._places = {table: place for place, table in enumerate(Table, start=1)}

    @classmethod
    def open(cls, url: str, pool: PoolId, *, where: str, timeout_s: float = TIMEOUT_S) -> Self:
        """On connections of its own, to be closed with `close`. Nothing is asked yet."""
        retry = Retry(NoBackoff(), RETRIES)
        redis = Redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=retry)
        return cls(redis, pool, where=where)

    async def close(self) -> None:
        """Close the connections."""
        await self._leave()
        await self._redis.aclose()

    async def write(self, write: Write) -> Written:
        """Apply all of a write, or nothing of it."""
        keys = [self._position, *self._keys.values()]
        arguments: list[str | int | bytes] = [
            write.epoch, write.owner, write.number, "anew" if write.anew else "then", write.seq, write.now_ns,
            int(write.complete),
        ]  # fmt: skip
        for table, field, value in write.items:
            place = self._places[table]
            arguments += [-place, field, b""] if value is None else [place, field, value]
        [answer] = await self._ask([("FCALL", WRITE, len(keys), *keys, *arguments)])
        return Written(answer.decode())

    async def position(self) -> Position | None:
        """How far it is."""
        [fields] = await self._ask([("HGETALL", self._position)])
        if not fields:
            return None
        number = {name.decode(): int(value) for name, value in fields.items() if name != b"owner"}
        return Position(
            epoch=number["epoch"], owner=fields[b"owner"].decode(), writes=number["writes"], seq=number["seq"],
            now_ns=number["now_ns"], complete=bool(number["complete"]),
        )  # fmt: skip

    async def longest_prefixes(self, prompts: Sequence[Sequence[SliceId]]) -> list[list[Prefix]]:
        """For each prompt the engines that have its beginning, the longest first; together one round trip."""
        head = ("FCALL_RO", PREFIX, 2, self._keys[Table.HOLDINGS], self._keys[Table.SLICES])
        answers = await self._ask([(*head, *_packed(slices)) for slices in prompts])
        return [
            longest_first(
                prefix_of(answer[at].decode(), answer[at + 1 : at + _REACH]) for at in range(0, len(answer), _REACH)
            )
            for answer in answers
        ]

    async def slices(self, ids: Sequence[SliceId]) -> list[SliceInfo]:
        """One for each id, in that order."""
        return await self._infos([field_of(slice_id) for slice_id in ids]) if ids else []

    async def hot(self, count: int) -> list[SliceInfo]:
        """The hottest slices, the hottest first. Two round trips: the names, then what is known of them."""
        [scores] = await self._ask([("HGETALL", self._keys[Table.HOT])])
        ordered = sorted((-unpack_score(score), field) for field, score in scores.items())
        return await self._infos([field for _, field in ordered[:count]])

    async def pinned(self) -> list[SliceInfo]:
        """The slices that are pinned, those that stay longest first. Two round trips, as `hot`."""
        [pins] = await self._ask([("HGETALL", self._keys[Table.PINS])])
        ordered = sorted((-unpack_ns(until), field) for field, until in pins.items())
        return await self._infos([field for _, field in ordered])

    async def tiers(self) -> list[TierRow]:
        """The tiers of all engines, by engine, the fastest first."""
        [rows] = await self._ask([("HVALS", self._keys[Table.TIERS])])
        return read_tiers(rows)

    async def _infos(self, fields: Sequence[bytes]) -> list[SliceInfo]:
        if not fields:
            return []
        several = [("HMGET", self._keys[table], *fields) for table in (Table.SLICES, Table.PINS, Table.HOT)]
        asked = [*several, ("HGETALL", self._keys[Table.HOLDINGS]), ("HGET", self._position, "now_ns")]
        records, pins, scores, holdings, now_ns = await self._ask(asked)
        heat = [0.0 if score is None else heat_at(unpack_score(score), int(now_ns or 0)) for score in scores]
        return [
            info_of(field, holdings, record=record, pin=pin, heat=warm)
            for field, record, pin, warm in zip(fields, records, pins, heat, strict=True)
        ]

    async def _ask(self, calls: Sequence[Call]) -> list[Any]:
        """The answers, after one round trip. A server that does not know our functions gets them, and a node of a
        cluster that sends us to another is followed; then all again."""
        if not calls:
            return []
        try:
            for _ in range(DETOURS_MAX):
                try:
                    return await self._send(calls)
                except MovedError as moved:
                    await self._follow(moved)
                except ResponseError as error:
                    if "unction not found" not in str(error):
                        raise
                    load = cast(Callable[..., Awaitable[Any]], self._node.function_load)
                    await load(LIBRARY, replace=True)
            return await self._send(calls)
        except (RedisError, OSError) as error:
            await self._leave()
            raise RegistryError(f"the registry of slices does not answer: {error}", where=self._where) from error

    async def _follow(self, moved: MovedError) -> None:
        """From now on ask the node that has the pool's slot: all that we ever ask lies in that one."""
        pool = self._redis.connection_pool
        if "path" in pool.connection_kwargs:
            raise moved
        await self._leave()
        there = {**pool.connection_kwargs, "port": moved.port}
        if moved.host:  # None is named where it is the same host.
            there["host"] = moved.host
        self._node = Redis.from_pool(ConnectionPool(connection_class=pool.connection_class, **there))

    async def _leave(self) -> None:
        """Ask the server that was named again: the node that was followed may be gone."""
        followed, self._node = self._node, self._redis
        if followed is not self._redis:
            await followed.aclose()

    async def _send(self, calls: Sequence[Call]) -> list[Any]:
        pipeline: Pipeline = self._node.pipeline(transaction=False)
        for call in calls:
            pipeline.execute_command(*call)
        answers: list[Any] = await pipeline.execute()
        return answers


def _packed(slices: Sequence[SliceId]) -> list[bytes]:
    """A prompt's slices as `prefix` takes them."""
    text = "".join(slices)
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if raw.hex() == text and {*map(len, slices)} <= {2 * FINGERPRINT_BYTES}:
        return [raw]
    return [b"", *map(field_of, slices)]


def key(pool: PoolId, name: str) -> str:
    """Where a part of a pool's registry lies."""
    return f"tg:{{{pool}}}:registry:{name}"
