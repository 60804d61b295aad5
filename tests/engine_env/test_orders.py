"""Orders of the log, carried out by an engine's memory: each once, each answered with what came of it."""

import threading
from pathlib import Path

import pytest

from events.base import EngineId, SliceId
from events.decisions import CancelReason, Move, MoveReason, TransferCancelled, TransferOrdered
from events.slice import SlicesRemoved, SlicesStored, Tier, TransferEnd, TransferFinished
from tests.engine_env.rig import SLICE_BYTES, Rig, extra_config, hints, keys, name, running

PROMPT = keys("p", 4)
NAMES = tuple(name(one) for one in PROMPT)


@pytest.fixture
def ssd(tmp_path: Path) -> Path:
    folder = tmp_path / "ssd"
    folder.mkdir(mode=0o700)
    return folder


def order(
    rig: Rig, move: Move, from_tier: Tier, to_tier: Tier | None, *, slices: tuple[SliceId, ...] = NAMES
) -> TransferFinished:
    """Give an order, and wait for its answer."""
    said = TransferOrdered(
        order=f"m{len(rig.told(TransferFinished))}", engine_id=EngineId("rig"), move=move, reason=MoveReason.HOT,
        slices=slices, from_tier=from_tier, to_tier=to_tier,
    )  # fmt: skip
    rig.bridge.orders._tell = rig.facts.append
    assert rig.bridge.orders.give(said)
    assert rig.manager.has_pending_work(), "an order keeps an idle engine stepping"
    rig.settle()
    answer = rig.told(TransferFinished)[-1]
    assert isinstance(answer, TransferFinished)
    assert answer.order == said.order
    return answer


def cancel(rig: Rig, name: str) -> None:
    rig.bridge.orders.cancel(TransferCancelled(order=name, engine_id=EngineId("rig"), reason=CancelReason.NOT_NEEDED))


def give(rig: Rig, move: Move, from_tier: Tier, to_tier: Tier) -> None:
    """An order whose answer is not waited for."""
    rig.bridge.orders._tell = rig.facts.append
    said = TransferOrdered(
        order="m", engine_id=EngineId("rig"), move=move, reason=MoveReason.HOT, slices=NAMES, from_tier=from_tier,
        to_tier=to_tier,
    )  # fmt: skip
    assert rig.bridge.orders.give(said)
    rig.step()


def hanging(rig: Rig, monkeypatch: pytest.MonkeyPatch, call: str) -> threading.Event:
    """The disk does nothing of this kind before the event."""
    free = threading.Event()
    ssd = rig.manager._ssd
    assert ssd is not None
    assert ssd.store is not None
    real = getattr(ssd.store, call)

    def late(*args: object) -> object:
        assert free.wait(60)
        return real(*args)

    monkeypatch.setattr(ssd.store, call, late)
    return free


def test_promotion_that_is_taken_back_while_the_disk_reads_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, ssd: Path
) -> None:
    with running(extra_config(ssd=ssd, reset_keeps_ssd=True), monkeypatch) as rig:
        rig.serve(PROMPT, hints=hints(PROMPT))
        rig.manager.reset_cache()
        free = hanging(rig, monkeypatch, "read_into")
        give(rig, Move.PROMOTE, Tier.SSD, Tier.DRAM)
        assert not rig.told(TransferFinished)

        cancel(rig, "m")
        rig.settle()

        [answer] = rig.told(TransferFinished)
        assert (answer.end, answer.slices_done, answer.why) == (TransferEnd.CANCELLED, 0, "4 taken back")
        free.set()
        assert rig.serve(PROMPT) == 4, "it is on the SSD still"


