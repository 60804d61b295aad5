"""Admission at its edges: what strangers write, what comes in the wrong order, and what would grow for ever."""

from typing import Any

import msgspec
import pytest

from events.base import EngineId, ModelId
from events.control import Ticked
from events.decisions import DeferReason, HolderLost, RequestAdmitted, WakeAsked
from events.request import AbortReason, RequestArrived
from policies import admission, prefix_index
from policies.admission import ADMISSION, EXPIRED_MAX, LOST_NAMED_MAX
from policies.decider import advance, begin
from policies.prefix_index import ENTRIES_MAX, PrefixIndex
from tests.policies.house import admitted, deferred, house
from tests.policies.words import (
    MS,
    S,
    aborted,
    arrived,
    beat,
    engine,
    finished,
    first_token,
    settings,
    slices,
    tick,
)
from tests.spec import START_NS, at, said, stored


def whole(name: str, prompt: int = 100, **more: Any) -> RequestArrived:
    """A request whose answer comes in one piece."""
    return arrived(name, prompt, stream=False, **more)


# ----------------------------------------------------------------------------------- answers that come in one piece


def test_an_answer_in_one_piece_leaves_the_prefill_line_when_its_predicted_time_has_passed() -> None:
    spec = house(whole("a", 500, out=400))
    assert spec.state.accounts["e1"].load.prefill_tokens == 500
    spec.after(at(60 * MS, arrived("z", 10, model="x")))
    load = spec.state.accounts["e1"].load
    assert (load.prefill_tokens, load.decode_seqs, load.decode_context) == (0, 1, 501)
    spec.when(at(60 * MS, arrived("b", 50, out=10, now=60 * MS))).then(admitted("b", ttft_predicted_ns=10 * MS))


def test_how_far_it_is_nobody_tells_so_it_counts_at_full_length() -> None:
    """An answer that streams would be known to have 5 tokens to go when this one begins."""
    spec = house(whole("a", 100, out=600), at(50 * MS, arrived("z", 10, model="x")))
    spec.when(at(60 * MS, arrived("b", 250, out=200, now=60 * MS))).then(deferred("b", DeferReason.KV_BUDGET))
    spec.when(at(70 * MS, arrived("c", 250, out=30, now=70 * MS))).then(admitted("c"))


def test_it_does_not_go_before_those_who_stream() -> None:
    spec = house(arrived("a", 100, out=10), whole("b", 100, out=10))
    spec.after(at(300 * MS, arrived("z", 10, model="x")))
    assert list(spec.state.accounts["e1"].prefilling) == ["a", "b"]
    spec.after(at(400 * MS, first_token("a")))
    assert list(spec.state.accounts["e1"].prefilling) == []


def test_it_says_nothing_about_the_time_to_a_first_token() -> None:
    spec = house()
    for n in range(20):
        spec.after(at(n * S, whole(f"r{n}", 100, now=n * S)), at(n * S, tick(n)), at(n * S + S - 1, finished(f"r{n}")))
    assert spec.state.accounts["e1"].correction.samples == 0


def test_one_that_tells_of_its_first_token_all_the_same_is_believed() -> None:
    spec = house(whole("a", 100), at(500 * MS, tick(2)), at(600 * MS, first_token("a")), at(700 * MS, first_token("a")))
    account = spec.state.accounts["e1"]
    assert (account.correction.samples, account.correction.seen_ns) == (1, 600 * MS)
    assert account.load.decode_seqs == 1
    spec.after(finished("a"))
    assert account.load.seqs == account.load.decode_context == 0


# ----------------------------------------------------------------------------------------------------- holders


def test_a_beat_without_an_epoch_says_nothing_of_a_new_start() -> None:
    spec = house(beat(epoch="1"), arrived("a", 100))
    spec.when(beat(epoch="")).then_nothing()
    spec.when(beat(epoch="1")).then_nothing()
    spec.when(beat(epoch="2")).then(said(HolderLost))


def test_a_holder_of_many_is_lost_in_parts_that_fit_a_message() -> None:
    many = LOST_NAMED_MAX + 10
    spec = house(settings(mode="observe"), engines=(engine("e1", seqs_max=10_000, blocks=1_000_000),))
    spec.after(*(arrived(f"r{n}", 10) for n in range(many)))
    spec.after(*(at(n * S, tick(n)) for n in range(1, 6)))
    assert [len(one.requests) for one in spec.decisions] == [LOST_NAMED_MAX]
    spec.when(at(6 * S, tick(6))).then(said(HolderLost))
    assert (len(spec.decisions[0].requests), spec.state.running) == (10, {})
    assert "h" not in spec.state.holders.heard


