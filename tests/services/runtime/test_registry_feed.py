"""The feed of the registry: what it folds, and that a registry holds just that, whatever happens to it."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from redis.asyncio import Redis

from events.base import NS_PER_S, EngineId, Event, PoolId, Recorded, SliceId
from events.control import Ticked
from events.engine import EngineHealthChanged, EngineRemoved, Health
from events.log.memory import MemoryLog
from events.slice import (
    SlicesCleared,
    SlicesHit,
    SlicesPinned,
    SlicesRemoved,
    SlicesStored,
    Tier,
    TierMeasured,
)
from kvstore.fingerprint import fingerprints
from kvstore.registry.base import Registry, RegistryError, Table, Write, Written, field_of
from kvstore.registry.memory import MemoryRegistry
from kvstore.registry.reader import RegistryReader
from kvstore.registry.redis import RedisRegistry, key
from services.runtime import registry_book, registry_feed
from services.runtime.projection import Projection, Replaced
from services.runtime.registry_book import RegistryBook
from services.runtime.registry_feed import RegistryFeed, all_of
from services.runtime.side_by_side import run_until
from services.runtime.tier_metrics import TiersCollector
from services.runtime.views import Views
from tests.services.runtime import toy
from tests.services.runtime.test_projection import DownStore

E1, E2 = EngineId("e1"), EngineId("e2")
IDS = fingerprints(range(60), key=b"feed", slice_tokens=1)
A, B, C = IDS[:3]


def stored(*slices: SliceId, engine: EngineId = E1, tier: Tier = Tier.HBM, slice_bytes: int = 100) -> SlicesStored:
    return SlicesStored(engine_id=engine, tier=tier, slices=slices, slice_bytes=slice_bytes)


def removed(*slices: SliceId, engine: EngineId = E1, tier: Tier = Tier.HBM) -> SlicesRemoved:
    return SlicesRemoved(engine_id=engine, tier=tier, slices=slices)


def cleared(engine: EngineId = E1, tier: Tier = Tier.HBM) -> SlicesCleared:
    return SlicesCleared(engine_id=engine, tier=tier)


def hit(*slices: SliceId, tier: Tier = Tier.HBM) -> SlicesHit:
    return SlicesHit(engine_id=E1, tier=tier, slices=slices)


def after(*events: Event) -> RegistryBook:
    """A book after these events, one a second."""
    book = RegistryBook()
    for seq, event in enumerate(events, start=1):
        book.take(Recorded(seq=seq, item=0, event=event, ts_ns=seq * NS_PER_S))
    return book


async def registry_of(book: RegistryBook) -> MemoryRegistry:
    registry = MemoryRegistry()
    assert await registry.write(all_of(book)) is Written.WRITTEN
    return registry


async def holders(book: RegistryBook, slice_id: SliceId) -> list[tuple[str, str, int]]:
    [info] = await (await registry_of(book)).slices([slice_id])
    return [(one.engine_id, one.tier.value, one.slice_bytes) for one in info.holders]


FOLDS = [
    ("stored", [stored(A)], [("e1", "hbm", 100)]),
    ("said twice it counts once", [stored(A), stored(A)], [("e1", "hbm", 100)]),
    ("in two tiers", [stored(A), stored(A, tier=Tier.SSD, slice_bytes=40)], [("e1", "hbm", 100), ("e1", "ssd", 40)]),
    ("on two engines", [stored(A), stored(A, engine=E2)], [("e1", "hbm", 100), ("e2", "hbm", 100)]),
    ("of another size it is replaced", [stored(A), stored(A, slice_bytes=50)], [("e1", "hbm", 50)]),
    ("removed", [stored(A), removed(A)], []),
    ("removed from one tier", [stored(A), stored(A, tier=Tier.DRAM), removed(A)], [("e1", "dram", 100)]),
    ("removed where it never was", [stored(A), removed(A, tier=Tier.SSD)], [("e1", "hbm", 100)]),
    ("cleared", [stored(A, B), cleared()], []),
    ("cleared on another engine", [stored(A), cleared(E2)], [("e1", "hbm", 100)]),
    ("stored again after a clear", [stored(A), cleared(), stored(B, A)], [("e1", "hbm", 100)]),
    ("the engine leaves", [stored(A), stored(A, engine=E2), EngineRemoved(engine_id=E1)], [("e2", "hbm", 100)]),
    ("a hit holds nothing", [hit(A)], []),
]


@pytest.mark.parametrize(("events", "expected"), [case[1:] for case in FOLDS], ids=[case[0] for case in FOLDS])
async def test_a_slice_is_where_the_log_says(events: list[Event], expected: list[tuple[str, str, int]]) -> None:
    assert await holders(after(*events), A) == expected


async def test_hits_are_counted_and_keep_a_slice_hot() -> None:
    book = after(stored(A, B, C), hit(A, A), hit(B), hit(A, tier=Tier.DRAM))
    registry = await registry_of(book)
    a, b, c = await registry.slices([A, B, C])
    assert [(one.hits, one.last_use_ns // NS_PER_S) for one in (a, b, c)] == [(3, 4), (1, 3), (0, 1)]
    assert [one.slice_id for one in await registry.hot(9)] == [A, B]
    assert book.rows[E1, Tier.HBM].hits_told == 3
    assert book.rows[E1, Tier.DRAM].hits_told == 1


async def test_only_the_hottest_slices_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_book, "HOT_MAX", 4)
    book = after(*(hit(one) for one in IDS[:9]))
    assert [one.slice_id for one in await (await registry_of(book)).hot(99)] == list(IDS[8:4:-1])


async def test_a_pin_ends_when_its_time_is_over_or_it_is_let_go() -> None:
    pin = SlicesPinned(slices=(A, B), for_ns=3 * NS_PER_S)
    book = after(pin, SlicesPinned(slices=(B,), for_ns=0))
    assert [(one.slice_id, one.pinned_until_ns) for one in await (await registry_of(book)).pinned()] == [
        (A, 4 * NS_PER_S)
    ]
    assert after(pin, Ticked(n=1), Ticked(n=2)).pins_known == 2
    assert after(pin, Ticked(n=1), Ticked(n=2), Ticked(n=3)).pins_known == 0


def test_pins_beyond_the_limit_of_eviction_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_book, "PINS_MAX", 2)
    assert after(SlicesPinned(slices=IDS[:5], for_ns=1)).pins_known == 2


def test_a_tier_counts_what_is_there_and_tells_what_was_measured() -> None:
    measured = TierMeasured(
        engine_id=E1, tier=Tier.HBM, bytes_max=1_000, bytes_used=300, slice_bytes=100, hits_total=7, corrupt_total=1
    )
    row = after(stored(A, B, C), measured, removed(B), stored(A)).rows[E1, Tier.HBM]
    assert (row.slices, row.slices_bytes, row.stored_told, row.removed_told) == (2, 200, 4, 1)
    assert (row.measured_ns, row.bytes_max, row.hits_total, row.corrupt_total) == (2 * NS_PER_S, 1_000, 7, 1)


def test_what_was_measured_before_a_clear_is_not_known_any_more() -> None:
    measured = TierMeasured(engine_id=E1, tier=Tier.HBM, bytes_max=1_000, bytes_used=300, slice_bytes=100)
    assert after(measured, cleared()).rows[E1, Tier.HBM].measured_ns == 0
    assert after(cleared(), measured).rows[E1, Tier.HBM].measured_ns > 0


def test_a_tier_says_whether_its_engine_answers() -> None:
    lost = EngineHealthChanged(engine_id=E1, health=Health.LOST)
    book = after(stored(A), lost, stored(A, tier=Tier.SSD), stored(A, engine=E2))
    assert [(row.engine_id, row.health) for row in book.rows.values()] == [(E1, "lost"), (E1, "lost"), (E2, "")]
    back = after(stored(A), lost, EngineHealthChanged(engine_id=E1, health=Health.READY))
    assert (back.rows[E1, Tier.HBM].health, back.rows[E1, Tier.HBM].slices) == ("ready", 1)


def test_slices_beyond_the_limit_are_counted_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_book, "SLICES_MAX", 2)
    book = after(stored(*IDS[:5]), stored(IDS[4], tier=Tier.DRAM))
    assert (book.slices_known, book.rows[E1, Tier.HBM].untold, book.rows[E1, Tier.DRAM].untold) == (2, 3, 1)


def test_tiers_beyond_the_limit_take_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_book, "TIERS_MAX", 1)
    book = after(stored(A), *(stored(B, engine=E2, slice_bytes=size) for size in range(9)))
    assert (len(book.rows), len(book.fields(Table.HOLDINGS))) == (1, 1)


async def test_whatever_an_engine_says_can_be_written_down() -> None:
    most = 2**64 - 1
    measured = TierMeasured(engine_id=E1, tier=Tier.HBM, bytes_max=most, bytes_used=-5, slice_bytes=most)
    odd = tuple(map(SliceId, ("", "x" * 900, "\N{SNOWMAN}", "a" * 16)))
    book = after(stored(*odd, slice_bytes=most), stored(A, slice_bytes=-1), measured, hit(*odd),
                 SlicesPinned(slices=(*odd, A, A), for_ns=most), SlicesPinned(slices=(A, A), for_ns=-1))  # fmt: skip
    registry = await registry_of(book)
    assert [(one.slice_id, len(one.holders)) for one in await registry.slices(odd)] == [(name, 1) for name in odd]
    assert {one.slice_id for one in await registry.pinned()} == set(odd)
    assert (await registry.tiers())[0].bytes_max == most


def test_numbers_of_holdings_do_not_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_book, "NUMBERS_MAX", 4)
    book = RegistryBook()
    for seq in range(1, 40):
        for item, event in enumerate((stored(A, slice_bytes=seq), stored(B, engine=E2, slice_bytes=seq))):
            book.take(Recorded(seq=seq, item=item, event=event))
    assert len(book.fields(Table.HOLDINGS)) == 2


def any_events(chance: random.Random, count: int) -> list[Event]:
    events: list[Event] = []
    for n in range(count):
        tier, engine = chance.choice(list(Tier)), chance.choice([E1, E2])
        slices = chance.choices(IDS, k=chance.randrange(1, 8))  # One may stand there twice.
        events.append(chance.choice([
            stored(*slices, engine=engine, tier=tier, slice_bytes=chance.choice([100, 50])),
            stored(*slices, engine=engine, tier=tier), removed(*slices, engine=engine, tier=tier),
            hit(*slices, tier=tier), cleared(engine, tier) if chance.random() < 0.2 else hit(*slices),
            SlicesPinned(slices=tuple(slices), for_ns=chance.randrange(3) * NS_PER_S), Ticked(n=n),
            TierMeasured(engine_id=engine, tier=tier, bytes_max=n, bytes_used=n, slice_bytes=1),
            EngineRemoved(engine_id=engine) if chance.random() < 0.1 else Ticked(n=n),
        ]))  # fmt: skip
    return events


@pytest.mark.parametrize("seed", range(8))
def test_whatever_happens_the_book_holds_what_a_plain_set_would(seed: int) -> None:
    book, truth = RegistryBook(), dict[tuple[EngineId, Tier], set[SliceId]]()
    for seq, event in enumerate(any_events(random.Random(seed), 300), start=1):
        book.take(Recorded(seq=seq, item=0, event=event, ts_ns=seq * NS_PER_S))
        match event:
            case SlicesStored():
                truth.setdefault((event.engine_id, event.tier), set()).update(event.slices)
            case SlicesRemoved():
                truth.setdefault((event.engine_id, event.tier), set()).difference_update(event.slices)
            case SlicesCleared():
                truth.pop((event.engine_id, event.tier), None)
            case EngineRemoved():
                truth = {name: slices for name, slices in truth.items() if name[0] != event.engine_id}
            case _:
                pass
    told = {name: {one for one in IDS if _in(book, one, *name)} for name in truth}
    assert told == truth
    assert {name: row.slices for name, row in book.rows.items() if row.slices} == {
        name: len(slices) for name, slices in truth.items() if slices
    }
    assert len(book.fields(Table.SLICES)) == len(set().union(*truth.values()))


def _in(book: RegistryBook, slice_id: SliceId, engine_id: EngineId, tier: Tier) -> bool:
    from kvstore.registry.base import pack_number, unpack_holding, unpack_use

    record = book.value(Table.SLICES, field_of(slice_id))
    numbers = unpack_use(record).holdings if record is not None else ()
    packed = (book.value(Table.HOLDINGS, pack_number(number)) for number in numbers)
    held = [(one.engine_id, one.tier) for each in packed if each is not None for one in [unpack_holding(each)]]
    assert len(held) == len(numbers) == len(set(held)), "every number means something, and no two the same"
    return (engine_id, tier) in held


def test_changed_names_every_field_that_is_another() -> None:
    book = RegistryBook()
    for seq, event in enumerate(any_events(random.Random(3), 200), start=1):
        before = {(table, field): value for table, field, value in book.items()}
        book.changed.clear()
        book.take(Recorded(seq=seq, item=0, event=event, ts_ns=seq * NS_PER_S))
        now = {(table, field): value for table, field, value in book.items()}
        assert {name for name in before | now if before.get(name) != now.get(name)} <= set(book.changed)


def test_metrics_tell_the_tiers() -> None:
    book = after(stored(A, B), TierMeasured(engine_id=E1, tier=Tier.HBM, bytes_max=9, bytes_used=4, slice_bytes=2),
                 stored(A, tier=Tier.SSD))  # fmt: skip
    registry = CollectorRegistry()
    registry.register(TiersCollector(book))
    text = generate_latest(registry).decode()
    assert 'tidegate_tier_slices{engine="e1",tier="hbm"} 2.0' in text
    assert 'tidegate_tier_size_bytes{engine="e1",tier="hbm"} 9.0' in text
    assert 'tidegate_tier_size_bytes{engine="e1",tier="ssd"}' not in text, "it was never measured"
    assert "tidegate_registry_slices 2.0" in text


# The feed.


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WRITE_EVERY_S", 0.001), ("LOOK_EVERY_S", 0.01), ("RETRY_S", 0.001), ("ITEMS_MAX", 7)):
        monkeypatch.setattr(registry_feed, name, value)


class Shaky(MemoryRegistry):
    """Fails every so often, sometimes after it has taken the write."""

    def __init__(self, chance: random.Random, failing: float) -> None:
        super().__init__()
        self.chance, self.failing = chance, failing
        self.writes = self.refused = self.items = 0

    async def write(self, write: Write) -> Written:
        assert len(write.items) <= registry_feed.ITEMS_MAX
        self.writes += 1
        await asyncio.sleep(0)
        if self.chance.random() < self.failing:
            self.refused += 1
            raise RegistryError("no connection", where="test")
        written = await super().write(write)
        self.items += len(write.items)
        if self.chance.random() < self.failing:
            raise RegistryError("no answer", where="test")
        return written


@contextlib.asynccontextmanager
async def feeding(
    log: MemoryLog, registry: Registry, *, epoch: int = 1, from_seq: int = 0
) -> AsyncIterator[asyncio.Task[None]]:
    """The projector's wiring: one reading of the log for the views and the registry."""
    feed = RegistryFeed(registry, book=RegistryBook(), pool=log.pool, epoch=epoch, owner=f"w{epoch}", from_seq=from_seq)
    one = Projection(log, DownStore(0), views=Views(), from_seq=0, beside=(feed.take,))
    stop = asyncio.Event()
    task = asyncio.create_task(run_until(stop, one.read(), one.write(), feed.write()))
    yield task
    stop.set()
    await asyncio.wait((task,))


