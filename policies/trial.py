"""One engine while a decision is made: its account, plus what the decision promised there, less what it took away.

Neither stands in the account yet, and nothing here changes an account. A decision asks the same of an engine for one
request after the other, so what does not depend on the request is kept from the first time it is asked for until the
load changes: what the prefill at the head of the line has behind it, how what runs there grows, whose pace would hold.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

import msgspec

from events.base import RequestId
from policies import shared_prefix
from policies.accounts import Account, Load, Resident, blocks, count, slices_of
from policies.predictors.peak_memory import Grows
from policies.predictors.tpot import Answer, Pace


class Growth(NamedTuple):
    """What those that are there hold, as a predicted peak sees it (`policies.predictors.peak_memory`): answers that
    have begun, longest to go first, those still in prefill, and blocks that are held all the time."""

    begun: list[Grows]
    in_prefill: list[Grows]
    blocks: int


@dataclass(slots=True)
class Trial:
    """One engine, with `promised` on top of what its account holds, and without `withdrawn`. `resumed` are those of
    its parked requests that go on. The last five are what is kept, None until it is asked for; all of it as of one
    time, that of the decision."""

    account: Account
    load: Load
    promised: list[Resident] = field(default_factory=list)
    withdrawn: dict[RequestId, Resident] = field(default_factory=dict)
    resumed: dict[RequestId, None] = field(default_factory=dict)
    backlog_ns: int | None = None
    head_done_ns: int | None = None
    growth: Growth | None = None
    growth_parting: Growth | None = None
    pace: tuple[Pace, list[Answer]] | None = None

    def residents(self) -> Iterable[Resident]:
        """Those that are or will be there."""
        here: Iterable[Resident] = self.account.residents.values()
        if self.withdrawn:
            here = (one for name, one in self.account.residents.items() if name not in self.withdrawn)
        return chain(here, self.promised) if self.promised else here


def trial_of(account: Account) -> Trial:
    """Before anything was promised. The load is the account's own until it changes."""
    return Trial(account, account.load)


def promise(trial: Trial, resident: Resident) -> None:
    """Count a request that this decision sends there."""
    _forget(trial)
    count(trial.load, trial.account, resident, 1)
    trial.promised.append(resident)


def withdraw(trial: Trial, victims: dict[RequestId, Resident]) -> None:
    """Count what this decision takes off that engine."""
    _forget(trial)
    for resident in victims.values():
        count(trial.load, trial.account, resident, -1)
    trial.withdrawn |= victims


def without(trial: Trial, victims: dict[RequestId, Resident]) -> Trial:
    """The same engine if these were taken off it."""
    copy = Trial(trial.account, trial.load, list(trial.promised), dict(trial.withdrawn), dict(trial.resumed))
    withdraw(copy, victims)
    return copy


def growth_of(trial: Trial, *, parting: bool) -> Growth:
    """How what runs there grows, as the books count. `parting`: what an answer that ends has in common with others
    counts on, for they still hold it."""
    kept = trial.growth_parting if parting else trial.growth
    if kept is None:
        kept = _growth(trial, parting=parting)
        if parting:
            trial.growth_parting = kept
        else:
            trial.growth = kept
    return kept


def _growth(trial: Trial, *, parting: bool) -> Growth:
    account = trial.account
    begun: list[Grows] = []
    in_prefill: list[Grows] = []
    full_blocks = common_tokens = 0
    for one in trial.residents():
        if not one.decodes:
            continue
        held = one.prompt_tokens + one.output_tokens
        left = one.output_reserved - one.output_tokens
        if not one.request.stream:
            full_blocks += blocks(account, held + left)  # How far it is, and so when it ends, nobody tells.
            continue
        common = shared_prefix.common_tokens(account.shared, slices_of(one)) if parting else 0
        common_tokens += common
        (in_prefill if one.first_ns == 0 else begun).append((left, held - common))
    begun.sort(reverse=True)
    return Growth(begun, in_prefill, full_blocks + blocks(account, common_tokens))


def _forget(trial: Trial) -> None:
    """Its load is about to change, in a copy of its own."""
    trial.load = msgspec.structs.replace(trial.load)
    trial.backlog_ns = trial.head_done_ns = trial.growth = trial.growth_parting = trial.pace = None
