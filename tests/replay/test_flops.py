"""Model-FLOPs utilisation: counted by hand for one request, and never above what the step model allows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.base import NS_PER_S, EngineId, ModelId, RequestId, RequestKind
from events.engine import Capability
from events.request import RequestFinished
from policies.predictors.step_time import FS_PER_NS, prefill_ns, step_ns
from replay.cluster import simulate
from replay.costmodel import PROFILES, registered
from replay.flops import DEVICES, LLAMA_8B, QWEN3_32B, Shape, Work, add, device_of, flops, least_fs, utilisation
from replay.workloads.base import Arrival

H100 = PROFILES["llama-3-8b_h100"].step


def done(prompt: int, output: int, cached: int = 0) -> RequestFinished:
    return RequestFinished(
        request_id=RequestId("r"), engine_id=EngineId("e1"), prompt_tokens=prompt, output_tokens=output,
        cached_tokens=cached, ttft_ns=1, e2e_ns=1,
    )  # fmt: skip


def test_a_request_by_hand() -> None:
    work = Work()
    add(work, done(10, 3, cached=4))
    # Decode steps see contexts of 11 and 12 tokens.
    assert work == Work(prompt_tokens=6, decode_tokens=2, sampled_tokens=3, pairs=(100 - 16) // 2, context=11 + 12)
    assert flops(Shape(100, 10, 7), work) == 2 * 100 * 8 + 2 * 10 * 3 + 4 * 7 * (42 + 23)


def test_inputs_of_an_embedding_do_not_attend_to_each_other() -> None:
    work = Work()
    add(work, done(40, 0), inputs=4)
    assert work == Work(prompt_tokens=40, pairs=4 * 10 * 10 // 2)


def test_weights_of_the_shapes_add_up_to_the_models() -> None:
    assert LLAMA_8B.layer_weights + 2 * LLAMA_8B.head_weights == pytest.approx(8.03e9, rel=0.001)
    assert QWEN3_32B.layer_weights + 2 * QWEN3_32B.head_weights == pytest.approx(32.76e9, rel=0.001)


def test_every_profile_has_its_device() -> None:
    assert set(DEVICES) == set(PROFILES)
    assert all(device_of(profile.step) is DEVICES[name] for name, profile in PROFILES.items())
    assert device_of(registered("e", ["m"]).step or H100) is DEVICES["llama-3-8b_h100"]


def test_full_steps_take_what_the_step_model_says() -> None:
    work = Work()
    add(work, done(4_096, 0), inputs=1)
    least = least_fs(H100, work, batch_tokens=2_048)
    assert least // FS_PER_NS == pytest.approx(prefill_ns(H100, prompt=4_096, batch_tokens=2_048), abs=2)


@given(st.integers(1, 20_000), st.integers(1, 900), st.integers(128, 8_192))
def test_full_steps_take_no_longer_than_any_other_way(prompt: int, output: int, batch: int) -> None:
    work = Work()
    add(work, done(prompt, output))
    alone = prefill_ns(H100, prompt=prompt, batch_tokens=batch) + sum(
        step_ns(H100, tokens=1, context=prompt + number, seqs=1) for number in range(1, output)
    )
    rounded = prompt // batch + output + 2  # A nanosecond a step.
    assert least_fs(H100, work, batch_tokens=batch) // FS_PER_NS <= alone + rounded


def test_a_run_uses_less_than_its_bound_and_both_stay_below_the_peak() -> None:
    arrivals = [
        Arrival(
            request_id=f"r{number}", at_ns=number * NS_PER_S // 20, model=ModelId("m"), prompt_tokens=3_000,
            output_tokens=100,
        )
        for number in range(100)
    ]  # fmt: skip
    run = simulate(arrivals, [registered("e1", ["m"], capability=Capability())])
    found = utilisation(run.messages, window_ns=run.scores.window_ns)
    assert found is not None
    assert 0 < found.used < found.bound < 1
    embedding = Arrival(
        request_id="v", at_ns=0, model=ModelId("m"), prompt_tokens=2_048, output_tokens=0, kind=RequestKind.EMBEDDING
    )
    vectors = simulate([embedding], [registered("e1", ["m"])])
    of_vectors = utilisation(vectors.messages, window_ns=NS_PER_S)
    assert of_vectors is not None
    assert 0 < of_vectors.used < found.used
    assert of_vectors.bound > found.bound, "a prompt alone is arithmetic; decodes read memory"
