"""A small world around admission: from a list of numbers to a log of facts and what was decided because of them.

Requests that are admitted run on engines that grow them one token per step; they end when their true length is there,
or are aborted, or their engine or holder is lost on the way. Those that are preempted wait again, or are parked.
`python -m tests.policies.world` prints the digest of a
long day: the same in every process.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import msgspec

from events.base import Event, Recorded, RequestId, RequestKind
from events.control import Ticked
from events.decisions import (
    HolderLost,
    MiscoverageNoticed,
    RequestAdmitted,
    RequestDeferred,
    RequestPreempted,
    RequestRejected,
    WakeAsked,
)
from events.engine import EngineRemoved, Health
from events.request import AbortReason, HolderBeat, HolderStopped, Progress, RequestArrived
from policies.admission import ADMISSION
from policies.decider import Decider, advance, begin
from policies.whereabouts import State
from tests.policies.words import (
    MS,
    S,
    aborted,
    arrived,
    beat,
    engine,
    finished,
    first_token,
    health,
    measured,
    quota,
    settings,
    shares,
    slices,
)
from tests.spec import START_NS, stored

ENGINES = (
    engine("e1", seqs_max=6, can_preempt=True),
    engine("e2", embedding=True, batch_tokens_max=50),
    engine("e3", llm=False, embedding=True),
    engine("e4", step=None, blocks=60),
)
BLOCK_TOKENS = 10
PREFIXES = (slices(), slices("a", "b"), slices("a", "b", "c", "d"), slices("z"))


@dataclass
class Run:
    """One admitted request and how far it is."""

    engine_id: str
    request: RequestArrived
    tokens: int = 0
    prefilled: bool = False

    @property
    def blocks(self) -> int:
        return -(-(self.request.prompt_tokens + self.tokens) // BLOCK_TOKENS)


@dataclass
class World:
    """`facts` are what was taken in, `said` what was decided, by position. `parked` are streams that an engine keeps
    without their KV; `taken_off` is where a request was, before its first token, when it was preempted last.
    `own_tenants`: every request has its own
    tenant, so its predicted length is its cap, which here is its true length."""

    decider: Decider[State] = ADMISSION
    own_tenants: bool = False
    engines: tuple[Any, ...] = ENGINES
    ns: int = START_NS
    facts: list[Recorded] = field(default_factory=list)
    said: list[list[Event]] = field(default_factory=list)
    priorities: int = 3
    running: dict[str, Run] = field(default_factory=dict)
    parked: dict[str, Run] = field(default_factory=dict)
    taken_off: dict[str, Run] = field(default_factory=dict)
    waiting: dict[str, RequestArrived] = field(default_factory=dict)
    final: dict[tuple[str, int], Event] = field(default_factory=dict)
    count: int = 0

    def __post_init__(self) -> None:
        self.progress = begin(self.decider)
        for one in self.engines:
            self.say(one)
        self.say(Ticked(n=0))

    @property
    def state(self) -> State:
        return self.progress.state

    def say(self, event: Event) -> list[Event]:
        recorded = stored(len(self.facts) + 1, event, self.ns)
        self.facts.append(recorded)
        if isinstance(event, RequestArrived) and event.request_id not in (*self.running, *self.parked):
            self.waiting.setdefault(event.request_id, event)
        decisions = advance(self.decider, self.progress, recorded)
        self.said.append(decisions)
        for decision in decisions:
            self._obey(decision)
        return decisions

    def _obey(self, decision: Event) -> None:
        match decision:
            case RequestAdmitted(resumed=True):
                run = self.running[decision.request_id] = self.parked.pop(decision.request_id)
                assert run.engine_id == decision.engine_id, "it goes on where its stream is"
                run.prefilled = False
            case RequestPreempted():
                self._take_off(decision)
            case RequestAdmitted():
                request = self._decided(decision.request_id, decision.attempt, decision)
                self.running[decision.request_id] = Run(decision.engine_id, request)
            case RequestRejected():
                self._decided(decision.request_id, decision.attempt, decision)
            case HolderLost():
                for request_id in decision.requests:
                    self.running.pop(request_id, None)
                    self.waiting.pop(request_id, None)
                    self.parked.pop(request_id, None)
            case RequestDeferred():
                assert decision.until_ns > self.ns - S, "nobody is held for a time long past"
            case MiscoverageNoticed():
                pass
            case _:
                assert isinstance(decision, WakeAsked), decision
                assert self.progress.now_ns < decision.at_ns <= self.progress.now_ns + S

    def _take_off(self, order: RequestPreempted) -> None:
        run = self.running.pop(order.request_id)
        assert run.engine_id == order.engine_id, "it is taken off where it is"
        self.final.pop((order.request_id, order.attempt), None)  # It gets another one.
        if run.tokens and run.request.stream:
            assert order.engine_id == "e1", "only that engine can preempt"
            self.parked[order.request_id] = run
        else:
            self.waiting[order.request_id] = run.request
            self.taken_off[order.request_id] = run

    def _decided(self, request_id: RequestId, attempt: int, decision: Event) -> RequestArrived:
        assert (request_id, attempt) not in self.final, "one final word per request and attempt"
        self.final[request_id, attempt] = decision
        return self.waiting.pop(request_id)

    def blocks_held(self, engine_id: str) -> int:
        """Blocks in use there: slices that several prompts begin with are held once, as by a prefix cache."""
        runs = [run for run in self.running.values() if run.engine_id == engine_id]
        sliced = [run.request for run in runs if run.request.kind is RequestKind.LLM]
        full = [name for one in sliced for name in one.slices[: one.prompt_tokens // one.slice_tokens]]
        return sum(run.blocks for run in runs) - (len(full) - len(set(full)))  # A slice is a block here.

    # What can happen, each with a number that says how.

    def arrive(self, n: int) -> None:
        self.count += 1
        name, embeds = f"r{self.count}", n % 5 == 0
        self.say(
            arrived(
                name, 1 + n * 7 % 420, out=0 if embeds else 1 + n * 13 % 90, slack=(20 + n * 31 % 3_000) * MS,
                now=self.ns - START_NS, holder=f"h{n % 2}", tpot=(n % 3) * 15 * MS, slices=PREFIXES[n % 4],
                tenant=name if self.own_tenants else f"t{n % 3}", inputs=1 + n % 4 if embeds else 1,
                stream=not embeds and n % 4 != 1, priority=n % 7 % self.priorities,
                kind=RequestKind.EMBEDDING if embeds else RequestKind.LLM,
            )
        )  # fmt: skip

    def step(self, _n: int) -> None:
        """One step of every engine: who is in prefill gets its first token, everyone else one more."""
        self.ns += 10 * MS
        for name, run in list(self.running.items()):
            if self.running.get(name) is run:
                self._grow(name, run)
        self.beat(0)
        self.beat(1)

    def _grow(self, name: str, run: Run) -> None:
        if run.request.kind is RequestKind.EMBEDDING:
            del self.running[name]
            self.say(finished(name, run.engine_id, out=0))
            return
        run.tokens += 1
        if not run.prefilled:
            run.prefilled = True
            if run.request.stream and run.tokens == 1:
                self.say(first_token(name, run.engine_id))
        if run.tokens >= run.request.tokens_max:
            del self.running[name]
            self.say(finished(name, run.engine_id, out=run.tokens))

    def beat(self, n: int) -> None:
        holder = f"h{n % 2}"
        progress = tuple(
            Progress(RequestId(name), run.tokens)
            for name, run in self.running.items() if run.request.holder == holder and run.tokens and run.request.stream
        )  # fmt: skip
        self.say(HolderBeat(holder=run_holder(holder), progress=progress))

    def tick(self, n: int) -> None:
        self.ns += (1 + n % 10) * 100 * MS
        self.say(Ticked(n=n))

    def silence(self, n: int) -> None:
        """Time goes on and only one holder speaks."""
        for second in range(7):
            self.ns += S
            self.beat(n)
            self.say(Ticked(n=second))

    def abort(self, n: int) -> None:
        names = [*self.running, *self.waiting, *self.parked]
        if not names:
            return
        name = names[n % len(names)]
        run = self.running.pop(name, None) or self.parked.pop(name, None)
        if run is None:
            del self.waiting[name]
            self.say(aborted(name))
        elif n % 2 and not run.tokens and not run.request.attempt:
            self.say(aborted(name, AbortReason.ENGINE_LOST, engine_id=run.engine_id, final=False))
            self.say(msgspec.structs.replace(run.request, attempt=1))
        else:
            self.say(aborted(name, engine_id=run.engine_id))

    def race(self, n: int) -> None:
        """The first token of one that was preempted without it was on its way already."""
        late = [
            (name, run) for name, run in self.taken_off.items()
            if run.request.stream and (name in self.waiting or (name in self.running and not self.running[name].tokens))
        ]  # fmt: skip
        if not late:
            return
        name, run = late[n % len(late)]
        if run.engine_id not in self.state.accounts or self.running.get(name, run).engine_id != run.engine_id:
            return
        del self.taken_off[name]
        self.final.setdefault((RequestId(name), run.request.attempt), Ticked(n=n))
        self.waiting.pop(name, None)
        run.tokens, run.prefilled = 1, True
        (self.parked if run.engine_id == "e1" else self.running)[name] = run
        self.say(first_token(name, run.engine_id))

    def share(self, n: int) -> None:
        """Memory is divided anew, or a tenant gets a quota."""
        if n % 3:
            self.say(shares(n % 11 * 100_000, ("", "e2")[n % 2]))
        else:
            self.say(quota(f"t{n % 2}", n % 5 * 40_000))

    def measure(self, n: int) -> None:
        engine_id = f"e{1 + n % 4}"
        here = [run for run in self.running.values() if run.engine_id == engine_id]
        used = sum(run.blocks for run in here) * 1_000_000 // 100
        self.say(measured(engine_id, used_ppm=min(used, 1_000_000), running=len(here)))

    def fail(self, n: int) -> None:
        """An engine goes, or comes back."""
        engine_id = f"e{1 + n % 4}"
        match n % 5:
            case 0:
                self.say(health(engine_id, Health.LOST))
            case 1:
                self.say(health(engine_id, Health.DRAINING))
            case 2:
                self.say(EngineRemoved(engine_id=self.engines[n % len(self.engines)].engine_id))
            case 3:
                self.say(health(engine_id, Health.READY))
            case _:
                self.say(self.engines[n % len(self.engines)])

    def leave(self, n: int) -> None:
        """A holder stops."""
        holder = run_holder(f"h{n % 2}")
        for name, run in list(self.running.items()):
            if run.request.holder == holder:
                del self.running[name]
        self.parked = {name: run for name, run in self.parked.items() if run.request.holder != holder}
        self.waiting = {name: request for name, request in self.waiting.items() if request.holder != holder}
        self.say(HolderStopped(holder=holder))

    def configure(self, n: int) -> None:
        self.say(settings(mode=("enforce", "observe")[n % 7 == 0], placement=PLACEMENTS[n % 4], passes_max=n % 3))
        self.say(settings(preemption=("off", "priority", "slack")[n % 3], preemptions_max=n % 4))


PLACEMENTS = ("slo_aware", "round_robin", "least_loaded", "prefix_affinity")
CALM = ("arrive", "arrive", "arrive", "step", "step", "tick", "measure")
WILD = (*CALM, "abort", "beat", "fail", "leave", "silence", "configure", "race", "share")


def run_holder(name: str) -> Any:
    return beat(name).holder


def live(numbers: Iterable[int], verbs: tuple[str, ...], world: World) -> World:
    """Let the world run: each number is a verb and how."""
    for number in numbers:
        getattr(world, verbs[number % len(verbs)])(number // len(verbs))
    return world


def digest(said: Iterable[list[Event]]) -> str:
    """All that was decided, in one value."""
    running = blake2b(digest_size=16)
    for decisions in said:
        running.update(msgspec.json.encode(decisions) + b"\n")
    return running.hexdigest()


def numbers(count: int, seed: int) -> list[int]:
    """Numbers that look like chance, the same everywhere."""
    found, value = [], seed
    for _ in range(count):
        value = (value * 6_364_136_223_846_793_005 + 1_442_695_040_888_963_407) % 2**64
        found.append(value >> 40)
    return found


if __name__ == "__main__":
    day = live(numbers(3_000, 7), WILD, World())
    sys.stdout.write(digest(day.said))