async def told(registry: Registry) -> object:
    """All that a registry says."""
    try:
        return [
            await registry.slices(IDS), await registry.tiers(), await registry.pinned(), await registry.hot(99),
            await registry.longest_prefixes([IDS[at : at + 6] for at in range(50)]),
        ]  # fmt: skip
    except RegistryError:
        return None


async def until_it_holds(registry: Registry, log: MemoryLog) -> None:
    """Wait until it holds what a plain fold of the log does, and says that it is whole."""
    book = RegistryBook()
    for record in toy.records(log):
        book.take(record)
    expected = await told(await registry_of(book))
    async with asyncio.timeout(10):
        while not (await told(registry) == expected and await is_whole(registry, book.seq)):  # noqa: ASYNC110
            await asyncio.sleep(0.002)


async def is_whole(registry: Registry, seq: int) -> bool:
    position = await registry.position()
    return position is not None and position.complete and position.seq == seq


async def say_some(log: MemoryLog, seed: int, count: int = 40) -> None:
    for n, event in enumerate(any_events(random.Random(seed), count)):
        await toy.say(log, event, ts_ns=(len(toy.stored(log)) + n) * NS_PER_S, source="agent")


@pytest.mark.parametrize("failing", [0.0, 0.3])
async def test_the_registry_comes_to_hold_what_the_log_says(failing: float) -> None:
    log, registry = MemoryLog(toy.POOL), Shaky(random.Random(1), failing)
    await say_some(log, 1)
    async with feeding(log, registry):
        await until_it_holds(registry, log)
        await say_some(log, 2)
        await until_it_holds(registry, log)