def test_many_whose_time_is_up_at_once_are_refused_in_parts_that_fit_a_message() -> None:
    spec = house(arrived("a", 1_000 - 10, out=10, slack=60 * S), engines=(engine("e1", step=None),))
    count = EXPIRED_MAX + 50
    spec.after(*(arrived(f"r{n}", 100, out=10, slack=950 * MS) for n in range(count)))
    assert len(spec.state.lines.group_of) == count
    spec.when(at(950 * MS, tick(2)))
    *refused, wake = spec.decisions
    assert isinstance(wake, WakeAsked)
    assert len(refused) == EXPIRED_MAX + spec.state.settings.scan_max
    spec.when(at(wake.at_ns - START_NS, tick(3)))
    assert len(spec.decisions) == count - len(refused)
    assert not spec.state.lines.group_of


def test_what_many_lines_wait_for_is_said_in_parts_that_fit_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "DECIDED_MAX", 3)
    models = tuple(ModelId(f"m{n}") for n in range(10))
    small, large = (
        msgspec.structs.replace(engine("e1", step=None, seqs_max=seats), models=models) for seats in (0, 100)
    )
    spec = house(*(arrived(f"r{n}", 10, out=1, model=models[n]) for n in range(10)), engines=(small,))
    spec.when(large).then(*(admitted(f"r{n}") for n in range(3)))
    for n in range(3):
        spec.after(tick(n))
    assert not spec.state.lines.group_of


# ----------------------------------------------------------------------------------------------------- strangers


def test_who_runs_nothing_on_an_engine_cannot_call_it_lost() -> None:
    spec = house(aborted("x", AbortReason.ENGINE_LOST, engine_id=EngineId("e1"), final=False))
    spec.when(arrived("a")).then(admitted("a"))
    assert spec.state.lost_on == {}


def test_an_engine_that_a_request_was_lost_on_before_it_was_sent_elsewhere_is_not_the_one_it_is_on_now() -> None:
    spec = house(arrived("a"), engines=(engine("e1"), engine("e2")))
    spec.after(aborted("a", AbortReason.ENGINE_LOST, engine_id=EngineId("e2"), final=False))
    assert not any(account.suspect for account in spec.state.accounts.values())
    assert spec.state.lost_on == {}


def test_progress_beyond_what_an_engine_can_hold_is_not_believed() -> None:
    spec = house(arrived("a", 100, out=100), first_token("a"), beat(a=10**30))
    assert spec.state.accounts["e1"].load.decode_context == 100 + 1_000
    spec.after(finished("a"))
    assert spec.state.accounts["e1"].load.decode_context == 0


def test_an_answer_that_runs_long_is_not_promised_more_than_the_engine_can_hold() -> None:
    spec = house(settings(output_quantile_ppm=500_000))
    for n in range(10):
        spec.after(arrived(f"r{n}", 10, out=1_000_000), first_token(f"r{n}"), finished(f"r{n}", out=10))
    spec.after(arrived("a", 100, out=1_000_000), first_token("a"), beat(a=50))
    load = spec.state.accounts["e1"].load
    assert load.blocks_final == 100
    spec.after(beat(a=900))
    assert (load.blocks_final, load.blocks_held) == (101, 100)  # It needs one more than there is, and no longer two.


def test_an_engine_without_a_block_size_stops_nobody() -> None:
    odd = msgspec.structs.replace(engine("e1"), block_tokens=0)
    house(engines=(odd,)).when(arrived("a", 10, out=5)).then(admitted("a"))


def test_slices_that_the_prompt_is_too_short_for_push_nothing_out() -> None:
    spec = house(arrived("a", 100, slices=slices("x", "y")), finished("a"))
    liar = arrived("b", 1, slices=slices(*(f"s{n}" for n in range(200))), slice_tokens=10)
    spec.after(liar, finished("b"), arrived("c", 5, slices=slices("t"), slice_tokens=10**15), finished("c"))
    assert list(spec.state.accounts["e1"].prefix.tokens_of) == ["y", "x"]


def test_a_prefix_index_has_a_limit_whatever_the_size_of_its_slices() -> None:
    index = PrefixIndex()
    for n in range(ENTRIES_MAX + 50):
        prefix_index.touch(index, slices(f"s{n}"), slice_tokens=1, tokens_max=10**9)
    assert len(index.tokens_of) == index.tokens == ENTRIES_MAX
    assert prefix_index.matched(index, slices("s0")) == 0


# ---------------------------------------------------------------------------------------------------------- time


def test_a_wrong_clock_before_the_first_tick_does_not_outlive_it() -> None:
    progress = begin(ADMISSION)
    hour = 3_600 * S
    for seq, (event, ns) in enumerate(
        [(engine("e1"), START_NS), (beat(), START_NS + hour), (arrived("a"), START_NS + hour), (Ticked(n=1), START_NS)],
        start=1,
    ):
        advance(ADMISSION, progress, stored(seq, event, ns))
    assert progress.now_ns <= START_NS + 2 * S
    decisions = advance(ADMISSION, progress, stored(9, arrived("b", slack=5 * S), START_NS))
    assert [type(one) for one in decisions] == [RequestAdmitted]
