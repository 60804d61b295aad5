"""What `tidegate trace info` says to people."""

from typing import TYPE_CHECKING, Any

from replay.traces.describe import Description, Spread
from replay.traces.formats import FORMATS
from replay.traces.own import THREE_TENANTS
from replay.traces.public import PUBLIC
from services.runtime.output import table

if TYPE_CHECKING:
    from rich.console import Console

GIB = 1 << 30
TENANTS_SHOWN = 8


def sources() -> dict[str, Any]:
    """The formats, the public traces, and the data set that ships."""
    return {
        "formats": FORMATS,
        "public": [one._asdict() for one in PUBLIC],
        "own": {"name": THREE_TENANTS.stem.removesuffix(".jsonl"), "journal": str(THREE_TENANTS)},
    }


def show_sources(known: dict[str, Any], console: "Console") -> None:
    """As tables."""
    console.print(table(("--format", "a file of"), list(known["formats"].items())))
    console.print()
    rows = [(one.name, one.form or "-", one.origin, one.licence, one.about) for one in PUBLIC]
    console.print(table(("public trace", "--format", "origin", "licence", "what it has"), rows))
    console.print("\nNo public trace with embedding requests is known: embedding load is drawn.")
    console.print(f"Of our own, in the program: {known['own']['journal']}", markup=False)


def show_description(told: Description, name: str, profile: str, left_out: int, console: "Console") -> None:
    """One table of amounts, one of their spreads."""
    rows = [
        ("requests", f"{told.requests:,} in {told.seconds:,.0f} s: {told.requests_per_s:.3g} a second"),
        ("bursts", f"{told.dispersion:.2f} variance over mean in 10 s (1 = Poisson)"),
        ("kinds", _counts(told.kinds)),
        ("tenants", _counts(told.tenants)),
        ("models", _counts(told.models)),
        ("sessions", f"{told.sessions:,}; {told.waiting:,} requests wait for an answer" if told.sessions else "none"),
        ("ideal prefix hits", f"{told.ideal_hit_share:.1%} of prompt tokens{_units(told)}"),
        ("unique KV", _unique(told)),
    ]
    if told.estimated:
        rows.append(("estimated", f"{told.estimated:,} prompts were not counted by a tokenizer"))
    if left_out:
        rows.append(("left out", f"{left_out:,} prompts that fill the context"))
    console.print(table((name, ""), rows))
    spreads = [
        ("prompt tokens", told.prompt_tokens, 1.0, 0),
        ("output tokens", told.output_tokens, 1.0, 0),
        ("turns of a session", told.turns, 1.0, 0),
        ("think time, s", told.think_ms, 1_000.0, 1),
        (f"KV at the end, GiB ({profile})", told.kv_cache_bytes, float(GIB), 2),
        (f"embedding workspace, GiB ({profile})", told.embedding_workspace_bytes, float(GIB), 2),
    ]
    console.print(table(("", "p50", "p90", "p99", "most", "mean"), [_row(*one) for one in spreads if one[1].most]))


def _row(name: str, spread: Spread, unit: float, decimals: int) -> tuple[str, ...]:
    amounts = (spread.p50, spread.p90, spread.p99, spread.most, spread.mean)
    return name, *(f"{amount / unit:,.{decimals}f}" for amount in amounts)


def _counts(counts: dict[str, int]) -> str:
    shown = [f"{name} {count:,}" for name, count in list(counts.items())[:TENANTS_SHOWN]]
    more = len(counts) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more else "")


def _unique(told: Description) -> str:
    if not told.prefix_tokens:
        return "not known: the trace names no prefixes"
    return f"{told.unique_kv_bytes / GIB:,.1f} GiB ({told.unique_kv_tokens:,} tokens)"


def _units(told: Description) -> str:
    if not told.prefix_tokens:
        return ": the trace names no prefixes"
    return f", in units of {' and '.join(f'{tokens:,}' for tokens in told.prefix_tokens)}"
