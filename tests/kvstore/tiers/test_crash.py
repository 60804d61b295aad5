"""Random interleavings of store, load, evict, pin and migrate, with a crash at every step on the file system.

After each run the disk is looked at as it is, not as the tier says: no half slice, nothing acknowledged lost, no byte
over the budget at any moment, nothing leaked, and what the tier says it has is what is there.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events.base import SliceId
from events.slice import Tier
from kvstore.errors import KVError, NotResident, Pinned
from kvstore.tiers.memory import memory_tier
from kvstore.tiers.slicefile import HEADER_BYTES
from kvstore.tiers.ssd import Sync, ssd_tier
from kvstore.tiers.tiered import TieredBackend
from tests.kvstore.tiers.faults import STEPS, Crash, Steps, Turns
from tests.kvstore.tiers.kinds import NAMESPACE

NAMES = [SliceId(letter * 32) for letter in "abcd"]
SLICE_BYTES = 64
FILE_BYTES = HEADER_BYTES + SLICE_BYTES
HBM_SLICES, DRAM_SLICES, SSD_SLICES = 2, 2, 3
CRASHES_PER_SCRIPT_MAX = 400
FAST = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Where thousands of small files cost nothing."""
OPENING_STEPS = 3
"""Opening the folder, locking it, listing it: nothing is there yet to lose."""


def content(name: SliceId) -> bytes:
    return Random(name).randbytes(SLICE_BYTES)


class House:
    """Three tiers over one folder, watched at every step, and what they acknowledged."""

    def __init__(self, root: Path, *, sync: Sync = Sync.PROCESS, before: Callable[[], None] = lambda: None) -> None:
        self.folder = root / NAMESPACE.hex()
        self._pause = before
        self.steps = Steps()
        self.ssd = ssd_tier(root, bytes_max=SSD_SLICES * FILE_BYTES, namespace=NAMESPACE, sync=sync, files=self.steps)
        self.tiers = TieredBackend([
            memory_tier(bytes_max=HBM_SLICES * SLICE_BYTES, tier=Tier.HBM),
            memory_tier(bytes_max=DRAM_SLICES * SLICE_BYTES, tier=Tier.DRAM),
            self.ssd,
        ])  # fmt: skip
        self.kept: set[SliceId] = set()
        """On the SSD, acknowledged, and nobody began to drop it since."""
        self.over: list[str] = []
        self.steps.before = self._before

    def _before(self, _name: str, _number: int) -> None:
        self._pause()
        self.look()

    def look(self) -> None:
        """The budgets, as they truly are."""
        for tier in (Tier.HBM, Tier.DRAM, Tier.SSD):
            if self.tiers[tier].bytes_used > self.tiers[tier].bytes_max:
                self.over.append(tier)
        if bytes_on(self.folder) > SSD_SLICES * FILE_BYTES:
            self.over.append("disk")

    def do(self, op: str, name: SliceId, upper: Tier, lower: Tier) -> None:
        """One operation. What it refuses is fine; what it serves must be right."""
        with suppress(KVError):
            match op:
                case "store":
                    self._acknowledged(name, self.tiers.put(name, content(name), tier=upper), upper)
                case "load":
                    out = bytearray(SLICE_BYTES)
                    self.tiers.fetch(name, out, promote_to=upper)
                    assert out == content(name), "a read serves what was stored or nothing"
                case "evict":
                    with self._letting_go(name, upper):
                        self.tiers.drop(name, tier=upper)
                case "pin":
                    self.tiers.pin(name, tier=upper)
                case "unpin":
                    self.tiers.unpin(name, tier=upper)
                case "replicate":
                    self._acknowledged(name, self.tiers.replicate(name, source=upper, target=lower), lower)
                case "promote":
                    self._acknowledged(name, self.tiers.promote(name, target=upper), upper)
                case "demote":
                    with self._letting_go(name, upper):
                        self._acknowledged(name, self.tiers.demote(name, source=upper, target=lower), lower)

    @contextmanager
    def _letting_go(self, name: SliceId, tier: Tier) -> Iterator[None]:
        """What is acknowledged meanwhile may be dropped by this."""
        lost = {name} if tier is Tier.SSD else set()
        self.kept -= lost
        try:
            yield
        finally:
            self.kept -= lost

    def _acknowledged(self, name: SliceId, done: bool, tier: Tier) -> None:
        if done and tier is Tier.SSD:
            self.kept.add(name)


def bytes_on(folder: Path) -> int:
    """What all files there really take."""
    sizes = 0
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            sizes += path.stat().st_size
    return sizes


