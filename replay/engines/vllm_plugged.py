"""vLLM's scheduler in virtual time with classes that are plugged into it by dotted names, as vLLM itself takes them.

Which classes, whoever makes the engine says (`Plugged`): none is named here. They come in a package that keeps what it
knows of its engine in its modules, one engine a process. So each simulated engine imports a copy of the package, and
gives it a clock that stands at the engine's time. What the package has to offer for that stands in `Mind`.
"""

import sys
from importlib import import_module
from typing import Any, Final, Protocol, cast

import msgspec

from events.base import EngineId, Event
from events.decisions import EngineDirected, TransferCancelled, TransferOrdered
from policies.predictors.step_time import FS_PER_NS
from replay.engines.job import SimRequest
from replay.engines.tiers import TierSizes

NS_PER_S: Final = 1_000_000_000
SLICE_TOKENS: Final = 512
"""The unit of the Mooncake traces' prompts."""


class Plugged(msgspec.Struct, frozen=True, kw_only=True):
    """`mind` is the module that an engine's owner speaks to; `scheduler` what `--scheduler-cls` takes; `connector` is a
    class of `connector_module`, and `spec` one of `mind`. Slices have `slice_tokens` tokens, as the units of prompts
    must. `key` is where their settings stand in the connector's configuration and hints in a request's parameters."""

    mind: str
    scheduler: str
    connector: str
    connector_module: str
    spec: str
    key: str
    slice_tokens: int = SLICE_TOKENS

    def transfer(self, engine_id: EngineId, tiers: TierSizes) -> dict[str, Any]:
        """The connector's configuration."""
        settings = {"engine_id": engine_id, "slice_tokens": self.slice_tokens, "lazy": tiers.lazy}
        extra = {
            "cpu_bytes_to_use": tiers.dram_bytes, "spec_name": self.spec, "spec_module_path": self.mind,
            "block_size": self.slice_tokens, self.key: settings,
        }  # fmt: skip
        return {
            "kv_connector": self.connector, "kv_role": "kv_both", "kv_connector_module_path": self.connector_module,
            "kv_connector_extra_config": extra,
        }  # fmt: skip

    def hints(self, request: SimRequest, now_ns: int) -> dict[str, Any]:
        """What the gateway tells an engine of a request."""
        full = request.prefix[: request.prompt_tokens // request.unit_tokens]
        told: dict[str, Any] = {
            "request_id": request.request_id, "tenant": request.tenant, "priority": request.priority,
            "slo_tpot_ns": request.slo_tpot_ns, "output_expected": request.output_expected,
            "slices": [str(key) for key in full], "slice_tokens": request.unit_tokens,
        }  # fmt: skip
        if request.deadline_ns:
            told["slack_ns"] = request.deadline_ns - now_ns
        return {"kv_transfer_params": {self.key: told}}


class Clock:
    """Stands in for the `time` module: the engine's time."""

    def __init__(self) -> None:
        self.now_fs = 0

    def monotonic_ns(self) -> int:
        """The nanosecond that has begun."""
        return self.now_fs // FS_PER_NS

    def monotonic(self) -> float:
        """In seconds."""
        return self.monotonic_ns() / NS_PER_S


class Mind(Protocol):
    """What the package of the classes offers to who owns the engine."""

    def set_clock(self, clock: Clock) -> None:
        """Have all of it read this clock."""
        ...

    def direct(self, directive: EngineDirected) -> None:
        """A directive stands in the log."""
        ...

    def order(self, said: TransferOrdered | TransferCancelled) -> None:
        """An order stands in the log, or is taken back."""
        ...

    def facts(self) -> list[Event]:
        """What was told since this was last asked."""
        ...

    def directive_version(self) -> int:
        """The newest that choices are made by."""
        ...

    def has_orders(self) -> bool:
        """Whether a step has to be made although there is no request."""
        ...


def mind_of(plugged: Plugged, clock: Clock) -> Mind:
    """A copy of the package, for one engine: what vLLM imports by name until the next copy is made is this one."""
    package = plugged.mind.rpartition(".")[0]
    for name in [one for one in sys.modules if one == package or one.startswith(f"{package}.")]:
        del sys.modules[name]
    mind = cast("Mind", import_module(plugged.mind))
    mind.set_clock(clock)
    return mind
