"""What a trace is, in numbers: how much comes, how long it is, what of it repeats, and what memory it will want."""

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from events.base import NS_PER_MS, NS_PER_S, RequestKind, SliceId
from replay.belady import ideal_share
from replay.score import percentile
from replay.traces.sample import sessions_of
from replay.workloads.facts import TraceRow, arrival_of
from replay.workloads.fit import dispersion


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Nearest-rank quantiles of an amount, its mean and its most; all 0 of nothing."""

    p50: int = 0
    p90: int = 0
    p99: int = 0
    most: int = 0
    mean: float = 0.0


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """Amounts in tokens; bytes, seconds or milliseconds where a name says so.

    `dispersion` is variance over mean of the arrivals in 10 s (1 = Poisson). `waiting` requests come only behind the
    answer to another. `ideal_hit_share` is the share of prompt tokens that an unlimited cache shared by all engines
    would have had. `unique_kv_tokens` are those of all different full prefix units. `kv_cache_bytes` is what an LLM
    request is expected to hold at its end, `embedding_workspace_bytes` what an embedding job holds while it runs.
    `estimated` prompts were not counted by a tokenizer.
    """

    requests: int
    seconds: float
    requests_per_s: float
    dispersion: float
    kinds: dict[str, int]
    tenants: dict[str, int]
    models: dict[str, int]
    estimated: int
    prompt_tokens: Spread
    output_tokens: Spread
    sessions: int
    turns: Spread
    think_ms: Spread
    waiting: int
    prefix_tokens: tuple[int, ...]
    ideal_hit_share: float
    unique_kv_tokens: int
    unique_kv_bytes: int
    kv_cache_bytes: Spread
    embedding_workspace_bytes: Spread


def describe(rows: Sequence[TraceRow], *, token_bytes: int) -> Description:
    """All of it, for KV of `token_bytes` per token."""
    units: dict[SliceId, int] = {}
    llm = [row for row in rows if row.arrived.kind is RequestKind.LLM]
    jobs = [row for row in rows if row.arrived.kind is RequestKind.EMBEDDING]
    named = [group for group in sessions_of(rows) if group[0].arrived.session or len(group) > 1]
    seconds = (rows[-1].at_ns - rows[0].at_ns) / NS_PER_S if rows else 0.0
    unique = _unique_tokens(llm)
    return Description(
        requests=len(rows),
        seconds=seconds,
        requests_per_s=len(rows) / max(1.0, seconds),
        dispersion=dispersion([row.at_ns for row in rows]),
        kinds=_counted(row.arrived.kind for row in rows),
        tenants=_counted(row.arrived.tenant for row in rows),
        models=_counted(row.arrived.model for row in rows),
        estimated=sum(row.arrived.estimated for row in rows),
        prompt_tokens=_spread([row.arrived.prompt_tokens for row in llm]),
        output_tokens=_spread([row.traced.output_tokens for row in llm]),
        sessions=len(named),
        turns=_spread([len(group) for group in named]),
        think_ms=_spread([row.traced.think_ns // NS_PER_MS for row in rows if row.traced.after]),
        waiting=sum(bool(row.traced.after) for row in rows),
        prefix_tokens=tuple(sorted({row.arrived.slice_tokens for row in llm if row.arrived.slices})),
        ideal_hit_share=ideal_share([arrival_of(row, units) for row in llm]),
        unique_kv_tokens=unique,
        unique_kv_bytes=unique * token_bytes,
        kv_cache_bytes=_spread([row.traced.kv_cache_bytes for row in llm]),
        embedding_workspace_bytes=_spread([row.traced.embedding_workspace_bytes for row in jobs]),
    )


def _spread(amounts: Sequence[int]) -> Spread:
    if not amounts:
        return Spread()
    p50, p90, p99 = (percentile(amounts, percent) or 0 for percent in (50, 90, 99))
    return Spread(p50=p50, p90=p90, p99=p99, most=max(amounts), mean=sum(amounts) / len(amounts))


def _counted(names: Iterable[str]) -> dict[str, int]:
    """How often each is there, most often first."""
    return {str(name): count for name, count in Counter(names).most_common()}


def _unique_tokens(rows: Sequence[TraceRow]) -> int:
    sizes = {name: row.arrived.slice_tokens for row in rows for name in row.arrived.slices}
    return sum(sizes.values())
