"""Python's search for cycles, kept out of the way of a run in virtual time.

Events, messages and what engines hold make no cycles that outlive what they stand for; yet the search walks all that is
held of a run, a fifth of its time. So while one goes on it waits until much more was made than was let go.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

OBJECTS_KEPT: Final = 200_000
"""Objects made and kept between two looks for cycles (Python's own: 700)."""


@contextmanager
def seldom_looked_for() -> Iterator[None]:
    """Cycles are looked for as often as before when it is over."""
    before = gc.get_threshold()
    gc.set_threshold(OBJECTS_KEPT, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