def test_demotion_that_is_taken_back_while_the_disk_writes_leaves_dram_as_it_is(
    monkeypatch: pytest.MonkeyPatch, ssd: Path
) -> None:
    with running(extra_config(ssd=ssd), monkeypatch) as rig:
        rig.serve(PROMPT, hints=hints(PROMPT))
        order(rig, Move.DROP, Tier.SSD, None)
        rig.facts.clear()
        free = hanging(rig, monkeypatch, "put")
        give(rig, Move.DEMOTE, Tier.DRAM, Tier.SSD)

        cancel(rig, "m")
        free.set()
        rig.settle()

        [answer] = rig.told(TransferFinished)
        assert (answer.end, answer.slices_done) == (TransferEnd.CANCELLED, 0)
        assert all(rig.manager.memory.residency.holds(Tier.DRAM, one) for one in PROMPT)


def test_slices_that_kv_events_name_later_are_ordered_by_either_name(
    monkeypatch: pytest.MonkeyPatch, ssd: Path
) -> None:
    with running(extra_config(ssd=ssd), monkeypatch) as rig:
        rig.serve(PROMPT)
        [before] = [fact.slices for fact in rig.told(SlicesStored) if fact.tier is Tier.DRAM]
        for one in PROMPT:
            rig.manager.memory.naming.hear(one, name(one))
        assert order(rig, Move.DROP, Tier.DRAM, None, slices=before[3:]).end is TransferEnd.DONE

        rig.step()

        answer = order(rig, Move.DROP, Tier.SSD, None)
        assert (answer.end, answer.slices_done) == (TransferEnd.DONE, 4)
        dram = [fact for fact in rig.facts if getattr(fact, "tier", None) is Tier.DRAM]
        gone = [one for fact in dram if isinstance(fact, SlicesRemoved) for one in fact.slices]
        there = [one for fact in dram if isinstance(fact, SlicesStored) for one in fact.slices]
        assert set(there) - set(gone) == set(NAMES[:3]), "the log knows what is there by its true names"


def test_promoted_slices_are_in_dram_before_anybody_asks(monkeypatch: pytest.MonkeyPatch, ssd: Path) -> None:
    with running(extra_config(ssd=ssd, reset_keeps_ssd=True), monkeypatch) as rig:
        rig.serve(PROMPT, hints=hints(PROMPT))
        rig.manager.reset_cache()

        answer = order(rig, Move.PROMOTE, Tier.SSD, Tier.DRAM)

        assert (answer.end, answer.slices_done, answer.bytes_moved) == (TransferEnd.DONE, 4, 4 * SLICE_BYTES)
        assert rig.told(SlicesStored)[-1].tier is Tier.DRAM
        asked = rig.request(PROMPT)
        assert rig.look_up(asked) == 4, "without waiting"
        rig.load(asked, 4)


def test_promotion_brings_as_many_as_there_is_room_for_parents_first(
    monkeypatch: pytest.MonkeyPatch, ssd: Path
) -> None:
    with running(extra_config(ssd=ssd, reset_keeps_ssd=True, dram_slices=4), monkeypatch) as rig:
        other = keys("q", 2)
        rig.serve(PROMPT, hints=hints(PROMPT))
        rig.manager.reset_cache()
        rig.serve(other, hints=hints(other))
        asked = rig.request(other)
        assert rig.look_up(asked) == 2
        rig.manager.prepare_load(other, asked.context)

        answer = order(rig, Move.PROMOTE, Tier.SSD, Tier.DRAM)

        assert (answer.end, answer.slices_done) == (TransferEnd.PARTLY, 2)
        residency = rig.manager.memory.residency
        assert [residency.holds(Tier.DRAM, one) for one in PROMPT] == [True, True, False, False]
        rig.manager.complete_load(set(other), asked.context)
        rig.manager.on_request_finished(asked.context)
        rig.serve(keys("s", 3))
        assert residency.holds(Tier.DRAM, PROMPT[0]) >= residency.holds(Tier.DRAM, PROMPT[1]), "children go first"


