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
from itertools import pairwise

import nats
from nats.js.api import DiscardPolicy, StorageType, StreamConfig

from events import codec, subjects
from events.base import NS_PER_MS, NS_PER_S, EngineId, Event, Recorded, RequestId
from events.decisions import RequestAdmitted
from events.log.base import Log
from events.request import DispatchStarted
from policies.admission import ADMISSION
from policies.decider import Progress, advance, begin
from policies.whereabouts import State
from tests.bench import words
from tests.bench.follower import Follower
from tests.bench.place import Place
from tests.bench.rounds import Figures, Row, Values, Way, compared, interleave, measured, percentile

LIVE_REQUESTS = 3_000
LIVE_RUNNING = 16
"""Requests that run at a time: each arrival stands beside the ending of the one so many before it."""
RAW_PUBLISHES = 3_000
DECISION_BYTES = 350
IN_FLIGHT_MAX = 256
ENGINE_COUNTS = (1, 8, 64, 512)
GOAL_ENGINES, LIVES_PER_S_MIN, ARRIVAL_P99_MAX_US = 64, 2_000, 1_000
HISTORY_ENGINES, HISTORY_SHORT, HISTORY_LONG, HISTORY_GROWTH_MAX = 8, 1_000, 100_000, 1.1
"""Flat in history: what counts as flat on a noisy machine is a tenth more."""
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
    """`advance` over the life of requests, in this process, with no log around it: by engines, then by history."""
    ways: dict[str, Way] = {str(count): _Lives(count).measured for count in ENGINE_COUNTS}
    by_count = {int(name): figures for name, figures in (await interleave(ways, rounds=place.rounds)).items()}
    rows = []
    for count, figures in by_count.items():
        engines = f"{count} engine{'s' if count != 1 else ''}"
        goal = count == GOAL_ENGINES
        rows += [
            measured(f"advance, {engines}: whole lives", "requests/s", figures["per_s"],
                     at_least=LIVES_PER_S_MIN if goal else None),
            measured(f"advance, {engines}: an arrival, p50", "us", figures["p50"]),
            measured(f"advance, {engines}: an arrival, p99", "us", figures["p99"],
                     at_most=ARRIVAL_P99_MAX_US if goal else None),
        ]  # fmt: skip
    for few, many in pairwise(ENGINE_COUNTS):
        growth = many / few
        rows.append(compared(f"advance, a life: {many} engines beside {few}", "us", _life_us(by_count[many]),
                             _life_us(by_count[few]), at_most=growth))  # fmt: skip
    return [*rows, *await _by_history(place.rounds)]


def _life_us(figures: Values) -> list[float]:
    return [1e6 / per_s for per_s in figures["per_s"]]


async def _by_history(rounds: int) -> list[Row]:
    """The same lives after few requests and after many."""
    short, long = _Lives(HISTORY_ENGINES), _Lives(HISTORY_ENGINES)
    for lives, requests in ((short, HISTORY_SHORT), (long, HISTORY_LONG)):
        for _ in range(requests):
            lives.one()
    values = await interleave({"short": short.measured, "long": long.measured}, rounds=rounds)
    what = f"advance, {HISTORY_ENGINES} engines, a life: after {HISTORY_LONG:,} requests beside {HISTORY_SHORT:,}"
    return [compared(what, "us", _life_us(values["long"]), _life_us(values["short"]), at_most=HISTORY_GROWTH_MAX)]


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
    """Requests that live and end on engines, each record handed straight to `advance`; `RUNNING_PER_ENGINE` at a time
    on each engine from the beginning on. Times are CPU time of this thread: nothing here waits for anything."""

    def __init__(self, engines: int) -> None:
        self._progress: Progress[State] = begin(ADMISSION)
        self._seq = self._ns = self._count = 0
        self._running: deque[RequestAdmitted] = deque()
        for engine in words.engines(engines):
            self._say(engine)
        for _ in range(engines * RUNNING_PER_ENGINE):
            self._arrive()

    def one(self) -> float:
        """The oldest ends, another one comes and gets its first token; how long deciding about its arrival took."""
        oldest = self._running.popleft()
        self._say(words.finished(oldest.request_id, oldest.engine_id))
        wait_s = self._arrive()
        admitted = self._running[-1]
        self._say(DispatchStarted(request_id=admitted.request_id, engine_id=admitted.engine_id))
        return wait_s

    async def measured(self) -> Figures:
        """A round of lives."""
        start = time.thread_time()
        waits = [self.one() for _ in range(ALONE_REQUESTS)]
        per_s = ALONE_REQUESTS / (time.thread_time() - start)
        return {"per_s": per_s, "p50": percentile(waits, 50) * 1e6, "p99": percentile(waits, 99) * 1e6}

    def _say(self, event: Event, *, actor: str = "") -> list[Event]:
        """One more record, a millisecond later."""
        self._seq += 1
        self._ns += NS_PER_MS
        recorded = Recorded(seq=self._seq, item=0, event=event, actor=actor, owner="bench", ts_ns=self._ns)
        return advance(ADMISSION, self._progress, recorded)

    def _arrive(self) -> float:
        event = words.arrived(self._count, self._ns)
        self._count += 1
        start = time.thread_time()
        [decision] = self._say(event)
        elapsed_s = time.thread_time() - start
        assert isinstance(decision, RequestAdmitted), "these engines have room"
        self._say(decision, actor=ADMISSION.name)
        self._say(words.first_token(decision.request_id, decision.engine_id))
        self._running.append(decision)
        return elapsed_s
