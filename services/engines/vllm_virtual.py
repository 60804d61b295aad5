"""What is run in vLLM's environment: the lab's runs, with this project's classes plugged into vLLM's scheduler.

`replay.bench.far.far_players` calls a function by its name in a Python that has vLLM; these are the ones to hand to it.
The lab itself names no service: what is plugged into its engines is said here.
"""

from typing import Final

from replay.bench import simulated
from replay.bench.memory import task as memory
from replay.bench.memory.report import RunResult
from replay.bench.memory.task import MemoryTask
from replay.bench.simulated import Simulation
from replay.cluster import Run
from replay.engines.vllm_plugged import Plugged
from replay.whatif_closed import Again, Modelled
from replay.whatif_closed import play_again as again
from services.engines.vllm_command import CONNECTOR, SCHEDULER
from services.vllm_plugin.settings import KEY

PLUGGED: Final = Plugged(
    mind="services.vllm_plugin.virtual", scheduler=SCHEDULER, connector=CONNECTOR["kv_connector"],
    connector_module=CONNECTOR["kv_connector_module_path"], spec="VirtualSpec", key=KEY,
)  # fmt: skip
"""As `tidegate engine launch` starts them, in virtual time."""


def play(task: MemoryTask) -> RunResult:
    """A run of the memory benchmark."""
    return memory.play(task, plugged=PLUGGED)


def play_again(task: Again) -> Modelled:
    """A closed loop of what-if."""
    return again(task, plugged=PLUGGED)


def play_on_vllm(simulation: Simulation) -> Run:
    """A simulation."""
    return simulated.play_on_vllm(simulation, plugged=PLUGGED)
