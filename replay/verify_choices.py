"""Whether an engine's own choices are the ones that follow from what it was told and asked.

A fresh delegate is given every op of the journal and must answer as the engine did: `tidegate replay verify --engine`.
Of journals of one run of an engine that follow each other, what each says that the delegate knew before it is held
against what the one before it comes to. With the pool's log, every `choice_made` of the engine that names an entry here
is held against that entry, so nobody can tell the log another choice than the one that was made.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from events import codec
from events.base import EngineId
from events.log.base import Message
from events.slice import ChoiceMade
from policies.memory.delegate import Delegate
from policies.memory.delegate_ops import Choice
from replay.choice_journal import ChoiceReader, Line, NoChoices

CHANGED = "changed"
STATE = "state"
SAID_OTHERWISE = "said otherwise"


class ChoiceDivergence(msgspec.Struct, frozen=True, kw_only=True):
    """The first difference. `kind`: changed (another answer follows), state (what the delegate knew at the beginning of
    this journal is not what the one before it comes to), said otherwise (the log's `choice_made` is not the entry)."""

    kind: str
    number: int
    op: str = ""
    recorded: Choice | None = None
    recomputed: Choice | None = None
    said: ChoiceMade | None = None


class ChoicesReport(msgspec.Struct, kw_only=True):
    """The outcome. `identical`: nothing differs, and every entry was compared. `other_version` is set when the entries
    from there on were made by other code, and therefore not compared; `ended` is false when the engine was killed, so
    that its last entries may be missing. `said` facts of the log were held against entries here; `unsaid` choices stand
    here only (they were dropped on the way, or the log ends before them), `elsewhere` were said of other journals."""

    identical: bool = True
    engine: EngineId = EngineId("")
    files: int = 0
    first: int = 0
    last: int = 0
    ops: int = 0
    choices: dict[str, int] = msgspec.field(default_factory=dict)
    directive_versions: list[int] = msgspec.field(default_factory=list)
    ended: bool = True
    other_version: str = ""
    said: int = 0
    unsaid: int = 0
    elsewhere: int = 0
    first_divergence: ChoiceDivergence | None = None


def verify_choices(
    paths: Sequence[Path], *, code_version: str = "", log: Iterable[Message] | None = None
) -> ChoicesReport:
    """Hold journals of one engine, oldest first, against the delegate of this code. `code_version` "" compares what
    other code decided, too. Raises NoChoices, and LogDamaged where a journal cannot be trusted."""
    check = _Check(ChoicesReport(), code_version)
    said = _said(log) if log is not None else None
    for path in paths:
        check.read(ChoiceReader(path), said)
    if not paths:
        raise NoChoices("there is no journal of choices", where="the folder")
    report = check.report
    if said is not None:
        mine = [number for engine, number in said if engine == report.engine]
        report.elsewhere = len(mine)
    return report


class _Check:
    """The delegate, as it goes through the journals."""

    def __init__(self, report: ChoicesReport, code_version: str) -> None:
        self.report = report
        self._code = code_version
        self._delegate: Delegate | None = None
        self._run = ""

    def read(self, journal: ChoiceReader, said: dict[tuple[EngineId, int], ChoiceMade] | None) -> None:
        """One more journal."""
        report, header = self.report, journal.header
        if report.engine and header.engine != report.engine:
            raise NoChoices(f"of engine {header.engine}, the others are of {report.engine}", where=str(journal.path))
        report.files += 1
        report.engine = header.engine
        report.first = report.first or header.after + 1
        same_code = self._code in ("", header.code_version)
        if not same_code:
            report.other_version, report.identical = header.code_version, False
        self._begin(journal, compare=same_code)
        for line in journal:
            self._take(line, compare=same_code)
            if said is not None and line.choice is not None:
                self._hold(line, line.choice, said.pop((header.engine, line.number), None))
        report.last, report.ended = journal.last, journal.ended

    def _begin(self, journal: ChoiceReader, *, compare: bool) -> None:
        header = journal.header
        try:
            knew = header.knew()
        except ValueError as error:
            raise NoChoices(f"its state cannot be read: {error}", where=str(journal.path)) from error
        follows = header.run == self._run and header.after == self.report.last
        self._run = header.run
        if compare and follows and self._delegate is not None:
            recomputed = msgspec.json.encode(self._delegate.snapshot())
            if recomputed != msgspec.json.encode(knew):
                self._differs(ChoiceDivergence(kind=STATE, number=header.after + 1))
        self._delegate = Delegate.restored(knew)

    def _take(self, line: Line, *, compare: bool) -> None:
        report = self.report
        report.ops += 1
        if line.choice is not None:
            kind = line.choice.kind.value
            report.choices[kind] = report.choices.get(kind, 0) + 1
            version = line.choice.directive_version
            if not report.directive_versions or report.directive_versions[-1] != version:
                report.directive_versions.append(version)
        if not compare or self._delegate is None:
            return
        recomputed = self._delegate.take(line.op)
        if recomputed != line.choice:
            op = str(type(line.op).__struct_config__.tag)
            self._differs(
                ChoiceDivergence(kind=CHANGED, number=line.number, op=op, recorded=line.choice, recomputed=recomputed)
            )

    def _hold(self, line: Line, choice: Choice, said: ChoiceMade | None) -> None:
        if said is None:
            self.report.unsaid += 1
            return
        self.report.said += 1
        told = Choice(
            kind=said.kind, directive_version=said.directive_version, candidates=said.candidates,
            candidates_digest=said.candidates_digest, chosen=said.chosen, for_request=said.for_request,
        )  # fmt: skip
        if told != choice:
            self._differs(ChoiceDivergence(kind=SAID_OTHERWISE, number=line.number, recorded=choice, said=said))

    def _differs(self, found: ChoiceDivergence) -> None:
        self.report.identical = False
        if self.report.first_divergence is None:
            self.report.first_divergence = found


def _said(log: Iterable[Message]) -> dict[tuple[EngineId, int], ChoiceMade]:
    found: dict[tuple[EngineId, int], ChoiceMade] = {}
    for message in log:
        for recorded in codec.decode(message.seq, message.subject, message.body):
            if isinstance(recorded.event, ChoiceMade):
                found[(recorded.event.engine_id, recorded.event.number)] = recorded.event
    return found
