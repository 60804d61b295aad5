"""What only the log on a real NATS server can show: crashes, refusals, damage, and what watchers see."""

import asyncio
import re
import shutil
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
import uvloop
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.api import DiscardPolicy, StreamConfig

from events.base import LogDamaged, LogError, PoolId
from events.log import jetstream_reader, nats_client
from events.log.base import Fence, FenceBroken, Message
from events.log.jetstream import JetStreamLog, NatsClient, connect
from events.log.jetstream_reader import Place, place_of
from events.subjects import decision, decisions_of, fact, log_of, stream_of, watch_of
from services.runtime.config import LogProfile
from services.runtime.embedded import EmbeddedNats, start_nats

pytestmark = pytest.mark.integration

TIMEOUT_S = 20.0
POOL = PoolId("crash")
TICKED = fact(POOL, "clock", "ticked")


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[EmbeddedNats]:
    """A server that the test may kill."""
    with start_nats(tmp_path / "nats", profile=LogProfile.FAST) as server:
        yield server


@pytest.fixture
async def own_client(own_server: EmbeddedNats) -> AsyncIterator[NatsClient]:
    client = await connect(own_server.url, name="crash")
    yield client
    await client.close()


async def say(log: JetStreamLog, number: int) -> int:
    """Append until the outcome is known."""
    while True:
        try:
            return await log.append(TICKED, b"%d" % number, msg_id=f"clock:c1:{number}")
        except LogError:
            continue


async def crash(server: EmbeddedNats, client: NatsClient) -> None:
    """SIGKILL; back on the same store once the client has noticed."""
    await kill(server, client)
    server.restart()


async def kill(server: EmbeddedNats, client: NatsClient) -> None:
    """SIGKILL, until the client has noticed."""
    noticed = asyncio.Event()
    client.listen(noticed.set)
    server.kill()
    await noticed.wait()
    client.unlisten(noticed.set)


async def collect(log: JetStreamLog, count: int) -> list[Message]:
    """Follow from the beginning until so many have come."""
    got: list[Message] = []
    async with aclosing(log.read(follow=True)) as batches:
        async for batch in batches:
            got += batch
            if len(got) >= count:
                return got
    raise AssertionError("a follower does not end")


async def test_server_killed_while_writing_and_reading_loses_and_doubles_nothing(
    own_server: EmbeddedNats, own_client: NatsClient
) -> None:
    total, crashes_at = 400, {100, 200, 300}
    log = await JetStreamLog.open(own_client, POOL)
    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as tasks:
        following = tasks.create_task(collect(log, total))
        seqs: list[int] = []
        for number in range(total):
            killing = tasks.create_task(crash(own_server, own_client)) if number in crashes_at else None
            seqs.append(await say(log, number))
            if killing is not None:
                await killing
    assert seqs == list(range(1, total + 1))
    assert following.result() == [Message(seq, TICKED, b"%d" % (seq - 1), {}) for seq in seqs]


async def test_append_in_flight_when_the_connection_goes_fails_at_once_and_may_be_said_again(
    own_server: EmbeddedNats, own_client: NatsClient
) -> None:
    log = await JetStreamLog.open(own_client, POOL, append_timeout_s=TIMEOUT_S)
    own_server.kill()  # The client has not noticed yet.
    with pytest.raises(LogError, match="before the acknowledgement"):
        await log.append(TICKED, b"1", msg_id="clock:c1:1")
    own_server.restart()
    assert await say(log, 1) == 1


async def test_append_while_nats_is_away_ends_in_a_log_error_that_names_the_stream(
    own_server: EmbeddedNats, own_client: NatsClient
) -> None:
    log = await JetStreamLog.open(own_client, POOL, append_timeout_s=0.05)
    await kill(own_server, own_client)
    with pytest.raises(LogError, match=rf"NATS is away.*{own_server.where} TG_crash"):
        await log.append(TICKED, b"1")


def test_what_a_lost_connection_had_still_to_send_does_not_keep_it_from_closing(own_server: EmbeddedNats) -> None:
    async def lose_the_server_and_close() -> None:
        client = await connect(own_server.url, name="test")
        lost = asyncio.Event()
        client.listen(lost.set)
        own_server.kill()
        await lost.wait()
        await client.publish("anywhere", b"kept until the connection is back")
        await client.close()

    uvloop.run(lose_the_server_and_close())  # asyncio's own loop writes to a closed connection without a word.


