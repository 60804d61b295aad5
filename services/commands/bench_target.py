"""`tidegate bench run --target`: the options of a live target, and its report."""

import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from services.commands.options import Settings
from services.runtime.config import Config
from services.runtime.config_sources import ConfigError
from services.runtime.output import Output

if TYPE_CHECKING:
    from replay.bench.memory.plan import Plan
    from replay.bench.memory.report import Report
    from services.target.suite import Live

F = TypeVar("F", bound=Callable[..., Any])
KEY_VARIABLE = "TIDEGATE_TARGET_KEY"
"""The bearer token for the target: on a command line everybody on the host could read it."""
PROMPTS = ("text", "tokens")
V1 = "/v1"


def target_options(command: F) -> F:
    """Give the command `--target` and what belongs to it, and a `live: Live | None`."""

    @click.option("--target", help="Instead of virtual time: a live gateway, or any OpenAI-compatible server, at this "
                  "address, in real time. --loads are then multiples of the workload's own pace.")  # fmt: skip
    @click.option("--target-name", default="target", show_default=True, help="What the report calls it.")
    @click.option("--target-engines", type=click.IntRange(min=1), default=1, show_default=True,
                  help="Engines behind it, which share the workload.")  # fmt: skip
    @click.option("--target-model", default="", help="Model for requests whose own is not served (default: the first).")
    @click.option("--target-embedding-model", default="", help="The same for embeddings (default: they are left out).")
    @click.option("--target-prompts", type=click.Choice(PROMPTS), default=PROMPTS[0], show_default=True,
                  help="Prompts of words, or of token ids.")  # fmt: skip
    @click.option(
        "--target-in-flight", type=click.IntRange(min=1), help="Most requests open at a time (default: 1024)."
    )
    @click.option("--target-metrics", multiple=True, help="More /metrics addresses: of engines behind it.")
    @click.option("--target-log", default="", help="NATS address of the target's log, where that is not the one that "
                  "`tidegate up` runs with the same settings. NATS_CREDS says who asks.")  # fmt: skip
    @click.option("--target-pool", default="", help="The pool of that log: predictions beside actuals.")
    @functools.wraps(command)
    def with_target(*args: Any, **named: Any) -> Any:
        said = {name: named.pop(name) for name in list(named) if name.startswith("target")}
        if not said["target"]:
            _refuse_without_target(said)
        return command(*args, live=_live(said) if said["target"] else None, **named)

    return with_target  # type: ignore[return-value]


def live_report(live: "Live", plan: "Plan", out: Output) -> "Report":
    """Run the plan's first stage on the target. Raises ConfigError, LogError or TraceError."""
    from replay.code_version import code_version
    from services.target.suite import offers, requests_of, run_live

    runs, seconds = len(offers(plan, live)), plan.light.seconds
    out.remark(
        f"{runs} runs of {seconds} s in real time: {runs * seconds / 60:.1f} minutes and what they take to drain"
    )
    with out.progress("requests", requests_of(plan, live)) as advance:
        report = run_live(plan, live, version=code_version().partition("+")[0], on_progress=advance)
    for one in report.runs:
        out.remark(f"{one.workload} x{one.load:g} seed {one.seed}: {'; '.join(one.notes)}")
    return report


def _refuse_without_target(said: dict[str, Any]) -> None:
    """Raises UsageError where something is said of a target, and none is named."""
    context = click.get_current_context()
    for name in said:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name.replace('_', '-')} is said of a target: name it by --target URL")


def _live(said: dict[str, Any]) -> "Live":
    from services.target.options import IN_FLIGHT_MAX, PromptForm, TargetOptions
    from services.target.suite import Live

    url = said["target"]
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"{url!r} is no address", where="--target", key="", allowed="http://HOST:PORT")
    if said["target_log"] and not said["target_pool"]:
        raise ConfigError("a log is named by its server and its pool", where="--target-log", key="",
                          allowed="--target-log together with --target-pool")  # fmt: skip
    house = Settings(None, ()).load() if said["target_pool"] else Config()
    key = os.environ.get(KEY_VARIABLE, "")
    options = TargetOptions(
        model=said["target_model"], embedding_model=said["target_embedding_model"], keys={"": key} if key else {},
        prompts=PromptForm(said["target_prompts"]), in_flight_max=said["target_in_flight"] or IN_FLIGHT_MAX,
        metrics=said["target_metrics"], log_url=said["target_log"] or house.nats.url,
        pool=said["target_pool"], creds=house.nats.creds, state_dir=house.state_dir,
    )  # fmt: skip
    base = url.rstrip("/").removesuffix(V1)  # Clients of OpenAI's API have it in their address, and `up` prints it.
    return Live(url=base, options=options, name=said["target_name"], engines=said["target_engines"])
