"""Log before act: a client logs a fact, a worker in another process logs its decision, the client sees it.

Ours is the real path (FactWriter, the admission worker with two engines, a follower of the decisions); the floor is
the same hops in plain nats-py. One at a time, both on uvloop, on the same server. Requests end outside the measured
part, so the policy's state stays flat.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

import nats
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig, DeliverPolicy, DiscardPolicy, StorageType, StreamConfig

from events.decisions import RequestAdmitted
from services.runtime.facts import FactWriter
from services.runtime.pool_clock import PoolClock
from tests.bench import words
from tests.bench.follower import Follower
from tests.bench.place import Place
from tests.bench.rounds import Figures, Row, Way, compared, interleave, percentile

LOOPS = 640
ENDINGS_EVERY = 16
FACT_BYTES = 400
POOL = "loop"


async def measure(place: Place) -> list[Row]:
    """The loop of both ways."""
    async with AsyncExitStack() as stack:
        ways = {"floor": await _raw(place, stack), "ours": await _ours(place, stack)}
        for way in ways.values():
            await way()  # Not counted: the first round warms both up.
        values = await interleave(ways, rounds=place.rounds)
    ours, floor = values["ours"], values["floor"]
    return [
        compared("log-before-act loop, p50", "us", ours["p50"], floor["p50"], at_most=1.5),
        compared("log-before-act loop, p99", "us", ours["p99"], floor["p99"]),
    ]


async def _raw(place: Place, stack: AsyncExitStack) -> Way:
    stream = "raw_loop"
    client = await nats.connect(place.nats_url)
    stack.push_async_callback(client.close)
    js = client.jetstream()
    await js.add_stream(
        StreamConfig(name=stream, subjects=[f"{stream}.>"], storage=StorageType.FILE, discard=DiscardPolicy.NEW)
    )
    env = {"BENCH_NATS_URL": place.nats_url}
    await stack.enter_async_context(place.child("raw-worker", "tests.bench.raw_worker", stream, env=env))
    seen: asyncio.Queue[bytes] = asyncio.Queue()

    async def on_decision(message: Msg) -> None:
        seen.put_nowait(message.data)

    config = ConsumerConfig(deliver_policy=DeliverPolicy.NEW)
    await js.subscribe(f"{stream}.decision.>", ordered_consumer=True, cb=on_decision, config=config)
    body, next_id = b"x" * FACT_BYTES, _counter("fact:")

    async def one_round() -> Figures:
        waits = []
        for _ in range(LOOPS):
            start = time.perf_counter()
            await js.publish(f"{stream}.fact.gateway.request_arrived", body, headers={"Nats-Msg-Id": next_id()})
            await seen.get()
            waits.append(time.perf_counter() - start)
        return _figures(waits)

    return one_round


async def _ours(place: Place, stack: AsyncExitStack) -> Way:
    log = await stack.enter_async_context(place.log(POOL))
    clock = PoolClock()
    writer, follower = FactWriter(log, source="gateway", owner="bench", clock=clock), Follower(log)
    tasks = await stack.enter_async_context(asyncio.TaskGroup())
    for running in (writer.run(), follower.run()):
        stack.callback(tasks.create_task(running).cancel)
    for engine in words.engines(2):
        await writer.write(engine)
    await stack.enter_async_context(place.tidegate(POOL, "worker", "admission"))
    await follower.started()
    number = 0

    async def loop() -> RequestAdmitted:
        nonlocal number
        number += 1
        fact = words.arrived(number, clock.now_ns())
        admitted = follower.expect(fact.request_id)
        await writer.write(fact)
        return await admitted

    def end(admitted: RequestAdmitted) -> None:
        writer.say(words.first_token(admitted.request_id, admitted.engine_id))
        writer.say(words.finished(admitted.request_id, admitted.engine_id))

    async def one_round() -> Figures:
        waits = []
        for _ in range(LOOPS // ENDINGS_EVERY):
            running = []
            for _ in range(ENDINGS_EVERY):
                start = time.perf_counter()
                running.append(await loop())
                waits.append(time.perf_counter() - start)
            for admitted in running:
                end(admitted)
            # One that is not counted: when it is decided, the endings before it were taken in.
            end(await loop())
        return _figures(waits)

    return one_round


def _counter(prefix: str) -> Callable[[], str]:
    count = 0

    def following() -> str:
        nonlocal count
        count += 1
        return f"{prefix}{count}"

    return following


def _figures(waits: list[float]) -> Figures:
    return {"p50": percentile(waits, 50) * 1e6, "p99": percentile(waits, 99) * 1e6}
