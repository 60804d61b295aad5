"""Reads recorded coding-agent sessions: one JSON object per line and session, plain or gzipped.

A session has `requests` of {t, in, out, hash_ids, think_time, api_time}, times in seconds from its begin. `hash_ids`
name the full 64-token blocks of a prompt and are chained, so that an equal id means an equal prefix; they are local to
their session, and nothing is matched across sessions. An entry of type `subagent` holds requests of its own, timed from
its begin. When a session began is not recorded: `replay.workloads.sessions.started` draws it.

A turn waits for what ended last before it: the turn before it, or a subagent that was done by then. It then thinks as
long as was recorded. A subagent begins after the turn before it, which called for it. Of 7 % of the answers the time is
not recorded, and taken from their length.

Example: turns at 0 s and 15 s, the first took 3.9 s, the second thought 11 s: it comes 11 s after the answer to the
first, however long that takes here.

All requests are put to one model, whatever served them; a subagent shares no ids with its parent anyway.
Source: callanjfox/kv-cache-tester, traces/ (Claude Code sessions recorded at WEKA).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec

from events.base import NS_PER_S
from kvstore.fingerprint import SLICE_TOKENS
from replay.traces.base import ANSWER_NS_PER_TOKEN, TOKENS_MAX, OnProgress, Trace, TraceError, decoded, lines_of
from replay.workloads.base import Arrival
from replay.workloads.sessions import Session

BLOCK_TOKENS = 64
CONTEXT_TOKENS_MAX = 131_072
LINE_BYTES_MAX = 64 << 20
HASH_BITS = 32
"""Bits of an id within its session; the session's number stands above them."""
SLACK_S = 5.0
"""Recorded times are rounded to whole seconds: what disagrees by more is in other units, or wrong."""
JUDGED_MIN = 3
MS_PER_S = 1_000
_FIELDS = "id, block_size, requests of {t, in, out, hash_ids}"

Seconds = Annotated[float, msgspec.Meta(ge=0, le=366 * 86_400)]
Tokens = Annotated[int, msgspec.Meta(ge=0, le=TOKENS_MAX)]


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One entry as it stands in the trace: a request, or a subagent with `requests`."""

    t: Seconds
    type: str
    prompt: Tokens = msgspec.field(name="in", default=0)
    out: Tokens = 0
    hash_ids: tuple[Annotated[int, msgspec.Meta(ge=0, lt=1 << HASH_BITS)], ...] = ()
    think_time: Seconds | None = None
    api_time: Seconds | None = None
    requests: tuple["Turn", ...] = ()


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One session as it stands in the trace."""

    id: str
    block_size: int
    requests: tuple[Turn, ...]


class _Placed(msgspec.Struct, kw_only=True):
    """A turn with its time in the session, what it waits for, and when it ended as far as the trace tells. `number` is
    that of the arrival that it becomes; None for what is left out."""

    turn: Turn
    at_s: float
    end_s: float
    before: "_Placed | None" = None
    think_s: float = 0.0
    number: int | None = None


_decode = msgspec.json.Decoder(Line).decode


def read_weka(path: Path, *, limit: int = 0, context_tokens_max: int = CONTEXT_TOKENS_MAX) -> list[Session]:
    """The first `limit` sessions (0 = all). Raises TraceError. See `weka_trace`."""
    return weka_trace(path, limit=limit, context_tokens_max=context_tokens_max).sessions