@pytest.mark.parametrize("failing", [0.0, 0.3])
async def test_a_registry_that_forgot_everything_is_filled_again_though_nothing_is_said(failing: float) -> None:
    log, registry = MemoryLog(toy.POOL), Shaky(random.Random(2), failing)
    await say_some(log, 1)
    async with feeding(log, registry):
        await until_it_holds(registry, log)
        registry.forget()
        await until_it_holds(registry, log)


async def test_a_server_that_was_away_is_told_what_it_missed_and_no_more() -> None:
    log, registry = MemoryLog(toy.POOL), Shaky(random.Random(1), 0.0)
    await toy.say(log, stored(*IDS))
    async with feeding(log, registry):
        await until_it_holds(registry, log)
        registry.failing, written = 1.0, registry.items
        await toy.say(log, stored(A, engine=E2))
        async with asyncio.timeout(10):
            while registry.refused < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        registry.failing = 0.0
        await until_it_holds(registry, log)
        assert registry.items - written < len(IDS), "what it has it is not told again"


async def test_a_registry_that_was_set_back_is_noticed() -> None:
    """As when a replica takes over that had not yet got the newest writes."""
    log, registry = MemoryLog(toy.POOL), Shaky(random.Random(2), 0.0)
    await say_some(log, 1)
    async with feeding(log, registry):
        await until_it_holds(registry, log)
        kept = registry._position, {table: dict(rows) for table, rows in registry._tables.items()}
        await say_some(log, 2)
        await until_it_holds(registry, log)
        registry._position, registry._tables = kept
        await until_it_holds(registry, log)