async def test_reader_that_lost_its_consumer_makes_a_new_one(
    jetstream_log: JetStreamLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jetstream_reader, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(jetstream_reader, "SILENCE_MAX_S", 0.25)
    log, subject = jetstream_log, fact(jetstream_log.pool, "clock", "ticked")
    await log.append(subject, b"1")
    async with asyncio.timeout(TIMEOUT_S), aclosing(log.read(follow=True)) as batches:
        assert [message.body for message in await anext(batches)] == [b"1"]
        for consumer in await log.js.consumers_info(log.stream):
            await log.js.delete_consumer(log.stream, consumer.name)
        await log.append(subject, b"2")
        assert [message.body for message in await anext(batches)] == [b"2"]


async def test_slow_reader_of_much_more_than_the_server_sends_at_once_gets_all_of_it(
    jetstream_log: JetStreamLog,
) -> None:
    subject, body, count = fact(jetstream_log.pool, "clock", "ticked"), bytes(100_000), 120
    for _ in range(count):
        await jetstream_log.append(subject, body)
    seqs: list[int] = []
    async with asyncio.timeout(TIMEOUT_S):
        async for batch in jetstream_log.read():
            seqs += [message.seq for message in batch]
            await jetstream_log.info()  # Work between two batches, with the connection's other traffic going on.
    assert seqs == list(range(1, count + 1))


async def test_messages_missing_in_the_middle_are_damage(jetstream_log: JetStreamLog) -> None:
    log = jetstream_log
    for source in ("clock", "sensor", "sensor", "clock"):
        await log.append(fact(log.pool, source, "said"), b"x")
    await log.js.purge_stream(log.stream, subject=fact(log.pool, "sensor", "said"))
    batches = log.read()
    assert [message.seq for message in await anext(batches)] == [1]
    with pytest.raises(LogDamaged, match="messages 2 to 3 are not in the log"):
        await anext(batches)
    assert [message.seq async for batch in log.read(pattern=fact(log.pool, "clock", "*")) for message in batch] == [
        1,
        4,
    ]


async def test_messages_missing_at_the_beginning_are_damage(jetstream_log: JetStreamLog) -> None:
    log = jetstream_log
    for _ in range(4):
        await log.append(fact(log.pool, "clock", "ticked"), b"x")
    await log.js.purge_stream(log.stream, seq=4)
    with pytest.raises(LogDamaged, match="messages 1 to 3 are not in the log"):
        await anext(aiter(log.read()))
    assert [message.seq async for batch in log.read(after=3) for message in batch] == [4]


async def test_log_that_lost_its_end_is_not_followed_any_further(
    own_server: EmbeddedNats, own_client: NatsClient, tmp_path: Path
) -> None:
    log = await JetStreamLog.open(own_client, POOL)
    store, copy = own_server.folder / "jetstream", tmp_path / "copy"
    for number in range(3):
        await say(log, number)
    own_server.process.terminate()
    own_server.process.wait()
    shutil.copytree(store, copy)
    own_server.restart()
    for number in range(3, 6):
        await say(log, number)
    async with asyncio.timeout(TIMEOUT_S), aclosing(log.read(follow=True)) as batches:
        got = await anext(batches)
        while got[-1].seq < 6:
            got = await anext(batches)
        own_server.kill()
        shutil.rmtree(store)
        shutil.copytree(copy, store)
        own_server.restart()
        with pytest.raises(LogDamaged, match="ends at 3, but 6 was already"):
            await anext(batches)


async def test_watchers_see_what_was_stored_and_nothing_that_was_refused(jetstream_log: JetStreamLog) -> None:
    log, seen = jetstream_log, []
    mine, subject = decisions_of(log.pool, "admission"), decision(log.pool, "admission", "several")

    async def on_message(message: Msg) -> None:
        seen.append((message.subject, message.data))

    await log.client.subscribe(watch_of(log.pool), cb=on_message)
    await log.append(subject, b"stored", msg_id="a:1", fence=Fence(mine, 0))
    await log.append(subject, b"repeated", msg_id="a:1")
    with pytest.raises(FenceBroken):
        await log.append(subject, b"refused", msg_id="a:2", fence=Fence(mine, 0))
    await log.append(fact(log.pool, "clock", "ticked"), b"last")
    async with asyncio.timeout(TIMEOUT_S):
        while len(seen) < 2:
            await log.client.flush()
    assert seen == [(f"watch.{subject}", b"stored"), (f"watch.{fact(log.pool, 'clock', 'ticked')}", b"last")]


async def test_full_stream_takes_nothing_more_and_drops_nothing(nats_server: EmbeddedNats, pool: PoolId) -> None:
    client = await connect(nats_server.url, name="full")
    log = await JetStreamLog.open(client, pool, bytes_max=4096)
    for _ in range(3):
        await log.append(fact(pool, "clock", "ticked"), bytes(1000))
    with pytest.raises(LogError, match=r"takes nothing more: .*: free disk space"):
        await log.append(fact(pool, "clock", "ticked"), bytes(1000))
    assert [message.seq async for batch in log.read() for message in batch] == [1, 2, 3]
    await client.close()


async def test_message_larger_than_the_server_takes_is_refused_with_its_size(jetstream_log: JetStreamLog) -> None:
    with pytest.raises(LogError, match="9000000 bytes is more than the server takes"):
        await jetstream_log.append(fact(jetstream_log.pool, "clock", "ticked"), bytes(9_000_000))


async def test_stream_that_could_lose_history_is_refused_with_every_setting_named(
    nats_server: EmbeddedNats, pool: PoolId
) -> None:
    client = await connect(nats_server.url, name="settings")
    config = StreamConfig(name=stream_of(pool), subjects=[log_of(pool)], discard=DiscardPolicy.OLD, max_age=60)
    await client.jetstream().add_stream(config)
    with pytest.raises(LogError, match=r"discard=old \(must be new\), max_age=60.* deny_delete=False"):
        await JetStreamLog.open(client, pool)
    await client.close()


async def test_stream_has_the_settings_that_the_log_needs(jetstream_log: JetStreamLog) -> None:
    config = (await jetstream_log.info()).config
    assert (config.storage, config.discard, config.retention, config.num_replicas) == ("file", "new", "limits", 1)
    assert (config.max_age, config.max_msgs, config.duplicate_window) == (0, -1, 120)
    assert (config.deny_delete, config.deny_purge, config.allow_direct) == (True, False, True)
    await jetstream_log.append(fact(jetstream_log.pool, "clock", "ticked"), b"x")
    with pytest.raises(NatsError, match="delete not permitted"):
        await jetstream_log.js.delete_msg(jetstream_log.stream, 1)


async def test_two_openers_at_once_share_one_stream(nats_server: EmbeddedNats, pool: PoolId) -> None:
    client = await connect(nats_server.url, name="race")
    logs = await asyncio.gather(*(JetStreamLog.open(client, pool) for _ in range(4)))
    assert [await log.append(fact(pool, "clock", "ticked"), b"x") for log in logs] == [1, 2, 3, 4]
    await client.close()


async def test_log_that_is_not_there_is_not_made_by_a_reader(nats_server: EmbeddedNats, pool: PoolId) -> None:
    client = await connect(nats_server.url, name="reader")
    with pytest.raises(LogError, match=f"pool '{pool}' has no log"):
        await JetStreamLog.open(client, pool, create=False)
    await client.close()


async def test_nats_that_is_not_there_is_one_line_with_address_and_mend() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # Not listening: a connection is refused, and nobody else gets the port.
        port = taken.getsockname()[1]
        with pytest.raises(LogError) as caught:
            await connect(f"nats://me:verysecret@127.0.0.1:{port}", name="x")
    assert str(caught.value) == f"NATS does not answer (127.0.0.1:{port}): start it, or set NATS_URL"
    assert caught.value.exit_code == 2


async def test_what_speaks_no_nats_is_not_taken_for_a_wrong_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nats_client, "CONNECT_TIMEOUT_S", 0.2)

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(LogError) as caught:
            await connect(f"nats://127.0.0.1:{port}", name="x")
    assert str(caught.value) == f"no NATS server speaks there (127.0.0.1:{port}): set NATS_URL"


