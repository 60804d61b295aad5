"""Who copies for vLLM's offloading connector in virtual time: what it says does not hang on PYTHONHASHSEED."""

from types import SimpleNamespace

import pytest

from events.base import NS_PER_S
from policies.predictors.step_time import FS_PER_NS
from replay.engines.vllm_offload import VirtualWorker

pytestmark = pytest.mark.engine

LOADS = 20


def test_loads_that_ended_in_one_step_are_told_in_order() -> None:
    """vLLM frees the blocks of those that were aborted meanwhile in that order, and hands them out again by it."""
    worker = VirtualWorker(bytes_per_s=1_000_000, block_bytes=1_000)
    loads = {
        job: SimpleNamespace(dst_spec=SimpleNamespace(block_ids=[job]), req_id=str(job)) for job in range(LOADS)
    }  # fmt: skip
    worker.begin_step(SimpleNamespace(jobs_to_flush=None, store_jobs={}, load_jobs=loads), 0)
    said = worker.ended(NS_PER_S * FS_PER_NS)
    assert said is not None
    assert said.finished_recving is not None
    assert list(said.finished_recving) == [str(job) for job in range(LOADS)]
