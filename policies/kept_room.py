"""Room for a prompt of a class that is served less than others: somewhere in the pool one must still fit.

Long prompts need much memory within the second or two that their deadline leaves, and what runs ends later than that.
So first come means never: whatever frees up is filled with short ones. While a class of prompts lags behind
(`policies.ordering.fairness`), a request that is none of those served too little does not go to an engine if then a
prompt of the class's mean length would fit on too few engines: `long_lane_ppm` of those that serve its model, at least
one.

Example: two engines of 98K tokens, long prompts of 20K lag. One engine has 30K left, the other 5K: a prompt of 8K
waits for the second, or until the first has more than 28K left.
"""

from collections.abc import Sequence

from events.base import PPM
from policies.accounts import blocks
from policies.admission_settings import AdmissionSettings
from policies.forecast import Prospect, budget_blocks, held_tokens
from policies.trial import Trial


def takes_it(one: Prospect, serving: Sequence[Trial], *, kept_tokens: int, settings: AdmissionSettings) -> bool:
    """Whether with this one there too few of the engines that serve its model had room for `kept_tokens`."""
    account = one.trial.account
    left = _left(one.trial, settings) - blocks(account, held_tokens(account, one.request))
    if not account.kv_blocks or left >= blocks(account, kept_tokens):
        return False
    if _left(one.trial, settings) < blocks(account, kept_tokens):
        return False  # There is no such room that it could take.
    others = sum(
        _left(trial, settings) >= blocks(trial.account, kept_tokens)
        for trial in serving
        if trial.account is not account and trial.account.kv_blocks
    )
    return others < max(1, len(serving) * settings.long_lane_ppm // PPM)


def _left(trial: Trial, settings: AdmissionSettings) -> int:
    """Blocks that are free there, or could be at once."""
    return budget_blocks(trial.account, settings) - trial.load.blocks_held
