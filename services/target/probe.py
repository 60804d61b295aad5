"""What has to be known of a live target before it is put under load: its models, its tokenizer, its unloaded pace.

The unloaded, uncached time to first token is measured: a few prompts that nobody sent before, one after another, of the
lengths that the workload has. Between them it is interpolated, beyond them extended from the last two. So SLOs are the
same words live as in simulation: max(1 s, 2 x the unloaded TTFT of that prompt).
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

import aiohttp
import msgspec

from events.base import RequestKind
from replay.workloads.base import Arrival
from replay.workloads.slo import Slo
from services.runtime.config_sources import ConfigError
from services.target.client import OpenLoop, Seen
from services.target.options import TargetOptions
from services.target.prompts import Prompts, Sizes, sample, text_prompts

WHERE: Final = "--target"
ASK_S_MAX: Final = 10.0
SAMPLES: Final = (256, 1_024)
"""Words of the two texts that the tokenizer counts."""
PROBES_AT: Final = (0.0, 0.5, 0.9, 1.0)
"""Shares of the workload's prompts, by length, at whose ends the unloaded TTFT is measured."""
PROBE_TOKENS: Final = 1

Points = tuple[tuple[int, int], ...]
"""Prompt tokens and unloaded TTFT in nanoseconds, shortest first."""


class Target(msgspec.Struct, kw_only=True):
    """What was found. `ours`: it is a gateway of this house."""

    models: tuple[str, ...]
    sizes: Sizes = Sizes()
    ignores_eos: bool = True
    ours: bool = False
    unloaded: dict[RequestKind, Points] = msgspec.field(default_factory=dict)


async def look(session: aiohttp.ClientSession, url: str, options: TargetOptions) -> Target:
    """Ask what it serves. Raises ConfigError where it does not answer as an OpenAI-compatible server does."""
    headers = _headers(options.keys)
    try:
        answer = await _ask(session, "GET", f"{url}/v1/models", headers)
        health = await _status(session, f"{url}/health")
    except (aiohttp.ClientError, TimeoutError) as error:
        raise _wrong(f"nothing answers at {url}: {error or type(error).__name__}") from None
    models = tuple(str(one.get("id", "")) for one in answer.get("data", []) if isinstance(one, dict))
    if not models:
        raise _wrong(f"{url}/v1/models names no model")
    return Target(models=models, ours=b"engines_ready" in health)


async def sized(
    session: aiohttp.ClientSession, url: str, target: Target, like: Arrival, *, keys: dict[str, str]
) -> None:
    """Find what words are for the target's tokenizer: by /tokenize, else by what it counts in two prompts."""
    counts = [await _tokenized(session, url, like.model, words, _headers(keys)) for words in SAMPLES]
    if None in counts:
        loop = OpenLoop(session, url, text_prompts(Sizes()), keys=keys, in_flight_max=1, ignores_eos=False)
        counts = [await _counted(loop, like, words) for words in SAMPLES]
    few, many = counts
    if few is not None and many is not None and many > few:
        per_word = (many - few) / (SAMPLES[1] - SAMPLES[0])
        target.sizes = Sizes(per_word, max(0, round(few - per_word * SAMPLES[0])), asked=True)


