"""Ctrl-C as a question."""

import os
import signal
import threading

import pytest

from services.runtime.interrupt import held_interrupt


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_the_first_one_asks_and_the_second_one_interrupts() -> None:
    with held_interrupt() as asked:
        said = [asked.now]
        press()
        assert [*said, asked.now] == [False, True]
        with pytest.raises(KeyboardInterrupt):
            press()


def test_afterwards_it_is_what_it_was() -> None:
    before = signal.getsignal(signal.SIGINT)
    with held_interrupt():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_may_use_it() -> None:
    seen: list[bool] = []

    def work() -> None:
        with held_interrupt() as asked:
            seen.append(asked.now)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
