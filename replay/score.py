"""One scorer for every log: live, replayed or simulated.

SLO met = TTFT and mean TPOT within what the request arrived with; for an embedding, the vectors within the TTFT
limit. Every request that arrived in the window counts: rejected, expired, aborted and unfinished ones are missed, and
their TTFT and TPOT are infinite in the percentiles (None). So do those that were to come and were never sent, because
an earlier turn had no answer (`replay.turns`). A request that was offered again (attempt 1) is one request, and its
times count from then. Goodput = SLO-met requests per second of the window, which is the time in which requests arrive.

Reused tokens stand by where they came from: the slower tiers and peers by what engines say of their slices, the device
for the rest. Fluctuation = standard deviation / mean over 10 s steps of the middle 80 % of the window, of three things:
`throughput` is what engines computed, prompts and output, as vLLM's log line counts it; `output` are the tokens that
they produced, when they produced them; occupancy is the part of the KV blocks in use. A cached prompt is not computed,
so the better the cache, the rarer and the less even are prompts in the first of them; the second is what clients get.
"""

from collections.abc import Iterable, Sequence
from statistics import fmean, pstdev
from typing import Any

import msgspec

from events import codec
from events.base import NS_PER_S, Recorded, RequestId, RequestKind
from events.decisions import HolderLost, RequestAdmitted, RequestDeferred, RequestRejected, Would
from events.log.base import Message
from events.request import FirstTokenSeen, RequestAborted, RequestArrived, RequestExpired, RequestFinished
from replay.gauges import DEVICE, DRAM, PEER, SSD, Gauges
from replay.workloads.base import Arrival

WINDOW_MIN_NS = NS_PER_S
STEP_NS = 10 * NS_PER_S
"""Fluctuation is that of means over so long."""
MIDDLE = (10, 90)
"""Percent of the window between which it is measured: what fills up and what runs dry are left out."""
STEPS_MIN = 3
"""Fewer steps say nothing of a fluctuation."""
NS_PER_HOUR = 3_600 * NS_PER_S
MILLION = 1_000_000
PROMPT_CLASSES: tuple[tuple[str, int], ...] = (("<4K", 4_096), ("4-16K", 16_384), ("16-32K", 32_768))
"""Prompt lengths that are told apart: name, and the first length that is no longer in it."""
PROMPT_CLASS_LAST = ">=32K"
EXPIRED = "expired"
HOLDER_LOST = "aborted_holder_lost"


class Part(msgspec.Struct, kw_only=True):
    """How many of some requests met their SLO."""

    requests: int = 0
    slo_met: int = 0
    slo_attainment: float = 0.0


class Error(msgspec.Struct, kw_only=True):
    """Predicted against actual over `requests`: median of actual - predicted, and median and p99 of its size; the
    last two also as a share of the actual. A TTFT is predicted, and measured here, from the admission on."""

    requests: int = 0
    bias_p50: int = 0
    error_p50: int = 0
    error_p99: int = 0
    error_p50_share: float = 0.0
    error_p99_share: float = 0.0


