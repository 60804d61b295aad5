"""`tidegate replay simulate`: the same deciders against a workload, a trace or a recorded log."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from events.base import NS_PER_S
from services.commands.options import Amount, Settings, refuse_overwriting, with_force, with_output, with_settings
from services.commands.trace_options import FORMATS
from services.runtime.config_sources import ConfigError
from services.runtime.output import Exit, Output

if TYPE_CHECKING:
    from events.log.base import Message
    from replay.cluster import Run
    from replay.faults import Fault

FILE = click.Path(path_type=Path, dir_okay=False)
UNTIL_MAX_S = 90 * 86_400
SPEED_MIN, SPEED_MAX = 0.001, 1e9
TIER_GIB_MAX = 1 << 20
"""A run takes the pool's time in steps of a second: a quarter of a year of it at most. A tier has a PiB at most."""
FAILING_PPM, STALLING_PPM = 10_000, 10_000
"""Of the transfers between tiers so many fail, and so many stall, where faults are drawn."""


@click.command()
@click.argument("path", type=FILE, required=False, metavar="[FILE]")
@click.option("--format", "form", type=click.Choice(FORMATS), default="journal", show_default=True,
              help="What FILE is; `tidegate trace import` has more to say on how it is read.")  # fmt: skip
@click.option("--workload", metavar="NAME",
              help="Instead of a file: mixed, or a profile (`tidegate workload list`, or a YAML file).")  # fmt: skip
@click.option(
    "--seed",
    type=int,
    default=1,
    show_default=True,
    help="Seed of the workload, and of when sessions begin whose trace does not say.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many requests.")
@click.option("--speed", type=Amount(min=SPEED_MIN, max=SPEED_MAX), default=1.0, show_default=True,
              help="So many times the offered load; in a closed loop sessions begin so much denser.")  # fmt: skip
@click.option("--until", "seconds", type=click.IntRange(min=1, max=UNTIL_MAX_S), metavar="SECONDS",
              help="Nothing is sent after that; rates are over so long.")  # fmt: skip
@click.option("--closed-loop", is_flag=True,
              help="Turns wait for the answers before them; what is rejected comes back once.")  # fmt: skip
@click.option("--policy", default="default", show_default=True,
              help="Preset: default, first_come, first_come_affinity, honest_rival...")  # fmt: skip
@click.option("--dram-gib", type=Amount(min=0, max=TIER_GIB_MAX), default=0.0, show_default=True,
              help="DRAM behind each engine whose tiers neither settings nor log name.")  # fmt: skip
@click.option("--ssd-gib", type=Amount(min=0, max=TIER_GIB_MAX), default=0.0, show_default=True,
              help="SSD behind that.")  # fmt: skip
@click.option("--dram-ppm", type=click.IntRange(min=0), default=0, show_default=True,
              help="Instead of GiB: millionths of what all prompts sent would take, over all engines.")  # fmt: skip
@click.option("--ssd-ppm", type=click.IntRange(min=0), default=0, show_default=True, help="The same of SSD.")
@click.option("--tier-eviction", type=click.Choice(["directed", "lru", "arc"]), default="directed", show_default=True,
              help="What leaves those tiers: as the policies say, or by a rule of their own.")  # fmt: skip
@click.option("--tier-lazy", is_flag=True,
              help="DRAM takes in what device memory evicts, as the plugin does; else what is computed.")  # fmt: skip
@click.option("--gateways", type=click.IntRange(min=1), default=1, show_default=True, help="Requests take turns.")
@click.option("--faults", type=int, metavar="SEED",
              help="Engines and gateways are lost, clients go, transfers fail: drawn by this seed.")  # fmt: skip
@click.option("--engine-model", "engine_model", type=click.Choice(["light", "vllm_scheduler"]), default="light",
              show_default=True, help="A model of vLLM, or vLLM's own scheduler (.venv-engine).")  # fmt: skip
