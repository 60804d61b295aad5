"""How good predictors of output length are on a trace: coverage of the upper bound, pinball loss, width.

Requests are asked about in arrival order. Each answer is told when it would have ended, FIRST_TOKEN_NS after its
arrival and TOKEN_NS per token later, so that long answers are learned late, as they are live. The first WARM_UP
requests are not counted.

Pinball loss at the target (0.9): 0.9 per token that an answer is longer than its upper bound, 0.1 per token that it is
shorter, the mean over requests. No constant bound has a lower one than the true quantile (Koenker and Bassett, 1978).
The peer is one decayed quantile for all requests: the same histogram with the same fading, but without keys, without
conversations and without correction.
"""

import heapq
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from events.base import NS_PER_MS, NS_PER_S, PPM
from events.request import RequestArrived
from policies.predictors import length_histogram, output_length
from policies.predictors.base import Interval
from policies.predictors.length_histogram import Lengths
from policies.predictors.output_length import OutputPredictor, Outputs
from replay.traces.azure import read_azure
from replay.traces.mooncake import read_mooncake
from replay.workloads.base import Arrival
from replay.workloads.facts import TRACE_HOLDER, TRACE_START_NS, arrived
from replay.workloads.mixed import engines

TARGET_PPM = 900_000
FIRST_TOKEN_NS = NS_PER_S
TOKEN_NS = 30 * NS_PER_MS
TOKENS_DEFAULT = 512
WARM_UP = 500
WINDOW = 1_000
COVERAGE_MIN_PPM, COVERAGE_MAX_PPM = 840_000, 950_000
"""Goal: in each window the upper bound holds for so many."""
GAIN_PPM = 30_000
"""Goal: on one trace the loss is so much below the peer's; on none above it."""
PEER = "one_global_quantile"
PREDICTORS = (OutputPredictor.QUANTILE, OutputPredictor.MOVING_AVERAGE, OutputPredictor.CONSTANT)

OnProgress = Callable[[int], None]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One predictor on one trace. Coverages are of the upper bound, `loss_millitokens` is the mean pinball loss per
    request, `loss_to_peer_ppm` what it is of the peer's; `width_median` of the interval, and `tokens_max` the longest
    answer of the trace."""

    trace: str
    predictor: str
    requests: int
    coverage_ppm: int
    windows_ppm: list[int]
    loss_millitokens: int
    loss_to_peer_ppm: int
    width_median: int
    tokens_max: int

    @property
    def covers(self) -> bool:
        """Whether the coverage is within the goal in each window."""
        return all(COVERAGE_MIN_PPM <= ppm <= COVERAGE_MAX_PPM for ppm in self.windows_ppm)


class Tested(NamedTuple):
    """A predictor under test: `ask` and `tell`, in whatever state it keeps."""

    ask: Callable[[RequestArrived], tuple[Interval, Any]]
    tell: Callable[[RequestArrived, Any, int], None]


def read_trace(path: Path) -> list[Arrival]:
    """A trace by its file name: .csv is Azure's, all else Mooncake's. Raises TraceError."""
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    return read_azure(path) if suffixes[-1:] == [".csv"] else read_mooncake(path)


def name_of(path: Path) -> str:
    """The file's name without its suffixes."""
    return path.name.removesuffix(".gz").removesuffix(".csv").removesuffix(".jsonl")


def measure(name: str, arrivals: Sequence[Arrival], *, on_progress: OnProgress = lambda _done: None) -> list[Row]:
    """The default, the other kinds and the peer on one trace; the peer last."""
    engine = engines()[0]
    asked = [
        (one, arrived(one, engine, holder=TRACE_HOLDER, now_ns=TRACE_START_NS + one.at_ns))
        for one in sorted(arrivals, key=lambda one: one.at_ns)
    ]
    tested = {PEER: _peer(), **{kind.value: _kind(kind) for kind in PREDICTORS}}
    told: dict[str, list[tuple[Interval, int]]] = {}
    for number, (predictor, one) in enumerate(tested.items()):
        told[predictor] = _play(asked, one, after(number * len(asked), on_progress))
    peer_loss = max(_loss_millitokens(told[PEER]), 1)
    return [_row(name, predictor, told[predictor], peer_loss) for predictor in [*list(tested)[1:], PEER]]


