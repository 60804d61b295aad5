"""`tidegate bench predictors`: how well output lengths are predicted on traces."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from services.commands.options import with_output
from services.runtime.config_sources import ConfigError
from services.runtime.output import Exit, Output, table

if TYPE_CHECKING:
    from rich.console import Console

    from replay.bench.predictors import Row

FILE = click.Path(path_type=Path, dir_okay=False)
BESIDE = (
    Path("../shared/traces/mooncake/conversation_trace.t0-1800000ms.jsonl.gz"),
    Path("../shared/traces/azure2023/AzureLLMInferenceTrace_conv.before_1845.csv.gz"),
)
"""Where conversation traces are looked for when none is named."""


@click.command("predictors")
@click.option("--trace", "traces", type=FILE, multiple=True,
              help="A Mooncake (.jsonl) or Azure (.csv) trace, plain or .gz; may be given several times.")  # fmt: skip
@click.option("--strict", is_flag=True, help="Exit code 1 when a goal is not met.")
@with_output
def command(traces: tuple[Path, ...], strict: bool, out: Output) -> int:
    """Coverage of the 90 % upper bound, pinball loss against one global quantile, and width.

    Each answer is told when it would have ended: 1 s after its arrival, and 30 ms per token later.
    """
    from replay.bench.predictors import after, gained, measure, name_of, read_trace, steps_of

    paths = traces or tuple(path for path in BESIDE if path.is_file())
    if not paths:
        raise ConfigError(
            "no trace was given, and none lies beside the checkout", where="--trace", key="",
            allowed="files of Mooncake or Azure traces",
        )  # fmt: skip
    played = [(name_of(path), read_trace(path)) for path in paths]
    rows: list[Row] = []
    with out.progress("requests", sum(steps_of(arrivals) for _, arrivals in played)) as advance:
        before = 0
        for name, arrivals in played:
            rows += measure(name, arrivals, on_progress=after(before, advance))
            before += steps_of(arrivals)
    goals = {"covers": all(row.covers for row in _ours(rows)), "gained": gained(rows)}
    out.result({"rows": msgspec.to_builtins(rows), "goals": goals}, lambda console: _show(rows, goals, console))
    return Exit.NO if strict and not all(goals.values()) else Exit.FINE


def _ours(rows: "list[Row]") -> "list[Row]":
    from policies.predictors.output_length import OutputPredictor

    return [row for row in rows if row.predictor == OutputPredictor.QUANTILE]


def _show(rows: "list[Row]", goals: dict[str, bool], console: "Console") -> None:
    columns = ("trace", "predictor", "requests", "coverage", "of 1,000: min", "max", "pinball loss", "to the peer",
               "median width", "longest")  # fmt: skip
    shown = [
        (
            row.trace, row.predictor, f"{row.requests:,}", _percent(row.coverage_ppm), _percent(min(row.windows_ppm)),
            _percent(max(row.windows_ppm)), f"{row.loss_millitokens / 1_000:.3f}", _percent(row.loss_to_peer_ppm),
            f"{row.width_median:,}", f"{row.tokens_max:,}",
        )
        for row in rows
    ]  # fmt: skip
    console.print(table(columns, shown))
    said = {True: "met", False: "NOT met"}
    console.print(f"\ncoverage of the quantile within 84 to 95 % in each window of 1,000: {said[goals['covers']]}")
    console.print(f"loss never above one global quantile's, and 3 % below it on one trace: {said[goals['gained']]}")


def _percent(ppm: int) -> str:
    return f"{ppm / 10_000:.1f} %"