class Scores(msgspec.Struct, kw_only=True):
    """What a run was worth. Times in ns; None = infinite (or nothing to measure). See the module for the words.

    Of `slo_met`, `slo_met_retried` had been offered before: their TTFT does not count what they waited till then.
    `prompt_tokens` and `hit_tokens_by_tier` are those of finished LLM requests, `prompt_tokens_asked` the prompts of
    all LLM requests that count, whatever became of them. Of both kinds, `tokens_per_s` are prompts and output of what
    finished within the window; `slo_tokens` those of requests that met their SLO, to which `device_ns` (engines x
    window) is held as hours per million. `migrations` and `prefetches` count orders, `quota_moves` moves of shares.
    `output_least` is the step of the middle of the window with the fewest tokens produced, beside their mean.
    `cached_token_share` is None where nothing says what was cached.
    """

    requests: int = 0
    finished: int = 0
    unfinished: int = 0
    unsent: int = 0
    slo_met: int = 0
    slo_met_retried: int = 0
    slo_attainment: float = 0.0
    window_ns: int = 0
    offered_per_s: float = 0.0
    goodput_per_s: float = 0.0
    ttft_p50_ns: int | None = None
    ttft_p99_ns: int | None = None
    tpot_p50_ns: int | None = None
    tpot_p99_ns: int | None = None
    output_tokens_per_s: float = 0.0
    preemptions: int = 0
    rejected: dict[str, int] = msgspec.field(default_factory=dict)
    aborted: dict[str, int] = msgspec.field(default_factory=dict)
    retried: int = 0
    deferrals: int = 0
    would: dict[str, int] = msgspec.field(default_factory=dict)
    cached_token_share: float | None = 0.0
    kinds: dict[str, Part] = msgspec.field(default_factory=dict)
    tenants: dict[str, Part] = msgspec.field(default_factory=dict)
    prompts: dict[str, Part] = msgspec.field(default_factory=dict)
    fairness_jain: float = 1.0
    kv_tokens_error: Error = msgspec.field(default_factory=Error)
    ttft_error_ns: Error = msgspec.field(default_factory=Error)
    prompt_tokens: int = 0
    prompt_tokens_asked: int = 0
    hit_tokens_by_tier: dict[str, int] = msgspec.field(default_factory=dict)
    evictions: int = 0
    migrations: int = 0
    migrations_failed: int = 0
    prefetches: int = 0
    quota_moves: int = 0
    tokens_per_s: float = 0.0
    slo_tokens: int = 0
    device_ns: int = 0
    device_hours_per_million: float | None = None
    throughput_fluctuation: float | None = None
    output_fluctuation: float | None = None
    output_least: float | None = None
    occupancy_fluctuation: float | None = None
    occupancy_mean_ppm: int = 0
    occupancy_max_ppm: int = 0

    @property
    def hit_share(self) -> float | None:
        """Reused tokens as a share of all prompts that count: who refuses what is not cached has reused no more."""
        asked = self.prompt_tokens_asked or self.prompt_tokens
        if self.cached_token_share is None:
            return None
        return self.cached_token_share * self.prompt_tokens / asked if asked else 0.0

    def plain(self) -> dict[str, Any]:
        """Plain values for JSON, in one order."""
        out: dict[str, Any] = msgspec.to_builtins(self)
        return out


class Life:
    """What the log says of one request. `over_ns` is when it ended, or was last rejected; 0 = not yet."""

    __slots__ = (
        "admitted",
        "admitted_ns",
        "arrived",
        "arrived_ns",
        "ended",
        "finished",
        "first_ns",
        "over_ns",
        "retried",
    )

    def __init__(self, arrived: RequestArrived, arrived_ns: int) -> None:
        self.arrived, self.arrived_ns = arrived, arrived_ns
        self.admitted: RequestAdmitted | None = None
        self.finished: RequestFinished | None = None
        self.admitted_ns = self.over_ns = 0
        self.first_ns: int | None = None
        self.ended = ""
        self.retried = False

    def ttft_ns(self) -> int | None:
        return self.finished.ttft_ns if self.finished is not None else None

    def met(self) -> bool:
        """Whether its SLO was met."""
        done, arrived = self.finished, self.arrived
        if done is None or done.ttft_ns > arrived.slo_ttft_ns:
            return False
        return not arrived.slo_tpot_ns or done.tpot_ns <= arrived.slo_tpot_ns