def after(done_before: int, on_progress: OnProgress) -> OnProgress:
    """The same progress for what comes after so much was done."""
    return lambda done: on_progress(done_before + done)


def steps_of(arrivals: Sequence[Arrival]) -> int:
    """How much `measure` reports as done when it is done."""
    return (len(PREDICTORS) + 1) * len(arrivals)


def gained(rows: Sequence[Row]) -> bool:
    """Whether the default's loss is nowhere above the peer's, and on one trace well below it."""
    ours = [row.loss_to_peer_ppm for row in rows if row.predictor == OutputPredictor.QUANTILE]
    return bool(ours) and max(ours) <= PPM and min(ours) <= PPM - GAIN_PPM


def _play(
    asked: Sequence[tuple[Arrival, RequestArrived]], tested: Tested, on_progress: OnProgress
) -> list[tuple[Interval, int]]:
    """What was said and what was true, in arrival order, without the warm-up."""
    running: list[tuple[int, int, Any]] = []
    said: list[tuple[Interval, int]] = []
    for number, (arrival, request) in enumerate(asked):
        while running and running[0][0] <= arrival.at_ns:
            _, ended, kept = heapq.heappop(running)
            tested.tell(asked[ended][1], kept, asked[ended][0].output_tokens)
        interval, kept = tested.ask(request)
        heapq.heappush(running, (arrival.at_ns + FIRST_TOKEN_NS + arrival.output_tokens * TOKEN_NS, number, kept))
        if number >= WARM_UP:
            said.append((interval, arrival.output_tokens))
        if number % WINDOW == 0:
            on_progress(number)
    on_progress(len(asked))
    return said


def _kind(kind: OutputPredictor) -> Tested:
    outputs = Outputs()

    def ask(request: RequestArrived) -> tuple[Interval, Any]:
        foretold = output_length.foretell(
            outputs, request, kind=kind, target_ppm=TARGET_PPM, tokens_default=TOKENS_DEFAULT
        )
        return foretold.interval, foretold

    return Tested(ask, lambda request, foretold, tokens: output_length.ended(outputs, request, foretold, tokens))


def _peer() -> Tested:
    lengths = Lengths()

    def ask(_request: RequestArrived) -> tuple[Interval, Any]:
        if not lengths.total:
            return Interval(1, TOKENS_DEFAULT // 2, TOKENS_DEFAULT), None
        low, expected, high = (
            length_histogram.quantile(lengths, ppm) for ppm in (PPM - TARGET_PPM, PPM // 2, TARGET_PPM)
        )
        return Interval(low, expected, high), None

    return Tested(ask, lambda _request, _kept, tokens: length_histogram.add(lengths, tokens, None))


def _row(trace: str, predictor: str, said: list[tuple[Interval, int]], peer_loss: int) -> Row:
    within = [tokens <= interval.high for interval, tokens in said]
    starts = range(0, max(len(within) - WINDOW, 0) + 1, WINDOW)
    widths = sorted(interval.high - interval.low for interval, _ in said)
    loss = _loss_millitokens(said)
    return Row(
        trace=trace,
        predictor=predictor,
        requests=len(said),
        coverage_ppm=_part_ppm(within),
        windows_ppm=[_part_ppm(within[start : start + WINDOW]) for start in starts],
        loss_millitokens=loss,
        loss_to_peer_ppm=loss * PPM // peer_loss,
        width_median=widths[len(widths) // 2] if widths else 0,
        tokens_max=max((tokens for _, tokens in said), default=0),
    )


def _part_ppm(within: Sequence[bool]) -> int:
    return sum(within) * PPM // max(len(within), 1)


def _loss_millitokens(said: Sequence[tuple[Interval, int]]) -> int:
    ppm = 0
    for interval, tokens in said:
        over = tokens - interval.high
        ppm += over * TARGET_PPM if over > 0 else -over * (PPM - TARGET_PPM)
    return ppm // 1_000 // max(len(said), 1)
