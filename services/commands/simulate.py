"""`tidegate replay simulate`: the whole house in virtual time, on a workload, a trace or a recorded log."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from msgspec.structs import replace

from events.base import NS_PER_MS, EngineId
from services.commands.options import Settings, with_output, with_settings
from services.runtime.config_sources import ConfigError
from services.runtime.output import Exit, Output, table

if TYPE_CHECKING:
    from rich.console import Console

    from events.engine import EngineRegistered
    from replay.cluster import Run
    from replay.engines.tiers import TierSizes
    from replay.workloads.base import Arrival
    from services.runtime.config import Config

    Sizes = dict[EngineId, TierSizes]

GIB = 1 << 30
FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("path", type=FILE, required=False, metavar="[FILE]")
@click.option("--format", "form", type=click.Choice(["journal", "mooncake"]), default="journal", show_default=True,
              help="What FILE is.")  # fmt: skip
@click.option("--workload", type=click.Choice(["mixed"]), help="A made workload instead of a file.")
@click.option("--seed", type=int, default=1, show_default=True, help="Seed of the workload.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many requests.")
@click.option("--speed", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True,
              help="So many times the offered load.")  # fmt: skip
@click.option("--policy", default="default", show_default=True,
              help="Preset: default, first_come, first_come_affinity, honest_rival...")  # fmt: skip
@click.option("--dram-gib", type=click.FloatRange(min=0), default=0.0, show_default=True,
              help="DRAM behind each engine whose tiers neither settings nor log name.")  # fmt: skip
@click.option("--ssd-gib", type=click.FloatRange(min=0), default=0.0, show_default=True, help="SSD behind that.")
@click.option("--out", "made", type=FILE, help="Keep the run's log as a journal.")
@with_settings
@with_output
def simulate(
    path: Path | None, form: str, workload: str | None, seed: int, limit: int | None, speed: float, policy: str,
    dram_gib: float, ssd_gib: float, made: Path | None, settings: Settings, out: Output,
) -> int:  # fmt: skip
    """The same deciders against simulated engines, deterministic and faster than real time.

    Engines are those of the settings where any are simulated, else those that the recorded log speaks of, else two
    with an H100's step times and 98,304 tokens of KV each. Settings of policies are given by
    --set policies.admission.KEY=VALUE.
    """
    if path is not None and workload is not None:
        raise click.UsageError("name a file or a workload, not both")
    if ssd_gib and not dram_gib:
        raise click.UsageError("what is in SSD goes by way of DRAM: give --dram-gib too")
    from replay.cluster import simulate as play

    config = settings.load()
    arrivals, recorded, tiers = _arrivals(path, form, seed)
    engines, tiers = _engines(config, recorded, tiers)
    if dram_gib:
        engines, tiers = _behind(engines, tiers, dram_bytes=int(dram_gib * GIB), ssd_bytes=int(ssd_gib * GIB))
    arrivals = [msgspec.structs.replace(a, at_ns=int(a.at_ns / speed)) for a in arrivals[:limit]]
    with out.progress("simulate", len(arrivals)) as advance:
        try:
            run = play(
                arrivals, engines, settings=_policies(config, policy), pool=config.pool, tiers=tiers,
                on_progress=lambda done, _total: advance(done),
            )  # fmt: skip
        except ValueError as error:
            raise ConfigError(str(error), where=str(path or "workload mixed"), key="") from error
    if made is not None:
        _keep(run, made)
    value = {"digest": run.digest, "messages": len(run.messages), "journal": str(made or ""), **run.scores.plain()}
    out.result(value, lambda console: _show(run, made, console))
    return Exit.FINE


def _arrivals(path: Path | None, form: str, seed: int) -> "tuple[list[Arrival], list[EngineRegistered], Sizes]":
    """What arrives, and the engines that a recorded log names, with their tiers."""
    if path is None:
        from replay.workloads.mixed import mixed

        return mixed(seed), [], {}
    if form == "mooncake":
        from replay.traces.mooncake import read_mooncake

        return read_mooncake(path), [], {}
    from replay.journal_source import JournalSource
    from replay.workloads.facts import arrivals_of

    source = JournalSource(path)
    return arrivals_of(source), *_registered(source)


def _registered(source: Any) -> "tuple[list[EngineRegistered], Sizes]":
    from events import codec
    from events.engine import EngineRegistered
    from events.slice import TierMeasured
    from replay.engines.tiers import sizes_of

    found: dict[str, EngineRegistered] = {}
    measured: dict[EngineId, dict[str, TierMeasured]] = {}
    for message in source:
        if b"engine_registered" in message.body or b"tier_measured" in message.body:
            for recorded in codec.decode(message.seq, message.subject, message.body):
                match recorded.event:
                    case EngineRegistered(step=step) as event if step is not None:
                        found[event.engine_id] = event
                    case TierMeasured() as event:
                        measured.setdefault(event.engine_id, {})[event.tier] = event
                    case _:
                        pass
    sizes = {name: sizes_of(tiers.values()) for name, tiers in measured.items() if name in found}
    return list(found.values()), {name: size for name, size in sizes.items() if size is not None}


def _engines(
    config: "Config", recorded: "list[EngineRegistered]", tiers: "Sizes"
) -> "tuple[list[EngineRegistered], Sizes]":
    from events.engine import EngineKind
    from replay.workloads.mixed import engines
    from services.engines.open import as_configured
    from services.engines.simulated import tiers_of

    configured = [engine for engine in config.engines if engine.kind is EngineKind.SIMULATED]
    if configured:
        sizes = {EngineId(engine.id): tiers_of(engine) for engine in configured}
        return [as_configured(engine) for engine in configured], {k: v for k, v in sizes.items() if v is not None}
    return (recorded, tiers) if recorded else (list(engines()), {})


def _behind(
    engines: "list[EngineRegistered]", tiers: "Sizes", *, dram_bytes: int, ssd_bytes: int
) -> "tuple[list[EngineRegistered], Sizes]":
    """The same engines, each with tiers."""
    from replay.engines.tiers import TierSizes

    sizes = TierSizes(dram_bytes=dram_bytes, ssd_bytes=ssd_bytes)
    reporting = [replace(engine, capability=replace(engine.capability, reports_slices=True)) for engine in engines]
    return reporting, {engine.engine_id: tiers.get(engine.engine_id, sizes) for engine in engines}


def _policies(config: "Config", policy: str) -> dict[str, dict[str, Any]]:
    from policies.catalog import PRESETS
    from services.runtime.config_sources import meant

    if policy not in PRESETS:
        known = list(PRESETS)
        raise ConfigError(
            f"no preset {policy!r}{meant(policy, known)}", where="--policy", key="", allowed=", ".join(known)
        )
    preset = PRESETS[policy]
    return {
        actor: {**preset.get(actor, {}), **config.policies.get(actor, {})}
        for actor in [*preset, *(actor for actor in config.policies if actor not in preset)]
    }


def _keep(run: "Run", made: Path) -> None:
    from events.log.journal import JournalWriter

    with JournalWriter(made, run.pool) as writer:
        for message in run.messages:
            writer.write(message)


def _show(run: "Run", made: Path | None, console: "Console") -> None:
    scores = run.scores
    rows = [
        ("requests", str(scores.requests)),
        ("SLO attainment", f"{scores.slo_attainment:.1%}"),
        ("goodput", f"{scores.goodput_per_s:.2f} requests/s of {scores.offered_per_s:.2f} offered"),
        ("TTFT p50 / p99", f"{_ms(scores.ttft_p50_ns)} / {_ms(scores.ttft_p99_ns)}"),
        ("TPOT p50 / p99", f"{_ms(scores.tpot_p50_ns)} / {_ms(scores.tpot_p99_ns)}"),
        ("preemptions", str(scores.preemptions)),
        ("rejected", ", ".join(f"{reason} {count}" for reason, count in scores.rejected.items()) or "none"),
        ("digest", run.digest),
        ("journal", str(made or "not kept: --out FILE")),
    ]
    console.print(table(("simulated", ""), rows))


def _ms(ns: int | None) -> str:
    return "infinite" if ns is None else f"{ns / NS_PER_MS:,.1f} ms"
