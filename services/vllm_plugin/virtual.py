"""What runs inside a vLLM engine, in virtual time: without an agent, without memory, on a clock that is set.

`replay.engines.vllm_plugged` imports a copy of this package for every simulated engine, since a bridge, names and a
pace are one per process here. The copy's modules get the clock in place of `time`; facts, directives and orders go over
the bridge, as they do between the scheduler's thread and the agent's.
"""

import sys
from typing import Any

from events.base import Event
from events.decisions import EngineDirected, TransferCancelled, TransferOrdered
from services.vllm_plugin import connector, scheduler
from services.vllm_plugin.bridge import FACTS_MAX, bridge
from services.vllm_plugin.spec import TidegateOffloadingSpec


class VirtualSpec(TidegateOffloadingSpec):
    """Tiers whose chunks nobody reads or writes."""

    def _region(self, rank: int | None) -> Any:  # noqa: ARG002
        return _NoMemory()


class _NoMemory:
    """In place of the shared memory."""

    _creator = True

    def create_kv_memoryview(self) -> memoryview:
        """Of nothing."""
        return memoryview(b"")

    def cleanup(self) -> None:
        """Nothing is left."""


class _NoAgent:
    """Nobody speaks with a log: who owns the engine takes facts from the bridge."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        bridge.listen(lambda: None, journals=False)

    def start(self) -> None:
        """There is no thread."""

    def stop(self) -> None:
        """There is none."""


def set_clock(clock: Any) -> None:
    """Have all modules of this copy read this clock (`monotonic_ns`, `monotonic`) instead of the machine's."""
    package = __name__.rpartition(".")[0]
    for name, module in list(sys.modules.items()):
        if name.startswith(f"{package}.") and hasattr(module, "time"):
            module.__dict__["time"] = clock
    assert connector.__name__.startswith(package), "all of it is one copy"
    scheduler.__dict__["Agent"] = _NoAgent


def direct(directive: EngineDirected) -> None:
    """A directive stands in the log."""
    bridge.direct(directive)


def order(said: TransferOrdered | TransferCancelled) -> None:
    """An order stands in the log, or is taken back."""
    if isinstance(said, TransferOrdered):
        bridge.orders.give(said, until_ns=said.until_ns)
    else:
        bridge.orders.cancel(said)


def facts() -> list[Event]:
    """What was told since this was last asked."""
    bridge.tell_noted()
    return bridge.facts(FACTS_MAX)


def directive_version() -> int:
    """The newest that choices are made by."""
    return bridge.directive.version if bridge.directive is not None else 0


def has_orders() -> bool:
    """Whether a step has to be made although there is no request."""
    return bridge.something_to_do
