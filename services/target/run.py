"""One run of the memory benchmark against a live target, with the result that a simulated run has.

A workload's arrivals are sent when they are due, over real streams. What its client saw is scored by the scorer of all
logs. Beside it stand what engines say on /metrics and, for a gateway of ours whose log is named, what its policies
predicted. Nothing of the answers is kept but counts and times.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Sequence
from itertools import chain

import aiohttp
import msgspec

from events.base import NS_PER_MS, NS_PER_S, RequestKind
from events.log.base import Log, Message
from replay.bench.memory.report import EngineModel, Origin, RunResult
from replay.bench.memory.workloads import Offer
from replay.bench.memory.workloads import arrivals as arrivals_of
from replay.bench.offered import SLO
from replay.score import Scores, percentile, score
from replay.series import Series, series
from replay.workloads.base import Arrival
from replay.workloads.slo import Slo
from services.runtime.config_sources import ConfigError
from services.target import observed, probe
from services.target.client import OpenLoop, Seen
from services.target.options import CONNECT_S_MAX, QUIET_S_MAX, PromptForm, TargetOptions
from services.target.prompts import Prompts, fresh, text_prompts, token_prompts
from services.target.telemetry import Record, Watch, log_of

LATE_NS_MAX = 100 * NS_PER_MS
"""Requests are on time if 99 of 100 were sent within this of when they were due."""
SALT_BYTES = 8
SIZE_OFF_MAX = 0.02
"""Prompts have the length of the trace if the target counts as many tokens, to within this share."""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a run. `stopped`: it was interrupted, and the result is of what was due until then. What a reader
    has to know of the measuring, such as that the client was late, stands in the result's notes."""

    result: RunResult
    stopped: bool = False


def run_target(
    url: str, offer: Offer, options: TargetOptions, *, arrivals: Sequence[Arrival] = (), load: float = 0.0,
    name: str = "target", on_progress: Callable[[int, int], None] | None = None,
) -> Found:  # fmt: skip
    """Put a workload on a live target, and say how it did; `arrivals`, where they are at hand, are those of the offer.
    Ctrl-C ends the load and leaves what was found. Raises ConfigError where nothing there answers, or the workload
    cannot be asked of it; LogError where its log is named and cannot be read."""
    wanted = arrivals or arrivals_of(offer)
    return asyncio.run(_run(url, wanted, options, offer, load, name, on_progress))


async def _run(
    url: str, arrivals: Sequence[Arrival], options: TargetOptions, offer: Offer, load: float, name: str,
    on_progress: Callable[[int, int], None] | None,
) -> Found:  # fmt: skip
    async with log_of(options) as log:
        return await offered(
            url, arrivals, options, offer=offer, load=load, name=name, log=log, on_progress=on_progress
        )


