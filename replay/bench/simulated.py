"""A simulation as one value, so that it can be done in another Python: where vLLM is (`replay.bench.far`)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from events.base import EngineId
from events.engine import EngineRegistered
from events.log.base import Message
from replay.bench.far import FarError, far_players
from replay.bench.memory.report import EngineModel
from replay.bench.memory.task import as_able, slice_tokens_of
from replay.cluster import Run, simulate
from replay.engines.tiers import TierSizes
from replay.engines.vllm_plugged import Plugged
from replay.faults import Fault, TransferFaults
from replay.workloads.base import Arrival
from replay.workloads.slo import SLO_DEFAULT, Slo


class Simulation(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of `replay.cluster.simulate` that are values."""

    arrivals: tuple[Arrival, ...]
    engines: tuple[EngineRegistered, ...]
    settings: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)
    pool: str = "sim"
    slo: Slo = SLO_DEFAULT
    holders: int = 1
    faults: tuple[Fault, ...] = ()
    retry_rejected: bool | None = None
    closed_loop: bool = False
    until_ns: int = 0
    tiers: dict[EngineId, TierSizes] = msgspec.field(default_factory=dict)
    transfer_faults: TransferFaults | None = None


def play_on_vllm(simulation: Simulation, *, plugged: Plugged | None = None) -> Run:
    """Run it on engines whose every choice is made by vLLM's scheduler, with the classes `plugged` into it where tiers
    are left to the directive. ImportError where there is no vLLM."""
    from replay.engines.vllm_scheduler import vllm_builder

    given = msgspec.structs.asdict(simulation)
    build = vllm_builder(slice_tokens=slice_tokens_of(simulation.arrivals), plugged=plugged)
    able = as_able(EngineModel.VLLM_SCHEDULER, given.pop("engines"))
    return simulate(given.pop("arrivals"), able, build=build, **given)


def play_far(python: Path, simulation: Simulation, play: Callable[[Simulation], Run]) -> Run:
    """Done by `play` (`play_on_vllm`, or it with classes plugged in) in a Python that has vLLM. Raises FarError where
    that fails."""
    with far_players(python, 1, play) as play_all:
        return play_all([simulation], lambda _number, _run: None)[0]


def simulate_far(python: Path, play: Callable[[Simulation], Run]) -> Callable[..., Run]:
    """`replay.cluster.simulate`, done by `play` in that Python, where vLLM is. What is heard of the log comes when it
    is over. The function raises ValueError with the reason where it fails."""

    def simulated(
        arrivals: Sequence[Arrival], engines: Sequence[EngineRegistered], *,
        on_message: Callable[[Message], None] | None = None,
        on_progress: Callable[[int, int], None] | None = None, **given: Any,
    ) -> Run:  # fmt: skip
        try:
            run = play_far(python, Simulation(arrivals=tuple(arrivals), engines=tuple(engines), **given), play)
        except FarError as error:
            raise ValueError(error.why.rpartition("\n")[2]) from error
        if on_message is not None:
            for message in run.messages:
                on_message(message)
        if on_progress is not None:
            on_progress(len(arrivals), len(arrivals))
        return run

    return simulated
