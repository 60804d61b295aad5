"""Nobody starves: a randomised run, the small sister of `make endurance`, from a seed that draws a burst."""

import os

from tests.simulation import endurance

REQUESTS = int(os.environ.get("ENDURANCE_REQUESTS", "4000"))
SEED = int(os.environ.get("ENDURANCE_SEED", "1"))


def test_every_request_ends_no_protected_victim_is_chosen_and_memory_runs_out_no_more_often_than_answers_overgrow() -> (
    None
):
    _, findings = endurance.run(SEED, REQUESTS)
    assert findings.broken == (), f"seed {SEED}"
    assert findings.requests > REQUESTS * 9 // 10
    assert findings.preempted, "the run is under pressure"
    assert findings.refused, "the run is overloaded now and then"
