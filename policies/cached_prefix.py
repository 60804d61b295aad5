"""What of a prompt an engine that reports its slices need not compute, and how long it takes to bring that up.

The leading run in HBM (what runs there now counted as there) costs nothing; the run behind it, in DRAM or SSD, is
loaded where that is quicker than computing (`policies.memory.gate`), all of it or its part before the first slice that
is in SSD alone, whichever saves more. Of engines that do not report, what was sent there is taken to be there
(`policies.prefix_index`).

Example: 4 slices in HBM, 8 in DRAM, 8 in SSD. Loading 8 takes 20 ms and saves 80 ms; loading 16 takes 150 ms and saves
200 ms: 12 slices are cached after 20 ms, for 60 ms are saved so and 50 ms otherwise.
"""

from typing import NamedTuple

from events.base import PPM
from events.request import RequestArrived
from policies import tier_index
from policies.accounts import Account
from policies.memory.gate import MARGIN_PPM, worth_fetching
from policies.predictors.ttft import NOMINAL, SAMPLES_MIN, prefill_pairs, work_ns


class Cached(NamedTuple):
    """So many tokens are not computed, and are there after `load_ns`."""

    tokens: int
    load_ns: int


def reported(account: Account, request: RequestArrived) -> Cached:
    """What an engine that reports its slices has of this prompt; the last token is always computed."""
    slices, load_ns = _reported(account, request) if request.slices else (0, 0)
    return Cached(min(slices * request.slice_tokens, request.prompt_tokens - 1), load_ns)


def _reported(account: Account, request: RequestArrived) -> tuple[int, int]:
    """How many leading slices are not computed, and how long they take to load."""
    there = tier_index.leading(account.tiers, request.slices, account.shared.held)
    if not there.dram and not there.ssd:
        return there.hbm, 0
    most = there.dram + there.ssd
    whole_ns = tier_index.load_ns(account.tiers, dram=there.dram, ssd=there.ssd)
    saved_ns = _saved_ns(account, request, first=there.hbm, slices=most, load_ns=whole_ns)
    if there.near in (0, most):
        return (there.hbm + most, whole_ns) if saved_ns > 0 else (there.hbm, 0)
    near_ns = tier_index.load_ns(account.tiers, dram=there.near, ssd=0)
    near_saved_ns = _saved_ns(account, request, first=there.hbm, slices=there.near, load_ns=near_ns)
    if max(saved_ns, near_saved_ns) <= 0:
        return there.hbm, 0
    return (there.hbm + most, whole_ns) if saved_ns >= near_saved_ns else (there.hbm + there.near, near_ns)


def _saved_ns(account: Account, request: RequestArrived, *, first: int, slices: int, load_ns: int) -> int:
    """What loading these slices instead of computing them saves; 0 where it is not worth it. Where nobody knows what
    computing takes there, engines load what they have."""
    if account.step is None and account.correction.samples < SAMPLES_MIN:
        return 1
    size = request.slice_tokens
    raw_ns = work_ns(
        account.step or NOMINAL, tokens=slices * size,
        pairs=prefill_pairs(prompt=(first + slices) * size, cached=first * size), batch_tokens=account.batch_tokens,
        context=0, seqs=0,
    )  # fmt: skip
    compute_ns = raw_ns * account.correction.ratio_ppm // PPM
    return compute_ns - load_ns if worth_fetching(load_ns, compute_ns, margin_ppm=MARGIN_PPM) else 0
