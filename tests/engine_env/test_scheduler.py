"""What our scheduler does to vLLM's: who is named when there is no room, who waits where, and that it never stands in
the way. vLLM's own part is not run here: tests/engine/test_victims.py does that."""

from collections import deque
from queue import Queue
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

import pytest
from vllm.v1.core.sched.request_queue import FCFSRequestQueue, SchedulingPolicy
from vllm.v1.request import RequestStatus

from events.base import EngineId, RequestId
from services.vllm_plugin import scheduler as ours
from services.vllm_plugin.bridge import Bridge
from services.vllm_plugin.scheduler import GIVES_WAY, TidegateScheduler
from services.vllm_plugin.settings import PluginSettings

S = 10**9
BLOCK = 16


class Request:
    """As much of vLLM's as is looked at."""

    def __init__(self, name: str, *, blocks: int = 4, running: bool = True, priority: int = 0, **hints: Any) -> None:
        self.request_id = name
        self.priority = priority
        self.status = RequestStatus.RUNNING if running else RequestStatus.WAITING
        self.num_computed_tokens = blocks * BLOCK
        self.num_output_tokens = self.num_preemptions = 0
        self.blocks = [SimpleNamespace(ref_cnt=1) for _ in range(blocks)]
        self.block_hashes: list[bytes] = []
        self.num_prompt_tokens, self.prefill_stats = blocks * BLOCK, SimpleNamespace(num_local_cached_tokens=0)
        self.kv_transfer_params = {"tidegate": hints} if hints else None

    def is_finished(self) -> bool:
        return RequestStatus.is_finished(self.status)


def make(*running: Request, free: int = 0) -> Any:
    """Our scheduler around these, without vLLM's own start."""
    made: Any = object.__new__(TidegateScheduler)
    manager = SimpleNamespace(block_size=BLOCK, req_to_blocks={one.request_id: one.blocks for one in running})
    made.kv_cache_manager = SimpleNamespace(
        coordinator=SimpleNamespace(single_type_managers=[manager]),
        block_pool=SimpleNamespace(get_num_free_blocks=lambda: free), watermark_blocks=0,
    )  # fmt: skip
    made._allocate = _no_room
    made._settings = PluginSettings(engine_id=EngineId("e1"), slice_tokens=2 * BLOCK)
    made._seen, made._unstarted, made._named_as = WeakKeyDictionary(), WeakSet(), WeakValueDictionary()
    made._aborted, made.waiting = [], deque()
    made._watermark, made._entries, made._inflight_prefills = 0, 0, set()
    made._victims, made._named, made._failures, made._step_ns = deque(), None, 0, 0
    made.running, made.policy = list(running), SchedulingPolicy.FCFS
    made.block_size = made.hash_block_size = BLOCK
    made.max_model_len = 4_096
    for one in running:
        made._see(one)
    return made


def _no_room(*_args: Any, **_kwargs: Any) -> None:
    return None


@pytest.fixture(autouse=True)
def bridge(monkeypatch: pytest.MonkeyPatch) -> Bridge:
    made = Bridge()
    monkeypatch.setattr(ours, "bridge", made)
    return made


def named(made: Any) -> Any:
    """Whom vLLM would preempt now, by its own rule."""
    return max(made.running, key=lambda one: one.priority) if made.policy is SchedulingPolicy.PRIORITY else None


def test_who_gives_way_is_named_for_as_long_as_vllm_looks() -> None:
    urgent = Request("a", request_id="u", slack_ns=S)
    patient = Request("b", priority=3, request_id="p", slack_ns=900 * S)
    made = make(urgent, patient)

    assert made._allocate_slots(urgent, 1) is None

    assert named(made) is patient
    assert patient.priority == GIVES_WAY
    made._unname()
    assert (patient.priority, made.policy) == (3, SchedulingPolicy.FCFS)


def test_those_chosen_at_once_are_named_one_after_the_other() -> None:
    asking = Request("a", blocks=1, request_id="u", slack_ns=-S)
    others = [Request(name, blocks=2, request_id=name, slack_ns=900 * S) for name in "bc"]
    made = make(asking, *others)
    made._allocate_slots(asking, 3 * BLOCK)
    first = named(made)
    made._unname()
    made.running.remove(first)
    first.status = RequestStatus.PREEMPTED

    made._allocate_slots(asking, 3 * BLOCK)

    assert {first, named(made)} == set(others)


def test_a_waiting_request_without_room_makes_nobody_give_way() -> None:
    made = make(Request("a"), Request("b"))

    made._allocate_slots(Request("w", running=False), 1)

    assert named(made) is None


def test_where_nobody_is_chosen_the_last_to_enter_gives_way(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "choose", lambda _op: None)
    early, late = Request("early"), Request("late")
    made = make(late, early)  # It came first, loaded for long, and began to compute when the other did already.
    made._seen[early].entered, made._seen[late].entered = 1, 2

    made._allocate_slots(early, 1)

    assert named(made) is late
    made._unname()
    made._seen[early].entered = 3
    made._allocate_slots(late, 1)
    assert named(made) is None, "vLLM takes that one by itself"


def test_where_nobody_is_chosen_and_vllm_goes_by_priorities_it_takes_its_own(
    bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge, "choose", lambda _op: None)
    unimportant, important = Request("early", priority=3), Request("late")
    made = make(important, unimportant)
    made.policy = SchedulingPolicy.PRIORITY
    made._seen[unimportant].entered, made._seen[important].entered = 1, 2

    made._allocate_slots(important, 1)

    assert named(made) is unimportant
    assert (unimportant.priority, important.priority) == (3, 0)


