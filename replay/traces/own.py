"""The data set that comes with the program: three tenants, chats and agents in sessions, and waves of embedding jobs.

Nobody's traffic: it is drawn by `replay.workloads.mixed` from one seed, and may be passed on freely. It is there so
that a trace with everything in it (sessions with think times, shared prefixes, two kinds, tenants, expected memory) is
at hand on every machine, small enough to look at. `python -m replay.traces.own FILE` draws it again.
"""

import sys
from pathlib import Path

from events.base import NS_PER_MS, PoolId
from events.log.journal import JournalWriter
from replay.costmodel import registered
from replay.workloads.base import Arrival
from replay.workloads.facts import arrivals_to_messages
from replay.workloads.mixed import EMBEDDING_MODEL, LLM_MODEL, Mixed, mixed
from replay.workloads.sessions import chained

THREE_TENANTS = Path(__file__).parent / "data" / "three_tenants.jsonl.zst"
POOL = PoolId("three_tenants")
SEED = 20
SHAPE = Mixed(seconds=300, sessions=260, bursts=4, waves=8)


def three_tenants() -> list[Arrival]:
    """Its arrivals. Every turn waits for the answer before it and then thinks as long as was drawn."""
    drawn = mixed(SEED, SHAPE)
    took_ns = [one.output_tokens * SHAPE.answer_ms_per_token * NS_PER_MS for one in drawn]
    return chained(drawn, took_ns)


def write(path: Path) -> None:
    """Write it as a journal."""
    engine = registered("trace", (LLM_MODEL, EMBEDDING_MODEL))
    with JournalWriter(path, POOL) as writer:
        for message in arrivals_to_messages(three_tenants(), engine, pool=POOL):
            writer.write(message)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