async def test_wrong_password_is_refused_at_once_and_never_shown(nats_server: EmbeddedNats) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        with pytest.raises(LogError, match="Authorization Violation") as caught:
            await connect(f"nats://tidegate:verysecret@{nats_server.where}", name="x")
    assert "verysecret" not in str(caught.value)


@pytest.mark.parametrize("url", ["nats://u:verysecret@host:port", "nats://u:verysecret@[::1:4222"])
async def test_address_that_is_none_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(LogError, match="not an address of NATS") as caught:
        await connect(url, name="x")
    assert "verysecret" not in str(caught.value)


async def test_what_the_server_forbids_is_said_by_the_call_that_is_not_answered(own_server: EmbeddedNats) -> None:
    config = own_server.folder / "nats-server.conf"
    may_not = r'{ users: [ { \1, permissions: { publish: { deny: "tg.v1.crash.fact.clock.*" } } } ] }'
    config.write_text(re.sub(r"\{ (user: .*) \}", may_not, config.read_text(), count=1))
    own_server.restart()
    client = await connect(own_server.url, name="forbidden")
    log = await JetStreamLog.open(client, POOL, append_timeout_s=0.2)
    with pytest.raises(LogError, match=r"(?i)permissions violation for publish"):
        await log.append(TICKED, b"x")
    await client.close()


@pytest.mark.parametrize(
    ("reply", "place"),
    [
        ("$JS.ACK.TG_a.c1.1.17.3.1700000000.5", Place(17, 3, 5)),
        ("$JS.ACK.hub.ACCOUNT.TG_a.c1.1.17.3.1700000000.5", Place(17, 3, 5)),
        ("$JS.ACK.hub.ACCOUNT.TG_a.c1.1.17.3.1700000000.5.random", Place(17, 3, 5)),
        ("$JS.FC.TG_a.c1.XYZ", None),
        ("", None),
    ],
)
def test_place_of_a_message_is_read_from_its_reply_subject(reply: str, place: Place | None) -> None:
    assert place_of(reply) == place
