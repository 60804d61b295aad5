"""A real vLLM that runs out of blocks: who gives way, and that nobody's answer is another for it."""

import asyncio

import pytest

from events import codec, subjects
from events.base import HolderId, RequestId
from events.decisions import HolderLost
from events.slice import ChoiceKind, Tier
from policies.memory.delegate_ops import GaveWay, Held, VictimAsked
from policies.memory.victims import Chosen, choose
from services.runtime import servers
from tests.engine.house import POOL
from tests.engine.pace import slow_motion
from tests.engine.steered import ANSWER_TOKENS, PROMPT_TOKENS, Said, Steered, pressing
from tests.engine.vllm_server import BLOCK_TOKENS

BEGUN_TIMEOUT_S = 60


class Pressed:
    """What happened: the answers without and with pressure, and the journal of the pressured part."""

    def __init__(self, engine: Steered) -> None:
        self.alone = [engine.ask(tokens, tokens=count) for tokens, count, _hints in pressing()]
        before = engine.forget()
        preempted = engine.server.metric("vllm:num_preemptions_total")
        self.together = engine.ask_all(pressing())
        self.preemptions = engine.server.metric("vllm:num_preemptions_total") - preempted
        after = engine.forget()
        self.lines = [line for line in engine.journal() if before < line.number < after]

    @property
    def choices(self) -> list[tuple[VictimAsked, tuple[str, ...]]]:
        return [
            (line.op, line.choice.chosen)
            for line in self.lines
            if isinstance(line.op, VictimAsked) and line.choice is not None
        ]

    @property
    def gave_way(self) -> list[str]:
        return [line.op.request_id for line in self.lines if isinstance(line.op, GaveWay)]


@pytest.fixture(scope="module")
def pressed(steered_engine: Steered) -> Pressed:
    return Pressed(steered_engine)


def test_all_requests_end_with_the_tokens_of_an_unpressured_run(pressed: Pressed) -> None:
    assert pressed.preemptions > 0, "the pressure is real"
    assert pressed.together == pressed.alone
    assert all(said == Said(said.tokens, "length") and len(said.tokens) == ANSWER_TOKENS for said in pressed.together)


def test_victims_follow_algorithm_3(pressed: Pressed) -> None:
    assert pressed.choices
    for op, chosen in pressed.choices:
        protect_ppm = 800_000
        expected = choose(op.running, need_blocks=op.need_blocks, urgent=None, protect_ppm=protect_ppm)
        if isinstance(expected, Chosen):
            assert chosen == tuple(one.request_id for one in expected.victims)
        else:
            assert chosen, "an engine that ran out preempts somebody"


def test_who_gave_way_are_those_who_were_chosen_in_that_order(pressed: Pressed) -> None:
    chosen = [name for _op, names in pressed.choices for name in names]
    given = iter(chosen)

    assert len(pressed.gave_way) == pressed.preemptions
    assert all(name in given for name in pressed.gave_way), f"{pressed.gave_way} of {chosen}"


def test_the_patient_give_way_and_the_urgent_do_not(pressed: Pressed) -> None:
    rank = {f"{name}-request": place for place, name in enumerate(("patient", "idle", "unhinted"))}
    for op, chosen in pressed.choices:
        if any(one.request_id in rank and 2 * one.tokens_done < ANSWER_TOKENS for one in op.running):
            assert chosen[0] in rank


def test_need_is_what_is_missing_and_nobody_frees_more_than_it_holds(pressed: Pressed) -> None:
    most = (PROMPT_TOKENS + ANSWER_TOKENS) // BLOCK_TOKENS + 1
    for op, _chosen in pressed.choices:
        assert 0 < op.need_blocks <= most
        assert all(0 <= one.blocks_freed <= most + op.need_blocks for one in op.running)


def test_preempted_requests_are_loaded_from_dram_instead_of_computed(pressed: Pressed) -> None:
    first = next(place for place, line in enumerate(pressed.lines) if isinstance(line.op, GaveWay))
    loaded = [line.op for line in pressed.lines[first:] if isinstance(line.op, Held) and line.op.tier is Tier.DRAM]

    assert sum(len(op.slices) for op in loaded) >= 2


def test_every_choice_stands_in_the_journal_under_its_directive(pressed: Pressed) -> None:
    made = [line.choice for line in pressed.lines if line.choice is not None]

    assert {choice.kind for choice in made} >= {ChoiceKind.VICTIM}
    assert all(choice.directive_version > 0 for choice in made)


async def test_requests_whose_holder_is_lost_are_given_up(steered_engine: Steered) -> None:
    house, engine = steered_engine.house, steered_engine
    hints = {"request_id": "orphan", "slices": ["0" * 32]}
    prompt = [7] * PROMPT_TOKENS
    # A counter: the gauge of running requests may still show those before.
    before = engine.server.metric("vllm:prompt_tokens_total")
    asked = asyncio.create_task(asyncio.to_thread(engine.ask, prompt, tokens=1_400, hints=hints))
    async with asyncio.timeout(BEGUN_TIMEOUT_S), slow_motion(engine.server):
        while await asyncio.to_thread(engine.server.metric, "vllm:prompt_tokens_total") <= before:
            pass
        # It goes no further: however long the log takes, the answer is not at its end by then.
        await asyncio.to_thread(engine.server.post, "/pause?mode=keep&clear_cache=false")
    try:
        lost = HolderLost(holder=HolderId("gone"), requests=(RequestId("orphan"), RequestId("unknown")))
        async with servers.open_log(house.config, POOL) as log:
            # Said by an actor that is none, so that the log's own are not disturbed.
            body = codec.encode(owner="test", ts_ns=1, said=[codec.Said(cause="1.0", event=lost)])
            await log.append(subjects.decision(POOL, "test", "holder_lost"), body)
        async with asyncio.timeout(BEGUN_TIMEOUT_S):
            said = await asked
    finally:
        engine.server.post("/resume")

    assert said.finish == "abort"
    assert len(said.tokens) < 1_400
