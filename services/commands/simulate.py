"""`tidegate replay simulate`: the whole house in virtual time, on a workload, a trace or a recorded log."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from events.base import NS_PER_MS
from services.commands.options import Settings, with_output, with_settings
from services.runtime.config_sources import ConfigError
from services.runtime.output import Exit, Output, table

if TYPE_CHECKING:
    from rich.console import Console

    from events.engine import EngineRegistered
    from replay.cluster import Run
    from replay.workloads.base import Arrival
    from services.runtime.config import Config

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
@click.option("--out", "made", type=FILE, help="Keep the run's log as a journal.")
@with_settings
@with_output
def simulate(
    path: Path | None, form: str, workload: str | None, seed: int, limit: int | None, speed: float, policy: str,
    made: Path | None, settings: Settings, out: Output,
) -> int:  # fmt: skip
    """The same deciders against simulated engines, deterministic and faster than real time.

    Engines are those of the settings where any are simulated, else those that the recorded log speaks of, else two
    with an H100's step times and 98,304 tokens of KV each. Settings of policies are given by
    --set policies.admission.KEY=VALUE.
    """
    if path is not None and workload is not None:
        raise click.UsageError("name a file or a workload, not both")
    from replay.cluster import simulate as play

    config = settings.load()
    arrivals, recorded = _arrivals(path, form, seed)
    arrivals = [msgspec.structs.replace(a, at_ns=int(a.at_ns / speed)) for a in arrivals[:limit]]
    with out.progress("simulate", len(arrivals)) as advance:
        try:
            run = play(
                arrivals, _engines(config, recorded), settings=_policies(config, policy), pool=config.pool,
                on_progress=lambda done, _total: advance(done),
            )  # fmt: skip
        except ValueError as error:
            raise ConfigError(str(error), where=str(path or "workload mixed"), key="") from error
    if made is not None:
        _keep(run, made)
    value = {"digest": run.digest, "messages": len(run.messages), "journal": str(made or ""), **run.scores.plain()}
    out.result(value, lambda console: _show(run, made, console))
    return Exit.FINE


def _arrivals(path: Path | None, form: str, seed: int) -> "tuple[list[Arrival], list[EngineRegistered]]":
    """What arrives, and the engines that a recorded log names."""
    if path is None:
        from replay.workloads.mixed import mixed

        return mixed(seed), []
    if form == "mooncake":
        from replay.traces.mooncake import read_mooncake

        return read_mooncake(path), []
    from replay.journal_source import JournalSource
    from replay.workloads.facts import arrivals_of

    source = JournalSource(path)
    return arrivals_of(source), _registered(source)


def _registered(source: Any) -> "list[EngineRegistered]":
    from events import codec
    from events.engine import EngineRegistered

    found: dict[str, EngineRegistered] = {}
    for message in source:
        if b"engine_registered" in message.body:
            for recorded in codec.decode(message.seq, message.subject, message.body):
                if isinstance(recorded.event, EngineRegistered) and recorded.event.step is not None:
                    found[recorded.event.engine_id] = recorded.event
    return list(found.values())


def _engines(config: "Config", recorded: "list[EngineRegistered]") -> "list[EngineRegistered]":
    from events.engine import EngineKind
    from replay.workloads.mixed import engines
    from services.engines.open import as_configured

    configured = [as_configured(engine) for engine in config.engines if engine.kind is EngineKind.SIMULATED]
    return configured or recorded or list(engines())


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
