"""What every kind of tier promises (kvstore/tiers/base.py), one suite for all of them."""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from events.base import SliceId
from kvstore.errors import (
    BudgetExceeded,
    DoubleFree,
    KVError,
    NotResident,
    Pinned,
    TierUnavailable,
    UnsupportedSchema,
)
from kvstore.tiers.base import TierStore
from tests.kvstore.tiers.kinds import Make, kinds

SLICES = 4
SLICE_BYTES = 1000
A, B, C, D, E = (SliceId(letter * 32) for letter in "abcde")


@pytest.fixture(params=kinds(), ids=lambda kind: kind.__name__)
def tier(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TierStore]:
    """A tier with room for four slices."""
    make: Make = request.param
    store = make(SLICES, SLICE_BYTES, tmp_path)
    yield store
    store.close()


def content(name: str, length: int = SLICE_BYTES) -> bytes:
    return Random(name).randbytes(length)


def read(tier: TierStore, slice_id: SliceId) -> bytes:
    out = bytearray(SLICE_BYTES)
    return bytes(out[: tier.read_into(slice_id, out)])


def put(tier: TierStore, *names: SliceId) -> None:
    for name in names:
        assert tier.put(name, content(name))


def test_what_was_put_comes_out_again_whole(tier: TierStore) -> None:
    put(tier, A, B)
    assert (read(tier, A), read(tier, B)) == (content(A), content(B))
    assert tier.holds(A)
    assert tier.bytes_of(A) == SLICE_BYTES


@pytest.mark.parametrize("length", [1, 7, SLICE_BYTES])
def test_a_slice_keeps_its_length_and_a_larger_buffer_keeps_its_rest(tier: TierStore, length: int) -> None:
    tier.put(A, content(A, length))
    out = bytearray(b"\xff" * (SLICE_BYTES + 1))
    assert tier.read_into(A, out) == length
    assert out == content(A, length) + b"\xff" * (SLICE_BYTES + 1 - length)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_are_taken_from_any_buffer_and_copied(tier: TierStore, kind: Callable[[bytes], bytes]) -> None:
    source = bytearray(content(A))
    assert tier.put(A, kind(source))
    source[:] = bytes(SLICE_BYTES)
    assert read(tier, A) == content(A)


def test_a_name_that_is_there_is_not_stored_twice(tier: TierStore) -> None:
    put(tier, A)
    used = tier.bytes_used
    assert tier.put(A, content(B)) is False
    assert read(tier, A) == content(A), "one name means one content"
    assert tier.bytes_used == used


def test_a_writer_writes_the_slice_where_it_will_lie(tier: TierStore) -> None:
    def write(memory: memoryview) -> None:
        assert memory.nbytes == SLICE_BYTES
        assert not tier.holds(A), "nobody sees a slice that is being written"
        with pytest.raises(NotResident):
            read(tier, A)
        assert tier.put(A, content(A)) is False, "and nobody stores it a second time"
        memory[:] = content(A)

    assert tier.fill(A, SLICE_BYTES, write)
    assert read(tier, A) == content(A)


def test_a_writer_that_fails_leaves_nothing(tier: TierStore) -> None:
    def write(memory: memoryview) -> None:
        memory[:500] = bytes(500)
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        tier.fill(A, SLICE_BYTES, write)
    assert not tier.holds(A)
    assert (tier.bytes_used, tier.inventory()) == (0, ())
    put(tier, A, B, C, D)


def test_what_is_not_there_is_a_miss(tier: TierStore) -> None:
    for call in (tier.bytes_of, tier.drop, tier.pin, lambda name: read(tier, name)):
        with pytest.raises(NotResident) as caught:
            call(A)
        assert caught.value.name == A
    with pytest.raises(NotResident), tier.lend(A):
        pass
    assert not tier.holds(A)
    assert tier.stats().misses == 2, "reads, not questions"


def test_a_buffer_that_is_too_small_is_a_mistake(tier: TierStore) -> None:
    put(tier, A)
    with pytest.raises(ValueError, match="1000 bytes"):
        tier.read_into(A, bytearray(SLICE_BYTES - 1))
    assert read(tier, A) == content(A)


def test_a_full_tier_says_so_and_takes_more_after_a_drop(tier: TierStore) -> None:
    put(tier, A, B, C, D)
    assert tier.bytes_used == 4 * tier.footprint(SLICE_BYTES) == tier.bytes_max
    with pytest.raises(BudgetExceeded) as caught:
        tier.put(E, content(E))
    assert (caught.value.free, caught.value.limit) == (0, tier.bytes_max)
    assert not tier.holds(E)
    tier.drop(B)
    put(tier, E)
    assert [name for name, _ in tier.inventory()] == [A, C, D, E], "oldest first"
    assert [read(tier, name) for name in (A, C, D, E)] == [content(name) for name in (A, C, D, E)]


