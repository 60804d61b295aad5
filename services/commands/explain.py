"""`tidegate explain`: why a request, or a decision, went as it did, and what would have changed it."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from services.commands.logged import logged
from services.commands.options import Settings, with_output, with_settings
from services.runtime.output import Exit, Output

if TYPE_CHECKING:
    from events.base import Cause
    from replay.chain import Link
    from replay.explain import Explained
    from replay.journal_source import JournalSource
    from replay.story import Story

FORMAT = "tidegate.explain.v1"


class Told(msgspec.Struct, kw_only=True):
    """One decision with the causes that led to it, the decision itself first."""

    explained: "Explained"
    chain: "tuple[Link, ...]"


class Answer(msgspec.Struct, kw_only=True):
    """What `--json` says. `request` is None where a decision about no request was asked for. `unexplained` are places
    of decisions that do not follow from the log, or were made by an actor that this version does not know."""

    format: str = FORMAT
    id: str
    pool: str
    request: "Story | None"
    decisions: "list[Told]"
    unexplained: "list[str]"


class NotThere(Exception):
    """What was asked about is not in the log."""

    exit_code = Exit.BAD_INPUT


@click.command()
@click.argument("id_", metavar="ID")
@click.option("--log", "path", type=click.Path(path_type=Path, dir_okay=False), help="The journal to look in.")
@click.option("--pool", help="Look in this pool's live log instead of a file.")
@click.option("--all", "each", is_flag=True, help="Explain each decision about the request, not only the last one.")
@click.option("--any-version", is_flag=True, help="Hold decisions of other code versions against this code too.")
@with_settings
@with_output
def command(
    id_: str, path: Path | None, pool: str | None, each: bool, any_version: bool, settings: Settings, out: Output
) -> int:
    """Why a request, or a decision, went as it did.

    ID is a request's id, or a decision's place in the log (RECORD.ITEM, as `tidegate watch` shows it). Of a request
    its whole story is told, and its last decision explained: its causes, what was known, the rule that fired, and the
    nearest change of one setting or one input that would have changed it. Found by replay: nothing is logged for it.
    """
    if (path is None) == (pool is None):
        raise click.UsageError("name a journal with --log, or a pool with --pool")
    from replay.journal_source import JournalSource

    with logged(settings, path, pool, out) as journal:
        return _explain(JournalSource(journal), id_, each=each, any_version=any_version, out=out)


def _explain(source: "JournalSource", id_: str, *, each: bool, any_version: bool, out: Output) -> int:
    from replay.chain import chain_of
    from replay.code_version import code_version
    from replay.explain import Wanted, explain_many
    from replay.story import story_of
    from services.commands.explain_text import show

    story = story_of(source, id_)
    places = (
        [_decision_at(source, id_)] if story is None else list(story.decisions[-1:] if not each else story.decisions)
    )
    version = "" if any_version else code_version()
    with out.progress(f"explain {id_}"):
        found = list(explain_many(source, places, code_version=version, flips=Wanted.EVERY_KIND))
    if story is None and found:
        about = str(found[0].decision.get("request_id", ""))
        story = story_of(source, about) if about else None
    told = [Told(explained=one, chain=chain_of(one.at, source)) for one in found]
    known = [one.at for one in found]
    answer = Answer(
        id=id_, pool=source.pool, request=story, decisions=told,
        unexplained=[place for place in places if place not in known],
    )  # fmt: skip
    out.result(answer, lambda console: show(answer, console))
    return Exit.NO if answer.unexplained else Exit.FINE


def _decision_at(source: "JournalSource", id_: str) -> str:
    """The place that an id names; NotThere where no decision stands there."""
    from events.base import Cause
    from replay.story import answers_to, near, record_at

    try:
        place = Cause.parse(id_)
    except ValueError:
        offered = near(source, id_)
        meant = f"; did you mean {', '.join(offered)}?" if offered else ""
        raise NotThere(f"no request {id_!r} in the log of pool {source.pool}{meant}") from None
    recorded, last = record_at(source, place)
    if recorded is None:
        raise NotThere(_no_record(place, last))
    if recorded.actor and recorded.cause:
        return id_
    answers = answers_to(source, place)
    because = f"; because of it: {', '.join(answers)}" if answers else ""
    raise NotThere(f"record {id_} is no decision: {recorded.event.event_kind()}{because}")


def _no_record(place: "Cause", last: int) -> str:
    if place.seq > last:
        return f"the log ends with record {last}, before {place}"
    return f"there is no record {place}: message {place.seq} holds fewer events, or is not in the log"