@click.option("--out", "made", type=FILE, help="Keep the run's log as a journal, what there is of it after Ctrl-C.")
@with_force
@with_settings
@with_output
def simulate(
    path: Path | None, form: str, workload: str | None, seed: int, limit: int | None, speed: float,
    seconds: int | None, closed_loop: bool, policy: str, dram_gib: float, ssd_gib: float, dram_ppm: int, ssd_ppm: int,
    tier_eviction: str, tier_lazy: bool, gateways: int, faults: int | None, engine_model: str, made: Path | None,
    force: bool, settings: Settings, out: Output,
) -> int:  # fmt: skip
    """The same deciders against simulated engines, deterministic and faster than real time.

    Engines are those of the settings where any are simulated, else those that the recorded log speaks of, else two
    with an H100's step times and 98,304 tokens of KV each. Settings of policies are given by
    --set policies.admission.KEY=VALUE.
    """
    if path is not None and workload is not None:
        raise click.UsageError("name a file or a workload, not both")
    refuse_overwriting(made, force=force)
    from events.log.journal import check_place
    from replay.cluster import simulate as play
    from replay.faults import TransferFaults, draw_faults
    from replay.turns import hastened
    from services.commands import simulate_inputs as inputs
    from services.commands.simulate_text import show

    if made is not None:
        check_place(made)
    config = settings.load()
    offered, recorded, tiers = inputs.arrivals(path, form, workload or inputs.MIXED, seed)
    until_ns = (seconds or 0) * NS_PER_S
    coming = hastened(offered[:limit], speed, closed_loop=closed_loop)
    offered = [one for one in coming if not until_ns or one.at_ns < until_ns]
    if not offered:
        first = (
            f" before --until {seconds}: the first comes after {coming[0].at_ns / NS_PER_S:,.0f} s" if coming else ""
        )
        raise ConfigError(f"no request arrives in it{first}", where=str(path or workload or inputs.MIXED), key="")
    if closed_loop and not any(one.after for one in offered):
        out.remark("no turn waits for another in it: of a closed loop there is only that the rejected come back once")
    engines, tiers = inputs.engines(config, recorded, tiers)
    sizes = inputs.sizes_asked(
        offered, engines, dram_gib=dram_gib, ssd_gib=ssd_gib, dram_ppm=dram_ppm, ssd_ppm=ssd_ppm,
        eviction="" if tier_eviction == "directed" else tier_eviction, lazy=tier_lazy,
    )  # fmt: skip
    engines, tiers = inputs.behind(engines, tiers, sizes)
    span_ns = until_ns or max(one.at_ns for one in offered)
    drawn: Sequence[Fault] = ()
    failing = None
    if faults is not None:
        drawn = draw_faults(faults, span_ns=span_ns, holders_lost=gateways - 1)
        failing = TransferFaults(seed=faults, failing_ppm=FAILING_PPM, stalling_ppm=STALLING_PPM)
    heard: list[Message] = []
    if engine_model != "light":
        play = _on_vllm()
    with out.progress("simulate", len(offered)) as advance:
        try:
            run = play(
                offered, engines, settings=inputs.policies(config, policy), pool=config.pool, tiers=tiers,
                closed_loop=closed_loop, until_ns=until_ns, holders=gateways, faults=drawn,
                transfer_faults=failing, on_message=heard.append, on_progress=lambda done, _total: advance(done),
            )  # fmt: skip
        except ValueError as error:
            raise ConfigError(str(error), where=str(path or workload or inputs.MIXED), key="") from error
        except KeyboardInterrupt:
            if made is not None:
                _keep(made, config.pool, heard)
                out.remark(f"stopped: {made} holds what there was until then, {len(heard)} messages")
            raise
    value = {"digest": run.digest, "messages": len(run.messages), "journal": str(made or ""), **run.scores.plain()}
    out.result(value, lambda console: show(run, made, console))
    if made is not None:
        _keep(made, run.pool, run.messages)
    return Exit.FINE


def _on_vllm() -> "Callable[..., Run]":
    from replay.bench.far import ENGINE_PYTHON, engine_python
    from replay.bench.simulated import simulate_far
    from services.engines.vllm_virtual import play_on_vllm

    python = engine_python()
    if python is None:
        raise ConfigError(f"{ENGINE_PYTHON} is not there", where="--engine-model", key="", allowed="make test-engine")
    return simulate_far(python, play_on_vllm)


def _keep(made: Path, pool: str, messages: "Sequence[Message]") -> None:
    from events.base import PoolId
    from events.log.journal import JournalWriter

    with JournalWriter(made, PoolId(pool)) as writer:
        for message in messages:
            writer.write(message)
