"""What a log says of a pool's memory: totals, and steps of time with occupancy, tokens and who waits at engines."""

from collections.abc import Iterator
from typing import Final

import msgspec

from events.base import PPM, EngineId, Event, SliceId
from events.decisions import Move, MoveReason, ShareReason, SharesSet, TransferOrdered
from events.engine import EngineMeasured, EngineRegistered
from events.slice import SlicesCleared, SlicesHit, SlicesRemoved, Tier, TransferEnd, TransferFinished

PREFETCHES: Final = frozenset({MoveReason.WAITING_REQUEST, MoveReason.NEXT_TURN, MoveReason.HOT_PREFIX})
QUOTA_MOVES: Final = frozenset({ShareReason.LOAD_MOVED, ShareReason.BOUNDS_ASKED})
DEVICE, DRAM, SSD, PEER = "device", "dram", "ssd", "peer"
"""Where a reused token came from. `peer`: from slices that another engine's copy was ordered for."""
TIERS: Final = (DEVICE, DRAM, SSD, PEER)
_WHERE: Final = {Tier.HBM: DEVICE, Tier.DRAM: DRAM, Tier.SSD: SSD}


class Share(msgspec.Struct):
    """How full an engine's memory was: sums over `samples`, in millionths of its KV blocks; `llm_part` and
    `embedding_part` in millionths of what their shares allow (0 where nothing is divided)."""

    samples: int = 0
    used: int = 0
    used_max: int = 0
    waiting: int = 0
    divided: int = 0
    llm_part: int = 0
    embedding_part: int = 0


class Step(msgspec.Struct):
    """A stretch of time. `tokens` is what engines computed in it, prompts and output; `output_tokens` are those of them
    that were produced; `hits` are slices by origin."""

    tokens: int = 0
    output_tokens: int = 0
    engines: dict[EngineId, Share] = msgspec.field(default_factory=dict)
    hits: dict[str, int] = msgspec.field(default_factory=dict)

    def occupancy_ppm(self) -> float:
        """The mean over engines, each over its samples."""
        means = [share.used / share.samples for share in self.engines.values()]
        return sum(means) / len(means) if means else 0.0


class _Totals:
    """What an engine counts from its start on; a total that went back counts from an engine that started anew."""

    __slots__ = ("grown", "last")

    def __init__(self) -> None:
        self.grown = self.last = 0

    def take(self, total: int) -> int:
        """By how much it grew since the last time."""
        grown = total - self.last if total >= self.last else total
        self.grown, self.last = self.grown + grown, total
        return grown


class _Engine:
    """`copied` are the slices that came from a peer, and are there still."""

    __slots__ = (
        "bytes_max",
        "copied",
        "embedding_ppm",
        "evictions",
        "llm_ppm",
        "measured",
        "outputs",
        "preemptions",
        "prompts",
    )

    def __init__(self) -> None:
        self.preemptions, self.evictions, self.prompts, self.outputs = (_Totals() for _ in range(4))
        self.measured = False
        self.bytes_max = self.llm_ppm = self.embedding_ppm = 0
        self.copied: dict[SliceId, None] = {}


