"""Disks that lie, refuse or hang: what they hold is computed again, nothing wrong is served, nobody waits for long."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from events.slice import SlicesRemoved, Tier
from kvstore.errors import TierUnavailable
from kvstore.tiers import ssd as tiers_ssd
from kvstore.tiers.slicefile import HEADER_BYTES
from services.vllm_plugin import ssd_tier
from services.vllm_plugin.ssd_jobs import file_name
from services.vllm_plugin.ssd_tier import SsdTier
from tests.engine_env.rig import NAMESPACE_DIGEST, SLICE_BYTES, Rig, extra_config, hints, key, keys, name, running


@pytest.fixture
def ssd(tmp_path: Path) -> Path:
    folder = tmp_path / "ssd"
    folder.mkdir(mode=0o700)
    return folder


def _tier(rig: Rig) -> SsdTier:
    tier = rig.manager.secondary_tiers[0]
    assert isinstance(tier, SsdTier)
    return tier


def _damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[HEADER_BYTES + 5] ^= 1
    path.write_bytes(data)


def _vanish(path: Path) -> None:
    path.unlink()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(("harm", "corrupt"), [(_damage, 1), (_cut, 1), (_vanish, 0)])
def test_slice_that_is_not_what_it_was_is_computed_again(
    monkeypatch: pytest.MonkeyPatch, ssd: Path, harm: Callable[[Path], None], corrupt: int
) -> None:
    prompt = keys("p", 5)
    with running(extra_config(ssd=ssd, reset_keeps_ssd=True), monkeypatch) as rig:
        rig.serve(prompt, hints=hints(prompt))
        [path] = ssd.rglob(f"{file_name(prompt[2])}.slice")
        harm(path)
        rig.manager.reset_cache()

        assert rig.serve(prompt, hints=hints(prompt)) == 2, "those before it"
        assert _tier(rig).corrupt == corrupt
        assert _tier(rig).failures == 1
        removed = [one for fact in rig.told(SlicesRemoved) if fact.tier is Tier.SSD for one in fact.slices]
        assert removed == [name(prompt[2])]

        rig.manager.reset_cache()
        assert rig.serve(prompt, hints=hints(prompt)) == 5, "it was written again"


def test_slice_of_another_length_under_the_same_name_is_never_served(
    monkeypatch: pytest.MonkeyPatch, ssd: Path
) -> None:
    prompt = keys("p", 3)
    store = tiers_ssd.ssd_tier(ssd, bytes_max=1 << 20, namespace=NAMESPACE_DIGEST)
    assert store.put(file_name(prompt[0]), b"x" * (SLICE_BYTES // 2))
    store.close()

    with running(extra_config(ssd=ssd, reset_keeps_ssd=True), monkeypatch) as rig:
        assert rig.serve(prompt) == 0
        assert _tier(rig).corrupt == 1
        rig.manager.reset_cache()
        assert rig.serve(prompt) >= 1, "it is the right one now"
        assert _tier(rig).corrupt == 1


def test_store_that_breaks_its_word_ends_no_thread(monkeypatch: pytest.MonkeyPatch, ssd: Path) -> None:
    with running(extra_config(ssd=ssd, reset_keeps_ssd=True), monkeypatch) as rig:
        tier = _tier(rig)
        rig.serve(keys("p", 2))
        rig.manager.reset_cache()

        def broken(slice_id: Any, buffer: Any) -> Any:
            raise OSError(121, "Remote I/O error")

        with monkeypatch.context() as broken_for_now:
            broken_for_now.setattr(tier.store, "read_into", broken)
            assert rig.serve(keys("p", 2)) == 0
        assert "Remote I/O error" in tier.trouble
        assert not tier.usable
        monkeypatch.setattr(tier, "_rest_reads_ns", 0)
        rig.manager.reset_cache()
        assert rig.serve(keys("p", 2)) == 2


class Hanging:
    """A store whose reads (of one slice, where it is named) hang until `released`."""

    def __init__(self, store: Any, slice_id: Any = None) -> None:
        self._store, self._slice_id = store, slice_id
        self.released = False

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._store, attribute)

    def read_into(self, slice_id: Any, out: Any) -> int:
        while not self.released and self._slice_id in (None, slice_id):
            time.sleep(0.001)
        length: int = self._store.read_into(slice_id, out)
        return length


def test_disk_that_hangs_is_given_up_on_and_writes_nothing_late(monkeypatch: pytest.MonkeyPatch, ssd: Path) -> None:
    prompt, other = keys("p", 3), keys("q", 3)
    hurried = extra_config(ssd=ssd, reset_keeps_ssd=True, dram_slices=3, fetch_patience_ms=50)
    with running(hurried, monkeypatch) as rig:
        rig.serve(prompt)
        rig.manager.reset_cache()
        tier = _tier(rig)
        assert tier.store is not None
        hanging = Hanging(tier.store)
        monkeypatch.setattr(tier._threads, "_store", hanging)

        assert rig.serve(prompt) == 0, "computed, after a short while"
        assert "hangs" in tier.trouble
        # Their chunks are others' now: the late bytes must not land there.
        rig.serve(other)
        hanging.released = True
        tier._threads.settle()
        assert rig.serve(other) == 3


def test_disk_that_is_given_up_on_is_known_to_be_slow(monkeypatch: pytest.MonkeyPatch, ssd: Path) -> None:
    hurried = extra_config(ssd=ssd, reset_keeps_ssd=True, dram_slices=4, fetch_patience_ms=200, ssd_readers=1)
    prompt = keys("p", 3)
    with running(hurried, monkeypatch) as rig:
        rig.serve(prompt)
        rig.manager.reset_cache()
        tier = _tier(rig)
        assert tier.store is not None
        slow = Hanging(tier.store, file_name(prompt[1]))
        monkeypatch.setattr(tier._threads, "_store", slow)

        assert rig.serve(prompt) == 0
        slow.released = True

        assert 0 < tier.measured(hits_total=0, misses_total=0).read_bytes_per_s <= SLICE_BYTES / 0.2


def test_disk_that_refuses_is_left_alone_then_used_again(monkeypatch: pytest.MonkeyPatch, ssd: Path) -> None:
    with running(extra_config(ssd=ssd, reset_keeps_ssd=True, dram_slices=16), monkeypatch) as rig:
        tier = _tier(rig)
        assert tier.store is not None
        put = tier.store.put
        tries: list[str] = []

        def refuse(slice_id: Any, data: Any) -> bool:
            tries.append(slice_id)
            raise TierUnavailable(where="ssd", why="No space left on device", mend="free space on that disk")

        monkeypatch.setattr(tier.store, "put", refuse)
        rig.serve(keys("p", 3))
        assert (len(tries), tier.failures, tier.usable) == (3, 3, False)
        assert "No space left" in tier.trouble
        rig.serve(keys("q", 3))
        assert len(tries) == 3, "not asked again so soon"
        assert rig.serve(keys("q", 3)) == 3, "DRAM serves on"

        monkeypatch.setattr(tier.store, "put", put)
        monkeypatch.setattr(tier, "_rest_writes_ns", 0)
        rig.serve(keys("s", 3))
        assert tier.usable
        rig.manager.reset_cache()
        assert rig.serve(keys("s", 3)) == 3


def test_engine_serves_without_a_folder_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_folder = tmp_path / "a file"
    no_folder.touch()
    with running(extra_config(ssd=no_folder), monkeypatch) as rig:
        assert rig.serve(keys("p", 3)) == 0
        assert rig.serve(keys("p", 3)) == 3
        assert not _tier(rig).usable
        assert _tier(rig).trouble


def test_what_has_no_room_makes_some_by_the_delegates_choice(monkeypatch: pytest.MonkeyPatch, ssd: Path) -> None:
    with running(extra_config(ssd=ssd, dram_slices=16, reset_keeps_ssd=True), monkeypatch) as rig:
        tier = _tier(rig)
        assert tier.store is not None
        each = tier.store.footprint(rig.manager.memory.slice_bytes)
        monkeypatch.setattr(tier.store.ledger, "bytes_max", 6 * each)

        for prompt in ("p", "q", "s"):
            rig.serve(keys(prompt, 4))
            assert tier.store.bytes_used <= 6 * each

        assert tier.choices.evictions == 6
        held = {slice_id for slice_id, _ in tier.store.inventory()}
        assert held == {file_name(one) for one in rig.manager.memory.residency.keys(Tier.SSD)}
        assert {file_name(one) for one in keys("s", 4)} < held
        assert tier.not_stored == 0


def test_fetch_that_is_slower_than_computing_is_not_made(monkeypatch: pytest.MonkeyPatch, ssd: Path) -> None:
    settings = extra_config(ssd=ssd, reset_keeps_ssd=True, prefill_tokens_per_s=1_000_000_000)
    with running(settings, monkeypatch) as rig:
        rig.serve(keys("p", 4))
        rig.manager.reset_cache()
        assert rig.serve(keys("p", 4)) == 0


def test_what_the_disk_cannot_take_at_once_is_written_later(monkeypatch: pytest.MonkeyPatch, ssd: Path) -> None:
    with running(extra_config(ssd=ssd, dram_slices=16, reset_keeps_ssd=True), monkeypatch) as rig:
        most = 0
        tier = _tier(rig)
        writing = tier._threads.write

        def write(job: Any) -> None:
            nonlocal most
            writing(job)
            most = max(most, tier._writing())

        monkeypatch.setattr(tier._threads, "write", write)
        rig.serve(keys("p", 15))
        assert 0 < most <= 16 // ssd_tier.QUEUE_PART
        assert tier.not_stored == 0
        assert {file_name(key("p", place)) for place in range(15)} == {name for name, _ in tier.store.inventory()}
