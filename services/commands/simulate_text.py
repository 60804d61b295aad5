"""A simulated run in words: what it was worth, what its memory did, and what stood behind it."""

from pathlib import Path
from typing import TYPE_CHECKING

from events import codec
from events.base import NS_PER_MS, PPM
from events.slice import TierMeasured
from services.runtime.output import table

if TYPE_CHECKING:
    from rich.console import Console

    from replay.cluster import Run
    from replay.score import Scores

GIB = 1 << 30


def show(run: "Run", made: Path | None, console: "Console") -> None:
    """Print it."""
    scores = run.scores
    rows = [
        ("requests", _requests(scores)),
        ("SLO attainment", _attainment(scores)),
        ("missed", _missed(scores)),
        ("goodput", f"{scores.goodput_per_s:.2f} requests/s of {scores.offered_per_s:.2f} offered"),
        ("TTFT p50 / p99", f"{_ms(scores.ttft_p50_ns)} / {_ms(scores.ttft_p99_ns)}"),
        ("TPOT p50 / p99", f"{_ms(scores.tpot_p50_ns)} / {_ms(scores.tpot_p99_ns)}"),
        ("throughput", f"{scores.tokens_per_s:,.0f} tokens/s, prompts and output"),
        ("preemptions", str(scores.preemptions)),
        ("reused", _reused(scores)),
        ("occupancy", f"{_share(scores.occupancy_mean_ppm)} mean, {_share(scores.occupancy_max_ppm)} at most"),
        ("orders", _orders(scores)),
        ("rejected", ", ".join(f"{reason} {count}" for reason, count in scores.rejected.items()) or "none"),
        ("digest", run.digest),
        ("journal", str(made or "not kept: --out FILE")),
    ]
    console.print(table(("simulated", ""), rows))
    tiers = [_tier(fact) for fact in measured(run)]
    if tiers:
        console.print(table(("engine", "tier", "GiB", "used", "read GB/s", "hits", "evicted", "failed"), tiers))


def measured(run: "Run") -> list[TierMeasured]:
    """What each tier of each engine last said."""
    last: dict[tuple[str, str], TierMeasured] = {}
    for message in run.messages:
        if b"tier_measured" in message.body:
            for recorded in codec.decode(message.seq, message.subject, message.body):
                if isinstance(recorded.event, TierMeasured):
                    last[recorded.event.engine_id, recorded.event.tier] = recorded.event
    return list(last.values())


def _requests(scores: "Scores") -> str:
    if not scores.unsent:
        return str(scores.requests)
    return f"{scores.requests}, of which {scores.unsent} never sent: an earlier turn had no answer in time"


def _attainment(scores: "Scores") -> str:
    retried = f"; {scores.slo_met_retried} of them came back after they were refused" if scores.slo_met_retried else ""
    return f"{scores.slo_attainment:.1%}{retried}"


def _missed(scores: "Scores") -> str:
    """What became of those that were not in time: together with those that were they are all requests."""
    rejected, aborted = sum(scores.rejected.values()), scores.aborted
    parts = [
        (scores.finished - scores.slo_met, "late"), (rejected, "rejected"),
        *((count, reason.replace("_", " ")) for reason, count in aborted.items()),
        (scores.unfinished, "unfinished"), (scores.unsent, "never sent"),
    ]  # fmt: skip
    return ", ".join(f"{count} {what}" for count, what in parts if count) or "none"


def _reused(scores: "Scores") -> str:
    """By where it came from, as shares of all prompt tokens."""
    tokens = max(1, scores.prompt_tokens)
    parts = [f"{count / tokens:.1%} {where}" for where, count in scores.hit_tokens_by_tier.items() if count]
    total = sum(scores.hit_tokens_by_tier.values()) / tokens
    return f"{total:.1%} of prompt tokens" + (f": {', '.join(parts)}" if parts else "")


def _orders(scores: "Scores") -> str:
    return f"{scores.migrations} migrations ({scores.migrations_failed} failed), {scores.prefetches} prefetches"


def _tier(fact: TierMeasured) -> tuple[str, ...]:
    used = _share(fact.bytes_used * PPM // fact.bytes_max) if fact.bytes_max else "0.0%"
    speed = f"{fact.read_bytes_per_s / 1e9:.1f}" if fact.read_bytes_per_s else ""
    return (
        fact.engine_id, fact.tier.value, f"{fact.bytes_max / GIB:.1f}", used, speed, str(fact.hits_total),
        str(fact.evictions_total), str(fact.failures_total),
    )  # fmt: skip


def _share(ppm: int) -> str:
    return f"{ppm / PPM:.1%}"


def _ms(ns: int | None) -> str:
    return "infinite" if ns is None else f"{ns / NS_PER_MS:,.1f} ms"
