"""Runs of the memory benchmark, each done once: what is in the store already is not done again."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import fmean

from replay.bench.memory.report import EngineModel, RunResult
from replay.bench.memory.store import Store
from replay.bench.memory.task import MemoryTask
from replay.bench.memory.workloads import WORKLOADS
from replay.bench.runs import Player

Players = Mapping[EngineModel, Player[MemoryTask, RunResult]]
"""Somewhere to run tasks, by the kind of their engines."""


class Runs:
    """`on_progress(done)` is called with how many runs there are by now, after each."""

    def __init__(self, store: Store, players: Players, on_progress: Callable[[int], None]) -> None:
        self._store, self._players, self._on_progress = store, players, on_progress
        self.done = 0

    def can(self, engine: EngineModel) -> bool:
        """Whether there is somewhere to run tasks on such engines."""
        return engine in self._players

    def all(self, tasks: Sequence[MemoryTask]) -> list[RunResult]:
        """The results of these tasks, in their order."""
        missing = list({task.digest(): task for task in tasks if self._store.get(task) is None}.values())
        self._advance(len(tasks) - len(missing))
        for engine in dict.fromkeys(task.engine for task in missing):
            # The longest first, so that none is begun when all others are over.
            batch = sorted((task for task in missing if task.engine is engine), key=_amount, reverse=True)
            self._players[engine](batch, partial(self._keep, batch))
        return [result for result in map(self._store.get, tasks) if result is not None]

    def kept(self, task: MemoryTask) -> RunResult | None:
        """What a task gave, if it was done."""
        return self._store.get(task)

    def goodputs(self, groups: Sequence[Sequence[MemoryTask]]) -> list[float]:
        """The mean goodput of each group of tasks."""
        results = iter(self.all([task for group in groups for task in group]))
        return [fmean(next(results).scores.goodput_per_s for _ in group) for group in groups]

    def _keep(self, batch: Sequence[MemoryTask], number: int, result: RunResult) -> None:
        self._store.put(batch[number], result)
        self._advance(1)

    def _advance(self, count: int) -> None:
        self.done += count
        self._on_progress(self.done)


def _amount(task: MemoryTask) -> float:
    """About how much there is to do."""
    offer = task.offer
    return offer.scale / WORKLOADS[offer.workload].guess * offer.seconds * offer.engines