def test_a_dropped_slice_is_gone_and_a_second_drop_says_so(tier: TierStore) -> None:
    put(tier, A)
    tier.drop(A)
    assert (tier.holds(A), tier.bytes_used, tier.inventory()) == (False, 0, ())
    with pytest.raises(NotResident):
        tier.drop(A)
    assert tier.bytes_used == 0, "nothing is given back twice"
    put(tier, A)
    assert read(tier, A) == content(A)


def test_who_reads_a_slice_reads_on_when_it_is_dropped(tier: TierStore) -> None:
    put(tier, A, B, C, D)
    with tier.lend(A) as view:
        tier.drop(A)
        assert not tier.holds(A)
        assert tier.bytes_used == tier.bytes_max, "its memory is in use"
        with pytest.raises(BudgetExceeded):
            tier.put(E, content(E))
        assert view == content(A)
    put(tier, E)
    assert read(tier, E) == content(E)


def test_a_lent_slice_cannot_be_written(tier: TierStore) -> None:
    put(tier, A)
    with tier.lend(A) as view, pytest.raises(TypeError):
        view[0] = 0


def test_a_pinned_slice_stays_until_it_was_unpinned_as_often(tier: TierStore) -> None:
    put(tier, A)
    tier.pin(A)
    tier.pin(A)
    for pins in (2, 1):
        assert tier.pins(A) == pins
        with pytest.raises(Pinned) as caught:
            tier.drop(A)
        assert caught.value.pins == pins
        assert read(tier, A) == content(A)
        tier.unpin(A)
    tier.drop(A)
    assert not tier.holds(A)


def test_a_pin_is_taken_back_once(tier: TierStore) -> None:
    put(tier, A)
    with pytest.raises(DoubleFree):
        tier.unpin(A)
    tier.pin(A)
    tier.unpin(A)
    with pytest.raises(DoubleFree):
        tier.unpin(A)


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "a/b", "A" * 32, "a.b", "ä", "a" * 129, "a\n"])
def test_a_name_that_could_be_anything_but_a_name_is_refused(tier: TierStore, name: str) -> None:
    with pytest.raises(UnsupportedSchema):
        tier.put(SliceId(name), content(A))
    assert tier.bytes_used == 0


def test_a_slice_of_no_bytes_is_refused(tier: TierStore) -> None:
    with pytest.raises(UnsupportedSchema):
        tier.put(A, b"")


def test_it_counts_what_it_did(tier: TierStore) -> None:
    put(tier, A, B)
    read(tier, A)
    with suppress(NotResident):
        read(tier, C)
    tier.drop(B)
    stats = tier.stats()
    assert (stats.slices, stats.stored, stats.hits, stats.misses, stats.dropped) == (1, 2, 1, 1, 1)
    assert (stats.bytes_written, stats.bytes_read, stats.bytes_used) == (2000, 1000, tier.bytes_used)
    assert (stats.corrupt, stats.lost, stats.failures, stats.trouble) == (0, 0, 0, "")


def test_a_closed_tier_says_so_and_does_not_hang(tier: TierStore) -> None:
    put(tier, A)
    tier.close()
    tier.close()
    for call in (tier.drop, tier.pin, lambda name: read(tier, name), lambda name: tier.put(name, content(name))):
        with pytest.raises(TierUnavailable) as caught:
            call(A)
        assert caught.value.lasting


def test_closing_waits_for_nobody_and_pulls_the_memory_from_under_nobody(tier: TierStore) -> None:
    put(tier, A)
    with tier.lend(A) as view:
        tier.close()
        assert view == content(A)


def test_many_threads_see_whole_slices_only_and_keep_to_the_budget(tier: TierStore) -> None:
    names = [SliceId(f"{number:032x}") for number in range(8)]
    wrong: list[str] = []

    def work(seed: int) -> None:
        random = Random(seed)
        for _ in range(150):
            name = random.choice(names)
            with suppress(KVError):
                match random.randrange(4):
                    case 0 | 1:
                        tier.put(name, content(name))
                    case 2 if read(tier, name) != content(name):
                        wrong.append(name)
                    case 3:
                        tier.drop(name)
            if tier.bytes_used > tier.bytes_max:
                wrong.append("budget")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    for name, _ in tier.inventory():
        assert read(tier, name) == content(name)
        tier.drop(name)
    assert tier.bytes_used == 0, "nothing leaked"
