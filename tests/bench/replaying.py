"""How fast a log is verified, and where the time goes: decoding, digest, the policy, the comparison.

The logs are whole runs in virtual time: the mixed workload under memory pressure (many requests wait, and are looked
at again whenever something ends), and Mooncake's conversation trace where it is at hand. CPU time of one process.
"""

import gc
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from events import codec
from events.base import PoolId
from events.log import digest
from events.log.base import Message
from events.log.journal import JournalWriter, read_journal
from policies.catalog import ACTORS
from replay.cluster import Run, simulate
from replay.costmodel import registered
from replay.replayer import ActorReplay, foresee
from replay.traces.mooncake import read_mooncake
from replay.verify import verify
from replay.workloads.mixed import Mixed, engines, mixed
from tests.bench.place import Place
from tests.bench.rounds import Figures, Row, Way, interleave, measured

TRACE = Path(__file__).parents[3] / "shared/traces/mooncake/conversation_trace.t0-1800000ms.jsonl.gz"
TRACE_REQUESTS, TRACE_ENGINES = 2_000, 4
SEED = 1
PRESSURE = Mixed(seconds=480, sessions=880, bursts=16, waves=20)
"""Four times the default, at the same pressure."""
CALM = Mixed(seconds=960, sessions=480, bursts=8, waves=20)
EVENTS_PER_S = 100_000


def runs() -> Iterator[tuple[str, Run]]:
    """The logs by name."""
    yield "mixed, under pressure", simulate(mixed(SEED, PRESSURE), engines())
    yield "mixed, calm", simulate(mixed(SEED, CALM), engines())
    if TRACE.exists():
        arrivals = read_mooncake(TRACE, limit=TRACE_REQUESTS)
        pool = [registered(f"e{number}", ("llama-3-8b",)) for number in range(TRACE_ENGINES)]
        yield "conversation trace", simulate(arrivals, pool)


async def measure(place: Place) -> list[Row]:
    """Events per second of each log, whole and in parts."""
    rows = []
    for name, run in runs():
        values = await interleave(_ways(run, place.folder / "run.jsonl.zst"), rounds=place.rounds)
        rows.append(measured(f"verify: {name}", "events/s", values["verify"]["per_s"], at_least=EVENTS_PER_S))
        rows += [
            measured(f"  {part} alone", "events/s", values[part]["per_s"])
            for part in ("decode", "digest", "advance", "read a .jsonl.zst")
        ]
    return rows


def _ways(run: Run, file: Path) -> dict[str, Way]:
    messages = run.messages
    records = [codec.decode(message.seq, message.subject, message.body) for message in messages]
    events = sum(map(len, records))
    with JournalWriter(file, run.pool) as journal:
        for message in messages:
            journal.write(message)
    foreseen = foresee(messages)

    def advance_all() -> None:
        replayed = [ActorReplay(decider, messages, foreseen) for decider in ACTORS.values()]
        for group in records:
            for recorded in group:
                for actor in replayed:
                    actor.take(recorded)

    def verify_all() -> None:
        assert verify(messages, run.pool, ACTORS).identical, "a run verifies"

    def read_all() -> None:
        assert sum(1 for _ in read_journal(file)[1]) == len(messages), "a journal gives back what was written"

    parts: dict[str, Callable[[], None]] = {
        "verify": verify_all,
        "decode": partial(_decode_all, messages),
        "digest": partial(_digest_all, run.pool, messages),
        "advance": advance_all,
        "read a .jsonl.zst": read_all,
    }
    return {name: partial(_timed, events, part) for name, part in parts.items()}


def _decode_all(messages: list[Message]) -> None:
    for message in messages:
        codec.decode(message.seq, message.subject, message.body)


def _digest_all(pool: PoolId, messages: list[Message]) -> None:
    running = digest.start(pool)
    for message in messages:
        running = digest.extend(running, message)


async def _timed(events: int, work: Callable[[], None]) -> Figures:
    """Without the garbage collector, as `tidegate replay verify` runs: nothing here makes cycles."""
    gc.collect()
    gc.disable()
    try:
        start = time.process_time()
        work()
        return {"per_s": events / (time.process_time() - start)}
    finally:
        gc.enable()
