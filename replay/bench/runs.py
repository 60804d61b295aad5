"""Many runs in virtual time, side by side in processes: a run is a function of its task, so neither the number of
processes nor their order changes a result."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context

import msgspec

from policies.catalog import Preset
from replay.bench.offered import SLO, Offer, arrivals, engines
from replay.cluster import simulate
from replay.score import Scores


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """One run: what arrives, the settings of every actor, and the engines' chunk budget."""

    offer: Offer
    settings: Preset
    batch_tokens: int


Player = Callable[[Sequence[Task], Callable[[], None]], list[Scores]]
"""`play_all(tasks, on_done)`: the scores of all runs, in the order of the tasks; `on_done` is called after each."""


def play(task: Task) -> Scores:
    """The scores of one run. A rejected request is missed: it does not come back."""
    run = simulate(
        arrivals(task.offer), engines(task.offer.workload, task.batch_tokens), settings=task.settings, slo=SLO
    )
    return run.scores


@contextmanager
def players(jobs: int) -> Iterator[Player]:
    """Somewhere to run tasks, `jobs` at a time, while the block runs."""
    if jobs == 1:
        yield _one_by_one
        return
    # Spawned, not forked: the parent may have threads (a progress bar has one).
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))
    try:
        yield partial(_side_by_side, pool)
    finally:
        pool.shutdown(cancel_futures=True)


def _one_by_one(tasks: Sequence[Task], on_done: Callable[[], None]) -> list[Scores]:
    found: list[Scores] = []
    for task in tasks:
        found.append(play(task))
        on_done()
    return found


def _side_by_side(pool: ProcessPoolExecutor, tasks: Sequence[Task], on_done: Callable[[], None]) -> list[Scores]:
    futures = [pool.submit(play, task) for task in tasks]
    for future in as_completed(futures):
        future.result()  # What went wrong in a run ends the whole, at once.
        on_done()
    return [future.result() for future in futures]
