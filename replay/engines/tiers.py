"""The slower tiers of a simulated engine, DRAM and SSD, and the links between them and device memory.

Modelled on vLLM's tiered offloading: whole slices; what is computed is written through to DRAM, and from there to SSD;
a load from SSD goes by way of DRAM, and stays there. A tier is written when the link has taken all bytes: there is no
half slice. The link to DRAM works in both directions at once, so does the SSD, at different speeds.

Lazy tiers are not written through: a slice goes to DRAM when device memory is about to evict it, and leaves DRAM when
it is brought back, so that the two hold different slices. (`lazy_offload` of vLLM's SimpleCPUOffloadConnector; making
storage exclusive by demotion, Wong and Wilkes, USENIX ATC 2002.) vLLM copies what is next in line to be evicted some
steps ahead; here the copy begins with the eviction and the block is free at once, which is as good as far ahead enough.

A transfer that fails is sent again at once, TRIES_MAX times in all. What would stand in a queue for longer than
STORE_WAIT_NS is not stored at all: a link that is slower than the engine computes holds nothing up.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import msgspec

from events.base import NS_PER_S
from events.slice import Tier, TierMeasured
from policies.predictors.step_time import FS_PER_NS
from replay.engines.links import FAILED, Link, Links, Transfer
from replay.engines.tier_cache import Own, SliceAt, TierCache
from replay.faults import Fate

TRIES_MAX: Final = 3
DRAM_BYTES_PER_S: Final = 50_000_000_000
STORE_WAIT_NS: Final = NS_PER_S
NOT_HELD = "not_held"
ORDER: Final = (Tier.HBM, Tier.DRAM, Tier.SSD)
"""Tiers, the fastest first."""


class TierSizes(msgspec.Struct, frozen=True, kw_only=True):
    """What stands behind the device memory of a simulated engine, in bytes and bytes per second. Without DRAM there is
    nothing; SSD 0 = none. The link to DRAM has its speed in each direction; `peer` is to other engines. `eviction`
    "lru" or "arc": the tiers evict by that rule of their own, as vLLM's CPU offloading does; "" = by the directive.
    `lazy`: slices are stored when device memory evicts them, not when they are computed.

    Speeds are those of one H100 server: PCIe 5 x16 as copies from pinned memory reach it, one PCIe 4 NVMe drive as
    data sheets give it, and 100 GbE.
    """

    dram_bytes: int
    ssd_bytes: int = 0
    dram_bytes_per_s: int = DRAM_BYTES_PER_S
    ssd_read_bytes_per_s: int = 6_800_000_000
    ssd_write_bytes_per_s: int = 4_000_000_000
    peer_bytes_per_s: int = 12_000_000_000
    eviction: str = ""
    lazy: bool = False


def sizes_of(measured: Iterable[TierMeasured]) -> TierSizes | None:
    """The tiers that an engine reported, each once; None where it has no DRAM."""
    by_tier = {fact.tier: fact for fact in measured}
    dram, ssd = by_tier.get(Tier.DRAM), by_tier.get(Tier.SSD)
    if dram is None or not dram.bytes_max:
        return None
    sizes = TierSizes(
        dram_bytes=dram.bytes_max, dram_bytes_per_s=dram.read_bytes_per_s or DRAM_BYTES_PER_S, lazy=dram.lazy
    )
    if ssd is None or not ssd.bytes_max:
        return sizes
    return msgspec.structs.replace(
        sizes, ssd_bytes=ssd.bytes_max, ssd_read_bytes_per_s=ssd.read_bytes_per_s or sizes.ssd_read_bytes_per_s,
        ssd_write_bytes_per_s=ssd.write_bytes_per_s or sizes.ssd_write_bytes_per_s,
    )  # fmt: skip


Then = Callable[[str, int], None]
"""Hears why a slice is not there ("" = it is), and how often that was tried."""


class Wish(NamedTuple):
    """Somebody who waits for a slice to be in a tier."""

    is_wanted: Callable[[], bool]
    then: Then


class _Coming:
    """A slice on its way into a tier, and all who wait for it there."""

    __slots__ = ("at", "begun", "link", "transfer", "tries", "wishes")

    def __init__(self, at: SliceAt, link: Link, wish: Wish) -> None:
        self.at, self.link, self.wishes = at, link, [wish]
        self.tries, self.begun = 0, False
        self.transfer: Transfer | None = None

    def is_wanted(self) -> bool:
        return any(wish.is_wanted() for wish in self.wishes)


class Tiers:
    """See the module. `down` and `up` lie between device memory and DRAM."""

    def __init__(
        self, sizes: TierSizes, *, cost_ns: Callable[[int, int], int], now_fs: int, fates: Iterator[Fate] | None,
        ssd: TierCache | None,
    ) -> None:  # fmt: skip
        own = Own(sizes.eviction)
        self.dram = TierCache(Tier.DRAM, sizes.dram_bytes, cost_ns, own)
        self.ssd: TierCache | None = None
        if sizes.ssd_bytes:
            self.ssd = ssd.restarted() if ssd is not None else TierCache(Tier.SSD, sizes.ssd_bytes, cost_ns, own)
        self._by_tier = {cache.tier: cache for cache in self.caches()}
        self.links = Links(now_fs=now_fs, fates=fates)
        self.down, self.up = Link(sizes.dram_bytes_per_s), Link(sizes.dram_bytes_per_s)
        self.ssd_write, self.ssd_read = Link(sizes.ssd_write_bytes_per_s), Link(sizes.ssd_read_bytes_per_s)
        self.peer = Link(sizes.peer_bytes_per_s)
        self._coming: dict[tuple[Tier, Hashable], _Coming] = {}

    @property
    def now_ns(self) -> int:
        """The nanosecond that has begun."""
        return self.links.now_fs // FS_PER_NS

    def caches(self) -> list[TierCache]:
        """Those that are there, the faster first."""
        return [self.dram, self.ssd] if self.ssd is not None else [self.dram]

    def cache(self, tier: Tier) -> TierCache | None:
        """What holds the slices of that tier; None for device memory, and where there is none."""
        return self._by_tier.get(tier)

    def link(self, source: Tier, target: Tier) -> Link:
        """The link between two tiers next to each other."""
        if Tier.SSD in (source, target):
            return self.ssd_write if target is Tier.SSD else self.ssd_read
        return self.up if target is Tier.HBM else self.down

    def is_coming(self, key: Hashable, tier: Tier) -> bool:
        """Whether a slice is on its way into that tier."""
        return (tier, key) in self._coming

    # Coming down.

    def keep(self, at: SliceAt) -> None:
        """A slice is in device memory: see to it that it is in DRAM too, and in SSD."""
        if at.key in self.dram or (Tier.DRAM, at.key) in self._coming or _is_full(self.down):
            return
        self.move(at, Tier.HBM, Tier.DRAM, urgent=False, wish=_ALWAYS)

    def _to_ssd(self, at: SliceAt) -> None:
        if self.ssd is not None and at.key not in self.ssd and not _is_full(self.ssd_write):
            self.move(at, Tier.DRAM, Tier.SSD, urgent=False, wish=_ALWAYS)

    # One slice from tier to tier.

    def move(self, at: SliceAt, source: Tier, target: Tier, *, urgent: bool, wish: Wish) -> None:
        """Copy a slice to the tier next to it, DRAM or SSD; `wish.then` hears once what came of it. One that is on its
        way there already is waited for."""
        cache = self.cache(target)
        assert cache is not None, "who asks knows which tiers there are"
        if at.key in cache:
            wish.then("", 0)
            return
        coming = self._coming.get((target, at.key))
        if coming is None:
            coming = self._coming[target, at.key] = _Coming(at, self.link(source, target), wish)
            self._send(coming, source, cache, urgent=urgent)
            return
        coming.wishes.append(wish)
        if urgent and coming.transfer is not None:
            coming.link.hurry(coming.transfer)  # Which may come from the other side.

    def bytes_before(self, slices: Sequence[SliceAt]) -> int:
        """Bytes that go before these slices on their way up from SSD if a request waits for them. What of them is on
        its way already (prefetch began it, or another request waits for it) does not stand before them."""
        coming = (self._coming.get((Tier.DRAM, at.key)) for at in slices)
        ours = sum(one.at.bytes for one in coming if one is not None and self.ssd_read.goes_first(one.transfer))
        return self.ssd_read.bytes_before(urgent=True) - ours

    def _send(self, coming: _Coming, source: Tier, target: TierCache, *, urgent: bool) -> None:
        at, held = coming.at, self.cache(source)

        def begin() -> str:
            if held is not None and at.key not in held:
                return NOT_HELD
            why = target.reserve(at)
            coming.begun = not why
            if held is not None and coming.begun:
                held.hold(at.key)
            return why

        def end(why: str) -> None:
            coming.tries += 1
            if coming.begun:
                target.settle(at, self.now_ns, arrived=not why)
                if held is not None:
                    held.release(at.key)
            if why == FAILED and coming.tries < TRIES_MAX:
                self._send(coming, source, target, urgent=urgent)
                return
            del self._coming[target.tier, at.key]
            coming.transfer = None  # They know each other, and would stay until cycles are looked for.
            if not why and target is self.dram:
                self._to_ssd(at)
            for wish in coming.wishes:
                wish.then(why, coming.tries)

        coming.begun = False
        coming.transfer = Transfer(at.bytes, urgent=urgent, is_wanted=coming.is_wanted, begin=begin, end=end)
        self.links.send(coming.link, coming.transfer, again=coming.tries > 0)

    def lift(self, at: SliceAt, *, urgent: bool, wish: Wish) -> None:
        """Bring a slice from DRAM to device memory; where it goes there is the asker's. It has to be in DRAM when its
        turn comes, and stays there."""
        self._read(at, self.dram, self.up, 0, urgent=urgent, wish=wish)

    def send_away(self, at: SliceAt, source: TierCache | None, *, wish: Wish) -> None:
        """Bring a slice to another engine; who asks puts it there. `source` None: from device memory."""
        self._read(at, source, self.peer, 0, urgent=False, wish=wish)

    def _read(
        self, at: SliceAt, source: TierCache | None, link: Link, tries: int, *, urgent: bool, wish: Wish
    ) -> None:  # fmt: skip
        held = False

        def begin() -> str:
            nonlocal held
            if source is None:
                return ""
            if at.key not in source:
                return NOT_HELD
            source.hold(at.key)
            held = True
            return ""

        def end(why: str) -> None:
            if held and source is not None:
                source.release(at.key)
            if why == FAILED and tries + 1 < TRIES_MAX:
                self._read(at, source, link, tries + 1, urgent=urgent, wish=wish)
                return
            wish.then(why, tries + 1)

        transfer = Transfer(at.bytes, urgent=urgent, is_wanted=wish.is_wanted, begin=begin, end=end)
        self.links.send(link, transfer, again=tries > 0)


def _is_full(link: Link) -> bool:
    return link.waiting_bytes * NS_PER_S > STORE_WAIT_NS * link.bytes_per_s


def _nobody(_why: str, _tries: int) -> None:
    """Write-through is nobody's wish: what is not stored is computed again."""


_ALWAYS: Final = Wish(lambda: True, _nobody)
