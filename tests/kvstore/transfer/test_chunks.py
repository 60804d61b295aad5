"""A slice in pieces, and from pieces: in order, each once, every byte checked."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events.base import SliceId
from kvstore.transfer.base import Assembly, KVChunk, TransferFailed, TransferFault, chunks

A, B = SliceId("a" * 32), SliceId("b" * 32)
DATA = bytes(range(100))
PIECES = list(chunks(A, memoryview(DATA), chunk_bytes=40))


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=300), st.integers(1, 301), st.booleans())
def test_what_was_cut_is_put_together_again(data: bytes, chunk_bytes: int, summed: bool) -> None:
    memory = bytearray(len(data))
    assembly = Assembly(A, memoryview(memory), where="test")
    pieces = list(chunks(A, memoryview(data), chunk_bytes=chunk_bytes, summed=summed))
    assert {piece.count for piece in pieces} == {len(pieces)}
    for piece in pieces:
        assert not assembly.complete
        assert piece.data.nbytes <= chunk_bytes
        assembly.take(piece)
    assert assembly.complete
    assert memory == data


def changed(piece: KVChunk, **fields: object) -> KVChunk:
    return KVChunk(**({name: getattr(piece, name) for name in KVChunk.__struct_fields__} | fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "pieces",
    [
        [PIECES[1]],
        [PIECES[0], PIECES[0]],
        [PIECES[0], PIECES[2]],
        [changed(PIECES[0], slice_id=B)],
        [changed(PIECES[0], slice_bytes=101)],
        [changed(PIECES[0], offset=1)],
        [changed(PIECES[0], data=memoryview(b"x" * 40))],
        [changed(PIECES[0], data=memoryview(b""), checksum=b"")],
        [*PIECES[:2], changed(PIECES[2], data=memoryview(b"x" * 21), checksum=b"")],
        [*PIECES, changed(PIECES[0], index=3, offset=100)],
    ],
    ids=["not the first", "twice", "one left out", "of another slice", "of another length", "elsewhere", "damaged",
         "empty", "too long", "one too many"],
)  # fmt: skip
def test_what_is_not_the_next_piece_is_refused(pieces: list[KVChunk]) -> None:
    memory = bytearray(100)
    assembly = Assembly(A, memoryview(memory), where="test")
    *good, bad = pieces
    for piece in good:
        assembly.take(piece)
    before = bytes(memory)
    with pytest.raises(TransferFailed) as caught:
        assembly.take(bad)
    assert (caught.value.fault, caught.value.name) == (TransferFault.DAMAGED, A)
    assert memory == before
