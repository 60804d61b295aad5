"""A long randomised run in virtual time, and what must hold in it: nobody starves, no protected answer gives way, and
memory runs out no more often than answers outgrow what was promised for them.

    python -m tests.simulation.endurance --requests 100000 --seed 1

Load swings between idle and more than the engines can do, in bursts; prompts and answers have heavy tails; tenants,
priorities, sessions and limits are drawn; engines, holders and clients are lost on the way. The same seed is the same
run. What is checked is read from the log alone.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterable
from random import Random
from typing import NamedTuple
from unittest.mock import patch

from events import codec
from events.base import NS_PER_MS, NS_PER_S, PPM, Event, Recorded, RequestId, RequestKind
from events.decisions import HolderLost, RequestAdmitted, RequestPreempted, RequestRejected
from events.engine import EngineMeasured
from events.log.base import Message
from events.request import RequestAborted, RequestArrived, RequestExpired, RequestFinished
from policies.admission import ADMISSION
from policies.admission_settings import AdmissionSettings
from policies.catalog import ACTORS
from policies.decider import Decider
from policies.forecast import expected_tokens
from policies.whereabouts import State
from replay.cluster import Run, simulate
from replay.costmodel import registered
from replay.faults import draw_faults
from replay.workloads.base import Arrival

ENGINES = 4
KV_TOKENS = 40_000
LLM, EMBEDDING = "llama-3-8b", "e5-mistral-7b"
LATE_MAX_NS = NS_PER_S
"""How much longer one that is late may wait here: so little that the run is too much for some, now and then."""
WORD_MAX_NS = LATE_MAX_NS + 3 * NS_PER_S
"""How long after its deadline a request that is not admitted has had its last word: what it may wait to be served late,
the next tick, and what a holder that stops hearing waits."""
MISSES_PPM = PPM - AdmissionSettings().output_quantile_ppm
"""Share of the answers that outgrow their interval, as it is stated: memory may run out no more often."""
END_MAX_NS = 240 * NS_PER_S
"""How long after its arrival every request has ended, whatever happened to it."""


class Findings(NamedTuple):
    """What a run showed. `overgrown` answers were longer than memory was promised for; `short` is how many of the
    engines' measurements say that they preempted on their own since the one before. `broken` names what must not be."""

    requests: int
    finished: int
    refused: int
    aborted: int
    preempted: int
    end_max_ns: int
    word_max_ns: int
    overgrown_ppm: int
    short_ppm: int
    broken: tuple[str, ...]


def arrivals(seed: int, requests: int) -> list[Arrival]:
    """The workload of a seed."""
    rng = Random(seed)
    found: list[Arrival] = []
    at_ns, left, mean_ms = 0, 0, 0.0
    for number in range(requests):
        if not left:
            left, mean_ms = rng.randint(50, 1_500), rng.choice((8, 25, 40, 60, 120))
        left -= 1
        at_ns += int(rng.expovariate(1) * mean_ms * NS_PER_MS)
        session = rng.randrange(400)
        embeds = rng.random() < 0.1
        units = 0 if embeds else rng.randrange(6)
        prompt = min(24_000, int(rng.paretovariate(1.05) * 150)) + units * 256
        found.append(
            Arrival(
                at_ns=at_ns,
                request_id=f"r{number}",
                kind=RequestKind.EMBEDDING if embeds else RequestKind.LLM,
                tenant=f"tenant-{rng.choice((0, 0, 0, 0, 1, 1, 2, 3))}",
                model=EMBEDDING if embeds else LLM,
                prompt_tokens=prompt,
                output_tokens=0 if embeds else min(3_000, int(rng.paretovariate(1.1) * 25)),
                tokens_max=rng.choice((0, 0, 3_000, 3_000)),
                prefix=tuple(session * 100 + unit for unit in range(units)),
                prefix_tokens=256,
                inputs=rng.choice((1, 4, 16)) if embeds else 1,
                priority=rng.choice((0, 0, 0, 0, 0, 1, 2)),
                session=f"s{session}",
            )
        )
    return found


def run(seed: int, requests: int) -> tuple[Run, Findings]:
    """The whole house on the workload of a seed, with faults drawn from it, and what it showed."""
    drawn = arrivals(seed, requests)
    span_ns = drawn[-1].at_ns
    hours = span_ns / (3_600 * NS_PER_S)
    faults = draw_faults(
        seed, span_ns=span_ns, engines_lost=round(6 * hours) + 1, holders_lost=1, clients_gone=requests // 200
    )
    engines = [registered(f"e{number}", (LLM, EMBEDDING), kv_tokens=KV_TOKENS) for number in range(1, ENGINES + 1)]
    broken: list[str] = []
    with patch.dict(ACTORS, {ADMISSION.name: watched(broken)}):
        late = {"admission": {"late_max_ns": LATE_MAX_NS}}
        done = simulate(drawn, engines, settings=late, holders=3, faults=faults)
    return done, check(done.messages, broken)


class _Request:
    """What the log says of one request so far."""

    __slots__ = ("admitted", "arrived", "arrived_ns", "ended_ns")

    def __init__(self, arrived: RequestArrived, arrived_ns: int) -> None:
        self.arrived, self.arrived_ns = arrived, arrived_ns
        self.admitted: RequestAdmitted | None = None
        self.ended_ns = 0