def test_whoever_enters_leaves_what_those_that_load_still_need_and_is_asked_for_it_once() -> None:
    made = make(Request("running"))
    asked: list[tuple[int, int, bool]] = []

    def allocate(_request: Request, _tokens: int, *, reserved_blocks: int, has_scheduled_reqs: bool) -> object:
        asked.append((made.kv_cache_manager.watermark_blocks, reserved_blocks, has_scheduled_reqs))
        return object()

    made._allocate, made._watermark, made.kv_cache_manager.watermark_blocks = allocate, 5, 5
    made._request_remaining_blocks = lambda one: 7 if one.request_id == "loading" else 2
    loading, entering = Request("loading", running=False), Request("entering", running=False, blocks=0)
    made._see(entering)
    made._inflight_prefills = {loading, made.running[0]}

    made._allocate_slots(entering, 1, reserved_blocks=0, has_scheduled_reqs=True)
    made._allocate_slots(entering, 1, reserved_blocks=9, has_scheduled_reqs=False)
    made._allocate_slots(loading, 1, reserved_blocks=0, has_scheduled_reqs=False)
    loading.num_computed_tokens = 0  # All of its load failed: what it needs it would owe itself, and wait for ever.
    made._allocate_slots(loading, 1, reserved_blocks=0, has_scheduled_reqs=False)

    assert asked == [(12, 0, True), (7, 2, True), (5, 0, False), (5, 0, False)]
    assert made.kv_cache_manager.watermark_blocks == 5
    assert made._seen[entering].entered == 2


def test_whatever_fails_is_counted_and_left_to_vllm(
    bridge: Bridge, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(op: object) -> None:
        raise ZeroDivisionError("a mistake of ours")

    monkeypatch.setattr(bridge, "choose", broken)
    one = Request("a")
    made = make(one, Request("b"))

    assert made._allocate_slots(one, 1) is None

    assert (named(made), made._failures) == (None, 1)
    assert "vLLM goes on alone" in caplog.text


def test_blocks_that_others_hold_too_are_not_freed_by_leaving() -> None:
    one = Request("a", blocks=6)
    for block in one.blocks[:4]:
        block.ref_cnt = 2
    made = make(one)

    holds = made._holds(one, made._seen[one], made._rates())

    assert (holds.blocks, holds.shared) == (6, 4)


def test_line_is_put_in_order_in_place() -> None:
    made = make()
    queue = FCFSRequestQueue()
    waiting = [
        Request("a", running=False, request_id="a", slack_ns=9 * S),
        Request("b", running=False),
        Request("c", running=False, request_id="c", slack_ns=S),
    ]
    for one in waiting:
        made._see(one)
        queue.add_request(one)

    made._order(queue)

    assert [one.request_id for one in queue] == ["c", "b", "a"]


def test_device_is_measured_with_what_is_cached_there_and_what_requests_found_of_their_slices() -> None:
    one = Request("a", blocks=9)  # Four slices and a tail.
    one.prefill_stats.num_local_cached_tokens = 5 * BLOCK
    made = make(one)
    made.requests, made._hits, made._misses = {"a": one}, 0, 0
    made._slice_bytes = lambda: 2_000
    pool = made.kv_cache_manager.block_pool
    pool.num_gpu_blocks, pool.cached_block_hash_to_block = 20, dict.fromkeys(range(7))
    pool.get_num_free_blocks = lambda: 18

    made._tell_hits(SimpleNamespace(scheduled_new_reqs=[SimpleNamespace(req_id="a")]))
    measured = made._measured()

    assert (measured.bytes_used, measured.bytes_max) == (7_000, 20_000)
    assert (measured.hits_total, measured.misses_total) == (2, 2)


def test_answers_to_one_prompt_have_names_of_their_own() -> None:
    first, second = Request("0_x", request_id="r", slack_ns=S), Request("1_x", request_id="r", slack_ns=S)
    made = make(first, second)

    assert [made._seen[one].name for one in (first, second)] == ["r", "1_x"]


def test_name_of_a_request_that_has_ended_is_free_again() -> None:
    first = Request("x", request_id="r", slack_ns=S)
    made = make(first)
    first.status = RequestStatus.FINISHED_ABORTED
    second = Request("y", request_id="r", slack_ns=S)

    made._see(second)

    assert made._seen[second].name == "r"


def test_the_queue_of_an_idle_core_is_found_where_it_asks() -> None:
    made, queue = make(), Queue[Any]()

    made._wake_by(SimpleNamespace(input_queue=queue))
    ours.bridge.wake()
    made._wake_by(SimpleNamespace())
    ours.bridge.wake()

    assert [queue.get_nowait()[0].name for _ in range(2)] == ["WAKEUP", "WAKEUP"]


def test_requests_whose_holder_is_lost_are_given_up_by_their_names_alone(bridge: Bridge) -> None:
    here, done, other = (Request(name, request_id=f"q-{name}") for name in "abc")
    made = make(here, done, other)
    done.status = RequestStatus.FINISHED_STOPPED
    given_up: list[list[str]] = []
    made.finish_requests = lambda ids, _status: given_up.append(ids) or []
    made.requests = None  # Of all the requests of a lost holder few are this engine's: nobody looks through them all.
    bridge.abort(tuple(RequestId(f"q-{name}") for name in ("x", "a", "b", "y")))

    made._before_step()

    assert given_up == [["a"]]
