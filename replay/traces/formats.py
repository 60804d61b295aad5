"""The formats of traces by name, and the one way to read any of them."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from events.log.base import Message
from kvstore.fingerprint import SLICE_TOKENS
from replay.journal_source import JournalSource
from replay.traces.azure import read_azure
from replay.traces.base import PROGRESS_EVERY, OnProgress, Trace, TraceError
from replay.traces.lmcache import lmcache_trace
from replay.traces.mooncake import read_mooncake
from replay.traces.table import Columns, read_table
from replay.traces.weka import BLOCK_TOKENS, CONTEXT_TOKENS_MAX, weka_trace
from replay.workloads.facts import arrivals_of
from replay.workloads.sessions import started

JOURNAL = "journal"
FORMATS: dict[str, str] = {
    JOURNAL: "a journal of ours: an imported trace, or a recorded log",
    "azure": "Azure LLM inference: CSV of TIMESTAMP, ContextTokens, GeneratedTokens",
    "mooncake": "Mooncake: JSON lines of timestamp (ms), input_length, output_length, hash_ids",
    "weka": "coding-agent sessions: one JSON line per session, turns with think times",
    "lmcache": "LMCache agents: JSON lines of timestamp (us), input, output, session_id",
    "jsonl": "JSON lines with names of your own: --map",
    "csv": "CSV with names of your own: --map",
}
"""Name -> what such a file is."""
BEGINS_OVER_S = 3_600


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What a reader may be told; each for the formats that it means something to.

    `limit` counts rows, or sessions where a line is one (0 = all). `tenant` and `model` are for rows that name none.
    Sessions without a begin get one by `seed`, evenly over `begins_over_s`. An id of a prefix stands for `unit_tokens`
    where the reader chooses. Prompts that fill `context_tokens_max` are left out where a trace has been served with
    more.
    """

    limit: int = 0
    tenant: str = "default"
    model: str = "llama-3-8b"
    context_tokens_max: int = CONTEXT_TOKENS_MAX
    unit_tokens: int = SLICE_TOKENS
    columns: Columns = Columns()
    seed: int = 1
    begins_over_s: int = BEGINS_OVER_S


READING_DEFAULT = Reading()


def read_trace(
    path: Path, form: str = JOURNAL, *, reading: Reading = READING_DEFAULT, on_progress: OnProgress | None = None
) -> Trace:
    """What is in a file, with `arrivals` in order of time whatever its format. `on_progress` hears bytes read and bytes
    in all, of a journal records and 0.

    Raises TraceError for what is no such trace, and what reading a journal raises (NotAJournal, JournalDamaged).
    """
    limit, tenant, model = reading.limit, reading.tenant, reading.model
    match form:
        case "journal":
            arrivals = arrivals_of(heard(JournalSource(path), on_progress))
            return Trace(form=form, arrivals=arrivals[:limit] if limit else arrivals)
        case "azure":
            rows = read_azure(path, limit=limit, tenant=tenant, model=model, on_progress=on_progress)
            return Trace(form=form, arrivals=rows)
        case "mooncake":
            rows = read_mooncake(path, limit=limit, tenant=tenant, model=model, on_progress=on_progress)
            return Trace(form=form, arrivals=rows)
        case "weka":
            return _begun(path, reading, on_progress)
        case "lmcache":
            return lmcache_trace(
                path, limit=limit, unit_tokens=reading.unit_tokens, tenant=tenant, model=model, on_progress=on_progress
            )
        case "jsonl" | "csv":
            return read_table(
                path, form=form, columns=reading.columns, limit=limit, tenant=tenant, model=model,
                on_progress=on_progress,
            )  # fmt: skip
        case _:
            mend = f"one of {', '.join(FORMATS)}"
            raise TraceError(f"no format is called {form!r}", file=str(path), line=0, mend=mend)


def heard(source: JournalSource, on_progress: OnProgress | None) -> Iterator[Message]:
    """The messages of a journal; progress is how many there were, of a total that nobody knows."""
    for message in source:
        if on_progress is not None and message.seq % PROGRESS_EVERY == 0:
            on_progress(message.seq, 0)
        yield message


def _begun(path: Path, reading: Reading, on_progress: OnProgress | None) -> Trace:
    if reading.unit_tokens % BLOCK_TOKENS:
        mend = f"give a multiple of {BLOCK_TOKENS}, the tokens of a block there"
        raise TraceError(f"no unit has {reading.unit_tokens} tokens", file=str(path), line=0, mend=mend)
    trace = weka_trace(
        path, limit=reading.limit, context_tokens_max=reading.context_tokens_max, unit_tokens=reading.unit_tokens,
        tenant=reading.tenant, model=reading.model, on_progress=on_progress,
    )  # fmt: skip
    begun = started(trace.sessions, seed=reading.seed, seconds=reading.begins_over_s, count=len(trace.sessions))
    return msgspec.structs.replace(trace, arrivals=begun)
