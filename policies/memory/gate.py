"""Fetch or recompute: whether bringing KV up from a slower tier is quicker than computing it again.

In plain words: fetching takes what stands in the link's queue now, and the bytes, at the speed last measured, and the
link's latency once. It is worth it where that, and a margin on top (what was measured is already past), takes less than
the prefill of the same tokens. A load can cost more than it saves: TTFT 2,450 ms on a file hit against 1,725 ms
recomputed was measured by others; above 3 to 5 GB/s a load wins for models of 8B to 70B parameters.

A run of slices is judged as a whole. Each costs the same to fetch, and each costs more to compute than the one before
it (attention to all before), so of the first k of n slices the best k is always 0 or n.

Tidegate decides it here only: orders of migration and prefetch, admission's forecast, and choices within an engine.

Example: 32 slices of 32 MiB over a link of 5 GB/s with 512 MiB waiting: 0.32 s. Their prefill takes 0.4 s: fetched,
with a margin of 20 % too; behind 2 GiB it would take 0.64 s, and they are computed.
"""

from events.base import NS_PER_S, PPM

MARGIN_PPM = 200_000
"""By how much a fetch has to be quicker where nobody set another margin: links get slower while they are used."""
ASSUMED_BYTES_PER_S = 1_000_000_000
"""The speed of a link that was not measured yet: slow enough that a large load must prove itself on a small one."""


def fetch_ns(bytes_: int, queue_bytes: int, bytes_per_s: int, latency_ns: int = 0) -> int:
    """How long fetching `bytes_` takes behind `queue_bytes` on a link of `bytes_per_s` (0 = not measured yet), rounded
    up. Nothing to fetch takes no time."""
    assert bytes_ >= 0 and queue_bytes >= 0 and bytes_per_s >= 0 and latency_ns >= 0, "amounts are not negative"  # noqa: PT018
    if not bytes_:
        return 0
    speed = bytes_per_s or ASSUMED_BYTES_PER_S
    return latency_ns - (-(bytes_ + queue_bytes) * NS_PER_S // speed)


def worth_fetching(fetch_ns: int, recompute_ns: int, *, margin_ppm: int) -> bool:
    """Whether fetching is quicker by the margin: `margin_ppm` of the fetch on top of it may still not exceed the
    recompute. What costs nothing to compute is not fetched."""
    return recompute_ns > 0 and fetch_ns * (PPM + margin_ppm) <= recompute_ns * PPM
