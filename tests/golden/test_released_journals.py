"""Journals of earlier releases still decode, are taken in, and are explained.

Those in `released/` are never written anew: what decided them is gone. They hold 0.1's first admission, before shares,
intervals and preemption.
"""

from pathlib import Path

import pytest

from events import codec
from events.control import ActorStarted
from policies.catalog import ACTORS
from replay.explain import Wanted, explain_many
from replay.journal_source import JournalSource
from replay.story import story_of
from replay.verify import OTHER_VERSION, verify

RELEASED = sorted((Path(__file__).parent / "released").glob("*.jsonl"))
NOW = "0.0.0+another"

journals = pytest.mark.parametrize("path", RELEASED, ids=lambda path: path.stem)


def decisions(source: JournalSource) -> dict[str, str]:
    """Place of each decision -> the request that it is about ("" = none)."""
    return {
        str(one.at): str(getattr(one.event, "request_id", ""))
        for message in source
        if codec.actor_of(message.subject)
        for one in codec.decode(message.seq, message.subject, message.body)
        if not isinstance(one.event, ActorStarted)
    }


def test_they_are_here() -> None:
    assert {"admit", "defer", "reject"} <= {path.stem for path in RELEASED}


@journals
def test_another_version_takes_in_what_they_hold(path: Path) -> None:
    source = JournalSource(path)
    report = verify(source, source.pool, ACTORS, code_version=NOW)
    assert (report.taken_in, report.compared, report.unknown) == (report.decisions, 0, 0)
    assert report.decisions > 0
    assert (report.differences, report.unverified, report.first_divergence) == ({}, {}, None)
    assert {epoch.status for epoch in report.epochs} == {OTHER_VERSION}


@journals
@pytest.mark.parametrize("code_version", [NOW, ""], ids=["as another version", "held against this one"])
def test_each_of_their_decisions_is_explained(path: Path, code_version: str) -> None:
    source = JournalSource(path)
    places = decisions(source)
    told = list(explain_many(source, places, code_version=code_version, flips=Wanted.NEAREST))
    assert {one.at for one in told} == set(places)
    assert [one.at for one in told if not one.rule.text] == []
    assert [name for name in set(places.values()) - {""} if story_of(source, name) is None] == []