class Scorer:
    """Takes records in one by one; `scores` at any time says how things stand. `gauges` are the pool's, in steps of
    `step_ns`; `begun_ns` is the time of the first record (-1 = there is none), and `slice_tokens` what prompts are
    sliced by."""

    def __init__(self, *, step_ns: int = STEP_NS) -> None:
        self.gauges = Gauges(step_ns)
        self._lives: dict[RequestId, Life] = {}
        self._deferrals = self.slice_tokens = 0
        self._would: dict[str, int] = {}
        self.begun_ns = -1

    @property
    def lives(self) -> list[Life]:
        """All requests, in the order in which they arrived."""
        return list(self._lives.values())

    def take(self, recorded: Recorded) -> None:
        """Take one record in, in log order."""
        if self.begun_ns < 0:
            self.begun_ns = recorded.ts_ns
        match recorded.event:
            case RequestArrived() as event:
                self._arrived(event, recorded.ts_ns)
            case RequestAdmitted() | FirstTokenSeen() | RequestFinished() as event:
                self._served(event, recorded.ts_ns)
            case RequestRejected() | RequestAborted() as event:
                self._end(event.request_id, event.reason.value, recorded.ts_ns)
            case RequestExpired() as event:
                self._end(event.request_id, EXPIRED, recorded.ts_ns)
            case HolderLost() as event:
                for request_id in event.requests:
                    self._end(request_id, HOLDER_LOST, recorded.ts_ns)
            case RequestDeferred():
                self._deferrals += 1
            case event:
                self.gauges.take(event, recorded.ts_ns)

    def _arrived(self, event: RequestArrived, ts_ns: int) -> None:
        known = self._lives.get(event.request_id)
        if known is None:
            self._lives[event.request_id] = Life(event, ts_ns)
            if event.slices:
                self.slice_tokens = event.slice_tokens
        elif event.attempt:
            known.retried, known.ended, known.arrived, known.over_ns = True, "", event, 0

    def _served(self, event: RequestAdmitted | FirstTokenSeen | RequestFinished, ts_ns: int) -> None:
        known = self._lives.get(event.request_id)
        match event:
            case RequestAdmitted():
                if known is not None:
                    known.admitted, known.admitted_ns = event, ts_ns
                if event.would is not None and event.would is not Would.ADMIT:
                    self._would[event.would.value] = self._would.get(event.would.value, 0) + 1
            case FirstTokenSeen():
                if known is not None:
                    known.first_ns = ts_ns
            case RequestFinished():
                if known is not None:
                    known.finished, known.over_ns = event, ts_ns

    def _end(self, request_id: RequestId, why: str, ts_ns: int) -> None:
        known = self._lives.get(request_id)
        if known is not None and known.finished is None:
            known.ended, known.over_ns = why, ts_ns

    def scores(self, *, unsent: Sequence[Arrival] = (), window_ns: int = 0, start_ns: int = 0) -> Scores:
        """The scores of all that arrived so far, and of those who were to come, and never did."""
        lives = self.lives
        out = Scores(requests=len(lives) + len(unsent), unsent=len(unsent), deferrals=self._deferrals)
        out.would = dict(sorted(self._would.items()))
        if not lives:
            return out
        done = [one.finished for one in lives if one.finished is not None]
        out.finished, out.retried = len(done), sum(one.retried for one in lives)
        out.unfinished = sum(not one.ended and one.finished is None for one in lives)
        out.slo_met = sum(one.met() for one in lives)
        out.slo_met_retried = sum(one.retried and one.met() for one in lives)
        out.slo_attainment = out.slo_met / out.requests
        out.window_ns = window_ns or max(WINDOW_MIN_NS, lives[-1].arrived_ns - lives[0].arrived_ns)
        out.offered_per_s = out.requests * NS_PER_S / out.window_ns
        out.goodput_per_s = out.slo_met * NS_PER_S / out.window_ns
        # Until the last answer: how long a log goes on behind it says nothing of its engines. But while somebody comes,
        # who answers nobody is not the quicker for it.
        answered_ns = max((one.over_ns for one in lives if one.finished is not None), default=0)
        busy_ns = max(WINDOW_MIN_NS, max(answered_ns, lives[-1].arrived_ns) - lives[0].arrived_ns)
        out.output_tokens_per_s = sum(one.output_tokens for one in done) * NS_PER_S / busy_ns
        out.preemptions = max(self.gauges.preemptions, sum(one.preemptions for one in done))
        _count_ends(out, lives)
        _percentiles(out, lives, unsent)
        _parts(out, lives, unsent)
        _errors(out, lives)
        _memory(out, self.gauges, lives, unsent, slice_tokens=self.slice_tokens)
        start_ns = start_ns or (self.begun_ns if window_ns else lives[0].arrived_ns)
        _throughput(out, lives, self.gauges, start_ns=start_ns)
        return out


