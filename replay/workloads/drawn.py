"""Arrivals drawn from a profile, by seed: the same on every machine.

Every stream has a random source of its own, named by seed and stream, so adding a stream changes no other one; the
phases of `pace` have theirs, and all streams share them. The number of starts is fixed (rate x seconds x scale), and
each start falls into the window by the intensity of its moment: for a given number that is what a Poisson process
does, without a logarithm. Starts in clusters keep their number too.
"""

from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from random import Random
from typing import NamedTuple

from events.base import NS_PER_MS, RequestKind
from replay.workloads.base import Arrival
from replay.workloads.profile import Pace, Profile, Stream, Tenant

MS_PER_S = 1_000
UNIT_TOKENS = 256
"""Prefixes are named in parts of this many tokens."""
IDS_PER_CHAIN = 1_000_000
ANSWER_MS_PER_TOKEN = 25
"""How long an answer is taken to need where nobody measures it: in an open loop a turn comes this much later."""
LLM_MODEL, EMBEDDING_MODEL = "llama-3-8b", "e5-mistral-7b"
REQUESTS_MAX = 2_000_000
RANK_WEIGHT = 1_000_000_000


class Intensity:
    """How dense starts are over the window: phases of whole milliseconds, each with a weight."""

    def __init__(self, pace: Pace | None, span_ms: int, rng: Random) -> None:
        self._phases: list[tuple[int, int]] = [(0, 1)]
        if pace is not None:
            self._phases = _phases(pace, span_ms, rng)
        ends = [begin for begin, _ in self._phases[1:]] + [span_ms]
        masses = [(end - begin) * weight for (begin, weight), end in zip(self._phases, ends, strict=True)]
        self._begun = [0, *accumulate(masses)]

    def draw_ms(self, rng: Random) -> int:
        """A moment of the window."""
        at = rng.randrange(self._begun[-1])
        phase = bisect_right(self._begun, at) - 1
        begin_ms, weight = self._phases[phase]
        return begin_ms + (at - self._begun[phase]) // weight


class _Chains:
    """Hands out ids for chains of prefix parts: tenants first, then documents, then one for each session."""

    def __init__(self, profile: Profile) -> None:
        self._next = 0
        self.tenants = {name: self.fresh() for name in profile.tenants}
        self.documents = {
            stream.name: [self.fresh() for _ in range(stream.documents.count)] if stream.documents else []
            for stream in profile.streams
        }

    def fresh(self) -> int:
        self._next += 1
        return (self._next - 1) * IDS_PER_CHAIN


class _Opening(NamedTuple):
    """What a session's prompts begin with: chains and the units of each."""

    parts: tuple[tuple[int, int], ...]
    own: int

    def units(self, count: int) -> tuple[int, ...]:
        """Ids of the first `count` units."""
        shared = [chain + index for chain, units in self.parts for index in range(units)]
        return (*shared[:count], *(self.own + index for index in range(len(shared), count)))


def draw(profile: Profile, *, seed: int, scale: float = 1.0, seconds: int = 0) -> list[Arrival]:
    """All requests of a profile, in order of time. `scale` multiplies the number of sessions and jobs, not their
    pace; `seconds` 0 = as the profile says. Raises ValueError for more than REQUESTS_MAX."""
    span_ms = (seconds or profile.seconds) * MS_PER_S
    intensity = Intensity(profile.pace, span_ms, Random(f"{seed}/pace"))  # noqa: S311
    chains = _Chains(profile)
    out: list[Arrival] = []
    for stream in profile.streams:
        rng = Random(f"{seed}/stream/{stream.name}")  # noqa: S311
        for number, start_ms in enumerate(_starts_ms(stream, intensity, span_ms, scale, rng)):
            one = _One(profile, stream, chains, number, start_ms)
            out += [one.job(rng)] if stream.kind is RequestKind.EMBEDDING else one.session(rng, span_ms)
            _check(len(out))
    out.sort(key=lambda arrival: (arrival.at_ns, arrival.request_id))
    return out


def _check(requests: int) -> None:
    if requests > REQUESTS_MAX:
        raise ValueError(f"more than {REQUESTS_MAX} requests: a shorter or thinner workload is needed")


def _phases(pace: Pace, span_ms: int, rng: Random) -> list[tuple[int, int]]:
    """(Begin, weight) of each phase; the first is calm, and begun already."""
    phases: list[tuple[int, int]] = []
    at_ms, busy = -rng.randrange(max(1, pace.calm_s.draw(rng) * MS_PER_S)), False
    while at_ms < span_ms:
        phases.append((max(0, at_ms), pace.busy_factor if busy else 1))
        at_ms += max(1, (pace.busy_s if busy else pace.calm_s).draw(rng) * MS_PER_S)
        busy = not busy
    return [one for one, after in zip(phases, [*phases[1:], (span_ms, 0)], strict=True) if after[0] > one[0]]


