"""The rules of the light engine written a second time: one step and one request at a time, with nothing clever."""

from collections import deque

from events.base import RequestKind
from events.engine import StepModel
from policies.predictors.step_time import FS_PER_NS, step_fs
from replay.engines.job import Finished, FirstToken, Outcome, SimRequest

Chain = tuple[object, ...]


class Plain:
    """A sequence of the plain engine. It has blocks for `slots` tokens while it computes; `chosen` of them are computed
    or in the step."""

    def __init__(self, request: SimRequest) -> None:
        self.request, self.emitted, self.computed, self.target, self.preemptions = request, 0, 0, 0, 0
        self.cached = -1
        self.slots = self.chosen = 0
        self.chain: list[Chain] = []
        self.rest: tuple[Chain, int] | None = None

    def decoding(self) -> bool:
        return self.target > 0 and self.computed >= self.target

    def embeds(self) -> bool:
        return self.request.kind is RequestKind.EMBEDDING

    def begun(self) -> int:
        if not self.embeds():
            return self.target - self.chosen
        return min(self.target - self.chosen, -self.chosen % -(-self.request.prompt_tokens // self.request.inputs))


class PlainEngine:
    """First come, first served, stepwise. `next_step` does one whole step and says what came out of it."""

    def __init__(self, kv_blocks: int, block_tokens: int, seqs_max: int, batch_tokens: int, step: StepModel) -> None:
        self.step = step
        self.total, self.bt, self.seqs_max, self.batch = kv_blocks, block_tokens, seqs_max, batch_tokens
        self.waiting: deque[Plain] = deque()
        self.running: list[Plain] = []
        self.cache: dict[Chain, int] = {}  # units by chain, and rests: blocks, oldest release first
        self.rests = 0
        self.at_fs = 0

    # Amounts.

    def blocks(self, tokens: int) -> int:
        return -(-tokens // self.bt)

    def need(self, seq: Plain) -> int:
        r = seq.request
        if seq.embeds():
            return min(self.blocks(max(-(-r.prompt_tokens // r.inputs), min(r.prompt_tokens, self.batch))), self.total)
        # A decoding sequence is about to store the token it made last.
        return self.blocks(r.prompt_tokens + seq.emitted if seq.decoding() else seq.slots)

    def refs(self, chain: Chain) -> int:
        return sum(chain in seq.chain for seq in self.running)

    def free(self) -> int:
        """Blocks neither held by a running request nor cached and held."""
        own = sum(self.need(seq) - len(seq.chain) * self.unit(seq) for seq in self.running)
        return self.total - own - sum(blocks for chain, blocks in self.cache.items() if self.refs(chain))

    def unit(self, seq: Plain) -> int:
        return seq.request.unit_tokens // self.bt

    def evict(self) -> None:
        spare = self.free() - sum(blocks for chain, blocks in self.cache.items() if not self.refs(chain))
        while spare < 0:
            chain = next(chain for chain in self.cache if not self.refs(chain))
            blocks = self.cache.pop(chain)
            if blocks > -spare:
                # Evicted block by block: what is left is no unit any more, and next in line.
                name = chain if chain[0] in ("rest", "part") else ("part", chain)
                self.cache = {name: blocks + spare, **self.cache}
            spare += blocks

    # One step.

    def next_step(self) -> list[Outcome]:
        preempted = self.make_room()
        self.evict()
        decodes = [seq for seq in self.running if seq.decoding()]
        chunks = self.choose(self.batch - len(decodes), admit=not preempted)
        if not decodes and not chunks:
            chunks = self.choose(self.batch, admit=True)
        return self.compute(decodes, chunks)

    def make_room(self) -> bool:
        """Preempt the newest until each decode has its next block, and each prompt those of its next part."""
        preempted = False
        while self.free() < self.wanted():
            victim = self.running[-1]
            stored = victim.request.prompt_tokens + victim.emitted - 1 if victim.decoding() else victim.computed
            self.leave(victim, stored)
            victim.preemptions += 1
            self.waiting.appendleft(victim)
            preempted = True
        return preempted

    def wanted(self) -> int:
        left, wanted = self.batch - sum(seq.decoding() for seq in self.running), 0
        for seq in self.running:
            if not seq.decoding():
                count = min(left, seq.begun())
                left -= count
                wanted += 0 if seq.embeds() else self.blocks(seq.chosen + count) - self.blocks(seq.slots)
        return wanted

    def choose(self, left: int, *, admit: bool) -> list[tuple[Plain, int]]:
        chunks: list[tuple[Plain, int]] = []
        for seq in self.running:
            if not seq.decoding() and (count := min(left, seq.begun())):
                chunks.append((seq, self.chunk(seq, count)))
                left -= count
        while left and admit and len(self.running) < self.seqs_max:
            more = next((seq for seq in self.running if seq.embeds() and seq.chosen < seq.target), None)
            if more is None:
                if not self.waiting or not self.enter(self.waiting[0]):
                    break
                more = self.running[-1]
            count = min(left, more.target - more.chosen)
            chunks.append((more, self.chunk(more, count)))
            left -= count
        return chunks

    def chunk(self, seq: Plain, count: int) -> int:
        seq.chosen += count
        if not seq.embeds():
            seq.slots = seq.chosen
            self.evict()
            self.store(seq)
        return count

    def enter(self, seq: Plain) -> bool:
        r = seq.request
        seq.target = seq.slots = r.prompt_tokens + seq.emitted
        if not seq.embeds():
            for count in range(1, min(seq.target - 1, r.prompt_tokens) // r.unit_tokens + 1):
                if count > len(r.prefix) or r.prefix[:count] not in self.cache:
                    break
                seq.chain.append(r.prefix[:count])
        self.running.append(seq)
        if self.free() < 0:
            self.running.remove(seq)
            seq.chain, seq.target = [], 0
            return False
        self.waiting.popleft()
        seq.computed = len(seq.chain) * r.unit_tokens
        seq.computed += self.cache.pop(self.behind(seq), 0) * self.bt
        seq.rest = None
        seq.slots = seq.chosen = seq.computed
        self.evict()
        seq.cached = seq.computed if seq.cached < 0 else seq.cached
        return True

    def behind(self, seq: Plain) -> Chain:
        """What stands behind the units that it found: what it left there itself, or a part of the next unit."""
        if seq.rest is not None and seq.rest[1] == len(seq.chain) and seq.rest[0] in self.cache:
            return seq.rest[0]
        full = min(seq.target - 1, seq.request.prompt_tokens) // seq.request.unit_tokens
        return "part", seq.request.prefix[: len(seq.chain) + 1] if len(seq.chain) < full else ()

    def store(self, seq: Plain) -> None:
        """What is chosen of a prompt is cached from then on."""
        r = seq.request
        full = min(seq.chosen, r.prompt_tokens) // r.unit_tokens
        for count in range(len(seq.chain) + 1, min(full, len(r.prefix)) + 1):
            seq.chain.append(r.prefix[:count])
            self.cache.setdefault(r.prefix[:count], self.unit(seq))

    def compute(self, decodes: list[Plain], chunks: list[tuple[Plain, int]]) -> list[Outcome]:
        pairs = 0
        for seq, count in chunks:
            r = seq.request
            if seq.embeds():
                pairs += count * (r.prompt_tokens // r.inputs)
            else:
                pairs += (seq.computed + count) ** 2 - seq.computed**2
        context = sum(seq.request.prompt_tokens + seq.emitted for seq in decodes)
        tokens = len(decodes) + sum(count for _, count in chunks)
        self.at_fs += step_fs(self.step, tokens=tokens, qk=pairs // 2, context=context, seqs=len(decodes))
        at_ns, out = -(-self.at_fs // FS_PER_NS), list[Outcome]()
        for seq in decodes:
            seq.emitted += 1
        for seq in [s for s in decodes if s.emitted == s.request.output_tokens]:
            out.append(self.finish(seq, at_ns))
        for seq, count in chunks:
            seq.computed += count
            if not seq.decoding():
                continue
            if not seq.embeds():
                seq.emitted += 1
                if seq.emitted == 1:
                    out.append(FirstToken(seq.request.request_id, at_ns))
            if seq.emitted == seq.request.output_tokens:
                out.append(self.finish(seq, at_ns))
        return out

    # Leaving.

    def finish(self, seq: Plain, at_ns: int) -> Finished:
        r = seq.request
        kv_tokens = r.prompt_tokens + max(0, seq.emitted - 1)
        self.leave(seq, kv_tokens)
        return Finished(r.request_id, at_ns, seq.emitted, max(0, seq.cached), seq.preemptions, kv_tokens)

    def leave(self, seq: Plain, stored: int) -> None:
        """What is in full blocks stays cached: what no prompt names (the rest), then units, the last first."""
        self.running.remove(seq)
        blocks = 0 if seq.embeds() else stored // self.bt - len(seq.chain) * self.unit(seq)
        if blocks:
            self.rests += 1
            seq.rest = (("rest", self.rests), len(seq.chain))
            self.cache["rest", self.rests] = blocks
        for chain in reversed(seq.chain):
            if not self.refs(chain):
                self.cache[chain] = self.cache.pop(chain)  # to the end of the queue
        seq.chain, seq.computed, seq.chosen, seq.slots, seq.target = [], 0, 0, 0, 0


def run_plain(work: list[tuple[int, SimRequest]], step: StepModel, **shape: int) -> list[Outcome]:
    """All that comes out of a plain engine; `work` in order of time (ns)."""
    one, out, todo = PlainEngine(**shape, step=step), list[Outcome](), deque(work)
    while todo or one.waiting or one.running:
        if not one.waiting and not one.running:
            one.at_fs = max(one.at_fs, todo[0][0] * FS_PER_NS)
        while todo and todo[0][0] * FS_PER_NS <= one.at_fs:
            one.waiting.append(Plain(todo.popleft()[1]))
        if one.waiting or one.running:
            out += one.next_step()
    return out