async def unloaded(
    session: aiohttp.ClientSession, url: str, target: Target, prompts: Prompts, arrivals: Sequence[Arrival],
    *, keys: dict[str, str],
) -> None:  # fmt: skip
    """Measure its unloaded TTFT for each kind of request. Raises ConfigError where it answers none."""
    loop = OpenLoop(session, url, prompts, keys=keys, in_flight_max=1, ignores_eos=True)
    for kind in RequestKind:
        of_kind = sorted((one for one in arrivals if one.kind is kind), key=lambda one: one.prompt_tokens)
        if not of_kind:
            continue
        picked = [of_kind[round(share * (len(of_kind) - 1))] for share in PROBES_AT]
        first = await _probe(loop, picked[0], "warm")
        if first.status == 400 and target.ignores_eos and kind is RequestKind.LLM:
            target.ignores_eos = False
            loop = OpenLoop(session, url, prompts, keys=keys, in_flight_max=1, ignores_eos=False)
            first = await _probe(loop, picked[0], "warm")
        seen = [await _probe(loop, one, f"probe{number}") for number, one in enumerate(picked)]
        points = {one.arrival.prompt_tokens: one.first_ns - one.sent_ns for one in seen if one.answered}
        if not points:
            said = f"status {first.status}" if first.status else first.reason
            raise _wrong(f"it answers no {kind.value} request of {picked[0].model}: {said}")
        target.unloaded[kind] = tuple(sorted(points.items()))


def slo_of(arrival: Arrival, points: Points, slo: Slo) -> Slo:
    """What is asked for a prompt: its limit, whatever engine it will be on."""
    limit_ns = max(slo.ttft_min_ns, slo.ttft_factor * unloaded_ns(points, arrival.prompt_tokens))
    return msgspec.structs.replace(slo, ttft_min_ns=limit_ns)


def unloaded_ns(points: Points, prompt_tokens: int) -> int:
    """The unloaded TTFT of a prompt, never below 0: on the line between the two points beside it, or beyond them."""
    if len(points) == 1:
        return points[0][1]
    at = bisect_right([tokens for tokens, _ in points], prompt_tokens)
    (left, left_ns), (right, right_ns) = list(pairwise(points))[min(max(at - 1, 0), len(points) - 2)]
    return max(0, left_ns + (right_ns - left_ns) * (prompt_tokens - left) // (right - left))


async def _probe(loop: OpenLoop, like: Arrival, name: str) -> Seen:
    """A request of that length whose prompt nobody sent before."""
    request_id = f"{name}-{like.kind.value}-{like.request_id}"
    fresh = msgspec.structs.replace(
        like, request_id=request_id, prefix=(), output_tokens=PROBE_TOKENS, session="", after="", at_ns=0
    )
    one = Seen(arrival=fresh, due_ns=0)
    await loop.send(one)
    return one


async def _tokenized(
    session: aiohttp.ClientSession, url: str, model: str, words: int, headers: dict[str, str]
) -> int | None:
    try:
        answer = await _ask(session, "POST", f"{url}/tokenize", headers, {"model": model, "prompt": sample(words)})
    except (aiohttp.ClientError, TimeoutError):
        return None
    count = answer.get("count")
    return count if isinstance(count, int) and count > 0 else None


async def _counted(loop: OpenLoop, like: Arrival, words: int) -> int | None:
    one = await _probe(loop, msgspec.structs.replace(like, prompt_tokens=words, inputs=1), f"size{words}")
    return one.prompt_tokens if one.answered and one.prompt_tokens > 0 else None


def _headers(keys: dict[str, str]) -> dict[str, str]:
    key = keys.get("", "")
    return {"authorization": f"Bearer {key}"} if key else {}


async def _ask(
    session: aiohttp.ClientSession, method: str, url: str, headers: dict[str, str], body: object = None
) -> dict[str, Any]:
    timeout = aiohttp.ClientTimeout(total=ASK_S_MAX)
    async with session.request(method, url, headers=headers, json=body, timeout=timeout) as response:
        data = await response.read()
    try:
        answer = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}
    return answer if response.status == 200 and isinstance(answer, dict) else {}


async def _status(session: aiohttp.ClientSession, url: str) -> bytes:
    timeout = aiohttp.ClientTimeout(total=ASK_S_MAX)
    async with session.get(url, timeout=timeout) as response:
        data: bytes = await response.read()
    return data


def _wrong(what: str) -> ConfigError:
    return ConfigError(what, where=WHERE, key="", allowed="the address of a gateway, or of an OpenAI-compatible server")
