"""Many runs in virtual time, side by side in processes: a run is a function of its task, so neither the number of
processes nor their order changes a result."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from multiprocessing import active_children, get_context, parent_process
from signal import SIG_DFL, SIGINT, signal
from threading import Thread
from typing import TypeVar

import msgspec

from policies.catalog import Preset
from replay.bench.offered import SLO, Offer, arrivals, engines
from replay.cluster import simulate
from replay.score import Scores

T = TypeVar("T")
R = TypeVar("R")


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """One run: what arrives, the settings of every actor, and the engines' chunk budget."""

    offer: Offer
    settings: Preset
    batch_tokens: int


Player = Callable[[Sequence[T], Callable[[int, R], None]], list[R]]
"""`play_all(tasks, on_done)`: the results of all runs, in the order of the tasks; `on_done(number of the task, result)`
is called after each, as they end."""


def play(task: Task) -> Scores:
    """The scores of one run. A rejected request is missed: it does not come back."""
    run = simulate(
        arrivals(task.offer), engines(task.offer.workload, task.batch_tokens), settings=task.settings, slo=SLO
    )
    return run.scores


@contextmanager
def players(jobs: int, play: Callable[[T], R]) -> Iterator[Player[T, R]]:
    """Somewhere to run tasks by `play` (a function of a module), `jobs` at a time, while the block runs."""
    if jobs == 1:
        yield partial(_one_by_one, play)
        return
    others = active_children()
    # Spawned, not forked: the parent may have threads (a progress bar has one).
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_end_with_parent)
    try:
        yield partial(_side_by_side, pool, play)
    finally:
        ours = [child for child in active_children() if child not in others]
        pool.shutdown(wait=False, cancel_futures=True)
        for child in ours:  # Nobody waits for a run that is still going on.
            child.terminate()
        for child in ours:
            child.join()


def _end_with_parent() -> None:
    """Ctrl-C reaches all processes of a terminal: who asked says what was done, these just end. So they do when who
    asked is gone without a word, which they would not notice while they wait for a task."""
    signal(SIGINT, SIG_DFL)
    Thread(target=_outlive, daemon=True).start()


def _outlive() -> None:
    parent = parent_process()
    assert parent is not None, "it was spawned"
    parent.join()
    os._exit(1)


def _one_by_one(play: Callable[[T], R], tasks: Sequence[T], on_done: Callable[[int, R], None]) -> list[R]:
    found: list[R] = []
    for number, task in enumerate(tasks):
        found.append(play(task))
        on_done(number, found[-1])
    return found


def _side_by_side(
    pool: ProcessPoolExecutor, play: Callable[[T], R], tasks: Sequence[T], on_done: Callable[[int, R], None]
) -> list[R]:
    futures = {pool.submit(play, task): number for number, task in enumerate(tasks)}
    found: dict[int, R] = {}
    for future in as_completed(futures):
        number = futures[future]
        found[number] = future.result()  # What went wrong in a run ends the whole, at once.
        on_done(number, found[number])
    return [found[number] for number in range(len(tasks))]