class Gauges:
    """Takes events in, in log order. `steps` are numbered by pool time: step n is what was said in the `every_ns` that
    end at (n + 1) x `every_ns`."""

    def __init__(self, every_ns: int) -> None:
        self.every_ns = every_ns
        self.steps: dict[int, Step] = {}
        self.migrations = self.migrations_failed = self.prefetches = self.quota_moves = 0
        self._engines: dict[EngineId, _Engine] = {}
        self._migrations: dict[str, None] = {}
        self._copies: dict[str, TransferOrdered] = {}

    def take(self, event: Event, ts_ns: int) -> None:
        """Take one in."""
        match event:
            case EngineMeasured():
                self._measured(event, ts_ns)
            case SlicesHit():
                self._hit(event, ts_ns)
            case SlicesRemoved() | SlicesCleared():
                self._gone(event)
            case TransferOrdered():
                self._ordered(event)
            case TransferFinished():
                self._ended(event)
            case SharesSet():
                self.quota_moves += event.reason in QUOTA_MOVES
                engine = self._engine(event.engine_id)
                engine.llm_ppm, engine.embedding_ppm = event.llm_ppm, event.embedding_ppm
                if event.reason is ShareReason.LIFTED:
                    engine.llm_ppm = engine.embedding_ppm = 0
            case EngineRegistered():
                self._engine(event.engine_id).bytes_max = event.kv_blocks * event.block_bytes
            case _:
                pass

    @property
    def engines(self) -> int:
        """How many were ever registered or measured."""
        return sum(engine.measured or engine.bytes_max > 0 for engine in self._engines.values())

    @property
    def preemptions(self) -> int:
        """Of all engines."""
        return sum(engine.preemptions.grown for engine in self._engines.values())

    @property
    def evictions(self) -> int:
        """Cached slices (or blocks, as engines count) that device memory lost, of all engines."""
        return sum(engine.evictions.grown for engine in self._engines.values())

    def hits(self) -> dict[str, int]:
        """Slices that requests got, by origin."""
        return {name: sum(step.hits.get(name, 0) for step in self.steps.values()) for name in TIERS}

    def between(self, from_ns: int, to_ns: int) -> Iterator[Step]:
        """The steps that lie wholly between two times, those of which nothing is known too."""
        for number in range(-(-from_ns // self.every_ns), to_ns // self.every_ns):
            yield self.steps.get(number) or Step()

    def number(self, ts_ns: int) -> int:
        """Of the step that a time is in."""
        return max(0, ts_ns - 1) // self.every_ns

    def _step(self, ts_ns: int) -> Step:
        number = self.number(ts_ns)
        found = self.steps.get(number)
        if found is None:
            found = self.steps[number] = Step()
        return found

    def _engine(self, engine_id: EngineId) -> _Engine:
        found = self._engines.get(engine_id)
        if found is None:
            found = self._engines[engine_id] = _Engine()
        return found

    def _measured(self, event: EngineMeasured, ts_ns: int) -> None:
        engine, step = self._engine(event.engine_id), self._step(ts_ns)
        engine.preemptions.take(event.preemptions_total)
        engine.evictions.take(event.evictions_total)
        prompts, outputs = (
            engine.prompts.take(event.prompt_tokens_total),
            engine.outputs.take(event.output_tokens_total),
        )
        if engine.measured:  # What it did before the log began is none of this step's.
            step.tokens += prompts + outputs
            step.output_tokens += outputs
        engine.measured = True
        share = step.engines.get(event.engine_id)
        if share is None:
            share = step.engines[event.engine_id] = Share()
        share.samples += 1
        share.used += event.kv_used_ppm
        share.used_max = max(share.used_max, event.kv_used_ppm)
        share.waiting += event.waiting
        if engine.bytes_max and engine.llm_ppm and engine.embedding_ppm and event.embedding_bytes >= 0:
            embedding = event.embedding_bytes * PPM // engine.bytes_max
            share.divided += 1
            share.embedding_part += embedding * PPM // engine.embedding_ppm
            share.llm_part += max(0, event.kv_used_ppm - embedding) * PPM // engine.llm_ppm

    def _hit(self, event: SlicesHit, ts_ns: int) -> None:
        hits, copied = self._step(ts_ns).hits, self._engine(event.engine_id).copied
        from_peer = sum(one in copied for one in event.slices) if copied else 0
        where = _WHERE[event.tier]
        hits[where] = hits.get(where, 0) + len(event.slices) - from_peer
        hits[PEER] = hits.get(PEER, 0) + from_peer

    def _gone(self, event: SlicesRemoved | SlicesCleared) -> None:
        copied = self._engine(event.engine_id).copied
        if isinstance(event, SlicesCleared):
            copied.clear()
        elif copied:
            for one in event.slices:
                copied.pop(one, None)

    def _ordered(self, event: TransferOrdered) -> None:
        if event.reason in PREFETCHES:
            self.prefetches += 1
        else:
            self.migrations += 1
            self._migrations[event.order] = None
        if event.move is Move.REPLICATE:
            self._copies[event.order] = event

    def _ended(self, event: TransferFinished) -> None:
        copy = self._copies.pop(event.order, None)
        if copy is not None and event.slices_done:
            self._engine(copy.to_engine).copied.update(dict.fromkeys(copy.slices))
        if event.order in self._migrations:
            del self._migrations[event.order]
            self.migrations_failed += event.end is TransferEnd.FAILED