async def offered(
    url: str, arrivals: Sequence[Arrival], options: TargetOptions, *, offer: Offer, load: float = 0.0,
    name: str = "target", slo: Slo = SLO, log: Log | None = None, salt: str = "",
    on_progress: Callable[[int, int], None] | None = None,
) -> Found:  # fmt: skip
    """The same for arrivals that are there already (`offer` says what they are called), and a `log` that is open. They
    are sent as requests that the target has never seen: see `fresh`; `salt` "" = a drawn one."""
    began = time.monotonic()
    url = url.rstrip("/")
    theirs = Record(log) if log is not None else None
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S_MAX, sock_read=QUIET_S_MAX)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        target = await probe.look(session, url, options)
        unseen = fresh(arrivals, salt or secrets.token_hex(SALT_BYTES))
        wanted, notes = served(unseen, target.models, options)
        prompts = await _prompts(session, url, target, wanted, options)
        await probe.unloaded(session, url, target, prompts, wanted, keys=options.keys)
        asked = [
            msgspec.structs.replace(one, slo=probe.slo_of(one, target.unloaded[one.kind], one.slo or slo))
            for one in wanted
        ]
        loop = OpenLoop(
            session, url, prompts, keys=options.keys, in_flight_max=options.in_flight_max,
            ignores_eos=target.ignores_eos,
        )  # fmt: skip
        watch = Watch(session, [f"{url}/metrics", *options.metrics])
        await watch.look()  # What engines counted before the load is known before its first request.
        if theirs is not None:
            await theirs.begin()
        begun_ns = time.monotonic_ns()
        stopped = await _under_load(loop, watch, asked, options, on_progress)
    said = await theirs.messages() if theirs is not None else []
    notes += said_of(loop.seen, options, target, watch, has_log=bool(said), stopped=stopped, offered=len(asked))
    messages = observed.facts(loop.seen, watch.told, begun_ns=begun_ns)
    scores = _scores(messages, said, watch, window_ns=offer.seconds * NS_PER_S)
    if said:
        notes.append(_of_predictions(scores))
    result = RunResult(
        workload=offer.workload, system=name, engine=EngineModel.LIVE, load=load, scale=offer.scale, seed=offer.seed,
        batch_tokens=0, seqs_max=0, engines=max(1, scores.device_ns // max(scores.window_ns, 1)),
        origin=Origin.OBSERVED, scores=scores, series=_series(loop.seen, messages, said),
        wall_s=round(time.monotonic() - began, 3), notes=tuple(notes),
    )  # fmt: skip
    return Found(result=result, stopped=stopped)


def served(
    arrivals: Sequence[Arrival], models: Sequence[str], options: TargetOptions
) -> tuple[list[Arrival], list[str]]:
    """The arrivals under the names of models that the target serves, and what has to be said of that. Raises
    ConfigError where a named model is not served, or nothing is left."""
    for chosen in (options.model, options.embedding_model):
        if chosen and chosen not in models:
            raise ConfigError(f"the target serves no {chosen!r}", where="--model", key="", allowed=", ".join(models))
    instead = {RequestKind.LLM: options.model or models[0], RequestKind.EMBEDDING: options.embedding_model}
    renamed: dict[str, str] = {}
    kept, left_out = [], 0
    for one in arrivals:
        name = one.model if one.model in models else instead[one.kind]
        if not name:
            left_out += 1
            continue
        if name != one.model:
            renamed[one.model] = name
        kept.append(msgspec.structs.replace(one, model=name))
    if not kept:
        raise ConfigError(
            "no request of the workload can be asked of the target", where=probe.WHERE, key="",
            allowed=f"a workload for {', '.join(models)}",
        )  # fmt: skip
    notes = [f"requests for {model} were asked of {name}" for model, name in renamed.items()]
    if left_out:
        notes.append(f"{left_out:,} embedding requests were left out: no embedding model of the target is named")
    return kept, notes


def said_of(
    seen: Sequence[Seen], options: TargetOptions, target: probe.Target, watch: Watch, *, has_log: bool, stopped: bool,
    offered: int,
) -> list[str]:  # fmt: skip
    """What a reader has to know of the measuring itself."""
    notes = [_of_lateness(seen, options), _of_sizes(seen, options, target)]
    if not target.ignores_eos:
        notes.append("the target takes no ignore_eos: answers may be shorter than the trace's")
    if not watch.engines and not has_log:
        notes.append("neither an engine's /metrics nor a log was there: occupancy and preemptions are not known")
    if watch.missed:
        notes.append(f"{watch.missed:,} questions to /metrics had no answer")
    if stopped:
        notes.append(f"interrupted: {len(seen):,} of {offered:,} requests were due until then")
    return notes


def _of_lateness(seen: Sequence[Seen], options: TargetOptions) -> str:
    late = [one.late_ns for one in seen if one.sent_ns]
    worst_ns, p99_ns = max(late, default=0), percentile(late, 99) or 0
    text = f"the client sent 99 of 100 requests within {p99_ns / NS_PER_MS:.1f} ms of when they were due"
    if p99_ns <= LATE_NS_MAX:
        return text
    return (
        f"NOT ON TIME: {text}, the worst {worst_ns / NS_PER_S:.1f} s late, with at most {options.in_flight_max:,} "
        "open at a time: what is late counts against the target, so the target is at least as good as this"
    )


def _of_sizes(seen: Sequence[Seen], options: TargetOptions, target: probe.Target) -> str:
    counted = [one for one in seen if one.answered and one.prompt_tokens > 0]
    wanted = sum(one.arrival.prompt_tokens for one in counted)
    if not wanted:
        return "the target does not tell how long prompts were"
    off = sum(one.prompt_tokens for one in counted) / wanted - 1
    how = "token ids" if options.prompts is PromptForm.TOKENS else "words"
    sized = "" if options.prompts is PromptForm.TOKENS or target.sizes.asked else ", one word taken for a token"
    text = f"prompts are made of {how}{sized}; by the target's count they are {100 * off:+.1f} % of the trace's length"
    return text if abs(off) <= SIZE_OFF_MAX else f"PROMPTS ARE OFF: {text}"


def _of_predictions(scores: Scores) -> str:
    tokens, ttft = scores.kv_tokens_error, scores.ttft_error_ns
    if not tokens.requests:
        return "its log predicts nothing"
    return (
        f"predicted beside actual: KV tokens off by {100 * tokens.error_p50_share:.1f} % at the median and "
        f"{100 * tokens.error_p99_share:.0f} % at p99 of {tokens.requests:,}, TTFT by "
        f"{100 * ttft.error_p50_share:.1f} % and {100 * ttft.error_p99_share:.0f} % of {ttft.requests:,}"
    )


async def _prompts(
    session: aiohttp.ClientSession, url: str, target: probe.Target, arrivals: Sequence[Arrival], options: TargetOptions
) -> Prompts:
    if options.prompts is PromptForm.TOKENS:
        return token_prompts
    await probe.sized(session, url, target, arrivals[0], keys=options.keys)
    return text_prompts(target.sizes)


async def _under_load(
    loop: OpenLoop, watch: Watch, asked: Sequence[Arrival], options: TargetOptions,
    on_progress: Callable[[int, int], None] | None,
) -> bool:  # fmt: skip
    """Do it, while the target is watched; whether it was interrupted."""
    watching, stopped = asyncio.create_task(watch.run()), False
    try:
        await loop.run(asked, drain_s=options.drain_s, on_progress=on_progress)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        assert task is not None, "this runs in a task"
        task.uncancel()  # What was found is still to be said.
        stopped = True
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
    await watch.look()
    return stopped


def _scores(messages: Sequence[Message], theirs: Sequence[Message], watch: Watch, *, window_ns: int) -> Scores:
    scores = score(messages, window_ns=window_ns)
    if theirs:
        return observed.merged(scores, score(theirs, window_ns=window_ns))
    if not watch.engines:
        return msgspec.structs.replace(scores, device_hours_per_million=None)
    return observed.by_metrics(scores, watch.told)


def _series(seen: Sequence[Seen], messages: Sequence[Message], theirs: Sequence[Message]) -> tuple[Series, ...]:
    """The client's attainment; of the rest, what the target's log has, else its metrics; and memory by kind."""
    own = series(messages)
    if theirs:
        own = tuple(chain((one for one in own if one.name == "slo_attainment"), _but(series(theirs), "slo_attainment")))
    return (*own, *observed.held(seen), *observed.memory(theirs))


def _but(found: Sequence[Series], name: str) -> list[Series]:
    return [one for one in found if one.name != name]
