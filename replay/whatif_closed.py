"""What would have become of a log's requests under other policies: the engine model answers.

Closed loop. What arrived in the log arrives again, at engines as they were registered there; each policy decides, and
lives with what it decided. The recorded policy is always among them: how far its modelled numbers lie from the observed
ones is the model's error on this very log, and stands beside every other number. What a policy gains or loses counts
from the modelled control, not from what was observed; a distance that is not larger than the error says nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from events.base import EngineId
from events.engine import EngineRegistered, StepModel
from replay.bench.memory.report import EngineModel, Origin, System
from replay.bench.memory.task import as_able, builder, slice_tokens_of
from replay.bench.runs import Player, players
from replay.cluster import CONTROL_NS, simulate
from replay.engines.tiers import TierSizes
from replay.engines.vllm_plugged import Plugged
from replay.recorded import Lengths, World, check, world_of
from replay.replayer import Source
from replay.score import Scores, score
from replay.tried import CONTROL, Candidate
from replay.workloads.base import Arrival

OBSERVED = "observed"
SEEDS = (1, 2, 3)
_AS_IT_WAS = System(name="as it was", title="")
"""Nothing is added to what the log says of its engines."""


class Column(msgspec.Struct, kw_only=True):
    """One policy's numbers, and where they come from. `digest` is of the run's log ("" = observed)."""

    policy: str
    origin: Origin
    scores: Scores
    digest: str = ""


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """One quantity in every column (None = infinite, or nothing to measure). `error` is the control's distance from
    what was observed, the largest over all seeds, `off` that relative to what was observed (None where either is
    infinite). `beyond` names the policies whose distance from the control is larger than the error."""

    name: str
    unit: str
    values: tuple[float | None, ...]
    error: float | None
    off: float | None
    beyond: tuple[str, ...]


class ClosedLoop(msgspec.Struct, kw_only=True):
    """`columns`: what was observed, the control, and the policies, in this order. `measures` have their values in it.
    The rest is what was run: see `replay.recorded.World`. `notes` say what weakens the comparison."""

    pool: str
    engine_model: EngineModel
    requests: int
    span_ns: int
    control_ns: int
    lengths: Lengths
    waiting_turns: int
    columns: list[Column]
    measures: list[Measure]
    notes: list[str]


_MEASURES: tuple[tuple[str, str, Callable[[Scores], float | None]], ...] = (
    ("slo_attainment", "share", lambda s: s.slo_attainment),
    ("goodput_per_s", "requests/s", lambda s: s.goodput_per_s),
    ("finished", "requests", lambda s: s.finished),
    ("rejected", "requests", lambda s: sum(s.rejected.values())),
    ("aborted", "requests", lambda s: sum(s.aborted.values())),
    ("unsent", "requests", lambda s: s.unsent),
    ("ttft_p50", "ns", lambda s: s.ttft_p50_ns),
    ("ttft_p99", "ns", lambda s: s.ttft_p99_ns),
    ("tpot_p50", "ns", lambda s: s.tpot_p50_ns),
    ("tpot_p99", "ns", lambda s: s.tpot_p99_ns),
    ("output_tokens_per_s", "tokens/s", lambda s: s.output_tokens_per_s),
    ("cached_token_share", "share", lambda s: s.cached_token_share),
    ("preemptions", "times", lambda s: s.preemptions),
    ("fairness_jain", "index", lambda s: s.fairness_jain),
)


class Again(msgspec.Struct, frozen=True, kw_only=True):
    """All that one modelled run needs, so that it can be done in any process: see `replay.cluster.simulate`."""

    arrivals: list[Arrival]
    engines: list[EngineRegistered]
    tiers: dict[EngineId, TierSizes]
    settings: dict[str, dict[str, Any]]
    control_ns: int
    until_ns: int
    sessions_wait: bool
    retry_rejected: bool
    engine: EngineModel = EngineModel.LIGHT


class Modelled(msgspec.Struct, frozen=True, kw_only=True):
    """What a modelled run was worth, and the digest of its log."""

    scores: Scores
    digest: str


def play_again(task: Again, *, plugged: Plugged | None = None) -> Modelled:
    """Do a modelled run. `plugged` are the classes that follow directives inside vLLM's scheduler. ImportError where
    its engine model is not installed."""
    build = builder(task.engine, _AS_IT_WAS, slice_tokens_of(task.arrivals), plugged=plugged)
    run = simulate(
        task.arrivals, task.engines, settings=task.settings, pool="whatif", tiers=task.tiers,
        control_ns=task.control_ns, closed_loop=task.sessions_wait, until_ns=task.until_ns,
        retry_rejected=task.retry_rejected, build=build,
    )  # fmt: skip
    return Modelled(scores=run.scores, digest=run.digest)


def closed_loop(
    source: Source,
    pool: str,
    candidates: Sequence[Candidate],
    *,
    seeds: Sequence[int] = SEEDS,
    step_model: StepModel | None = None,
    sessions_wait: bool = True,
    engine: EngineModel = EngineModel.LIGHT,
    play_all: Player[Again, Modelled] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> ClosedLoop:
    """Run a log again under each policy, the recorded one first.

    `seeds` are of drawn lengths: the columns have the first; the control is run with each, where any length is drawn,
    so that the error holds what the draw does. `sessions_wait`: turns wait for the answer before them; else each comes
    when it came, as clients do that send whatever becomes of it. `engine` answers; `play_all` does the runs (None:
    here, one by one); `on_progress` hears how many are done, of all. Raises NotModelled, and ValueError for a bad
    setting.
    """
    worlds = [world_of(source, seed=seed, step_model=step_model) for seed in seeds]
    world = worlds[0]
    check(world)
    wanted = [CONTROL, *(one for one in candidates if not one.is_control)]
    runs = [(world, one) for one in wanted] + [(other, CONTROL) for other in worlds[1:] if world.lengths.drawn]
    tasks = [_task(of, one, sessions_wait=sessions_wait, engine=engine) for of, one in runs]
    done = list[int]()

    def told(number: int, _result: Modelled) -> None:
        done.append(number)
        if on_progress is not None:
            on_progress(len(done), len(tasks))

    found = (play_all or _one_by_one)(tasks, told)
    seen = score(source, window_ns=world.span_ns, start_ns=world.first_ns)
    columns = [Column(policy=OBSERVED, origin=Origin.OBSERVED, scores=seen)]
    columns += [
        Column(policy=one.name, origin=Origin.MODELLED, scores=run.scores, digest=run.digest)
        for one, run in zip(wanted, found[: len(wanted)], strict=True)
    ]
    controls = [found[0].scores, *(one.scores for one in found[len(wanted) :])]
    return ClosedLoop(
        pool=pool, engine_model=engine, requests=len(world.arrivals), span_ns=world.span_ns,
        control_ns=tasks[0].control_ns, lengths=world.lengths,
        waiting_turns=world.waiting_turns if sessions_wait else 0, columns=columns,
        measures=[_measure(name, unit, of, columns, controls) for name, unit, of in _MEASURES],
        notes=_notes(world, seen),
    )  # fmt: skip


def settings_of(world: World, one: Candidate) -> dict[str, dict[str, Any]]:
    """By actor, what a run under this policy starts with."""
    if one.whole:
        return {actor: dict(own) for actor, own in one.settings.items()}
    return {
        actor: {**world.settings.get(actor, {}), **one.settings.get(actor, {})}
        for actor in {**world.settings, **one.settings}
    }


def _task(world: World, one: Candidate, *, sessions_wait: bool, engine: EngineModel) -> Again:
    return Again(
        arrivals=world.arrivals, engines=as_able(engine, world.engines), tiers=world.tiers,
        settings=settings_of(world, one),
        control_ns=CONTROL_NS if world.control_ns is None else world.control_ns, until_ns=world.span_ns,
        # Live clients that come back stand in the log as arrivals of their own: those come again anyway.
        sessions_wait=sessions_wait, retry_rejected=world.rejected_return, engine=engine,
    )  # fmt: skip


def _one_by_one(tasks: Sequence[Again], on_done: Callable[[int, Modelled], None]) -> list[Modelled]:
    with players(1, play_again) as play_all:
        return play_all(tasks, on_done)


def _measure(
    name: str, unit: str, of: Callable[[Scores], float | None], columns: Sequence[Column], controls: Sequence[Scores]
) -> Measure:  # fmt: skip
    values = tuple(of(one.scores) for one in columns)
    seen, control = values[0], values[1]
    said = [of(one) for one in controls]
    known = [abs(value - seen) for value in said if value is not None and seen is not None]
    error = max(known) if len(known) == len(said) else None
    return Measure(
        name=name, unit=unit, values=values, error=error, off=None if error is None or not seen else error / abs(seen),
        beyond=tuple(
            one.policy for one, value in zip(columns[2:], values[2:], strict=True) if _is_beyond(value, control, error)
        ),
    )  # fmt: skip


def _is_beyond(value: float | None, control: float | None, error: float | None) -> bool:
    if value is None or control is None:
        return value is not control
    return error is not None and abs(value - control) > error


def _notes(world: World, seen: Scores) -> list[str]:
    notes = []
    if world.changed:
        notes.append(f"settings changed {world.changed} times while requests came: the control goes by the last ones")
    if seen.unfinished:
        notes.append(
            f"{seen.unfinished} requests were open when the log ended: observed as missed, modelled to their end"
        )
    if world.lengths.drawn:
        notes.append(f"{world.lengths.drawn} answers were never given: their lengths are drawn from those that were")
    notes += [f"{count} {what}: not done again" for what, count in world.left_out.items()]
    return notes
