"""Errors carry amounts, and say them in one line."""

import pytest

from kvstore.errors import (
    BudgetExceeded,
    ChecksumMismatch,
    DoubleFree,
    KVError,
    NotResident,
    NoVictim,
    Pinned,
    TierUnavailable,
    UnsupportedSchema,
)

SAID = [
    (
        BudgetExceeded(where="pool cpu", asked=9, free=4, limit=8, unit="blocks"),
        "pool cpu: 9 blocks asked, 4 of 8 free",
    ),
    (DoubleFree(where="pool cpu", name="handle 3"), "pool cpu: handle 3 is not held, so it cannot be given back"),
    (Pinned(where="dram", name="ab12", pins=2), "dram: ab12 is held (2)"),
    (NoVictim(where="dram", asked=9, evictable=4), "dram: 9 bytes to be made free, 4 may be evicted"),
    (NotResident(where="ssd", name="ab12"), "ssd: ab12 is not resident"),
    (ChecksumMismatch(where="ssd", name="ab12", why="length"), "ssd: ab12 is damaged (length differs)"),
    (TierUnavailable(where="ssd", why="No space left on device"), "ssd: unavailable (No space left on device)"),
    (UnsupportedSchema(where="precision", why="int8 needs scales"), "precision: int8 needs scales"),
]


@pytest.mark.parametrize(("error", "text"), SAID, ids=[type(error).__name__ for error, _ in SAID])
def test_an_error_says_where_and_how_much_in_one_line(error: KVError, text: str) -> None:
    assert str(error) == text
    with pytest.raises(KVError, match="^" + error.where):
        raise error