def weka_trace(
    path: Path, *, limit: int = 0, context_tokens_max: int = CONTEXT_TOKENS_MAX, unit_tokens: int = SLICE_TOKENS,
    tenant: str = "default", model: str = "llama-3-8b", on_progress: OnProgress | None = None,
) -> Trace:  # fmt: skip
    """The first `limit` sessions (0 = all), with ids per `unit_tokens` of prefix (a multiple of a block).

    A prompt that fills the context is left out and counted, as a front end would refuse it at once: the turn behind
    it thinks for both. An answer is cut where the context ends. Raises TraceError for whatever is no such trace.
    """
    assert unit_tokens % BLOCK_TOKENS == 0, "a unit is made of whole blocks"
    sessions: list[Session] = []
    seen: dict[str, int] = {}
    left_out = 0
    lines = lines_of(path, of="a coding-agent", suffix=".jsonl", on_progress=on_progress, line_bytes_max=LINE_BYTES_MAX)
    for number, text in lines:
        line = _line(path, number, text)
        if (first := seen.setdefault(line.id, number)) != number:
            what, mend = f"session {line.id!r} stands in line {first} already", "give every session an id of its own"
            raise TraceError(what, file=str(path), line=number, mend=mend)
        placed = sorted(_placed(path, number, line), key=lambda one: one.at_s)
        kept = [one for one in placed if one.turn.prompt < context_tokens_max]
        left_out += len(placed) - len(kept)
        for position, one in enumerate(kept, start=1):
            one.number = position
        units = _Units(number, unit_tokens // BLOCK_TOKENS)
        if kept:
            begin_s = kept[0].at_s
            sessions.append(
                tuple(
                    _arrival(
                        one, line.id, begin_s=begin_s, units=units, room=context_tokens_max - one.turn.prompt,
                        tenant=tenant, model=model, unit_tokens=unit_tokens,
                    )
                    for one in kept
                )
            )  # fmt: skip
        if limit and len(sessions) >= limit:
            break
    if not sessions:
        raise TraceError("no sessions", file=str(path), line=0, mend=f"a line is one JSON object with {_FIELDS}")
    return Trace(form="weka", sessions=sessions, left_out=left_out)


class _Units:
    """Names of a session's prefixes, one object for each however often it is named."""

    def __init__(self, session: int, blocks: int) -> None:
        self._above, self._blocks = session << HASH_BITS, blocks
        self._known: dict[int, int] = {}

    def of(self, turn: Turn) -> tuple[int, ...]:
        """Ids are chained, so that of a unit's last block names the whole prefix up to there."""
        known, above = self._known, self._above
        return tuple(
            known.setdefault(block, above + block) for block in turn.hash_ids[self._blocks - 1 :: self._blocks]
        )


def _line(path: Path, number: int, text: bytes) -> Line:
    line = decoded(_decode, text, path=path, number=number, fields=_FIELDS)
    if line.block_size != BLOCK_TOKENS:
        what = f"block_size is {line.block_size}"
        raise TraceError(what, file=str(path), line=number, mend=f"ids of {BLOCK_TOKENS}-token blocks are read")
    return line


def _placed(path: Path, number: int, line: Line) -> Iterator[_Placed]:
    """All requests of a session, each with what it waits for."""
    own = _Thread(path, number, since_s=0.0)
    called: list[_Placed] = []
    for turn in line.requests:
        if not turn.requests:
            done = [one for one in called if one.end_s <= turn.t]
            called = [one for one in called if one.end_s > turn.t]
            yield own.place(turn, done)
            continue
        subagent = _Thread(path, number, since_s=turn.t, caller=own.last)
        for inner in turn.requests:
            yield subagent.place(inner, [])
        subagent.judge()
        assert subagent.last is not None, "a subagent has requests"
        called.append(subagent.last)
    own.judge()


class _Thread:
    """Requests of which each waits for the one before it: the turns of a session, or those of one subagent. Recorded
    think times count from the last answer of the thread whose time is known."""

    def __init__(self, path: Path, number: int, *, since_s: float, caller: _Placed | None = None) -> None:
        self._path, self._number, self._since_s, self._caller = path, number, since_s, caller
        self.last: _Placed | None = None
        self._known_end_s: float | None = None
        self._judged = self._agreeing = 0

    def place(self, turn: Turn, done: list[_Placed]) -> _Placed:
        """The next request. It waits for the one before it, or for what of `done` (subagents) ended after that."""
        _check(self._path, self._number, turn)
        at_s, last = self._since_s + turn.t, self.last
        if last is not None:
            self._compare(last, turn, at_s)
            if last.turn.api_time is None:
                last.end_s = min(at_s, last.end_s)
        before = max((one for one in (last, *done) if one is not None), key=lambda one: one.end_s, default=self._caller)
        if before is None:
            think_s = 0.0
        elif before is last and before.turn.api_time is not None and turn.think_time is not None:
            think_s = turn.think_time
        else:
            think_s = max(0.0, at_s - before.end_s)
        took_s = turn.out * ANSWER_NS_PER_TOKEN / NS_PER_S if turn.api_time is None else turn.api_time
        if turn.api_time is not None:
            self._known_end_s = at_s + turn.api_time
        self.last = _Placed(turn=turn, at_s=at_s, end_s=at_s + took_s, before=before, think_s=think_s)
        return self.last

    def judge(self) -> None:
        """Raises TraceError when the times of no turn agree with each other."""
        if self._judged >= JUDGED_MIN and not self._agreeing:
            what = f"in none of {self._judged} turns do t, api_time and think_time agree within {SLACK_S:g} s"
            raise self._refused(what, "give all times in seconds, not some in ms")

    def _compare(self, last: _Placed, turn: Turn, at_s: float) -> None:
        if at_s < last.at_s:
            what = f"the request at t {turn.t:g} comes after one at {last.turn.t:g}"
            raise self._refused(what, "sort by t, and give all times in seconds")
        if turn.think_time is None or self._known_end_s is None:
            return
        past_s = at_s - self._known_end_s
        if turn.think_time > past_s + SLACK_S:
            what = (
                f"think_time {turn.think_time:g} s at t {turn.t:g}, but the answer before it came {past_s:g} s before"
            )
            raise self._refused(what, "give all times in seconds, not some in ms")
        agrees = abs(past_s - turn.think_time) <= SLACK_S
        if not agrees and abs(at_s / MS_PER_S - self._known_end_s - turn.think_time) <= SLACK_S:
            what = f"t {turn.t:g} fits what is around it as milliseconds only"
            raise self._refused(what, "give all times in seconds, not some in ms")
        self._judged += 1
        self._agreeing += agrees

    def _refused(self, what: str, mend: str) -> TraceError:
        return TraceError(what, file=str(self._path), line=self._number, mend=mend)


def _check(path: Path, number: int, turn: Turn) -> None:
    where = f"the request at t {turn.t}"
    if turn.requests:
        what = f"{where} is a subagent in a subagent"
        raise TraceError(what, file=str(path), line=number, mend="put its requests behind its parent's")
    if turn.prompt < 1:
        raise TraceError(f"{where} has no prompt", file=str(path), line=number, mend="`in` is at least 1 token")
    blocks = -(-turn.prompt // BLOCK_TOKENS)
    if len(turn.hash_ids) > blocks:
        what = f"{where} has {len(turn.hash_ids)} hash_ids for {turn.prompt} tokens"
        mend = f"a prompt has one id per {BLOCK_TOKENS} tokens, at most {blocks} here"
        raise TraceError(what, file=str(path), line=number, mend=mend)


def _arrival(
    one: _Placed, session: str, *, begin_s: float, units: _Units, room: int, tenant: str, model: str, unit_tokens: int
) -> Arrival:
    """Behind the nearest turn before it that is kept: what was left out was refused at once, and thought over."""
    before, think_s = one.before, one.think_s
    while before is not None and before.number is None:
        think_s += before.think_s
        before = before.before
    return Arrival(
        at_ns=_ns(one.at_s - begin_s), request_id=f"{session}.{one.number}", tenant=tenant, model=model,
        prompt_tokens=one.turn.prompt, output_tokens=max(1, min(one.turn.out, room)), prefix=units.of(one.turn),
        prefix_tokens=unit_tokens, session=session, after=f"{session}.{before.number}" if before else "",
        think_ns=_ns(think_s) if before else 0,
    )  # fmt: skip


def _ns(seconds: float) -> int:
    """Whole milliseconds, which is finer than any trace is."""
    return round(seconds * 1_000) * (NS_PER_S // 1_000)