async def test_nothing_is_written_before_the_place_where_the_log_ended_at_the_start() -> None:
    log, registry = MemoryLog(toy.POOL), Shaky(random.Random(1), 0.0)
    await toy.say(log, stored(A))
    async with feeding(log, registry, from_seq=2):
        for _ in range(50):
            await asyncio.sleep(0.001)
        assert registry.writes == 0
        await toy.say(log, stored(B))
        await until_it_holds(registry, log)


async def test_a_feed_that_was_replaced_ends() -> None:
    log, registry = MemoryLog(toy.POOL), MemoryRegistry()
    await toy.say(log, stored(A))
    async with feeding(log, registry, epoch=1) as first:
        await until_it_holds(registry, log)
        async with feeding(log, registry, epoch=2):
            await toy.say(log, stored(B))
            await until_it_holds(registry, log)
            with pytest.raises(Replaced):
                await asyncio.wait_for(asyncio.shield(first), 10)


@pytest.mark.integration
async def test_a_flushed_server_is_filled_again_and_reads_miss_meanwhile(redis_url: str, pool: PoolId) -> None:
    log, registry = MemoryLog(pool), RedisRegistry.open(redis_url, pool, where="test")
    reader = RegistryReader(registry, timeout_s=1.0)
    await say_some(log, 1)
    async with feeding(log, registry), Redis.from_url(redis_url) as redis:
        await until_it_holds(registry, log)
        await say_some(log, 2)
        await until_it_holds(registry, log)
        await redis.flushall()
        await redis.function_flush()
        await reader.longest_prefix(IDS[:4])
        assert reader.failures == 0, "an emptied registry is a miss, not a failure"
        await until_it_holds(registry, log)
        assert await redis.exists(key(pool, Table.SLICES))
    await registry.close()


@pytest.mark.integration
async def test_redis_restarted_empty_is_filled_again(tmp_path: object, pool: PoolId) -> None:
    from pathlib import Path

    from services.runtime.embedded import start_valkey

    log = MemoryLog(pool)
    await say_some(log, 1)
    with start_valkey(Path(str(tmp_path))) as server:
        registry = RedisRegistry.open(server.url, pool, where="test", timeout_s=0.5)
        reader = RegistryReader(registry, pause_s=0.0)
        async with feeding(log, registry):
            await until_it_holds(registry, log)
            server.kill()
            assert await reader.longest_prefix(IDS[:4]) == []
            assert reader.failures == 1
            await say_some(log, 2)
            server.restart()
            await until_it_holds(registry, log)
        await registry.close()
