"""Who is served less than others: by length of prompt, and by tenant.

An order that keeps the most requests in time does it at the expense of the long ones, and of the tenants that send
them. So there is a floor: a class (or tenant) of which less is served than `fairness_ppm` of what is served overall is
not set aside, need not keep to the long lane, and has its turn first until it has caught up. For a class of prompts
that lags behind memory is kept, too: what runs for seconds would not make room within the slack of one second, so
nobody else is let in where no prompt of its mean length would fit any more.

What is counted is what was decided: offered = admitted or refused, served = admitted to be in time, not late
(`policies.late_service`). Counters decay by halves whenever HALVE_AT requests were decided, so they tell of the last
few hundred.

Example: overall 80 % served, `fairness_ppm` 600,000. A class of which 50 % were served may be set aside, one of which
45 % were served (less than 48 %) may not.

Source: the measured price of Moore-Hodgson on a conversation trace (prompts of 16-32K tokens served 41 % of the time
against 90 % overall), and max-min fairness as a floor rather than a goal.
"""

import msgspec

from events.base import PPM, RequestKind, TenantId
from events.request import RequestArrived

PROMPT_CLASSES = (4_096, 16_384, 32_768)
"""Prompts shorter than each of these, and longer than the last, are a class each; embeddings are one of their own."""
UNIT = 1_024
"""What one request counts, so that halving loses little."""
HALVE_AT = 512 * UNIT
OFFERED_MIN = 8 * UNIT
"""A class or tenant with less has no standing yet."""
TENANTS_MAX = 256
"""Tenants that are counted; the one that was heard of longest ago goes first."""


class Standing(msgspec.Struct):
    """How much was decided, how much of it was served, and the prompt tokens of all; decaying, in units of UNIT."""

    offered: int = 0
    served: int = 0
    tokens: int = 0


def _classes() -> list[Standing]:
    return [Standing() for _ in range(len(PROMPT_CLASSES) + 2)]


class Standings(msgspec.Struct, kw_only=True):
    """Overall, by class, and by tenant."""

    overall: Standing = msgspec.field(default_factory=Standing)
    classes: list[Standing] = msgspec.field(default_factory=_classes)
    tenants: dict[TenantId, Standing] = msgspec.field(default_factory=dict)


def class_of(request: RequestArrived) -> int:
    """Which class a request belongs to: its place in `Standings.classes`."""
    if request.kind is RequestKind.EMBEDDING:
        return len(PROMPT_CLASSES) + 1
    return sum(request.prompt_tokens >= limit for limit in PROMPT_CLASSES)


def decided(standings: Standings, request: RequestArrived, *, served: bool) -> None:
    """It was admitted to be in time (`served`), or to be late, or refused."""
    tenant = standings.tenants.pop(request.tenant, None) or Standing()
    standings.tenants[request.tenant] = tenant
    if len(standings.tenants) > TENANTS_MAX:
        del standings.tenants[next(iter(standings.tenants))]
    for one in (standings.overall, standings.classes[class_of(request)], tenant):
        one.offered += UNIT
        one.served += UNIT * served
        one.tokens += UNIT * request.prompt_tokens
    if standings.overall.offered >= HALVE_AT:
        for one in (standings.overall, *standings.classes, *standings.tenants.values()):
            one.offered //= 2
            one.served //= 2
            one.tokens //= 2


def served_ppm(standings: Standings) -> int:
    """The share of all that was decided of late that was served in time (all, before anything was decided)."""
    overall = standings.overall
    return overall.served * PPM // overall.offered if overall.offered else PPM


def lags(standings: Standings, request: RequestArrived, *, fairness_ppm: int) -> bool:
    """Whether its class or its tenant is served less than `fairness_ppm` of the overall share (0 = never)."""
    if not fairness_ppm:
        return False
    overall = standings.overall
    if _behind(standings.classes[class_of(request)], overall, fairness_ppm):
        return True
    tenant = standings.tenants.get(request.tenant)
    return tenant is not None and _behind(tenant, overall, fairness_ppm)


def kept_tokens(standings: Standings, *, fairness_ppm: int) -> int:
    """Prompt tokens for which room is kept: the mean of the longest class of prompts that lags behind (0 = none)."""
    if not fairness_ppm:
        return 0
    for one in reversed(standings.classes[: len(PROMPT_CLASSES) + 1]):
        if _behind(one, standings.overall, fairness_ppm):
            return one.tokens // one.offered
    return 0


def _behind(one: Standing, overall: Standing, fairness_ppm: int) -> bool:
    if one.offered < OFFERED_MIN:
        return False
    # one.served / one.offered < fairness x overall.served / overall.offered, without a division.
    return one.served * overall.offered * PPM < overall.served * one.offered * fairness_ppm
