"""Blocks are handed out once, shared by count, copied when a sharer writes, and never served half."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.errors import BudgetExceeded, DoubleFree, NotResident, Pinned
from kvstore.paged_store import PagedStore

SIZE = 4


def store(blocks_max: int = 4) -> PagedStore:
    return PagedStore(block_bytes=SIZE, blocks_max=blocks_max)


def test_a_block_is_handed_out_once() -> None:
    pages = store()
    assert pages.take(3) == [0, 1, 2]
    assert pages.take(1) == [3]
    assert (pages.blocks_free, pages.blocks_used) == (0, 4)
    with pytest.raises(BudgetExceeded) as error:
        pages.take(1)
    assert (error.value.asked, error.value.free, error.value.limit, error.value.unit) == (1, 0, 4, "blocks")
    pages.check_integrity()


def test_more_than_there_is_changes_nothing() -> None:
    pages = store()
    pages.take(2)
    with pytest.raises(BudgetExceeded):
        pages.take(3)
    assert pages.blocks_free == 2
    pages.check_integrity()


def test_a_shared_block_is_free_when_nobody_holds_it() -> None:
    pages = store()
    (block,) = pages.take(1)
    pages.share([block])
    assert pages.give_back([block]) == 0
    assert pages.give_back([block]) == 1
    assert pages.blocks_free == 4
    pages.check_integrity()


@pytest.mark.parametrize("wrong", [[3], [0, 3], [0, 0], [-1], [4], [1 << 40]])
def test_what_is_not_held_cannot_be_given_back_and_nothing_is(wrong: list[int]) -> None:
    pages = store()
    pages.take(2)
    with pytest.raises(DoubleFree):
        pages.give_back(wrong)
    assert [pages.ref_count(block) for block in range(4)] == [1, 1, 0, 0]
    pages.check_integrity()


@pytest.mark.parametrize("wrong", [[3], [0, 3], [-1], [4]])
def test_what_is_not_held_cannot_be_shared_and_nothing_is(wrong: list[int]) -> None:
    pages = store()
    pages.take(2)
    with pytest.raises(NotResident):
        pages.share(wrong)
    assert [pages.ref_count(block) for block in range(4)] == [1, 1, 0, 0]


def test_a_table_that_names_a_block_twice_gives_it_back_once() -> None:
    pages = store()
    (block,) = pages.take(1)
    pages.share([block])
    assert pages.give_back([block, block]) == 1
    assert pages.blocks_free == 4
    pages.check_integrity()


def test_what_is_written_is_read() -> None:
    pages = store()
    one, two = pages.take(2)
    pages.write(one, b"aaaa")
    pages.write(two, bytearray(b"bbbb"))
    assert (bytes(pages.read(one)), bytes(pages.read(two))) == (b"aaaa", b"bbbb")
    with pytest.raises(TypeError):
        pages.read(one)[0] = 0


def test_nobody_reads_what_another_left_there() -> None:
    pages = store(1)
    (block,) = pages.take(1)
    pages.write(block, b"mine")
    pages.give_back([block])
    with pytest.raises(NotResident):
        pages.read(block)
    assert pages.take(1) == [block]
    with pytest.raises(NotResident):
        pages.read(block)


@pytest.mark.parametrize("data", [b"", b"abc", b"abcde"])
def test_half_a_block_is_not_written(data: bytes) -> None:
    pages = store()
    (block,) = pages.take(1)
    with pytest.raises(ValueError, match="a block has 4 bytes"):
        pages.write(block, data)
    with pytest.raises(NotResident):
        pages.read(block)


def test_a_shared_block_is_written_in_a_copy_only() -> None:
    pages = store()
    (block,) = pages.take(1)
    pages.write(block, b"both")
    pages.share([block])
    with pytest.raises(Pinned):
        pages.write(block, b"mine")
    copy = pages.own(block)
    assert copy != block
    assert bytes(pages.read(copy)) == b"both"
    pages.write(copy, b"mine")
    assert bytes(pages.read(block)) == b"both"
    assert (pages.ref_count(block), pages.ref_count(copy)) == (1, 1)
    assert pages.own(copy) == copy, "who holds it alone needs no copy"
    pages.check_integrity()


def test_a_copy_that_finds_no_room_leaves_the_block_shared() -> None:
    pages = store(1)
    (block,) = pages.take(1)
    pages.share([block])
    with pytest.raises(BudgetExceeded):
        pages.own(block)
    assert pages.ref_count(block) == 2


def test_the_bytes_lie_where_the_caller_says() -> None:
    memory = bytearray(8)
    pages = PagedStore(block_bytes=SIZE, blocks_max=2, memory=memoryview(memory))
    pages.take(2)
    pages.write(1, b"abcd")
    assert memory == b"\0\0\0\0abcd"


def test_a_store_that_only_counts_maps_no_memory() -> None:
    pages = PagedStore(block_bytes=1 << 40, blocks_max=1_024)
    pages.give_back(pages.take(1_024))
    pages.check_integrity()


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["take", "share", "own", "give_back"]), st.integers(0, 7)), max_size=60))
def test_counts_are_those_of_the_tables_after_every_step(steps: list[tuple[str, int]]) -> None:
    """A multiset of held blocks is the model; every refusal leaves it as it was."""
    pages = store(6)
    held: list[int] = []
    for what, number in steps:
        block = held[number % len(held)] if held else number
        try:
            match what:
                case "take":
                    held += pages.take(number)
                case "share":
                    pages.share([block])
                    held.append(block)
                case "own":
                    copy = pages.own(block)
                    held[held.index(block)] = copy
                case _:
                    pages.give_back([block])
                    held.remove(block)
        except BudgetExceeded:
            assert what in ("take", "own")
            assert pages.blocks_free < max(1, number)
        except (NotResident, DoubleFree):
            assert not held
        pages.check_integrity()
        assert [pages.ref_count(at) for at in range(6)] == [held.count(at) for at in range(6)]
