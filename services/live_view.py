"""What a pool is doing, as a person sees it on a terminal: counts, memory bars, the newest decisions with causes."""

from collections import Counter, deque

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from events.base import NS_PER_MS, PPM, Event, Recorded
from events.decisions import HolderLost, RequestAdmitted, RequestDeferred, RequestRejected
from events.engine import EngineHealthChanged, EngineMeasured, EngineRegistered
from events.request import RequestAborted, RequestArrived, RequestFinished

LINES_MAX = 8
BAR_WIDTH = 24
COUNTED = ("arrived", "admitted", "deferred", "rejected", "finished", "aborted")
STYLE = {"admit": "green", "defer": "yellow", "reject": "red", "lost": "magenta"}


class LiveView:
    """Takes the log in, record by record; `render` shows where it stands."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._counts: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._engines: dict[str, EngineMeasured | None] = {}
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
            case EngineRegistered(engine_id=engine_id):
                self._engines.setdefault(engine_id, None)
            case EngineMeasured(engine_id=engine_id) as measured:
                self._engines[engine_id] = measured
            case EngineHealthChanged(engine_id=engine_id, health=health):
                self._say("lost", f"engine {engine_id} is {health}", recorded)
            case decision:
                self._decision(decision, recorded)

    def _decision(self, decision: Event, recorded: Recorded) -> None:
        match decision:
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
            case HolderLost():
                self._say("lost", f"holder {decision.holder}, {len(decision.requests)} requests", recorded)
            case _:
                pass

    def _say(self, verb: str, text: str, recorded: Recorded) -> None:
        seconds = (recorded.ts_ns - self._first_ns) / 1e9 if recorded.ts_ns else 0.0
        line = Text.assemble((f"{seconds:8.2f}s ", "dim"), (f"{verb:<7}", STYLE[verb]), text)
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
            lost = f"preemptions {measured.preemptions_total}" if measured else ""
            engines.add_row(
                engine_id, ProgressBar(total=1.0, completed=used, width=BAR_WIDTH), f"{used:4.0%}", queue, lost
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
