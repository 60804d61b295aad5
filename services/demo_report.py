"""What a demo leaves: one JSON object for programs, one table for people, one page to look at later."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from jinja2 import Environment

from events.base import NS_PER_MS
from replay.score import Scores

COLUMNS = {
    "baseline": "first come (virtual)",
    "tidegate": "Tidegate (virtual)",
    "live": "Tidegate (live run)",
}


BEHIND_NS = 100 * NS_PER_MS
"""A tenth of the tightest limit of a first token (1 s). If decisions need longer to their engines, in pool time, then
the machine is too slow for the speed."""
CAVEAT = (
    "Engines are simulated everywhere. Their step times are sums of measured kernel times, without launch, sampler and "
    "scheduler time, and not calibrated against a running engine: compare the columns, do not expect their values."
)


class Row(NamedTuple):
    """One line of the table: a name, and how to say it of a run."""

    name: str
    said: Callable[[Scores], str]


def _ms(ns: int | None) -> str:
    return "never" if ns is None else f"{ns / NS_PER_MS:,.0f} ms"


def _counts(counts: Mapping[str, int]) -> str:
    return "\n".join(f"{count} {reason}" for reason, count in sorted(counts.items())) or "none"


ROWS = (
    Row("requests", lambda scores: str(scores.requests)),
    Row("SLO attainment (rejected = missed)", lambda scores: f"{scores.slo_attainment:.1%}"),
    Row("goodput, SLO-met requests/s", lambda scores: f"{scores.goodput_per_s:.2f}"),
    Row("TTFT p50 (never = no answer)", lambda scores: _ms(scores.ttft_p50_ns)),
    Row("TTFT p99", lambda scores: _ms(scores.ttft_p99_ns)),
    Row("TPOT p50", lambda scores: _ms(scores.tpot_p50_ns)),
    Row("preemptions", lambda scores: str(scores.preemptions)),
    Row("deferred", lambda scores: str(scores.deferrals)),
    Row("rejections by reason", lambda scores: _counts(scores.rejected)),
    Row("aborted by reason", lambda scores: _counts(scores.aborted)),
    Row("fairness over tenants (Jain)", lambda scores: f"{scores.fairness_jain:.3f}"),
)


class DemoResult(msgspec.Struct, kw_only=True):
    """All that a demo found. `slo_attainment` and `goodput_per_s` by column of the table. `control_ns` is the live
    log's mean way from a decision to its engine in pool time, as `replay whatif` takes it (0 = nobody went it)."""

    workload: str
    speed: int
    verify: str
    digest: str
    events: int
    decisions: int
    requests: int
    slo_attainment: dict[str, float]
    goodput_per_s: dict[str, float]
    statuses: dict[str, int]
    load_late_max_s: float
    control_ns: int
    seconds: float
    code_version: str
    journal: str
    report: str
    scores: dict[str, Scores]

    def verdict(self) -> str:
        """The last line of the demo."""
        return f"verify: {self.verify.upper()} {self.digest}"

    def behind(self) -> str:
        """What is to be said where the machine could not keep up with the speed; "" = it could."""
        if self.control_ns <= BEHIND_NS:
            return ""
        calm = max(1, self.speed * BEHIND_NS // self.control_ns)
        late = f"decisions reached their engines {_ms(self.control_ns)} of pool time late, more than {_ms(BEHIND_NS)}"
        mend = f"try --speed {calm}" if calm < self.speed else "give it more of the processor"
        return f"the live run fell behind: {late}. At this speed the machine is the limit, not the policy: {mend}"

    def write(self, folder: Path) -> None:
        """`report.json` and `report.html` into a folder."""
        (folder / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=2))
        page = Environment(autoescape=True).from_string(PAGE)
        (folder / "report.html").write_text(
            page.render(result=self, columns=list(COLUMNS.values()), rows=cells(self), caveat=CAVEAT)
        )


def cells(result: DemoResult) -> list[tuple[str, Sequence[str]]]:
    """The table: a name, then one cell per column."""
    return [(row.name, [row.said(result.scores[column]) for column in COLUMNS]) for row in ROWS]


def table_of(result: DemoResult) -> Any:
    """The table for a terminal."""
    from rich.table import Table

    shown = Table(title=f"{result.workload}; pool time {result.speed}x", title_justify="left", show_lines=False)
    shown.add_column("", style="dim")
    for name in COLUMNS.values():
        shown.add_column(name, justify="right")
    for name, said in cells(result):
        shown.add_row(name, *said)
    shown.caption, shown.caption_justify = CAVEAT, "left"
    return shown


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Tidegate demo: {{ result.workload }}</title>
<style>
 body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b2733 }
 table { border-collapse: collapse; width: 100% } th, td { padding: .4rem .6rem; border-bottom: 1px solid #d5dce3 }
 th { text-align: right } td { text-align: right; white-space: pre-line; font-variant-numeric: tabular-nums }
 th:first-child, td:first-child { text-align: left; color: #526373 } tr:nth-child(3) td { font-weight: 600 }
 code { background: #eef2f5; padding: .1rem .3rem; border-radius: 3px; overflow-wrap: anywhere }
</style>
<h1>{{ result.workload }}</h1>
<p>The first two columns are modelled: the same arrivals in virtual time, on simulated engines.
The last is the live run: real NATS, Valkey, workers and HTTP, engines simulated, pool time {{ result.speed }} times
as fast as the wall's. SLO met = first token and mean time per output token within the request's limits; whatever was
rejected, aborted or unfinished counts as missed.</p>
<p>{{ caveat }}</p>
{% if result.behind() %}<p><strong>{{ result.behind() }}.</strong></p>
{% endif %}<table><tr><th></th>{% for name in columns %}<th>{{ name }}</th>{% endfor %}</tr>
{% for name, said in rows %}<tr><td>{{ name }}</td>{% for cell in said %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>
<p>Live log: {{ result.events }} events, {{ result.decisions }} decisions.
<strong>{{ result.verdict() }}</strong>; check it again:</p>
<p><code>tidegate replay verify {{ result.journal }}</code></p>
</html>
"""