def settled(root: Path, *, kept: set[SliceId], torn_allowed: bool = False) -> None:
    """What a new start finds is right, and equal to what is on the disk."""
    tier = ssd_tier(root, bytes_max=SSD_SLICES * FILE_BYTES, namespace=NAMESPACE)
    inventory = {name for name, _ in tier.inventory()}
    assert kept <= inventory, "nothing acknowledged is lost"
    for name in sorted(inventory):
        out = bytearray(SLICE_BYTES)
        try:
            tier.read_into(name, out)
        except KVError:
            assert torn_allowed, "what is whole by name is whole"
            continue
        assert out == content(name), "no half slice"
    inventory = {name for name, _ in tier.inventory()}
    files = {path.name for path in (root / NAMESPACE.hex()).iterdir()} - {"lock"}
    assert files == {f"{name}.slice" for name in inventory}, "the inventory is what is there; no litter"
    assert tier.bytes_used == len(inventory) * FILE_BYTES <= tier.bytes_max
    tier.close()


OPS = {"store": 4, "load": 3, "evict": 2, "pin": 1, "unpin": 2, "replicate": 3, "promote": 2, "demote": 3}
TIERS = {
    (Tier.SSD, Tier.DRAM): 4, (Tier.DRAM, Tier.SSD): 3, (Tier.HBM, Tier.SSD): 2, (Tier.HBM, Tier.DRAM): 1,
    (Tier.SSD, Tier.HBM): 2,
}  # fmt: skip
Script = list[tuple[str, SliceId, tuple[Tier, Tier]]]


def script_of(random: Random) -> Script:
    """Drawn by weight: equal chances would mostly ask for what is not there."""
    count = random.randrange(5, 40)
    ops = random.choices(list(OPS), list(OPS.values()), k=count)
    pairs = random.choices(list(TIERS), list(TIERS.values()), k=count)
    return [(op, random.choice(NAMES), pair) for op, pair in zip(ops, pairs, strict=True)]


SCRIPTS = st.integers(0, 2**32).map(lambda seed: script_of(Random(seed)))


def play(house: House, script: Script) -> None:
    for op, name, (upper, lower) in script:
        house.do(op, name, upper, lower)


def steps_of(script: Script, sync: Sync) -> int:
    """How many steps on the file system it has when nothing goes wrong; and then nothing is left over."""
    with TemporaryDirectory(dir=FAST) as folder:
        house = House(Path(folder), sync=sync)
        play(house, script)
        assert not house.over
        assert sorted(house.steps.open.values()) == ["lock", "open_folder"], "no descriptor leaks"
        emptied(house)
        house.tiers.close()
        assert house.steps.open == {}
        return house.steps.count


def emptied(house: House) -> None:
    """Everything can be let go of, once, and then every tier is empty."""
    for tier in (Tier.HBM, Tier.DRAM, Tier.SSD):
        store = house.tiers[tier]
        for name, _ in store.inventory():
            while store.pins(name):
                store.unpin(name)
            store.drop(name)
            with pytest.raises(NotResident):
                store.drop(name)
        assert store.bytes_used == 0, f"{tier} leaked"


@settings(max_examples=30, deadline=None)
@given(SCRIPTS, st.sampled_from(list(Sync)))
def test_a_crash_at_any_step_leaves_no_half_slice_and_loses_nothing_acknowledged(script: Script, sync: Sync) -> None:
    count = steps_of(script, sync)
    for step in range(OPENING_STEPS, min(count, CRASHES_PER_SCRIPT_MAX)):
        with TemporaryDirectory(dir=FAST) as folder:
            house = House(Path(folder), sync=sync)
            house.steps.crash_at = step
            with suppress(Crash):
                play(house, script)
            house.steps.end()
            assert not house.over
            settled(Path(folder), kept=house.kept)


@settings(max_examples=120, deadline=None)
@given(SCRIPTS, st.sampled_from(list(Sync)), st.integers(0, 10_000), st.integers(0, 10_000))
def test_a_loss_of_power_never_serves_a_torn_slice_and_a_synced_tier_loses_nothing(
    script: Script, sync: Sync, step: int, seed: int
) -> None:
    with TemporaryDirectory(dir=FAST) as folder:
        house = House(Path(folder), sync=sync)
        house.steps.crash_at = OPENING_STEPS + step % (8 * len(script))
        with suppress(Crash):
            play(house, script)
        house.steps.end()
        house.steps.lose_power(house.folder, Random(seed))
        settled(Path(folder), kept=house.kept if sync is Sync.POWER else set(), torn_allowed=sync is Sync.PROCESS)


