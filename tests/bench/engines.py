"""How much faster than real time engines are simulated, at a batch of 64: the light one, and vLLM's scheduler.

A closed loop: 64 requests are inside at any time, prompts of 1,000 to 3,000 tokens of 200 documents, answers of 200 to
600, on an H100's step times. CPU time of one process counts. vLLM's scheduler runs where `make test-engine` has built
its environment; without it there are no rows of it.
"""

import time
from collections.abc import Awaitable, Callable
from random import Random
from typing import TYPE_CHECKING

import msgspec

from events.base import NS_PER_S, RequestId
from replay.bench.far import engine_python, far_players
from replay.bench.runs import Player
from replay.costmodel import registered
from replay.engines.base import VirtualEngine
from replay.engines.job import Finished, SimRequest
from replay.engines.light import light_engine
from replay.engines.tiers import TierSizes
from tests.bench.rounds import Figures, Row, Way, interleave, measured

if TYPE_CHECKING:  # The engine's environment has not all that a place needs.
    from tests.bench.place import Place

BATCH = 64
DOCUMENTS = 200
PROMPT_TOKENS = (1_000, 3_000)
OUTPUT_TOKENS = (200, 600)
UNIT_TOKENS = 256
DRAM_BYTES = 64 << 30
VIRTUAL_S = 20
LIGHT_VIRTUAL_S = 200
"""Virtual seconds of a round."""
GOALS = {"light": 1_000.0, "vllm": 15.0, "vllm_dram": 8.0}
TITLES = {
    "light": "light engine, batch 64",
    "vllm": "vLLM's scheduler, batch 64",
    "vllm_dram": "vLLM's scheduler with CPU offload, batch 64",
}


class Lap(msgspec.Struct, frozen=True):
    """An engine of that kind, for so many virtual seconds."""

    kind: str
    seconds: int


async def measure(place: "Place") -> list[Row]:
    """Virtual seconds per second of CPU time."""
    python = engine_python()
    ways: dict[str, Way] = {"light": _way(_here, Lap("light", LIGHT_VIRTUAL_S))}
    if python is None:
        return _rows(await interleave(ways, rounds=place.rounds))
    with far_players(python, 1, speed) as far:
        for kind in ("vllm", "vllm_dram"):
            ways[kind] = _way(far, Lap(kind, VIRTUAL_S))
        return _rows(await interleave(ways, rounds=place.rounds))


def speed(lap: Lap) -> float:
    """How many times as fast as real time."""
    engine = _engine(lap.kind)
    load = _Load(engine)
    began = time.process_time()
    load.run_until(lap.seconds * NS_PER_S)
    return lap.seconds / (time.process_time() - began)


class _Load:
    """Who keeps so many requests inside."""

    def __init__(self, engine: VirtualEngine) -> None:
        self._engine, self._rng, self._asked = engine, Random(1), 0
        for _ in range(BATCH):
            self._ask(0)

    def run_until(self, until_ns: int) -> None:
        """A request comes whenever one has ended."""
        while (at_ns := self._engine.next_ns()) is not None and at_ns < until_ns:
            for outcome in self._engine.run_until(at_ns):
                if isinstance(outcome, Finished):
                    self._ask(at_ns)

    def _ask(self, now_ns: int) -> None:
        self._asked += 1
        prompt, document = self._rng.randint(*PROMPT_TOKENS), self._rng.randrange(DOCUMENTS)
        request = SimRequest(
            request_id=RequestId(f"r{self._asked}"), prompt_tokens=prompt,
            output_tokens=self._rng.randint(*OUTPUT_TOKENS), unit_tokens=UNIT_TOKENS,
            prefix=tuple(f"{document:016x}{unit:016x}" for unit in range(prompt // UNIT_TOKENS)),
        )  # fmt: skip
        self._engine.submit(request, now_ns)


def _engine(kind: str) -> VirtualEngine:
    described, build = registered("e1", ("m",)), light_engine
    if kind != "light":
        from replay.engines.vllm_scheduler import vllm_engine

        build = vllm_engine
    tiers = TierSizes(dram_bytes=DRAM_BYTES, eviction="lru") if kind == "vllm_dram" else None
    return build(described, now_ns=0, tiers=tiers, faults=None, ssd=None, peer=lambda _engine_id: None)


def _here(laps: list[Lap], on_done: Callable[[int, float], None]) -> list[float]:
    return [speed(lap) for lap in laps]


def _way(play: Player[Lap, float], lap: Lap) -> Callable[[], Awaitable[Figures]]:
    async def round_() -> Figures:
        return {"x": play([lap], lambda _number, _speed: None)[0]}

    return round_


def _rows(values: dict[str, dict[str, list[float]]]) -> list[Row]:
    return [measured(TITLES[kind], "x real time", found["x"], at_least=GOALS[kind]) for kind, found in values.items()]
