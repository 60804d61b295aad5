"""What a running request of a vLLM engine stands to lose: Algorithm 3's view of it.

Times are of this machine's monotonic clock. A request without hints has no deadline that anybody knows, so it is taken
for unhurried: it gives way before those that would be late, and among its like the cheapest goes first.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from events.base import RequestId
from events.slice import TierMeasured
from policies.memory.delegate import FETCH_MARGIN_PPM
from policies.memory.gate import fetch_ns, worth_fetching
from policies.memory.victims import Running
from services.vllm_plugin.hints import NO_HINTS, Hints

UNHURRIED_NS: Final = 3_600_000_000_000
"""The slack of a request of which nobody knows a deadline or a pace."""


class Seen(msgspec.Struct):
    """What is known of a request beside what vLLM knows: its name in the log, its hints, when the first token is due
    (0 = nobody knows), and when it came (0 = not yet). It was the `entered`-th that got its first blocks, the last time
    that it got any."""

    name: RequestId
    hints: Hints = NO_HINTS
    due_ns: int = 0
    first_ns: int = 0
    entered: int = 0

    @property
    def hinted(self) -> bool:
        """Whether it has a deadline."""
        return self.due_ns > 0


class Holds(NamedTuple):
    """What a request holds: `blocks` in all, the first `shared` of them with others; `stored` of its slices from the
    first are in DRAM."""

    blocks: int
    shared: int
    stored: int


class Rates(NamedTuple):
    """How fast the engine is now: a step, the prompt tokens of a second as time per token, and the link to DRAM."""

    step_ns: int
    token_ns: int
    block_tokens: int
    slice_tokens: int
    dram: TierMeasured | None


def slack_ns(seen: Seen, tokens: int, *, now_ns: int, step_ns: int) -> int:
    """How much longer a request with `tokens` of its answer could take and still be on time: to its first token while
    that is to come, then to the mean time per output token of its whole answer."""
    if not tokens:
        return seen.due_ns - now_ns if seen.hinted else UNHURRIED_NS
    hints = seen.hints
    if not hints.slo_tpot_ns or not seen.first_ns:
        return UNHURRIED_NS
    to_come = max(0, hints.output_expected - tokens)
    return hints.slo_tpot_ns * (tokens + to_come - 1) - (now_ns - seen.first_ns) - to_come * step_ns


def lost_ns(computed: int, holds: Holds, rates: Rates) -> int:
    """What it takes to have `computed` tokens again: computing them, or loading the slices that are in DRAM and
    computing the rest, where the gate says so. What others hold too stays in the device's cache."""
    kept = holds.shared * rates.block_tokens
    again_ns = max(0, computed - kept) * rates.token_ns
    behind = kept // rates.slice_tokens
    if rates.dram is None or holds.stored <= behind:
        return again_ns
    loaded = holds.stored * rates.slice_tokens
    load_ns = fetch_ns(
        (holds.stored - behind) * rates.dram.slice_bytes, rates.dram.read_queue_bytes, rates.dram.read_bytes_per_s
    )
    if not worth_fetching(load_ns, (loaded - kept) * rates.token_ns, margin_ppm=FETCH_MARGIN_PPM):
        return again_ns
    return load_ns + max(0, computed - loaded) * rates.token_ns


def weigh(request: Any, seen: Seen, holds: Holds, rates: Rates, *, now_ns: int, spares: int = 0) -> Running:
    """A running request of vLLM as the rule for victims sees it. `spares` blocks are what it asks for now itself: they
    are free, too, when it is the one that gives way."""
    tokens = request.num_output_tokens
    return Running(
        request_id=seen.name, tenant=seen.hints.tenant, priority=seen.hints.priority,
        slack_ns=slack_ns(seen, tokens, now_ns=now_ns, step_ns=rates.step_ns), tokens_done=tokens,
        tokens_expected=seen.hints.output_expected, blocks_freed=holds.blocks - holds.shared + spares,
        lost_ns=lost_ns(request.num_computed_tokens, holds, rates), first_token=tokens > 0,
        preempted=request.num_preemptions,
    )  # fmt: skip


def by_slack(waiting: Sequence[Any], slacks: Sequence[int | None]) -> list[Any]:
    """Those that wait, the least slack first; who has none that is known (None) keeps its place."""
    places = [place for place, slack in enumerate(slacks) if slack is not None]
    hurried = sorted(places, key=lambda place: (slacks[place], place))
    ordered = list(waiting)
    for place, taken_from in zip(places, hurried, strict=True):
        ordered[place] = waiting[taken_from]
    return ordered