@settings(max_examples=200, deadline=None)
@given(st.lists(SCRIPTS, min_size=2, max_size=4), st.integers(0, 2**32), st.integers(0, 80), st.booleans())
def test_interleaved_threads_and_a_crash_keep_every_promise(
    scripts: list[Script], seed: int, step: int, crashes: bool
) -> None:
    random = Random(seed)
    turns = Turns(random.randrange)
    with TemporaryDirectory(dir=FAST) as folder:
        house = House(Path(folder), before=turns.pause)
        if crashes:
            house.steps.crash_at = OPENING_STEPS + step
        turns.run([lambda script=script: play_in_turns(house, turns, script) for script in scripts])
        assert not house.over
        if not house.steps.dead:
            for tier in (Tier.HBM, Tier.DRAM, Tier.SSD):
                assert house.tiers[tier].bytes_used == sum(
                    house.tiers[tier].footprint(bytes_) for _, bytes_ in house.tiers[tier].inventory()
                ), "nobody is in the middle of anything"
        house.steps.end()
        settled(Path(folder), kept=house.kept)


def play_in_turns(house: House, turns: Turns, script: Script) -> None:
    for op, name, (upper, lower) in script:
        turns.pause()
        house.do(op, name, upper, lower)


@settings(max_examples=120, deadline=None)
@given(SCRIPTS, st.integers(0, 2**32), st.integers(1, 60))
def test_a_disk_that_fails_now_and_then_breaks_no_promise(script: Script, seed: int, percent: int) -> None:
    random = Random(seed)

    def fail() -> None:
        if random.randrange(100) < percent:
            raise OSError(random.choice([5, 13, 28, 30]), "injected")

    with TemporaryDirectory(dir=FAST) as folder:
        house = House(Path(folder))
        house._pause = fail
        play(house, script)
        house._pause = lambda: None
        house.look()
        assert not house.over
        kept = {name for name in house.kept if house.ssd.holds(name)}
        house.tiers.close()
        settled(Path(folder), kept=kept)


def test_a_read_that_a_drop_and_a_new_store_overtake_is_a_miss_and_no_damage(tmp_path: Path) -> None:
    """The reader stops before it opens the file; meanwhile another stay of the slice takes its name."""
    order = iter([0, 0, 1])  # The reader begins, stops before its first step; then the other one, to its end.
    turns = Turns(lambda running: min(next(order, running - 1), running - 1))
    house = House(tmp_path, before=turns.pause)
    assert house.ssd.put(NAMES[0], content(NAMES[0]))
    caught: list[KVError] = []

    def read() -> None:
        turns.pause()
        try:
            house.ssd.read_into(NAMES[0], bytearray(SLICE_BYTES))
        except KVError as error:
            caught.append(error)

    def renew() -> None:
        house.ssd.drop(NAMES[0])
        assert house.ssd.put(NAMES[0], content(NAMES[0]))

    turns.run([read, renew])
    assert [type(error) for error in caught] == [NotResident]
    assert (house.ssd.stats().corrupt, house.ssd.holds(NAMES[0])) == (0, True)
    house.tiers.close()


def test_nobody_lets_go_of_the_copy_while_the_original_leaves(tmp_path: Path) -> None:
    """A move from SSD to DRAM stops before it removes the file; meanwhile the copy in DRAM is to be dropped."""
    at_unlink: list[bool] = []
    turns = Turns(lambda running: running - 1 if at_unlink else 0)
    house = House(tmp_path)
    house.tiers.put(NAMES[0], content(NAMES[0]), tier=Tier.SSD)

    def stop_at_unlink(name: str, _number: int) -> None:
        if name == "unlink":
            at_unlink.append(True)
            turns.pause()

    house.steps.before = stop_at_unlink
    caught: list[KVError] = []

    def drop() -> None:
        try:
            house.tiers.drop(NAMES[0], tier=Tier.DRAM)
        except KVError as error:
            caught.append(error)

    turns.run([lambda: house.do("demote", NAMES[0], Tier.SSD, Tier.DRAM), drop])
    assert [type(error) for error in caught] == [Pinned]
    assert house.tiers.where(NAMES[0]) == (Tier.DRAM,)
    house.tiers.close()


def test_every_step_of_the_tier_can_fail_here() -> None:
    """The names of the steps are those that the tier uses: none escapes the injection."""
    seen: set[str] = set()
    with TemporaryDirectory(dir=FAST) as folder:
        steps = Steps(lambda name, _number: seen.add(name))
        tier = ssd_tier(Path(folder), bytes_max=FILE_BYTES, namespace=NAMESPACE, sync=Sync.POWER, files=steps)
        assert tier.put(NAMES[0], content(NAMES[0]))
        tier.read_into(NAMES[0], bytearray(SLICE_BYTES))
        tier.drop(NAMES[0])
        tier.close()
    assert seen == set(STEPS)
