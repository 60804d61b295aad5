"""A suite of the memory benchmark against a live target: its workloads, in real time, as one report.

Nothing is known of where a target's knee is, so loads are multiples of the workload's own pace for so many engines.
Real time passes: a suite takes its runs times their seconds, and what it takes to drain.
"""

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from urllib.parse import urlsplit

import msgspec

from replay.bench.memory.bounds import described
from replay.bench.memory.plan import Plan
from replay.bench.memory.report import Report, RunResult, System, WorkloadInfo
from replay.bench.memory.summary import cells
from replay.bench.memory.workloads import Offer, arrivals
from replay.code_version import code_version
from services.target.options import TargetOptions
from services.target.run import run_target


class Live(msgspec.Struct, frozen=True, kw_only=True):
    """A target and how it is put under load: `engines` are those that stand behind it, which share the workload."""

    url: str
    options: TargetOptions = TargetOptions()
    name: str = "target"
    engines: int = 1


def offers(plan: Plan, live: Live) -> list[Offer]:
    """The runs of the plan's first stage, in order, as a live target gets them."""
    stage = plan.light
    return [
        Offer(
            workload=workload, seed=seed, scale=load, seconds=stage.seconds, engines=live.engines,
            trace=plan.traces.get(workload, ""),
        )
        for workload in stage.workloads
        for load in stage.loads
        for seed in stage.seeds
    ]  # fmt: skip


def run_live(
    plan: Plan, live: Live, *, version: str, on_progress: Callable[[int], None] = lambda _done: None
) -> Report:
    """Do them all; `on_progress` hears how many requests have ended. Ctrl-C ends it, and the report has what was found
    until then. Raises ConfigError, LogError or TraceError."""
    began, results, stopped, before = time.monotonic(), list[RunResult](), False, 0
    wanted = offers(plan, live)
    for offer in wanted:
        offered = arrivals(offer)
        try:
            found = run_target(
                live.url, offer, live.options, arrivals=offered, load=offer.scale, name=live.name,
                on_progress=_after(before, on_progress),
            )  # fmt: skip
        except KeyboardInterrupt:
            stopped = True
            break
        results.append(found.result)
        before += len(offered)
        if found.stopped:
            stopped = True
            break
    return Report(
        suite=f"{plan.suite}, live", made_at=datetime.now(UTC).isoformat(timespec="seconds"), version=version,
        code_version=code_version(), seeds=plan.light.seeds, loads=plan.light.loads, systems=(_system(live),),
        workloads=_infos(wanted, results), runs=tuple(results), cells=cells(results),
        seconds=time.monotonic() - began, stopped_early=stopped,
    )  # fmt: skip


def _after(before: int, on_progress: Callable[[int], None]) -> Callable[[int, int], None]:
    return lambda done, _of: on_progress(before + done)


def requests_of(plan: Plan, live: Live) -> int:
    """How many requests that is."""
    return sum(len(arrivals(offer)) for offer in offers(plan, live))


def _system(live: Live) -> System:
    """Where it is, without what an address may hide."""
    parts = urlsplit(live.url)
    where = parts.hostname or ""
    return System(name=live.name, title=f"live: {where}{f':{parts.port}' if parts.port else ''}", source="as it runs")


def _infos(wanted: Sequence[Offer], results: Sequence[RunResult]) -> tuple[WorkloadInfo, ...]:
    """What was offered, by the first run of each workload: whole, and with turns at the times of their trace."""
    ran = {one.workload for one in results}
    first = {offer.workload: offer for offer in reversed(wanted) if offer.workload in ran}
    infos = (described(offer, None, None, ()) for offer in wanted if first.get(offer.workload) is offer)
    return tuple(msgspec.structs.replace(info, closed_loop=False) for info in infos)
