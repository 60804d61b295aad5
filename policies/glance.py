"""What can be said at a glance of one that waits: that it waits on, without looking at every engine in full.

Whenever something changes all that wait are looked at again, and most of them still wait, for the engines that could
take them have no turn or no room for anybody. So much is known of an engine before the request is: then it is enough
that on one of them it will be in time, or that it is served late. A short cut only: `judgement.judge`,
`preemption.or_room` and `late_service.judge_late` come to the same.

Example: 16 wait, two engines have 200 ms of prefill before them. For each of the 16 one look at each engine's line,
and at one engine's prediction of its first token, says that it waits.
"""

from collections.abc import Sequence

from policies import preemption
from policies.accounts import Account
from policies.forecast import Prospect, is_full, prospect
from policies.judgement import Desk, has_no_turn, lateness_ns, pace_in_reach, takes_kept_room
from policies.late_service import is_late
from policies.settings import Switch
from policies.trial import Trial
from policies.waiting import Waiting


def surely_waits(desk: Desk, one: Waiting, there: Sequence[Account]) -> bool:
    """Whether it certainly waits on, whatever its answer's length: none of these engines, which are all that could hold
    it, takes it now; and it is served late, or on one of them it will be in time and nobody could make room for it."""
    settings = desk.settings
    if settings.deferral is Switch.OFF or one.request.tenant in desk.tenants.quota:
        return False
    trials = [desk.trial(account) for account in there]
    if not all(_is_closed(desk, one, trial) for trial in trials):
        return False
    if is_late(one):
        return True  # No deadline is held against it any more, and nobody makes room for it.
    if preemption.may_make_room(desk, one.request, there):
        return False
    prospects = (_prospect(desk, one, trial) for trial in trials)
    return any(lateness_ns(each, settings, desk.now_ns) <= 0 and pace_in_reach(each, settings) for each in prospects)


def _is_closed(desk: Desk, one: Waiting, trial: Trial) -> bool:
    """Whether the engine does not take it now, for a reason that is cheap to find."""
    if has_no_turn(trial, desk) or is_full(trial, one.request, desk.settings):
        return True
    return desk.kept_tokens != 0 and takes_kept_room(desk, _prospect(desk, one, trial))


def _prospect(desk: Desk, one: Waiting, trial: Trial) -> Prospect:
    """As when it was deferred: neither its first token nor the room that it takes at once hangs on its answer."""
    return prospect(trial, one.request, foretold=one.foretold, now_ns=desk.now_ns)