def test_dropped_slices_are_gone_from_that_tier_alone(monkeypatch: pytest.MonkeyPatch, ssd: Path) -> None:
    with running(extra_config(ssd=ssd), monkeypatch) as rig:
        rig.serve(PROMPT, hints=hints(PROMPT))

        answer = order(rig, Move.DROP, Tier.DRAM, None)

        assert (answer.end, answer.slices_done) == (TransferEnd.DONE, 4)
        assert rig.told(SlicesRemoved)[-1].slices == NAMES
        assert rig.serve(PROMPT) == 4, "from the SSD"
        assert order(rig, Move.DROP, Tier.SSD, None).end is TransferEnd.DONE
        rig.manager.reset_cache()
        assert rig.serve(PROMPT) == 0


def test_a_slice_that_an_order_names_twice_is_moved_once(monkeypatch: pytest.MonkeyPatch, ssd: Path) -> None:
    with running(extra_config(ssd=ssd), monkeypatch) as rig:
        rig.serve(PROMPT, hints=hints(PROMPT))
        for move, from_tier, to_tier in (
            (Move.DEMOTE, Tier.DRAM, Tier.SSD), (Move.PROMOTE, Tier.SSD, Tier.DRAM), (Move.DROP, Tier.DRAM, None),
        ):  # fmt: skip
            answer = order(rig, move, from_tier, to_tier, slices=NAMES + NAMES[:2])
            assert (answer.end, answer.slices_done) == (TransferEnd.DONE, len(NAMES))


def test_demoted_slices_are_on_the_ssd_and_no_longer_in_dram(monkeypatch: pytest.MonkeyPatch, ssd: Path) -> None:
    with running(extra_config(ssd=ssd), monkeypatch) as rig:
        rig.serve(PROMPT, hints=hints(PROMPT))
        order(rig, Move.DROP, Tier.SSD, None, slices=NAMES[:2])

        answer = order(rig, Move.DEMOTE, Tier.DRAM, Tier.SSD)

        assert (answer.end, answer.slices_done, answer.bytes_moved) == (TransferEnd.DONE, 4, 2 * SLICE_BYTES)
        assert not any(rig.manager.memory.residency.holds(Tier.DRAM, one) for one in PROMPT)
        assert rig.serve(PROMPT) == 4


def test_what_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch, ssd: Path) -> None:
    with running(extra_config(ssd=ssd), monkeypatch) as rig:
        unknown = order(rig, Move.PROMOTE, Tier.SSD, Tier.DRAM)
        assert (unknown.end, unknown.slices_done) == (TransferEnd.FAILED, 0)
        assert unknown.why
        rig.serve(PROMPT[:2], hints=hints(PROMPT[:2]))
        some = order(rig, Move.DROP, Tier.SSD, None)
        assert (some.end, some.slices_done) == (TransferEnd.PARTLY, 2)


@pytest.mark.parametrize(
    ("move", "from_tier", "to_tier"),
    [(Move.PROMOTE, Tier.DRAM, Tier.HBM), (Move.DEMOTE, Tier.HBM, Tier.DRAM), (Move.REPLICATE, Tier.DRAM, Tier.DRAM)],
)
def test_what_cannot_be_done_here_is_refused(
    monkeypatch: pytest.MonkeyPatch, ssd: Path, move: Move, from_tier: Tier, to_tier: Tier
) -> None:
    with running(extra_config(ssd=ssd), monkeypatch) as rig:
        rig.serve(PROMPT, hints=hints(PROMPT))
        answer = order(rig, move, from_tier, to_tier)
        assert answer.end is TransferEnd.FAILED
        assert answer.why


def test_slices_in_use_are_not_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(extra_config(), monkeypatch) as rig:
        rig.serve(PROMPT, hints=hints(PROMPT))
        asked = rig.request(PROMPT)
        assert rig.look_up(asked) == 4
        rig.manager.prepare_load(PROMPT, asked.context)

        answer = order(rig, Move.DROP, Tier.DRAM, None)

        assert (answer.end, answer.slices_done) == (TransferEnd.FAILED, 0)
        assert "in use" in answer.why
        rig.manager.complete_load(set(PROMPT), asked.context)
        assert order(rig, Move.DROP, Tier.DRAM, None).end is TransferEnd.DONE
