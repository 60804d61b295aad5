"""A real engine's own journal: its choices are made again to the same answers, and stand in the log alike."""

import asyncio
import shutil
from pathlib import Path

import pytest
import zstandard

from events.engine import EngineMeasured
from events.slice import ChoiceKind, ChoiceMade
from replay.choice_journal import ChoiceReader, files_of
from tests.engine.steered import ENGINE, Steered, pressing


async def test_every_choice_carries_its_directive_and_is_made_again_alike(
    steered_engine: Steered, tmp_path: Path
) -> None:
    house, engine = steered_engine.house, steered_engine
    await house.until(EngineMeasured, lambda event: event.directive_version > 0)
    await asyncio.to_thread(engine.ask_all, pressing())
    await house.until(ChoiceMade, lambda event: event.kind is ChoiceKind.VICTIM)

    log = tmp_path / "log.jsonl.zst"
    await house.run("replay", "export", "--config", str(house.config_file), "--out", str(log))
    code, report = await asyncio.to_thread(engine.verify, engine.choices, "--log", log)

    assert (code, report["identical"]) == (0, True), str(report)
    assert report["engine"] == ENGINE
    assert report["said"] > 0
    made = [recorded.event for recorded in await house.events() if isinstance(recorded.event, ChoiceMade)]
    assert {choice.engine_id for choice in made} == {ENGINE}
    numbers = [choice.number for choice in made]
    assert numbers == sorted(set(numbers)), "each choice is said once, in order"
    assert all(choice.directive_version > 0 for choice in made if choice.kind is ChoiceKind.VICTIM)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
async def test_journal_that_was_tampered_with_is_noticed(steered_engine: Steered, tmp_path: Path, share: float) -> None:
    await asyncio.to_thread(steered_engine.ask, list(range(2, 402)), tokens=2)
    await asyncio.to_thread(steered_engine.until_written)
    copy = tmp_path / "choices"
    shutil.copytree(steered_engine.choices, copy)
    path = files_of(copy)[0]
    last = list(ChoiceReader(path))[-1].number
    # Unpacked, as it may be verified too: of a packed file that is still written not every bit means something.
    whole = zstandard.ZstdDecompressor().decompressobj().decompress(path.read_bytes())
    place = int(len(whole) * share)
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])

    code, report = await asyncio.to_thread(steered_engine.verify, path)

    # A journal that is still written ends where it breaks off, as it does where its last newline was changed.
    assert code != 0 or report["last"] < last


async def test_engine_that_was_killed_leaves_its_choices_and_goes_on_numbering(steered_engine: Steered) -> None:
    server = steered_engine.server
    await asyncio.to_thread(steered_engine.ask, list(range(2, 402)), tokens=2)
    await asyncio.to_thread(steered_engine.until_written)
    await asyncio.to_thread(server.kill)
    before = steered_engine.journal()[-1].number
    code, report = await asyncio.to_thread(steered_engine.verify, steered_engine.choices)
    # Whatever comes of it, other tests need the engine.
    server.start()
    await asyncio.to_thread(server.wait_ready)

    assert (code, report["identical"], report["ended"]) == (0, True, False), str(report)
    assert report["last"] == before

    await asyncio.to_thread(steered_engine.ask, list(range(2, 402)), tokens=2)
    await asyncio.to_thread(steered_engine.until_written, before + 1)

    code, report = await asyncio.to_thread(steered_engine.verify, steered_engine.choices)
    assert (code, report["identical"]) == (0, True), str(report)
    assert report["last"] > before
