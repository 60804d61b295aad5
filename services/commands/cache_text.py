"""What `tidegate cache` says, as a person reads it."""

from typing import TYPE_CHECKING

from events.base import NS_PER_S
from events.slice import Tier
from services.runtime.output import table

if TYPE_CHECKING:
    from rich.console import Console

    from kvstore.registry.base import SliceInfo, TierRow
    from services.access_chart import Pattern
    from services.commands.cache import Found, Stats, Top

MIB, GIB = 2**20, 2**30
EACH_MAX = 40


def show_stats(told: "Stats", console: "Console") -> None:
    """Tiers, and how far the registry is."""
    if told.position is None:
        console.print("nobody writes this pool's registry: is its projector running?")
        return
    columns = ("engine", "tier", "slices", "used", "of", "full", "hits", "misses", "hit rate", "evicted", "failed",
               "damaged", "reads", "writes")  # fmt: skip
    if not told.tiers:
        console.print(
            "no engine said anything of its tiers: only those with an agent, and simulated ones with tiers, do"
        )
    else:
        console.print(table(columns, [_row(row) for row in told.tiers]))
    filling = "" if told.position.complete else "; it is being filled now, so more is there than this"
    console.print(f"as of record {told.position.seq}{filling}", markup=False)


def _row(row: "TierRow") -> tuple[str, ...]:
    untold = f" (+{row.untold})" if row.untold else ""
    health = f" ({row.health})" if row.health not in ("", "ready") else ""
    head = (f"{row.engine_id}{health}", row.tier.value, f"{row.slices:,}{untold}")
    if not row.measured_ns:
        # Not measured: what can be counted from facts.
        return (*head, _size(row.slices_bytes), "?", "?", f"{row.hits_told:,}", "?", "?", f"{row.removed_told:,}",
                "?", "?", "?", "?")  # fmt: skip
    asked = row.hits_total + row.misses_total
    return (
        *head, _size(row.bytes_used), _size(row.bytes_max), _share(row.bytes_used, row.bytes_max),
        f"{row.hits_total:,}", f"{row.misses_total:,}", _share(row.hits_total, asked), f"{row.evictions_total:,}",
        f"{row.failures_total:,}", f"{row.corrupt_total:,}",
        _speed(row.read_bytes_per_s), _speed(row.write_bytes_per_s),
    )  # fmt: skip


def show_top(told: "Top", console: "Console") -> None:
    """Hot slices, then pinned ones."""
    if not told.hot:
        console.print("no slice was hit so far")
    else:
        rows = [
            (
                one.slice_id,
                f"{one.heat:.1f}",
                f"{one.hits:,}",
                _unused(one, told.now_ns),
                _holders(one),
                _pinned(one, told.now_ns),
            )
            for one in told.hot
        ]
        console.print(table(("slice", "heat", "hits", "unused for", "holders", "pinned"), rows))
    if told.pinned:
        console.print(f"pinned: {len(told.pinned)}")
        pins = [(one.slice_id, _pinned(one, told.now_ns), _holders(one)) for one in told.pinned[:EACH_MAX]]
        console.print(table(("slice", "pinned", "holders"), pins))


def show_lookup(told: "Found", console: "Console") -> None:
    """What engines have of a prompt."""
    if not told.prefixes:
        if not told.slices:
            console.print("the prompt is shorter than one slice: nobody keeps it")
        elif told.slices == 1:
            console.print("nobody has this slice")
        else:
            console.print(f"nobody has the beginning of these {told.slices} slices")
        return
    rows = [
        (one.engine_id, f"{one.slices} of {told.slices}", *(str(one.by_tier.get(tier, 0)) for tier in Tier))
        for one in told.prefixes
    ]
    console.print(table(("engine", "slices", *(f"in {tier}" for tier in Tier)), rows))
    each = [(one.slice_id, f"{one.hits:,}", _holders(one), _pinned(one, told.now_ns)) for one in told.each[:EACH_MAX]]
    console.print(table(("slice", "hits", "holders", "pinned"), each))
    if len(told.each) > EACH_MAX:
        console.print(f"... and {len(told.each) - EACH_MAX} more (--json has them)")


def show_pattern(told: "Pattern", console: "Console") -> None:
    """What a picture says, in numbers."""
    span_s = (told.to_ns - told.from_ns) / NS_PER_S
    rate = told.hit_rate_ppm / 10_000
    console.print(f"{told.total_accesses:,} accesses in {span_s:,.1f} s of pool time, {rate:.1f} % of them hits")
    rows = [
        (use.tier.value, f"{use.hits:,}", f"{use.computed:,}", f"{use.slices:,}", f"{use.top_share_ppm / 10_000:.1f} %")
        for use in told.tiers
    ]
    console.print(table(("tier", "hits", "computed", "slices", "of a tenth of them"), rows))


def _holders(one: "SliceInfo") -> str:
    return ", ".join(f"{held.engine_id}/{held.tier}" for held in one.holders) or "nobody"


def _unused(one: "SliceInfo", now_ns: int) -> str:
    return _s(now_ns - one.last_use_ns) if one.last_use_ns else ""


def _pinned(one: "SliceInfo", now_ns: int) -> str:
    return f"for {_s(one.pinned_until_ns - now_ns)}" if one.pinned_until_ns else ""


def _s(span_ns: int) -> str:
    return f"{max(0, span_ns) / NS_PER_S:,.1f} s"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""


def _size(amount: int) -> str:
    return f"{amount / GIB:.2f} GiB" if amount >= GIB else f"{amount / MIB:.1f} MiB"


def _speed(bytes_per_s: int) -> str:
    return f"{bytes_per_s / GIB:.2f} GiB/s" if bytes_per_s else ""
