"""How fast admission decides: live from a backlog, log and all; and `advance` by itself.

Live: a log full of arrivals and endings, one fact a message, is there before the worker starts; measured is the time
from its first word to the last decision seen. Beside it raw acked publishes of nats-py with the expected-sequence
check, one in flight: what an actor could do at most if it published every decision by itself and did nothing else.
"""

import asyncio
import time
from collections import deque
from contextlib import AsyncExitStack
from functools import partial

import nats
from nats.js.api import DiscardPolicy, StorageType, StreamConfig

from events import codec, subjects
from events.base import NS_PER_MS, NS_PER_S, EngineId, Event, Recorded, RequestId
from events.decisions import RequestAdmitted
from events.log.base import Log
from events.request import DispatchStarted
from policies.admission import ADMISSION
from policies.admission_state import State
from policies.decider import Progress, advance, begin
from tests.bench import words
from tests.bench.follower import Follower
from tests.bench.place import Place
from tests.bench.rounds import Figures, Row, Way, compared, interleave, measured, percentile

LIVE_REQUESTS = 3_000
LIVE_RUNNING = 16
"""Requests that run at a time: each arrival stands beside the ending of the one so many before it."""
RAW_PUBLISHES = 3_000
DECISION_BYTES = 350
IN_FLIGHT_MAX = 256
ENGINE_COUNTS = (1, 2, 8, 64)
RUNNING_PER_ENGINE = 8
ALONE_REQUESTS = 1_000
START_NS = NS_PER_S


async def measure_live(place: Place) -> list[Row]:
    """Decisions per second out of the log and back into it."""
    async with AsyncExitStack() as stack:
        ways: dict[str, Way] = {"floor": await _raw(place, stack), "ours": partial(_drain_backlog, place)}
        values = await interleave(ways, rounds=place.rounds)
    ours, floor = values["ours"], values["floor"]
    return [compared("decisions, live from a backlog", "/s", ours["per_s"], floor["per_s"], at_least=0.7)]


async def measure_alone(place: Place) -> list[Row]:
    """`advance` over the life of requests, in this process, with no log around it."""
    ways = {str(count): partial(_lives, count) for count in ENGINE_COUNTS}
    values = await interleave(ways, rounds=place.rounds)
    rows = []
    for name, figures in values.items():
        engines = f"{name} engine{'s' if name != '1' else ''}"
        rows += [
            measured(f"advance, {engines}: whole lives", "requests/s", figures["per_s"]),
            measured(f"advance, {engines}: an arrival, p50", "us", figures["p50"]),
            measured(f"advance, {engines}: an arrival, p99", "us", figures["p99"]),
        ]
    return rows


async def _raw(place: Place, stack: AsyncExitStack) -> Way:
    stream = "raw_decisions"
    client = await nats.connect(place.nats_url)
    stack.push_async_callback(client.close)
    js = client.jetstream()
    await js.add_stream(
        StreamConfig(name=stream, subjects=[f"{stream}.>"], storage=StorageType.FILE, discard=DiscardPolicy.NEW)
    )
    last, count, body = 0, 0, b"x" * DECISION_BYTES

    async def one_round() -> Figures:
        nonlocal last, count
        start = time.perf_counter()
        for _ in range(RAW_PUBLISHES):
            count += 1
            headers = {
                "Nats-Msg-Id": f"raw:{count}",
                "Nats-Expected-Last-Subject-Sequence": str(last),
                "Nats-Expected-Last-Subject-Sequence-Subject": f"{stream}.decision.>",
            }
            last = (await js.publish(f"{stream}.decision.made", body, headers=headers)).seq
        return {"per_s": RAW_PUBLISHES / (time.perf_counter() - start)}

    return one_round


async def _drain_backlog(place: Place) -> Figures:
    pool = f"backlog{time.monotonic_ns()}"
    async with place.log(pool) as log, asyncio.TaskGroup() as tasks:
        await _write_backlog(log)
        follower = Follower(log)
        decided = follower.expect_many(LIVE_REQUESTS)
        following = tasks.create_task(follower.run())
        async with place.tidegate(pool, "worker", "admission"):
            await follower.started()
            start = time.perf_counter()
            await decided.wait()
            elapsed_s = time.perf_counter() - start
        following.cancel()
    return {"per_s": LIVE_REQUESTS / elapsed_s}


async def _write_backlog(log: Log) -> None:
    facts: list[tuple[str, Event]] = [("sensor", engine) for engine in words.engines(2)]
    for number in range(LIVE_REQUESTS):
        facts.append(("gateway", words.arrived(number, START_NS)))
        if number >= LIVE_RUNNING:
            # The worker finds out by itself where it runs.
            facts.append(("gateway", words.finished(RequestId(f"r{number - LIVE_RUNNING}"), EngineId("e1"))))
    room = asyncio.Semaphore(IN_FLIGHT_MAX)

    async def write(number: int, source: str, event: Event) -> None:
        body = codec.encode(owner="bench", ts_ns=START_NS + number * NS_PER_MS, said=[codec.Said(event=event)])
        async with room:
            await log.append(subjects.fact(log.pool, source, event.event_kind()), body)

    # Sent in this order on one connection, so stored in this order.
    await asyncio.gather(*(write(number, source, event) for number, (source, event) in enumerate(facts)))


class _Lives:
    """Requests that live and end on engines, each record handed straight to `advance`."""

    def __init__(self, engines: int) -> None:
        self._progress: Progress[State] = begin(ADMISSION)
        self._seq = self._ns = 0
        for engine in words.engines(engines):
            self.say(engine)

    def say(self, event: Event, *, actor: str = "") -> list[Event]:
        """One more record, a millisecond later."""
        self._seq += 1
        self._ns += NS_PER_MS
        recorded = Recorded(seq=self._seq, item=0, event=event, actor=actor, owner="bench", ts_ns=self._ns)
        return advance(ADMISSION, self._progress, recorded)

    def arrive(self, number: int) -> tuple[RequestAdmitted, float]:
        """What was decided, and how long that took."""
        event = words.arrived(number, self._ns)
        start = time.perf_counter()
        [decision] = self.say(event)
        elapsed_s = time.perf_counter() - start
        assert isinstance(decision, RequestAdmitted), "these engines have room"
        return decision, elapsed_s


async def _lives(engines: int) -> Figures:
    lives, running, waits = _Lives(engines), deque[RequestAdmitted](), list[float]()
    for number in range(engines * RUNNING_PER_ENGINE):
        running.append(lives.arrive(number)[0])
    start = time.perf_counter()
    for number in range(engines * RUNNING_PER_ENGINE, engines * RUNNING_PER_ENGINE + ALONE_REQUESTS):
        oldest = running.popleft()
        lives.say(words.finished(oldest.request_id, oldest.engine_id))
        admitted, wait_s = lives.arrive(number)
        waits.append(wait_s)
        lives.say(admitted, actor=ADMISSION.name)
        lives.say(DispatchStarted(request_id=admitted.request_id, engine_id=admitted.engine_id))
        lives.say(words.first_token(admitted.request_id, admitted.engine_id))
        running.append(admitted)
    per_s = ALONE_REQUESTS / (time.perf_counter() - start)
    return {"per_s": per_s, "p50": percentile(waits, 50) * 1e6, "p99": percentile(waits, 99) * 1e6}
