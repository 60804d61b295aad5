"""What `tidegate replay simulate` runs: who arrives, on which engines, with what behind their memory."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from msgspec.structs import replace

from events.base import PPM, EngineId
from services.runtime.config_sources import ConfigError, meant

if TYPE_CHECKING:
    from collections.abc import Sequence

    from events.engine import EngineRegistered
    from replay.engines.tiers import TierSizes
    from replay.workloads.base import Arrival
    from services.runtime.config import Config

    Sizes = dict[EngineId, TierSizes]

GIB = 1 << 30
JOURNAL = "journal"
MIXED = "mixed"


def arrivals(
    path: Path | None, form: str, workload: str, seed: int
) -> "tuple[list[Arrival], list[EngineRegistered], Sizes]":
    """What arrives, and the engines that a recorded log names, with their tiers. `workload` is "mixed", or a profile's
    name or file. `seed` is of the workload, and of the lengths that a recorded log does not tell."""
    if path is None and workload == MIXED:
        from replay.workloads.mixed import mixed

        return mixed(seed), [], {}
    if path is None:
        from replay.workloads.drawn import draw
        from replay.workloads.profile import load

        return draw(load(workload), seed=seed), [], {}
    if form != JOURNAL:
        from replay.traces.formats import Reading, read_trace

        return read_trace(path, form, reading=Reading(seed=seed)).arrivals, [], {}
    from replay.journal_source import JournalSource
    from replay.recorded import world_of

    world = world_of(JournalSource(path), seed=seed)
    described = [one for one in world.engines if one.step is not None]
    return (
        world.arrivals,
        described,
        {one.engine_id: size for one in described if (size := world.tiers.get(one.engine_id))},
    )


def engines(
    config: "Config", recorded: "list[EngineRegistered]", tiers: "Sizes"
) -> "tuple[list[EngineRegistered], Sizes]":
    """The simulated engines of the settings, else those of the log, else two; with what is known of their tiers."""
    from events.engine import EngineKind
    from replay.workloads import mixed
    from services.engines.open import as_configured
    from services.engines.simulated import tiers_of

    configured = [engine for engine in config.engines if engine.kind is EngineKind.SIMULATED]
    if configured:
        sizes = {EngineId(engine.id): tiers_of(engine) for engine in configured}
        return [as_configured(engine) for engine in configured], {k: v for k, v in sizes.items() if v is not None}
    return (recorded, tiers) if recorded else (list(mixed.engines()), {})


def sizes_asked(
    offered: "Sequence[Arrival]", described: "Sequence[EngineRegistered]", *, dram_gib: float, ssd_gib: float,
    dram_ppm: int, ssd_ppm: int, eviction: str, lazy: bool,
) -> "TierSizes | None":  # fmt: skip
    """What is to stand behind each engine: so many GiB, or its part of so many millionths of the bytes that all
    prompts in `offered` would take, each slice once. None where nothing is asked for."""
    if (dram_gib or ssd_gib) and (dram_ppm or ssd_ppm):
        raise click.UsageError("give the sizes of tiers in GiB or in ppm, not both")
    if (ssd_gib or ssd_ppm) and not (dram_gib or dram_ppm):
        raise click.UsageError("what is in SSD goes by way of DRAM: give --dram-gib or --dram-ppm too")
    if not (dram_gib or dram_ppm):
        if eviction or lazy:
            named = "--tier-eviction" if eviction else "--tier-lazy"
            raise click.UsageError(f"{named} is of tiers that are asked for: give --dram-gib or --dram-ppm too")
        return None
    from replay.belady import unique_bytes
    from replay.engines.tier_cache import Own
    from replay.engines.tiers import TierSizes

    if dram_gib:
        sizes = (int(dram_gib * GIB), int(ssd_gib * GIB))
    else:
        first = described[0]
        unique = unique_bytes(offered, token_bytes=first.block_bytes // first.block_tokens)
        if not unique:
            raise click.UsageError("no prompt names a prefix, so there is nothing to take a share of: give --dram-gib")
        sizes = (unique * dram_ppm // PPM // len(described), unique * ssd_ppm // PPM // len(described))
    return TierSizes(dram_bytes=sizes[0], ssd_bytes=sizes[1], eviction=Own(eviction), lazy=lazy)


def behind(
    described: "list[EngineRegistered]", tiers: "Sizes", sizes: "TierSizes | None"
) -> "tuple[list[EngineRegistered], Sizes]":
    """The same engines, each with tiers: its own, else these."""
    if sizes is None:
        return described, tiers
    reporting = [replace(engine, capability=replace(engine.capability, reports_slices=True)) for engine in described]
    return reporting, {engine.engine_id: tiers.get(engine.engine_id, sizes) for engine in reporting}


def policies(config: "Config", policy: str) -> dict[str, dict[str, Any]]:
    """Settings by actor: the preset's, and over them what is configured. Raises ConfigError for an unknown preset."""
    from policies.catalog import PRESETS

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