def score(
    messages: Iterable[Message], *, unsent: Sequence[Arrival] = (), window_ns: int = 0, start_ns: int = 0
) -> Scores:  # fmt: skip
    """The scores of a log. `unsent` were never sent, and are missed; `window_ns` 0 = from the first arrival to the
    last, else the window begins at `start_ns` (0 = with the log)."""
    scorer = Scorer()
    for message in messages:
        for recorded in codec.decode(message.seq, message.subject, message.body):
            scorer.take(recorded)
    return scorer.scores(unsent=unsent, window_ns=window_ns, start_ns=start_ns)


def _count_ends(out: Scores, lives: Sequence[Life]) -> None:
    for one in lives:
        if one.ended:
            where = out.rejected if one.ended.startswith("rejected") else out.aborted
            where[one.ended] = where.get(one.ended, 0) + 1
    out.rejected, out.aborted = dict(sorted(out.rejected.items())), dict(sorted(out.aborted.items()))


def _percentiles(out: Scores, lives: Sequence[Life], unsent: Sequence[Arrival]) -> None:
    llm = [one for one in lives if one.arrived.kind is RequestKind.LLM]
    never = [None for one in unsent if one.kind is RequestKind.LLM]
    ttft = [*(one.ttft_ns() for one in llm), *never]
    # One output token has no time between tokens.
    tpot = [one.finished.tpot_ns if one.finished else None for one in llm
            if one.finished is None or one.finished.output_tokens > 1] + never  # fmt: skip
    out.ttft_p50_ns, out.ttft_p99_ns = percentile(ttft, 50), percentile(ttft, 99)
    out.tpot_p50_ns, out.tpot_p99_ns = percentile(tpot, 50), percentile(tpot, 99)


def _memory(
    out: Scores, gauges: Gauges, lives: Sequence[Life], unsent: Sequence[Arrival], *, slice_tokens: int
) -> None:  # fmt: skip
    """What was reused, and what was moved. Embedding jobs are no prompts that a cache could have had."""
    asked: list[RequestArrived | Arrival] = [*(one.arrived for one in lives), *unsent]
    out.prompt_tokens_asked = sum(one.prompt_tokens for one in asked if one.kind is RequestKind.LLM)
    done = [one.finished for one in lives if one.finished is not None and one.arrived.kind is RequestKind.LLM]
    out.prompt_tokens = sum(one.prompt_tokens for one in done)
    cached = sum(one.cached_tokens for one in done)
    out.cached_token_share = cached / out.prompt_tokens if out.prompt_tokens else 0.0
    hits = gauges.hits()
    slower = {where: hits[where] * slice_tokens for where in (DRAM, SSD, PEER)}
    out.hit_tokens_by_tier = {DEVICE: max(0, cached - sum(slower.values())), **slower}
    out.evictions, out.quota_moves = gauges.evictions, gauges.quota_moves
    out.migrations, out.migrations_failed = gauges.migrations, gauges.migrations_failed
    out.prefetches = gauges.prefetches