class _Book:
    def __init__(self) -> None:
        self.requests: dict[RequestId, _Request] = {}
        self.broken: list[str] = []
        self.finished = self.refused = self.aborted = self.preempted = self.overgrown = self.answers = 0
        self.word_max_ns = self.end_max_ns = self.measured = self.short = 0
        self._preemptions: dict[str, int] = {}

    def take(self, recorded: Recorded) -> None:
        event, now_ns = recorded.event, recorded.ts_ns
        match event:
            case RequestArrived():
                known = self.requests.get(event.request_id)
                if known is None or not event.attempt:
                    self.requests[event.request_id] = _Request(event, now_ns)
                else:
                    known.ended_ns = 0
            case RequestAdmitted():
                self.requests[event.request_id].admitted = event
            case RequestPreempted():
                self.preempted += 1
                self._preempted(event)
            case RequestRejected() | RequestExpired():
                self.refused += 1
                one = self.requests[event.request_id]
                self.word_max_ns = max(self.word_max_ns, now_ns - one.arrived.deadline_ns)
                self._end(event.request_id, now_ns)
            case RequestFinished():
                self.finished += 1
                self._answered(event)
                self._end(event.request_id, now_ns)
            case RequestAborted():
                self.aborted += event.final
                self._end(event.request_id, now_ns)
            case HolderLost():
                for request_id in event.requests:
                    self.aborted += 1
                    self._end(request_id, now_ns)
            case EngineMeasured():
                self._measured(event)
            case _:
                pass

    def _end(self, request_id: RequestId, now_ns: int) -> None:
        one = self.requests[request_id]
        one.ended_ns = now_ns
        self.end_max_ns = max(self.end_max_ns, now_ns - one.arrived_ns)

    def _answered(self, event: RequestFinished) -> None:
        admitted = self.requests[event.request_id].admitted
        if admitted is not None and event.output_tokens and not admitted.resumed:
            self.answers += 1
            self.overgrown += event.output_tokens > admitted.output_tokens_predicted

    def _preempted(self, event: RequestPreempted) -> None:
        """A victim must be less urgent; that it was not nearly complete is held in `watched`."""
        victim, urgent = self.requests[event.request_id], self.requests[event.for_request]
        if event.output_tokens and victim.arrived.priority >= urgent.arrived.priority:
            self.broken.append(f"{event.request_id} had begun and gave way to {event.for_request}, not above it")
        if victim.arrived.priority > urgent.arrived.priority:
            self.broken.append(f"{event.request_id} gave way to {event.for_request} of less priority")
        if victim.admitted is None:
            self.broken.append(f"{event.request_id} was preempted and had not been admitted")

    def _measured(self, event: EngineMeasured) -> None:
        before = self._preemptions.get(event.engine_id, 0)
        self._preemptions[event.engine_id] = event.preemptions_total
        self.measured += 1
        self.short += event.preemptions_total > before


def watched(broken: list[str]) -> Decider[State]:
    """Admission, with every victim held against what it knows at that moment: who is protected must not be chosen."""

    def decide(state: State, event: Event, now_ns: int) -> list[Event]:
        decisions = ADMISSION.decide(state, event, now_ns)
        for one in decisions:
            if isinstance(one, RequestPreempted):
                resident = state.accounts[one.engine_id].residents[one.request_id]
                done = resident.output_tokens * PPM
                if resident.output_tokens and done >= state.settings.protect_ppm * expected_tokens(resident):
                    broken.append(f"{one.request_id} was nearly complete and gave way")
        return decisions

    return dataclasses.replace(ADMISSION, decide=decide)


def check(messages: Iterable[Message], broken: Iterable[str] = ()) -> Findings:
    """Read a finished log. `broken`: what was found on the way."""
    book = _Book()
    book.broken += broken
    for message in messages:
        for recorded in codec.decode(message.seq, message.subject, message.body):
            book.take(recorded)
    open_still = [request_id for request_id, one in book.requests.items() if not one.ended_ns]
    if open_still:
        book.broken.append(f"{len(open_still)} requests never ended: {', '.join(open_still[:5])}")
    if book.word_max_ns > WORD_MAX_NS:
        book.broken.append(f"a request was refused {book.word_max_ns / NS_PER_S:.1f} s after its deadline")
    if book.end_max_ns > END_MAX_NS:
        book.broken.append(f"a request took {book.end_max_ns / NS_PER_S:.1f} s to end")
    overgrown_ppm = book.overgrown * PPM // max(1, book.answers)
    short_ppm = book.short * PPM // max(1, book.measured)
    if short_ppm > MISSES_PPM:
        book.broken.append(f"memory ran out in {short_ppm} ppm of the measurements; {MISSES_PPM} are stated")
    return Findings(
        requests=len(book.requests), finished=book.finished, refused=book.refused, aborted=book.aborted,
        preempted=book.preempted, end_max_ns=book.end_max_ns, word_max_ns=book.word_max_ns,
        overgrown_ppm=overgrown_ppm, short_ppm=short_ppm, broken=tuple(book.broken),
    )  # fmt: skip


def main() -> int:
    """Run, print, and say by the exit code whether all held."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    began = time.monotonic()
    done, findings = run(asked.seed, asked.requests)
    print(f"seed {asked.seed}: {findings.requests} requests in {done.ended_ns / NS_PER_S:.0f} s of pool time")
    for name, value in findings._asdict().items():
        print(f"  {name:14} {value}")
    print(f"  digest         {done.digest}\n  took           {time.monotonic() - began:.0f} s")
    return 1 if findings.broken else 0


if __name__ == "__main__":
    sys.exit(main())
