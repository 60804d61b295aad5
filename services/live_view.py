"""What a pool is doing, as a person sees it on a terminal: counts, memory bars, the newest decisions with causes."""

from collections import Counter, deque

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from events.base import NS_PER_MS, PPM, Event, Recorded
from events.decisions import (
    HolderLost,
    MiscoverageNoticed,
    RequestAdmitted,
    RequestDeferred,
    RequestPreempted,
    RequestRejected,
    ShareReason,
    SharesSet,
    TenantQuotaSet,
)
from events.engine import EngineHealthChanged, EngineMeasured, EngineRegistered
from events.request import RequestAborted, RequestArrived, RequestFinished

LINES_MAX = 8
BAR_WIDTH = 24
COUNTED = ("arrived", "admitted", "deferred", "preempted", "rejected", "finished", "aborted")
STYLE = {
    "admit": "green", "resume": "green", "defer": "yellow", "preempt": "bright_yellow", "reject": "red",
    "lost": "magenta", "share": "cyan", "quota": "cyan", "alarm": "magenta",
}  # fmt: skip
GB = 10**9


class LiveView:
    """Takes the log in, record by record; `render` shows where it stands."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._counts: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._engines: dict[str, EngineMeasured | None] = {}
        self._kv_bytes: dict[str, int] = {}
        self._shares: dict[str, SharesSet] = {}
        self._lines: deque[Text] = deque(maxlen=LINES_MAX)
        self._first_ns = self._now_ns = 0
        self._seq = 0

    def take(self, recorded: Recorded) -> None:
        """One more record of the log."""
        self._seq = recorded.seq
        if recorded.ts_ns:
            self._first_ns = self._first_ns or recorded.ts_ns
            self._now_ns = max(self._now_ns, recorded.ts_ns)
        match recorded.event:
            case RequestArrived(attempt=0):
                self._counts["arrived"] += 1
            case RequestFinished():
                self._counts["finished"] += 1
            case RequestAborted(final=True):
                self._counts["aborted"] += 1
            case EngineRegistered(engine_id=engine_id) as registered:
                self._engines.setdefault(engine_id, None)
                self._kv_bytes[engine_id] = registered.kv_blocks * registered.block_bytes
            case EngineMeasured(engine_id=engine_id) as measured:
                self._engines[engine_id] = measured
            case EngineHealthChanged(engine_id=engine_id, health=health):
                self._say("lost", f"engine {engine_id} is {health}", recorded)
            case decision:
                self._decision(decision, recorded)

    def _decision(self, decision: Event, recorded: Recorded) -> None:
        match decision:
            case RequestAdmitted(resumed=True):
                self._say("resume", f"{decision.request_id} goes on on {decision.engine_id}", recorded)
            case RequestAdmitted():
                self._counts["admitted"] += 1
                slack_ms = decision.slo_slack_ns // NS_PER_MS
                text = f"{decision.request_id} -> {decision.engine_id}, {decision.kv_cache_tokens} KV tokens"
                self._say("admit", f"{text}, slack {slack_ms} ms", recorded)
            case RequestDeferred():
                self._counts["deferred"] += 1
                self._say("defer", f"{decision.request_id}: {decision.reason}", recorded)
            case RequestRejected():
                self._counts["rejected"] += 1
                self._reasons[decision.reason] += 1
                self._say("reject", f"{decision.request_id}: {decision.reason}", recorded)
            case RequestPreempted():
                self._counts["preempted"] += 1
                freed = f"frees {decision.kv_bytes_freed / GB:.2f} GB after {decision.output_tokens} tokens"
                text = f"{decision.request_id} off {decision.engine_id} for {decision.for_request}, {freed}"
                self._say("preempt", text, recorded)
            case HolderLost():
                self._say("lost", f"holder {decision.holder}, {len(decision.requests)} requests", recorded)
            case _:
                self._policy(decision, recorded)

    def _policy(self, decision: Event, recorded: Recorded) -> None:
        match decision:
            case SharesSet():
                self._shared(decision, recorded)
            case TenantQuotaSet():
                most = f"{decision.kv_bytes_max / GB:.2f} GB" if decision.kv_bytes_max else "no limit"
                self._say("quota", f"tenant {decision.tenant}: {most}", recorded)
            case MiscoverageNoticed():
                verb = "covers its target again" if decision.cleared else "misses its target"
                text = (
                    f"{decision.predictor} {verb}: {decision.coverage_ppm / PPM:.0%} of {decision.target_ppm / PPM:.0%}"
                )
                self._say("alarm", text, recorded)
            case _:
                pass

    def _shared(self, share: SharesSet, recorded: Recorded) -> None:
        name = share.engine_id or "the pool"
        if share.reason is ShareReason.LIFTED:
            self._shares.pop(share.engine_id, None)
            self._say("share", f"{name} is not divided any more", recorded)
            return
        self._shares[share.engine_id] = share
        self._say("share", f"{name}: {_divided(share)}, {share.reason}", recorded)

    def _say(self, verb: str, text: str, recorded: Recorded) -> None:
        seconds = (recorded.ts_ns - self._first_ns) / 1e9 if recorded.ts_ns else 0.0
        line = Text.assemble((f"{seconds:8.2f}s ", "dim"), (f"{verb:<8}", STYLE[verb]), text)
        if recorded.cause:
            line.append(f"  because of {recorded.cause}", style="dim")
        self._lines.append(line)

    def summary(self) -> str:
        """One line, for where there is no terminal."""
        return f"{self._seconds():6.1f} pool s  seq {self._seq}  {self._counted()}"

    def render(self) -> RenderableType:
        """The whole picture, for rich.live.Live."""
        engines = Table.grid(padding=(0, 2))
        for engine_id, measured in sorted(self._engines.items()):
            used = measured.kv_used_ppm / PPM if measured else 0.0
            queue = f"running {measured.running:3}  waiting {measured.waiting:3}" if measured else "not measured yet"
            lost = f"preemptions {measured.preemptions_total}  evictions {measured.evictions_total}" if measured else ""
            kv_bytes, share = self._kv_bytes.get(engine_id, 0), self._shares.get(engine_id)
            engines.add_row(
                engine_id,
                ProgressBar(total=1.0, completed=used, width=BAR_WIDTH),
                f"{used:4.0%} of {kv_bytes / GB:.1f} GB",
                queue,
                lost,
                _divided(share) if share is not None else "",
            )
        reasons = "  ".join(f"{reason} {count}" for reason, count in sorted(self._reasons.items())) or "none"
        return Panel(
            Group(
                Text(f"{self._seconds():6.1f} pool s, record {self._seq}"),
                Text(self._counted()),
                engines,
                Text(f"rejections: {reasons}", style="dim"),
                Text(""),
                *self._lines,
            ),
            title=self._title,
            title_align="left",
        )

    def _counted(self) -> str:
        return "  ".join(f"{name} {self._counts[name]}" for name in COUNTED)

    def _seconds(self) -> float:
        return (self._now_ns - self._first_ns) / 1e9


def _divided(share: SharesSet) -> str:
    return f"LLM {share.llm_ppm / PPM:.0%} embedding {share.embedding_ppm / PPM:.0%}"