def _throughput(out: Scores, lives: Sequence[Life], gauges: Gauges, *, start_ns: int) -> None:
    """What was done in the window, which begins at `start_ns`, how evenly, and on how many devices."""
    end_ns = start_ns + out.window_ns
    amounts = [
        (one.finished.prompt_tokens + one.finished.output_tokens, one.over_ns <= end_ns, one.met())
        for one in lives if one.finished is not None
    ]  # fmt: skip
    out.tokens_per_s = sum(tokens for tokens, within, _ in amounts if within) * NS_PER_S / out.window_ns
    out.slo_tokens = sum(tokens for tokens, _, met in amounts if met)
    out.device_ns = gauges.engines * out.window_ns
    if out.slo_tokens:
        out.device_hours_per_million = out.device_ns / NS_PER_HOUR * MILLION / out.slo_tokens
    seen = [step for step in gauges.between(start_ns, end_ns + gauges.every_ns) if step.engines]
    if seen:
        out.occupancy_mean_ppm = round(sum(step.occupancy_ppm() for step in seen) / len(seen))
        out.occupancy_max_ppm = max(share.used_max for step in seen for share in step.engines.values())
    low, high = (start_ns + out.window_ns * percent // 100 for percent in MIDDLE)
    middle = list(gauges.between(low, high))
    out.throughput_fluctuation = fluctuation([float(step.tokens) for step in middle])
    produced = [float(step.output_tokens) for step in middle]
    out.output_fluctuation = fluctuation(produced)
    out.output_least = min(produced) / fmean(produced) if out.output_fluctuation is not None else None
    out.occupancy_fluctuation = fluctuation([step.occupancy_ppm() for step in middle])


def fluctuation(values: Sequence[float]) -> float | None:
    """Standard deviation / mean; None where there is too little to tell, or nothing at all."""
    if len(values) < STEPS_MIN or not any(values):
        return None
    return pstdev(values) / fmean(values)


def percentile(values: Sequence[int | None], percent: int) -> int | None:
    """The smallest value that `percent` % of the set do not exceed (nearest rank); None counts as infinite."""
    if not values:
        return None
    ranked = sorted(values, key=lambda value: (value is None, value or 0))
    return ranked[max(0, -(-len(ranked) * percent // 100) - 1)]


def prompt_class(prompt_tokens: int) -> str:
    """The class of a prompt's length."""
    return next((name for name, end in PROMPT_CLASSES if prompt_tokens < end), PROMPT_CLASS_LAST)


def _parts(out: Scores, lives: Sequence[Life], unsent: Sequence[Arrival]) -> None:
    """By kind, by tenant, and by prompt length (answers only: an embedding job's length is that of many inputs)."""
    out.prompts = {name: Part() for name in (*(name for name, _ in PROMPT_CLASSES), PROMPT_CLASS_LAST)}
    counted: list[tuple[RequestArrived | Arrival, bool]] = [(one.arrived, one.met()) for one in lives]
    counted += [(one, False) for one in unsent]
    for arrived, met in counted:
        _count(out.kinds.setdefault(arrived.kind.value, Part()), met=met)
        _count(out.tenants.setdefault(arrived.tenant, Part()), met=met)
        if arrived.kind is RequestKind.LLM:
            _count(out.prompts[prompt_class(arrived.prompt_tokens)], met=met)
    out.kinds, out.tenants = dict(sorted(out.kinds.items())), dict(sorted(out.tenants.items()))
    out.fairness_jain = jain([part.slo_attainment for part in out.tenants.values()])


def _count(part: Part, *, met: bool) -> None:
    part.requests += 1
    part.slo_met += met
    part.slo_attainment = part.slo_met / part.requests


def jain(shares: Sequence[float]) -> float:
    """Jain's index: 1 when all have the same, 1/n when one has everything. All zero counts as fair."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0


def _errors(out: Scores, lives: Sequence[Life]) -> None:
    tokens, times = list[tuple[int, int]](), list[tuple[int, int]]()
    for one in lives:
        admitted, finished = one.admitted, one.finished
        if admitted is None or finished is None or one.arrived.kind is not RequestKind.LLM:
            continue
        if finished.kv_cache_tokens:
            tokens.append((admitted.kv_cache_tokens, finished.kv_cache_tokens))
        if admitted.ttft_predicted_ns and one.first_ns is not None:
            times.append((admitted.ttft_predicted_ns, one.first_ns - one.admitted_ns))
    out.kv_tokens_error, out.ttft_error_ns = _error(tokens), _error(times)


def _error(pairs: Sequence[tuple[int, int]]) -> Error:
    """From (predicted, actual) pairs."""
    if not pairs:
        return Error()
    off = [actual - predicted for predicted, actual in pairs]
    sizes = [abs(one) for one in off]
    shares = sorted(size / max(1, actual) for size, (_, actual) in zip(sizes, pairs, strict=True))
    return Error(
        requests=len(pairs),
        bias_p50=percentile(off, 50) or 0,
        error_p50=percentile(sizes, 50) or 0,
        error_p99=percentile(sizes, 99) or 0,
        error_p50_share=shares[max(0, -(-len(shares) * 50 // 100) - 1)],
        error_p99_share=shares[max(0, -(-len(shares) * 99 // 100) - 1)],
    )
