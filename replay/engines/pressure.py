"""What a simulated engine that is short of blocks knows of its running requests, as the rule for victims sees it."""

from collections.abc import Sequence

from events.base import RequestId
from events.decisions import EngineDirected
from events.engine import StepModel
from policies.memory.victims import Chosen, Running, choose
from policies.predictors.step_time import prefill_ns
from replay.engines.job import Job


def weigh(
    job: Job, model: StepModel, *, now_ns: int, pace_ns: int, batch_tokens: int, emitted: int, held: int, stored: int
) -> Running:
    """A running request with `emitted` output tokens, `held` blocks and `stored` tokens of KV, while a step takes
    `pace_ns`. What others hold too stays in the cache when it leaves, so that is neither freed nor lost."""
    request = job.request
    shared = sum(unit.refs > 1 for unit in job.units)
    kept = min(stored, shared * request.unit_tokens)
    return Running(
        request_id=request.request_id, tenant=request.tenant, priority=request.priority,
        slack_ns=_slack_ns(job, now_ns=now_ns, pace_ns=pace_ns, emitted=emitted), tokens_done=emitted,
        tokens_expected=request.output_expected, blocks_freed=held - shared * job.unit_blocks,
        lost_ns=prefill_ns(model, prompt=stored, cached=kept, batch_tokens=batch_tokens),
        first_token=emitted > 0, preempted=job.preemptions,
    )  # fmt: skip


def give_way(running: Sequence[Running], short: int, directive: EngineDirected) -> list[RequestId]:
    """Who gives way so that `short` blocks are free, by the rule for victims; nobody where that finds nobody."""
    found = choose(running, need_blocks=short, urgent=None, protect_ppm=directive.protect_ppm)
    return [one.request_id for one in found.victims] if isinstance(found, Chosen) else []


def _slack_ns(job: Job, *, now_ns: int, pace_ns: int, emitted: int) -> int:
    """How much longer it could take and still be on time, if each token to come takes `pace_ns`: to its first token
    while that is to come, then to the mean time per output token of its whole answer."""
    request = job.request
    if not emitted:
        return request.deadline_ns - now_ns
    to_come = max(0, request.output_expected - emitted)
    return request.slo_tpot_ns * (emitted + to_come - 1) - (now_ns - job.first_ns) - to_come * pace_ns