def _starts_ms(stream: Stream, intensity: Intensity, span_ms: int, scale: float, rng: Random) -> list[int]:
    """When the sessions (or jobs) of a stream begin, in order."""
    count = round(stream.starts_per_s * scale * span_ms / MS_PER_S)
    _check(count)
    if stream.cluster is None:
        return sorted(intensity.draw_ms(rng) for _ in range(count))
    starts: list[int] = []
    while len(starts) < count:
        begin_ms = intensity.draw_ms(rng)
        size = min(max(1, stream.cluster.size.draw(rng)), count - len(starts))
        starts += [min(span_ms - 1, begin_ms + rng.randint(0, stream.cluster.within_ms)) for _ in range(size)]
    return sorted(starts)


class _One:
    """One start of a stream, about to be drawn."""

    def __init__(self, profile: Profile, stream: Stream, chains: _Chains, number: int, start_ms: int) -> None:
        self._profile, self._stream, self._chains = profile, stream, chains
        self._name, self._start_ms = f"{stream.name}-{number}", start_ms

    def job(self, rng: Random) -> Arrival:
        """An embedding job."""
        tenant, who = self._tenant(rng)
        inputs = max(1, self._stream.inputs.draw(rng))
        return Arrival(
            at_ns=self._start_ms * NS_PER_MS, request_id=self._name, kind=RequestKind.EMBEDDING, tenant=tenant,
            model=self._stream.model or EMBEDDING_MODEL, inputs=inputs, output_tokens=0, prefix_tokens=UNIT_TOKENS,
            prompt_tokens=inputs * max(1, self._stream.input_tokens.draw(rng)), priority=who.priority,
            slo=self._stream.slo.slo(),
        )  # fmt: skip

    def session(self, rng: Random, span_ms: int) -> list[Arrival]:
        """The turns of a session that begin within the window, if answers need what they are taken to need."""
        stream = self._stream
        tenant, who = self._tenant(rng)
        opening, prompt = self._opening(tenant, who, rng)
        at_ms, think_ms, turns = self._start_ms, 0, list[Arrival]()
        for turn in range(max(1, stream.turns.draw(rng))):
            prompt = max(1, prompt + (stream.message_tokens if turn else stream.opening_tokens).draw(rng))
            answer = max(1, stream.answer_tokens.draw(rng))
            if at_ms >= span_ms or prompt + answer > stream.context_tokens_max:
                break
            asked = Arrival(
                at_ns=at_ms * NS_PER_MS, request_id=f"{self._name}-{turn}", tenant=tenant,
                model=stream.model or LLM_MODEL, prompt_tokens=prompt, output_tokens=answer,
                tokens_max=stream.tokens_max, prefix=opening.units(prompt // UNIT_TOKENS),
                prefix_tokens=UNIT_TOKENS, priority=who.priority, session=self._name,
                after=turns[-1].request_id if turns else "", think_ns=think_ms * NS_PER_MS, slo=stream.slo.slo(),
            )  # fmt: skip
            turns.append(asked)
            prompt += answer
            think_ms = stream.think_ms.draw(rng)
            at_ms += answer * ANSWER_MS_PER_TOKEN + think_ms
        return turns

    def _tenant(self, rng: Random) -> tuple[str, Tenant]:
        names: Sequence[str] = self._stream.tenants or tuple(self._profile.tenants)
        weights = [self._profile.tenants[name].weight for name in names]
        name = rng.choices(names, weights)[0]
        return name, self._profile.tenants[name]

    def _opening(self, tenant: str, who: Tenant, rng: Random) -> tuple[_Opening, int]:
        """What its prompts begin with, and how many tokens that is: the tenant's system prompt, then a document."""
        parts = [(self._chains.tenants[tenant], who.system_tokens // UNIT_TOKENS)]
        tokens, documents = who.system_tokens, self._stream.documents
        if documents is not None and rng.randrange(100) < documents.share_percent:
            rank = _by_rank(documents.count, rng)
            # A document is as long for every session that opens with it.
            length = documents.tokens.draw(Random(f"{self._stream.name}/document/{rank}"))  # noqa: S311
            parts.append((self._chains.documents[self._stream.name][rank], length // UNIT_TOKENS))
            tokens += length
        return _Opening(tuple(parts), self._chains.fresh()), tokens


def _by_rank(count: int, rng: Random) -> int:
    """A rank from 0, the n-th with the weight 1/n in whole numbers."""
    return rng.choices(range(count), cum_weights=_rank_weights(count))[0]


@cache
def _rank_weights(count: int) -> list[int]:
    return list(accumulate(RANK_WEIGHT // (rank + 1) for rank in range(count)))
