"""Output length as a quantile interval of what answers of this sort were of late; the default.

Answers are grouped by a key of four parts: model, tenant, objective, and either what the last answer of the same
conversation was like, or how long the prompt is (both in doublings). Each key has a decayed histogram that leans
on the next coarser one (`length_histogram`), so a sparse key says what its coarser one says. A conversation is known
by its session, or by the last full slice of an earlier prompt that this prompt goes on with.

The upper bound is to hold with the target. Whether it does is seen when answers end, and the level that is asked of
the histogram follows, per model, tenant and objective (adaptive conformal inference: Gibbs and Candes, 2021):

    too long:  level += target / STEPS        within:  level -= (1 - target) / STEPS

which keeps the part that is within at the target whatever the distribution does. An answer that was cut to the
client's cap says nothing about the level. As tokens arrive the question becomes "given that it is longer than so far".

Example: of 100 answers 80 had 10 tokens and 20 had 200. At a target of 80 % the interval is 10 to 10; once 11 tokens
are there, only the 20 count, and it is 192 to 207.
"""

import msgspec

from events.base import PPM
from events.request import RequestArrived
from policies.predictors.base import Interval
from policies.predictors.length_histogram import LENGTH_WEIGHT, PER_DOUBLING, Lengths, add, bucket_of, quantile
from policies.predictors.output_question import Foretold, Question

KEYS_MAX = 1_024
"""Histograms kept, of all sorts of keys; the one that was silent longest goes first."""
CONVERSATIONS_MAX = 4_096
"""Conversations of which the last answer is remembered; the one that was silent longest goes first."""
LOOK_BACK_SLICES_MAX = 64
"""By how many slices a turn may be longer than the one before it."""
ANSWERS_MIN = 8
"""Fewer answers of a model than this say nothing."""
LEVEL_MOVED_PPM = 1_000
"""Less than that has no interval computed anew."""
STEPS = 1_024
"""The inverse of Gibbs and Candes' step size: the level forgets in about so many answers."""


class Group(msgspec.Struct):
    """By how much the level asked for is above the target, in ppm, and which target that is."""

    target_ppm: int = 0
    offset_ppm: int = 0


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """The interval of a key at a level, as its histogram said it last."""

    target_ppm: int
    level_ppm: int
    interval: Interval


class Quantiles(msgspec.Struct):
    """Histograms by key, coarse and fine ones alike; levels by model, tenant and objective; the output tokens of the
    last answer by conversation; and by key the interval that is answered until its histogram or level has moved. Each
    with the one heard of last at the end."""

    lengths: dict[str, Lengths] = msgspec.field(default_factory=dict)
    groups: dict[str, Group] = msgspec.field(default_factory=dict)
    conversations: dict[str, int] = msgspec.field(default_factory=dict)
    kept: dict[str, Kept] = msgspec.field(default_factory=dict)


def key_of(quantiles: Quantiles, request: RequestArrived) -> str:
    """What the answer to this request is grouped by, as it is known now."""
    before = _answer_before(quantiles, request)
    sort, tokens = ("p", request.prompt_tokens) if before is None else ("a", before)
    return f"{request.model}\n{request.tenant}\n{request.objective}\n{sort}{bucket_of(tokens) // PER_DOUBLING}"


def conversation_of(request: RequestArrived) -> str:
    """What the next turn will find this one by; "" where it cannot."""
    if request.session:
        return f"{request.tenant}\n{request.session}"
    return request.slices[-1] if request.slices else ""


def _answer_before(quantiles: Quantiles, request: RequestArrived) -> int | None:
    known = quantiles.conversations
    if request.session:
        return known.get(f"{request.tenant}\n{request.session}")
    for slice_id in request.slices[: -LOOK_BACK_SLICES_MAX - 1 : -1]:
        if slice_id in known:
            return known[slice_id]
    return None


def coarser(key: str) -> str:
    """The key without its last part; "" for a model's."""
    return key.rpartition("\n")[0]


