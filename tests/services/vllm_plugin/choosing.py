"""An engine that makes choices, and the journals that it leaves: what tests of journals begin with."""

from pathlib import Path

from events.base import EngineId, Event, RequestId
from events.decisions import EngineDirected
from events.slice import Tier
from policies.memory.delegate_ops import EvictAsked, FetchAsked, GaveWay, LetGo, Stored, VictimAsked
from policies.memory.victims import Running
from services.vllm_plugin.bridge import Bridge
from services.vllm_plugin.journal import ChoiceJournal

ENGINE = EngineId("e1")
S = 10**9


class Chooser:
    """A bridge whose journal is written into a folder, as the agent does it."""

    def __init__(self, folder: Path, *, bytes_max: int = 1 << 20, files_max: int = 8) -> None:
        self.folder = folder
        self.journal = ChoiceJournal(folder, ENGINE, bytes_max=bytes_max, files_max=files_max)
        self.bridge = Bridge()
        self.bridge.engine_id = ENGINE
        self.bridge.number_from(self.journal.last_number())
        self.bridge.listen(lambda: None, journals=True)

    def direct(self, version: int, *, eviction: str = "slo_aware") -> None:
        self.bridge.direct(EngineDirected(engine_id=ENGINE, version=version, eviction=eviction, protect_ppm=800_000))

    def work(self, first: int, count: int) -> None:
        """Store and let go of `count` slices, and choose: an eviction for each, a victim, a fetch."""
        for number in range(first, first + count):
            name = f"{number:032x}"
            stored = Stored(at_ns=number * S, tier=Tier.DRAM, slice_id=name, cost_ns=S * (1 + number % 7), size=1 << 20)
            self.bridge.choose(stored)
            self.bridge.choose(LetGo(at_ns=number * S, tier=Tier.DRAM, slices=(name,)))
            if number % 2:
                self.bridge.choose(EvictAsked(at_ns=number * S, tier=Tier.DRAM, count=1))
        running = tuple(
            Running(request_id=RequestId(f"r{n}"), blocks_freed=4 + n, lost_ns=S * (n + 1), slack_ns=S * 9 * n)
            for n in range(4)
        )
        choice = self.bridge.choose(
            VictimAsked(at_ns=first, need_blocks=6, running=running, for_request=RequestId("r0"))
        )
        assert choice is not None
        for name in choice.chosen:
            self.bridge.choose(GaveWay(at_ns=first, request_id=RequestId(name)))
        self.bridge.choose(
            FetchAsked(at_ns=first, tier=Tier.SSD, slices=("a",), size=10**6, bytes_per_s=10**9, recompute_ns=S)
        )

    def write(self) -> list[Event]:
        """Write what waits; the facts that were told."""
        facts = self.bridge.facts(1 << 20)
        self.journal.write(self.bridge.entries())
        if self.journal.is_full():
            self.bridge.begin_journal()
        return facts

    def kill(self) -> None:
        """As SIGKILL would: what was written stays, nothing more is."""
        if self.journal._file is not None:
            self.journal._file.close()
