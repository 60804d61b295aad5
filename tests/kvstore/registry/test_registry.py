"""What a registry promises, whichever kind it is: in memory here, in a real Valkey and in Debian's Redis where marked,
the latter as all of a cluster."""

import asyncio
import contextlib
import random
import secrets
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis as BlockingRedis
from redis.asyncio import Redis
from redis.backoff import ConstantBackoff
from redis.crc import key_slot
from redis.exceptions import ClusterDownError, ConnectionError
from redis.retry import Retry

from events.base import PoolId, SliceId
from events.slice import Tier
from kvstore.fingerprint import fingerprints
from kvstore.registry.base import (
    Registry,
    RegistryError,
    Table,
    TierRow,
    Use,
    Written,
    field_of,
    pack_holding,
    pack_ns,
    pack_number,
    pack_use,
    slice_of,
    tier_field,
    unpack_holding,
    unpack_use,
)
from kvstore.registry.heat import heat_at, hit, pack_score
from kvstore.registry.memory import MemoryRegistry
from kvstore.registry.redis import LIBRARY, RedisRegistry, key
from services.runtime.embedded import start_valkey
from tests.kvstore.registry.words import E1, E2, HELD, HOLDINGS, IDS, ODD, A, B, C, D, E, Writer, gone, held


@contextlib.contextmanager
def cluster_node(folder: Path) -> Iterator[str]:
    """A redis-server that is all of a cluster: it refuses what breaks the rules of keys there."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("no redis-server on this machine: apt-get install redis-server")
    path = folder / "redis.sock"
    # Its bus takes a port even so, and where none is said all take the same.
    command = [program, "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(folder), "--bind",
               "127.0.0.1", "--cluster-enabled", "yes", "--cluster-port", str(free_port())]  # fmt: skip
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        stack.callback(process.terminate)
        url = f"unix://{path}"
        # A node takes no writes for its first two seconds.
        retry = Retry(ConstantBackoff(0.05), 200, supported_errors=(ConnectionError, ClusterDownError))
        with BlockingRedis.from_url(url, retry=retry, retry_on_error=[ClusterDownError]) as client:
            client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16_383)
            client.delete("whatever")
        yield url


@pytest.fixture(scope="session")
def cluster_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with cluster_node(tmp_path_factory.mktemp("cluster")) as url:
        yield url


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with start_valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server.url


KINDS = ["memory", *(pytest.param(kind, marks=pytest.mark.integration) for kind in ("valkey", "cluster"))]


@pytest.fixture(params=KINDS)
async def registry(request: pytest.FixtureRequest, pool: PoolId) -> AsyncIterator[Registry]:
    if request.param == "memory":
        yield MemoryRegistry()
        return
    url: str = request.getfixturevalue(f"{request.param}_url")
    opened = RedisRegistry.open(url, pool, where="test")
    yield opened
    await opened.close()


async def reach(registry: Registry, *slices: SliceId) -> dict[str, tuple[int, dict[str, int]]]:
    [found] = await registry.longest_prefixes([slices])
    return {one.engine_id: (one.slices, {tier.value: count for tier, count in one.by_tier.items()}) for one in found}


CHAINS = [
    ("nobody has anything", {}, {}),
    ("a hole at the beginning", {B: (1,)}, {}),
    ("one tier", {A: (1,), B: (1,)}, {"e1": (2, {"hbm": 2})}),
    ("behind a hole nothing counts", {A: (1,), C: (1,)}, {"e1": (1, {"hbm": 1})}),
    ("over two tiers", {A: (1, 2), B: (2,), C: (2,)}, {"e1": (3, {"hbm": 1, "dram": 3})}),
    ("over three tiers, none has all", {A: (1,), B: (2,), C: (3,)}, {"e1": (3, {"hbm": 1})}),
    ("two engines", {A: (1, 4), B: (4,)}, {"e2": (2, {"hbm": 2}), "e1": (1, {"hbm": 1})}),
    ("an engine that comes in later has no prefix", {A: (1,), B: (1, 4)}, {"e1": (2, {"hbm": 2})}),
    ("two sizes are one tier", {A: (2,), B: (5,), C: (2, 5)}, {"e1": (3, {"dram": 3})}),
    ("a number that is no holding is nobody's", {A: (1, 99), B: (99,)}, {"e1": (1, {"hbm": 1})}),
    ("all of it", dict.fromkeys(IDS, (1,)), {"e1": (5, {"hbm": 5})}),
]


@pytest.mark.parametrize(("chain", "expected"), [case[1:] for case in CHAINS], ids=[case[0] for case in CHAINS])
async def test_the_longest_prefix_is_found_by_engine_and_tier(
    registry: Registry, chain: dict[SliceId, tuple[int, ...]], expected: dict[str, tuple[int, dict[str, int]]]
) -> None:
    await Writer(registry).write(*HELD, *(held(one, *numbers) for one, numbers in chain.items()), anew=True)
    found = await reach(registry, *IDS)
    assert found == expected
    assert list(found) == list(expected), "the longest first"


async def test_prompts_are_looked_up_together_and_long_ones_to_their_end(registry: Registry) -> None:
    long = fingerprints(range(500), key=b"long", slice_tokens=1)
    await Writer(registry).write(*HELD, *(held(one, 1) for one in long[:333]), held(ODD, 1), anew=True)
    found = await registry.longest_prefixes([long, [A], [], long[:7], [*long[:3], A, *long[3:]], [ODD]])
    assert [[one.slices for one in prefixes] for prefixes in found] == [[333], [], [], [7], [3], [1]]
    assert await registry.longest_prefixes([]) == []


async def test_slices_are_told_with_all_that_is_known(registry: Registry) -> None:
    await Writer(registry).write(
        *HELD, held(A, 2, 4, 99, hits=3, last_use_ns=70), (Table.PINS, field_of(A), pack_ns(5_000)),
        (Table.HOT, field_of(A), pack_score(hit(hit(None, 1_000), 1_000))), held(ODD, 3), anew=True,
    )  # fmt: skip
    a, b, odd = await registry.slices([A, B, ODD])
    assert (a.slice_id, a.hits, a.last_use_ns, a.pinned_until_ns) == (A, 3, 70, 5_000)
    assert a.heat == pytest.approx(2.0)
    assert a.holders == (HOLDINGS[2], HOLDINGS[4])
    assert (b.slice_id, b.holders, b.hits) == (B, (), 0)
    assert (odd.slice_id, odd.holders) == (ODD, (HOLDINGS[3],))
    assert await registry.slices([]) == []


async def test_the_hottest_come_first_and_pins_that_stay_longest(registry: Registry) -> None:
    scores = {A: 1.5, B: 4.0, C: -3.0}
    await Writer(registry).write(
        *((Table.HOT, field_of(one), pack_score(score)) for one, score in scores.items()),
        (Table.PINS, field_of(D), pack_ns(7)), (Table.PINS, field_of(E), pack_ns(9)), anew=True,
    )  # fmt: skip
    assert [one.slice_id for one in await registry.hot(2)] == [B, A]
    assert [(one.slice_id, one.pinned_until_ns) for one in await registry.pinned()] == [(E, 9), (D, 7)]


async def test_tiers_come_by_engine_the_fastest_first(registry: Registry) -> None:
    import msgspec

    names = [(E2, Tier.DRAM), (E1, Tier.SSD), (E1, Tier.HBM)]
    rows = [TierRow(engine_id=engine_id, tier=tier, bytes_max=9) for engine_id, tier in names]
    await Writer(registry).write(
        *((Table.TIERS, tier_field(row.engine_id, row.tier), msgspec.json.encode(row)) for row in rows), anew=True
    )
    assert await registry.tiers() == [rows[2], rows[1], rows[0]]


async def test_an_empty_registry_knows_nothing_and_says_so(registry: Registry) -> None:
    assert await registry.position() is None
    assert await reach(registry, A, B) == {}
    assert (await registry.hot(3), await registry.pinned(), await registry.tiers()) == ([], [], [])


async def test_what_is_gone_is_gone(registry: Registry) -> None:
    writer = Writer(registry)
    await writer.write(*HELD, held(A, 1, 2), held(B, 1), anew=True)
    await writer.write(gone(Table.SLICES, field_of(B)), held(A, 2))
    assert await reach(registry, A, B) == {"e1": (1, {"dram": 1})}
    await writer.write(gone(Table.HOLDINGS, pack_number(2)))
    assert await reach(registry, A) == {}, "a record whose number means nothing any more is not held"


async def test_a_repeated_write_changes_nothing(registry: Registry) -> None:
    writer = Writer(registry)
    first = writer.next(*HELD, held(A, 1), anew=True)
    assert await registry.write(first) is Written.WRITTEN
    second = writer.next(held(A, 2))
    assert await registry.write(second) is Written.WRITTEN
    for late in (first, second, first):
        assert await registry.write(late) is Written.BEFORE
    assert await reach(registry, A) == {"e1": (1, {"dram": 1})}
    position = await registry.position()
    assert position is not None
    assert (position.writes, position.seq, position.complete) == (2, 20, True)


async def test_a_write_whose_predecessor_is_missing_asks_for_everything(registry: Registry) -> None:
    writer = Writer(registry)
    assert await writer.write(held(A, 1)) is Written.LOST, "nothing stands there yet"
    assert await writer.write(*HELD, held(A, 1), anew=True) is Written.WRITTEN
    writer.next(held(B, 1))
    assert await writer.write(held(C, 1)) is Written.LOST, "the one in between never came"
    assert await reach(registry, A, B, C) == {"e1": (1, {"hbm": 1})}, "and nothing of it was applied"
    assert await writer.write(*HELD, held(B, 1), anew=True) is Written.WRITTEN
    assert await reach(registry, A) == {}, "what stood there before is cleared"


@pytest.mark.parametrize(("epoch", "owner"), [(6, "a"), (5, "x")])
async def test_a_writer_that_was_replaced_is_told_so(registry: Registry, epoch: int, owner: str) -> None:
    old, new = Writer(registry, epoch=5, owner="w"), Writer(registry, epoch=epoch, owner=owner)
    assert await old.write(*HELD, held(A, 1), anew=True) is Written.WRITTEN
    assert await new.write(held(B, 1)) is Written.LOST, "a new writer begins with everything"
    assert await new.write(*HELD, held(B, 1), anew=True) is Written.WRITTEN
    assert await old.write(held(C, 1)) is Written.REPLACED
    assert await old.write(*HELD, held(C, 1), anew=True) is Written.REPLACED
    assert await reach(registry, B, C) == {"e1": (1, {"hbm": 1})}


NUMBERS = st.lists(st.sampled_from([*HOLDINGS, 99]), max_size=4, unique=True)


@settings(max_examples=60, deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=6))
def test_a_record_reads_back_whatever_it_is(chain: list[list[int]]) -> None:
    for numbers in chain:
        use = Use(len(chain), 17, tuple(numbers))
        assert unpack_use(pack_use(use)) == use


@pytest.mark.parametrize("name", [A, ODD, SliceId("s1"), SliceId("S" * 16), SliceId("F" * 32), SliceId("f" * 32)])
def test_a_slice_has_one_field_and_a_field_one_slice(name: SliceId) -> None:
    assert slice_of(field_of(name)) == name
    assert (len(field_of(name)) == 16) is (name in (A, "f" * 32))


def test_a_holding_reads_back() -> None:
    assert [unpack_holding(pack_holding(one)) for one in HOLDINGS.values()] == list(HOLDINGS.values())


def test_heat_halves_with_time_and_adds_up() -> None:
    half_life = 600_000_000_000
    once = hit(None, 0)
    assert heat_at(once, 0) == pytest.approx(1.0)
    assert heat_at(once, half_life) == pytest.approx(0.5)
    assert heat_at(hit(once, half_life), half_life) == pytest.approx(1.5)
    assert heat_at(hit(once, 0), half_life) == pytest.approx(1.0)


@pytest.mark.integration
async def test_both_kinds_say_the_same_of_any_tables(redis_url: str, pool: PoolId) -> None:
    chance, ids = random.Random(7), fingerprints(range(40), key=b"t", slice_tokens=1)
    memory, other = MemoryRegistry(), RedisRegistry.open(redis_url, pool, where="test")
    writers = [Writer(memory), Writer(other)]
    for step in range(40):
        items = [
            held(one, *chance.sample([*HOLDINGS, 99], chance.randrange(4)), hits=chance.randrange(9)) if
            chance.random() < 0.8 else gone(Table.SLICES, field_of(one)) for one in chance.sample(ids, 12)
        ]  # fmt: skip
        for writer in writers:
            assert await writer.write(*(HELD if step == 0 else []), *items, anew=step == 0) is Written.WRITTEN
        prompts = [ids[start : start + chance.randrange(1, 12)] for start in chance.sample(range(30), 8)]
        assert await memory.longest_prefixes(prompts) == await other.longest_prefixes(prompts)
        assert await memory.slices(ids) == await other.slices(ids)
    await other.close()


@pytest.mark.integration
async def test_a_server_that_lost_our_functions_is_given_them_again(redis_url: str, pool: PoolId) -> None:
    registry = RedisRegistry.open(redis_url, pool, where="test")
    writer = Writer(registry)
    await writer.write(*HELD, held(A, 1), anew=True)
    async with Redis.from_url(redis_url) as redis:
        await redis.function_flush()
        assert await reach(registry, A) == {"e1": (1, {"hbm": 1})}, "a reader brings them"
        await redis.function_flush()
    assert await writer.write(held(B, 1)) is Written.WRITTEN, "and a writer"
    await registry.close()


@pytest.mark.integration
async def test_a_look_up_is_one_round_trip_and_allowed_on_a_replica(redis_url: str, pool: PoolId) -> None:
    registry = RedisRegistry.open(redis_url, pool, where="test")
    await Writer(registry).write(*HELD, held(A, 1), anew=True)
    async with Redis.from_url(redis_url) as redis:
        before = (await redis.info("commandstats")).get("cmdstat_fcall_ro", {}).get("calls", 0)
        await registry.longest_prefixes([[A, B]] * 5)
        after = (await redis.info("commandstats"))["cmdstat_fcall_ro"]["calls"]
        assert after - before == 5
        commands = await redis.function_list()
    assert b"no-writes" in repr(commands).encode()
    await registry.close()


@pytest.mark.integration
async def test_all_keys_of_a_pool_lie_in_one_slot(redis_url: str, pool: PoolId) -> None:
    registry = RedisRegistry.open(redis_url, pool, where="test")
    await Writer(registry).write(
        *HELD, held(A, 1), (Table.PINS, field_of(A), pack_ns(1)), (Table.HOT, field_of(A), pack_score(1.0)),
        (Table.TIERS, b"e1/hbm", b"{}"), anew=True,
    )  # fmt: skip
    async with Redis.from_url(redis_url) as redis:
        keys = [one async for one in redis.scan_iter(f"tg:{{{pool}}}:registry:*")]
        names = {"position", *(table.value for table in Table)}
        assert {one.decode() for one in keys} == {key(pool, name) for name in names}
        assert len({key_slot(one) for one in keys}) == 1
    await registry.close()


@pytest.mark.integration
async def test_a_server_that_is_not_there_is_one_clear_error(tmp_path: Path, pool: PoolId) -> None:
    registry = RedisRegistry.open(f"unix://{tmp_path}/nobody.sock", pool, where="nobody.sock")
    with pytest.raises(RegistryError, match=r"does not answer.*nobody\.sock"):
        await registry.longest_prefixes([[A]])
    await registry.close()


@pytest.mark.integration
async def test_a_server_that_says_nothing_is_given_up_in_time(tmp_path: Path, pool: PoolId) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    path = tmp_path / f"{secrets.token_hex(4)}.sock"
    async with await asyncio.start_unix_server(silent, path):
        registry = RedisRegistry.open(f"unix://{path}", pool, where="silent", timeout_s=0.05)
        with pytest.raises(RegistryError, match="silent"):
            async with asyncio.timeout(2):
                await registry.tiers()
        await registry.close()


@contextlib.contextmanager
def two_nodes(folder: Path) -> Iterator[list[int]]:
    """Two nodes that divide the slots between them; their ports."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("no redis-server on this machine: apt-get install redis-server")
    ports, nodes = list[int](), list[BlockingRedis]()
    with contextlib.ExitStack() as stack:
        for name in "ab":
            (folder / name).mkdir()
            port, bus_port = free_port(), free_port()
            command = [program, "--port", str(port), "--cluster-port", str(bus_port), "--bind", "127.0.0.1", "--save",
                       "", "--dir", str(folder / name), "--cluster-enabled", "yes"]  # fmt: skip
            process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.DEVNULL))
            stack.callback(process.terminate)
            retry = Retry(ConstantBackoff(0.05), 300, supported_errors=(ConnectionError, ClusterDownError))
            node = BlockingRedis(host="127.0.0.1", port=port, retry=retry, retry_on_error=[ClusterDownError])
            nodes.append(stack.enter_context(node))
            node.execute_command("CLUSTER ADDSLOTSRANGE", *((0, 8_191) if name == "a" else (8_192, 16_383)))
            if ports:
                nodes[0].execute_command("CLUSTER MEET", "127.0.0.1", port, bus_port)
            ports.append(port)
        for node, slot_key in zip(nodes, (LOW_SLOT, HIGH_SLOT), strict=True):
            node.delete(slot_key)
        yield ports


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


LOW_SLOT, HIGH_SLOT = (next(name for name in map(str, range(99)) if (key_slot(name.encode()) > 8_191) is high)
                       for high in (False, True))  # fmt: skip


@pytest.mark.integration
async def test_in_a_cluster_the_node_that_has_the_pool_is_followed(tmp_path: Path) -> None:
    with two_nodes(tmp_path) as ports:
        for slot_name in (LOW_SLOT, HIGH_SLOT):
            for port in ports:
                registry = RedisRegistry.open(f"redis://127.0.0.1:{port}/0", PoolId(slot_name), where="test")
                assert await Writer(registry, epoch=port).write(*HELD, held(A, 1), anew=True) is not Written.LOST
                assert await reach(registry, A) == {"e1": (1, {"hbm": 1})}
                await registry.close()


def test_the_library_is_named_by_its_code() -> None:
    assert LIBRARY.startswith("#!lua name=tidegate_registry_")
    assert "@" not in LIBRARY
