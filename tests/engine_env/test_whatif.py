"""What-if with vLLM's real scheduler as the engine model: a log that it made is, under the same policy, made again."""

from policies.catalog import PRESETS
from replay.bench.memory.report import EngineModel
from replay.cluster import simulate
from replay.engines.vllm_scheduler import vllm_engine
from replay.tried import candidate
from replay.whatif_closed import closed_loop
from replay.workloads.mixed import LLM_MODEL, Mixed, engines, mixed

CALM = Mixed(seconds=20, sessions=8, bursts=0, waves=0)


def test_the_control_is_the_log_again_and_another_policy_is_not() -> None:
    arrivals = [one for one in mixed(5, CALM) if one.model == LLM_MODEL]
    run = simulate(arrivals, engines(), settings=PRESETS["default"], build=vllm_engine)
    found = closed_loop(
        run.messages, run.pool, [candidate("recorded", {"admission": {"placement": "round_robin"}})],
        engine=EngineModel.VLLM_SCHEDULER,
    )  # fmt: skip
    assert found.lengths.drawn == 0
    assert [one.error or 0 for one in found.measures] == [0] * len(found.measures)
    control, other = found.columns[1:]
    assert control.digest != other.digest
