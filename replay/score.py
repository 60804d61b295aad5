"""One scorer for every log: live, replayed or simulated.

SLO met = TTFT and mean TPOT within what the request arrived with; for an embedding, the vectors within the TTFT
limit. Every request that arrived in the window counts: rejected, expired, aborted and unfinished ones are missed, and
their TTFT and TPOT are infinite in the percentiles (None). A request that was offered again (attempt 1) is one
request. Goodput = SLO-met requests per second of the window, which is the time in which requests arrive.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from events import codec
from events.base import NS_PER_S, EngineId, Event, Recorded, RequestId, RequestKind
from events.decisions import HolderLost, RequestAdmitted, RequestDeferred, RequestRejected, Would
from events.engine import EngineMeasured
from events.log.base import Message
from events.request import FirstTokenSeen, RequestAborted, RequestArrived, RequestExpired, RequestFinished
from replay.workloads.base import Arrival

WINDOW_MIN_NS = NS_PER_S
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
    """What a run was worth. Times in ns; None = infinite (or nothing to measure). See the module for the words."""

    requests: int = 0
    finished: int = 0
    unfinished: int = 0
    unsent: int = 0
    slo_met: int = 0
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
    cached_token_share: float = 0.0
    kinds: dict[str, Part] = msgspec.field(default_factory=dict)
    tenants: dict[str, Part] = msgspec.field(default_factory=dict)
    prompts: dict[str, Part] = msgspec.field(default_factory=dict)
    fairness_jain: float = 1.0
    kv_tokens_error: Error = msgspec.field(default_factory=Error)
    ttft_error_ns: Error = msgspec.field(default_factory=Error)
    prompt_tokens: int = 0
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
    occupancy_fluctuation: float | None = None
    occupancy_mean_ppm: int = 0
    occupancy_max_ppm: int = 0

    def plain(self) -> dict[str, Any]:
        """Plain values for JSON, in one order."""
        out: dict[str, Any] = msgspec.to_builtins(self)
        return out


class _Request:
    """What the log says of one request."""

    __slots__ = ("admitted", "admitted_ns", "arrived", "arrived_ns", "ended", "finished", "first_ns", "retried")

    def __init__(self, arrived: RequestArrived, arrived_ns: int) -> None:
        self.arrived, self.arrived_ns = arrived, arrived_ns
        self.admitted: RequestAdmitted | None = None
        self.finished: RequestFinished | None = None
        self.admitted_ns = 0
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
    """Takes records in one by one; `scores` at any time says how things stand."""

    def __init__(self) -> None:
        self._requests: dict[RequestId, _Request] = {}
        self._preempted: dict[EngineId, tuple[int, int]] = {}
        self._deferrals = 0
        self._would: dict[str, int] = {}
        self._now_ns = 0

    def take(self, recorded: Recorded) -> None:
        """Take one record in, in log order."""
        self._now_ns = max(self._now_ns, recorded.ts_ns)
        match recorded.event:
            case RequestArrived() as event:
                self._arrived(event, recorded.ts_ns)
            case EngineMeasured() as event:
                total, last = self._preempted.get(event.engine_id, (0, 0))
                grown = event.preemptions_total - last
                # A total that went back counts from an engine that started anew.
                total += grown if grown >= 0 else event.preemptions_total
                self._preempted[event.engine_id] = (total, event.preemptions_total)
            case HolderLost() as event:
                for request_id in event.requests:
                    self._end(request_id, HOLDER_LOST)
            case RequestDeferred():
                self._deferrals += 1
            case event:
                self._of_request(event, recorded.ts_ns)

    def _arrived(self, event: RequestArrived, ts_ns: int) -> None:
        known = self._requests.get(event.request_id)
        if known is None:
            self._requests[event.request_id] = _Request(event, ts_ns)
        elif event.attempt:
            known.retried, known.ended, known.arrived = True, "", event

    def _of_request(self, event: Event, ts_ns: int) -> None:
        match event:
            case RequestAdmitted():
                known = self._requests.get(event.request_id)
                if known is not None:
                    known.admitted, known.admitted_ns = event, ts_ns
                if event.would is not None and event.would is not Would.ADMIT:
                    self._would[event.would.value] = self._would.get(event.would.value, 0) + 1
            case FirstTokenSeen():
                known = self._requests.get(event.request_id)
                if known is not None:
                    known.first_ns = ts_ns
            case RequestFinished():
                known = self._requests.get(event.request_id)
                if known is not None:
                    known.finished = event
            case RequestRejected() | RequestAborted():
                self._end(event.request_id, event.reason.value)
            case RequestExpired():
                self._end(event.request_id, EXPIRED)
            case _:
                pass

    def _end(self, request_id: RequestId, why: str) -> None:
        known = self._requests.get(request_id)
        if known is not None and known.finished is None:
            known.ended = why

    def scores(self, *, unsent: Sequence[Arrival] = (), window_ns: int = 0) -> Scores:
        """The scores of all that arrived so far, and of those who were to come, and never did."""
        requests = list(self._requests.values())
        out = Scores(requests=len(requests) + len(unsent), deferrals=self._deferrals)
        out.unsent, out.would = len(unsent), dict(sorted(self._would.items()))
        if not requests:
            return out
        done = [one.finished for one in requests if one.finished is not None]
        out.finished, out.retried = len(done), sum(one.retried for one in requests)
        out.unfinished = sum(not one.ended and one.finished is None for one in requests)
        out.slo_met = sum(one.met() for one in requests)
        out.slo_attainment = out.slo_met / out.requests
        out.window_ns = window_ns or max(WINDOW_MIN_NS, requests[-1].arrived_ns - requests[0].arrived_ns)
        out.offered_per_s = out.requests * NS_PER_S / out.window_ns
        out.goodput_per_s = out.slo_met * NS_PER_S / out.window_ns
        busy_ns = max(WINDOW_MIN_NS, self._now_ns - requests[0].arrived_ns)
        out.output_tokens_per_s = sum(one.output_tokens for one in done) * NS_PER_S / busy_ns
        measured = sum(total for total, _ in self._preempted.values())
        out.preemptions = max(measured, sum(one.preemptions for one in done))
        prompt_tokens = sum(one.prompt_tokens for one in done)
        out.cached_token_share = sum(one.cached_tokens for one in done) / prompt_tokens if prompt_tokens else 0.0
        _count_ends(out, requests)
        _percentiles(out, requests, unsent)
        _parts(out, requests, unsent)
        _errors(out, requests)
        return out


def score(messages: Iterable[Message], *, unsent: Sequence[Arrival] = (), window_ns: int = 0) -> Scores:
    """The scores of a log from its first message on. `unsent` were never sent, and are missed; `window_ns` 0 = from the
    first arrival to the last."""
    scorer = Scorer()
    for message in messages:
        for recorded in codec.decode(message.seq, message.subject, message.body):
            scorer.take(recorded)
    return scorer.scores(unsent=unsent, window_ns=window_ns)


def _count_ends(out: Scores, requests: Sequence[_Request]) -> None:
    for one in requests:
        if one.ended:
            where = out.rejected if one.ended.startswith("rejected") else out.aborted
            where[one.ended] = where.get(one.ended, 0) + 1
    out.rejected, out.aborted = dict(sorted(out.rejected.items())), dict(sorted(out.aborted.items()))


def _percentiles(out: Scores, requests: Sequence[_Request], unsent: Sequence[Arrival]) -> None:
    llm = [one for one in requests if one.arrived.kind is RequestKind.LLM]
    never = [None for one in unsent if one.kind is RequestKind.LLM]
    ttft = [*(one.ttft_ns() for one in llm), *never]
    # One output token has no time between tokens.
    tpot = [one.finished.tpot_ns if one.finished else None for one in llm
            if one.finished is None or one.finished.output_tokens > 1] + never  # fmt: skip
    out.ttft_p50_ns, out.ttft_p99_ns = percentile(ttft, 50), percentile(ttft, 99)
    out.tpot_p50_ns, out.tpot_p99_ns = percentile(tpot, 50), percentile(tpot, 99)


def percentile(values: Sequence[int | None], percent: int) -> int | None:
    """The smallest value that `percent` % of the set do not exceed (nearest rank); None counts as infinite."""
    if not values:
        return None
    ranked = sorted(values, key=lambda value: (value is None, value or 0))
    return ranked[max(0, -(-len(ranked) * percent // 100) - 1)]


def prompt_class(prompt_tokens: int) -> str:
    """The class of a prompt's length."""
    return next((name for name, end in PROMPT_CLASSES if prompt_tokens < end), PROMPT_CLASS_LAST)


def _parts(out: Scores, requests: Sequence[_Request], unsent: Sequence[Arrival]) -> None:
    """By kind, by tenant, and by prompt length (answers only: an embedding job's length is that of many inputs)."""
    out.prompts = {name: Part() for name in (*(name for name, _ in PROMPT_CLASSES), PROMPT_CLASS_LAST)}
    counted: list[tuple[RequestArrived | Arrival, bool]] = [(one.arrived, one.met()) for one in requests]
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


def _errors(out: Scores, requests: Sequence[_Request]) -> None:
    tokens, times = list[tuple[int, int]](), list[tuple[int, int]]()
    for one in requests:
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