def predict(quantiles: Quantiles, question: Question) -> Interval | None:
    """The interval; None where too little is known, or nothing so long was seen."""
    key, target, so_far = question.key, question.target_ppm, question.so_far
    level = _level_ppm(quantiles, key, target)
    kept = quantiles.kept.get(key)
    if kept is not None and not so_far and kept.target_ppm == target and abs(kept.level_ppm - level) < LEVEL_MOVED_PPM:
        return kept.interval
    lengths = _lengths_of(quantiles, key)
    return None if lengths is None else _interval(lengths, target, level, so_far)


def _lengths_of(quantiles: Quantiles, key: str) -> Lengths | None:
    """The finest histogram for a key; None while the model has too few answers."""
    of_model = quantiles.lengths.get(key.partition("\n")[0])
    if of_model is None or of_model.total < ANSWERS_MIN * LENGTH_WEIGHT:
        return None
    lengths = None
    while lengths is None:
        lengths, key = quantiles.lengths.get(key), coarser(key)
    return lengths


def _interval(lengths: Lengths, target_ppm: int, level_ppm: int, so_far: int) -> Interval | None:
    high = quantile(lengths, level_ppm, so_far=so_far)
    if not high:
        return None
    expected = min(quantile(lengths, PPM // 2, so_far=so_far), high)
    return Interval(min(quantile(lengths, PPM - target_ppm, so_far=so_far), expected), expected, high)


def _level_ppm(quantiles: Quantiles, key: str, target_ppm: int) -> int:
    group = quantiles.groups.get(coarser(key))
    if group is None or group.target_ppm != target_ppm:
        return target_ppm
    return min(max(target_ppm + group.offset_ppm, 0), PPM)


def observe(quantiles: Quantiles, foretold: Foretold, tokens: int, *, judged: bool) -> None:
    """Take one finished answer in. `judged`: its upper bound was of our making and not cut, so it moves the level."""
    if judged:
        _move_level(quantiles, foretold, late=tokens > foretold.high)
    if foretold.conversation:
        quantiles.conversations.pop(foretold.conversation, None)
        quantiles.conversations[foretold.conversation] = tokens
        _bound(quantiles.conversations, CONVERSATIONS_MAX)
    parts = foretold.key.split("\n")
    parent = None
    for many in range(1, len(parts) + 1):
        key = "\n".join(parts[:many])
        lengths = quantiles.lengths.pop(key, None) or Lengths()
        quantiles.lengths[key] = lengths
        add(lengths, tokens, parent)
        parent = lengths
    _bound(quantiles.lengths, KEYS_MAX)
    _keep(quantiles, foretold)


def _keep(quantiles: Quantiles, foretold: Foretold) -> None:
    """Remember what this key answers from now on, where that has moved."""
    key, target = foretold.key, foretold.target_ppm
    lengths, level = _lengths_of(quantiles, key), _level_ppm(quantiles, key, target)
    kept = quantiles.kept.pop(key, None)
    fresh = lengths is None or lengths.since == 0
    if kept is None or fresh or kept.target_ppm != target or abs(kept.level_ppm - level) >= LEVEL_MOVED_PPM:
        interval = None if lengths is None else _interval(lengths, target, level, 0)
        kept = None if interval is None else Kept(target, level, interval)
    if kept is not None:
        quantiles.kept[key] = kept
        _bound(quantiles.kept, KEYS_MAX)


def _move_level(quantiles: Quantiles, foretold: Foretold, *, late: bool) -> None:
    key, target = coarser(foretold.key), foretold.target_ppm
    group = quantiles.groups.pop(key, None)
    if group is None or group.target_ppm != target:
        group = Group(target_ppm=target)
    quantiles.groups[key] = group
    _bound(quantiles.groups, KEYS_MAX)
    group.offset_ppm += target // STEPS if late else -((PPM - target) // STEPS)
    group.offset_ppm = min(max(group.offset_ppm, -target), PPM - target)


def _bound(by_key: dict[str, Lengths] | dict[str, Group] | dict[str, Kept] | dict[str, int], most: int) -> None:
    while len(by_key) > most:
        del by_key[next(iter(by_key))]
