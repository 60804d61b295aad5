"""Ctrl-C as a question: work that writes a file stops between two records, not within one."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Asked:
    """Whether Ctrl-C was pressed."""

    def __init__(self) -> None:
        self.now = False


@contextmanager
def held_interrupt() -> Iterator[Asked]:
    """Within the block Ctrl-C only sets `now`; a second one interrupts wherever it comes. In threads other than the
    main one, which get no signals, nothing changes."""
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def heard(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        asked.now = True

    before = signal.signal(signal.SIGINT, heard)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
