"""A run keeps the search for cycles away, and leaves nothing of that behind."""

import gc

import pytest

from replay.garbage import OBJECTS_KEPT, seldom_looked_for


def _broken_off() -> None:
    with seldom_looked_for():
        assert gc.get_threshold()[0] == OBJECTS_KEPT
        raise KeyboardInterrupt


def test_search_for_cycles_is_as_before_when_a_run_was_broken_off() -> None:
    before = gc.get_threshold()
    with pytest.raises(KeyboardInterrupt):
        _broken_off()
    assert gc.get_threshold() == before
