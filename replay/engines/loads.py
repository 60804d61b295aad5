"""Requests whose prompts go on in a slower tier: what they load instead of computing it, and when they stop waiting.

When a request enters the batch, what follows its hit in device memory is looked for in DRAM, then in SSD. It is loaded
if the gate (`policies.memory.gate`) says so: the part in DRAM alone, or all of it, whichever saves more.
The request holds its blocks meanwhile, as in vLLM, and computes the rest when all is there.

It does not wait for ever. At any time it could compute what is not there yet; it waits no longer than until that would
make its prefill end later than LATE_PPM after what computing all of it would have taken. So a link that fails, stalls
or is slower than was thought costs a request a twentieth of its prefill, and what is left of the engine's step then.
What came by then is used.

vLLM's own offloading asks no gate: what it has is loaded, and waited for (`always`).

Example: a prefill of 500 ms, of which 400 ms can be loaded in 25 ms. Nothing comes: after 25 ms it is computed. Half
came after 15 ms, then nothing: it could have been done 200 ms sooner, so it waits for the rest until 225 ms.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from events.base import PPM
from events.engine import StepModel
from events.slice import Tier
from policies.memory.gate import MARGIN_PPM, fetch_ns, worth_fetching
from policies.predictors.step_time import FS_PER_NS, prefill_ns
from replay.engines.job import Job
from replay.engines.tier_cache import SliceAt
from replay.engines.tiers import Tiers, Wish

LATE_PPM = 50_000
"""How much longer than computing it a prefill may take because something was to be loaded."""

NEVER_FS = 1 << 100
"""Later than any time."""

HITS_MAX = 65_536
"""Hits that wait to be said; while nobody asks for them, later ones are not counted."""


class Found(NamedTuple):
    """Of a `chain` of slices the first `near` are in DRAM, `far` more in DRAM or SSD; the first `wanted` are to be
    loaded. Of the last that is near only a `part` may be there. `missed` of those asked for are not whole in DRAM."""

    chain: Sequence[SliceAt]
    near: int
    far: int
    wanted: int
    missed: int
    part: bool

    def blocks(self) -> int:
        """Blocks of device memory that the load takes."""
        return sum(at.blocks for at in self.chain[: self.wanted])


class Load:
    """A request's slices on their way: the first `near` from DRAM, the others from SSD. It had `held` units in device
    memory; `lead` of these are there without a hole, and `asked` were asked for at first. Of those near `whole` are."""

    __slots__ = ("asked", "begun_fs", "chain", "give_up_fs", "held", "is_over", "job", "lead", "near", "there", "whole")

    def __init__(
        self, job: Job, held: int, chain: Sequence[SliceAt], near: int, whole: int, begun_fs: int
    ) -> None:  # fmt: skip
        self.job, self.held, self.chain, self.near, self.whole, self.begun_fs = job, held, chain, near, whole, begun_fs
        self.there = [False] * len(chain)
        self.lead, self.asked, self.give_up_fs = 0, len(chain), begun_fs
        self.is_over = False
        """Nothing more is waited for: all is there, or something will not come."""


class Loads:
    """All requests that wait for slices. `hits` are the slices that they got since that was last taken, by tier;
    `given_up` counts requests that did not get all. `always`: what is there is loaded, whatever that takes."""

    def __init__(self, tiers: Tiers, model: StepModel, *, batch_tokens: int, always: bool) -> None:
        self._tiers, self._model, self._batch_tokens, self._always = tiers, model, batch_tokens, always
        self._loads: dict[Job, Load] = {}
        self.hits: dict[Tier, list[Hashable]] = {Tier.DRAM: [], Tier.SSD: []}
        self.misses = {Tier.DRAM: 0, Tier.SSD: 0}
        self.given_up = 0

    def __len__(self) -> int:
        return len(self._loads)

    def wake_fs(self) -> int | None:
        """Not later than when one of them has all that it waits for, or waits no longer; None when nobody waits."""
        if not self._loads:
            return None
        give_up_fs = min(load.give_up_fs for load in self._loads.values())
        next_fs = self._tiers.links.next_fs()
        return give_up_fs if next_fs is None else min(give_up_fs, next_fs)

    def found(self, job: Job, held: int, chain: Sequence[SliceAt], *, step_ns: int) -> Found:
        """How far `chain` (the slices of its prompt behind the `held` that it has) is there, and is worth loading. The
        step that begins now takes `step_ns` with all the others' work: what is loaded is of use when it is over."""
        near, far = self._there(chain)
        missed = len(chain) - near
        part = self._tiers.dram.part(chain[near].key) if not far and near < len(chain) else None
        if part is not None:
            chain, near = (*chain[:near], part), near + 1
        count = near + far if self._always else self._worth(job, held, chain, near, far, step_ns)
        return Found(chain, near, far, count, missed, part is not None)

    def begin(self, job: Job, held: int, found: Found) -> None:
        """Load it, if anything is worth that."""
        count = found.wanted
        self.misses[Tier.DRAM] += found.missed
        self.misses[Tier.SSD] += found.missed - found.far if self._tiers.ssd is not None else 0
        if not count:
            return
        whole = found.near - found.part
        load = Load(job, held, found.chain[:count], min(found.near, count), whole, self._tiers.links.now_fs)
        self._loads[job] = load
        self._be_patient(load)
        for number, at in enumerate(load.chain):
            cache = self._tiers.dram if number < load.near else self._tiers.ssd
            assert cache is not None, "it was found there"
            cache.hold(at.key)
        for number in range(count):
            if number < len(load.chain):  # It is cut short where one of them cannot even begin.
                self._bring(load, number)

    def take_ended(self) -> list[tuple[Job, int]]:
        """Those that wait no longer, each with how many blocks it got."""
        now_fs = self._tiers.links.now_fs
        ended = [load for load in self._loads.values() if load.is_over or load.give_up_fs <= now_fs]
        for load in ended:
            self._end(load)
            self.given_up += load.lead < load.asked
            near = min(load.lead, load.near)
            if len(self.hits[Tier.DRAM]) + len(self.hits[Tier.SSD]) < HITS_MAX:
                self.hits[Tier.DRAM] += [at.key for at in load.chain[: min(near, load.whole)]]
                self.hits[Tier.SSD] += [at.key for at in load.chain[near : load.lead]]
        return [(load.job, sum(at.blocks for at in load.chain[: load.lead])) for load in ended]

    def cancel(self, job: Job) -> None:
        """It is taken off the engine; nothing happens if it does not wait."""
        if job in self._loads:
            self._end(self._loads[job])

    def _end(self, load: Load) -> None:
        load.is_over = True
        del self._loads[load.job]
        for number, at in enumerate(load.chain):
            cache = self._tiers.dram if number < load.near else self._tiers.ssd
            assert cache is not None, "it was found there"
            cache.release(at.key)

    # What is worth it.

    def _there(self, chain: Sequence[SliceAt]) -> tuple[int, int]:
        """How many of a chain are in DRAM, and how many more in one of the two."""
        dram, ssd = self._tiers.dram, self._tiers.ssd
        near = next((n for n, at in enumerate(chain) if at.key not in dram), len(chain))
        if ssd is None:
            return near, 0
        return near, next((n for n, at in enumerate(chain[near:]) if at.key not in ssd), len(chain) - near)

    def _worth(self, job: Job, held: int, chain: Sequence[SliceAt], near: int, far: int, step_ns: int) -> int:
        """How many of them are quicker loaded than computed, and would come soon enough: all of them or those in DRAM
        alone, whichever saves more."""
        if not near + far:
            return 0
        up, down = self._tiers.up, self._tiers.ssd_read
        size, late_ns = chain[0].bytes, self._prefill_ns(job, held) * LATE_PPM // PPM
        up_ns = fetch_ns(near * size, up.bytes_before(urgent=True), up.bytes_per_s)
        if near and fetch_ns(size, up.bytes_before(urgent=True), up.bytes_per_s) > late_ns:
            return 0
        near_ns = self._saved_ns(job, held, near, max(up_ns, step_ns))
        if not far:
            return near if near_ns else 0
        behind = chain[near : near + far]
        slowly_ns = fetch_ns(far * size, self._tiers.bytes_before(behind), down.bytes_per_s)
        first_ns = fetch_ns(size, self._tiers.bytes_before(behind[:1]), down.bytes_per_s)
        last_ns = fetch_ns(size, 0, up.bytes_per_s)
        whole_ns = self._saved_ns(job, held, near + far, max(max(slowly_ns, up_ns) + last_ns, step_ns))
        before_ns = self._prefill_ns(job, held) - self._prefill_ns(job, held + near)
        if whole_ns > near_ns and first_ns + last_ns <= late_ns + before_ns:
            return near + far
        return near if near_ns else 0

    def _saved_ns(self, job: Job, held: int, count: int, load_ns: int) -> int:
        """What loading the first `count` units behind those held saves against computing them; 0 if it is not worth
        it."""
        recompute_ns = self._prefill_ns(job, held) - self._prefill_ns(job, held + count)
        return recompute_ns - load_ns if worth_fetching(load_ns, recompute_ns, margin_ppm=MARGIN_PPM) else 0

    def _prefill_ns(self, job: Job, units: int) -> int:
        """What its prefill takes from there on."""
        cached = units * job.request.unit_tokens
        return prefill_ns(self._model, prompt=job.target, cached=cached, batch_tokens=self._batch_tokens)

    def _be_patient(self, load: Load) -> None:
        """How long it waits, with what it has now."""
        if self._always:
            load.give_up_fs = NEVER_FS
            return
        whole_ns = self._prefill_ns(load.job, load.held)
        saved_ns = whole_ns - self._prefill_ns(load.job, load.held + load.lead)
        load.give_up_fs = load.begun_fs + (saved_ns + whole_ns * LATE_PPM // PPM) * FS_PER_NS

    # On its way.

    def _bring(self, load: Load, number: int) -> None:
        at = load.chain[number]

        def is_wanted() -> bool:
            return not load.is_over and number < len(load.chain)

        def arrived(why: str, _tries: int) -> None:
            if is_wanted():
                self._arrived(load, number, why)

        def in_dram(why: str, tries: int) -> None:
            if why:
                arrived(why, tries)
            elif is_wanted():
                self._tiers.lift(at, urgent=True, wish=Wish(is_wanted, arrived))

        if number < load.near:
            in_dram("", 0)
        else:
            self._tiers.move(at, Tier.SSD, Tier.DRAM, urgent=True, wish=Wish(is_wanted, in_dram))

    def _arrived(self, load: Load, number: int, why: str) -> None:
        if why:
            # What follows is worth nothing without it; what came before it may still come.
            load.chain, load.there = self._cut(load, number), load.there[:number]
        else:
            load.there[number] = True
        while load.lead < len(load.chain) and load.there[load.lead]:
            load.lead += 1
        self._be_patient(load)
        if load.lead == len(load.chain):
            load.is_over, load.give_up_fs = True, self._tiers.links.now_fs

    def _cut(self, load: Load, number: int) -> Sequence[SliceAt]:
        for place, at in enumerate(load.chain[number:], number):
            cache = self._tiers.dram if place < load.near else self._tiers.ssd
            assert cache is not None, "it was found there"
            cache.release(at.key)
        return load.chain[:number]
