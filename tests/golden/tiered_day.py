"""A golden journal of the whole house with tiers behind its engines: what is stored, loaded and moved, in virtual time.

    .venv/bin/python -m tests.golden.tiered_day

writes it anew. As with the other journals: only when behaviour was changed on purpose, in the same commit.
"""

from events.base import NS_PER_S
from events.log.journal import JournalWriter
from replay.cluster import Run, simulate
from replay.costmodel import registered
from replay.engines.tiers import TierSizes
from replay.faults import TransferFaults, draw_faults
from replay.workloads.mixed import LLM_MODEL, Mixed, mixed
from tests.golden.scenarios import FOLDER

FILE = FOLDER / "tiers.jsonl.zst"
DAY = Mixed(seconds=60, sessions=110, bursts=1, burst_sessions=15, waves=0)
KV_TOKENS = 40_000
SIZES = TierSizes(dram_bytes=3 << 30, ssd_bytes=12 << 30)
FAULTS = TransferFaults(seed=3, failing_ppm=30_000, stalling_ppm=10_000)


def played() -> Run:
    """Two engines short of device memory, a lost one, and links that fail now and then."""
    engines = [registered(f"e{n}", [LLM_MODEL], kv_tokens=KV_TOKENS, reports_slices=True) for n in (1, 2)]
    arrivals = [one for one in mixed(7, DAY) if one.model == LLM_MODEL]
    lost = draw_faults(5, span_ns=60 * NS_PER_S, engines_lost=1, holders_lost=0, clients_gone=2)
    return simulate(
        arrivals, engines, pool="golden", faults=lost, tiers=dict.fromkeys((one.engine_id for one in engines), SIZES),
        transfer_faults=FAULTS,
    )  # fmt: skip


def write() -> None:
    """Write the journal anew."""
    run = played()
    with JournalWriter(FILE, run.pool) as journal:
        for message in run.messages:
            journal.write(message)


if __name__ == "__main__":
    write()
