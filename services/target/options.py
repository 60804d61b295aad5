"""How a live target is asked."""

from enum import StrEnum
from typing import Final

import msgspec

from services.runtime.config import Config

IN_FLIGHT_MAX: Final = 1_024
DRAIN_S: Final = 120
CONNECT_S_MAX: Final = 30
QUIET_S_MAX: Final = 600


class PromptForm(StrEnum):
    """What prompts are made of: words, or token ids (exact in length, but the target spends no time on a tokenizer)."""

    TEXT = "text"
    TOKENS = "tokens"


class TargetOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`model` answers requests for models that the target does not serve ("" = the first that it names), and
    `embedding_model` the embedding requests among them ("" = they are left out). `keys` are bearer tokens by tenant,
    that of "" for all others.

    No more than `in_flight_max` requests are open at a time: what comes then is sent late, and the result says so. What
    has not ended `drain_s` after the last arrival stays unfinished.

    `metrics` are more addresses of engines behind the target. `log_url` and `pool` name the log of a gateway of ours
    (a pool alone: the one that `tidegate up` runs with that `state_dir`): its decisions stand beside what was seen.
    """

    model: str = ""
    embedding_model: str = ""
    keys: dict[str, str] = msgspec.field(default_factory=dict)
    prompts: PromptForm = PromptForm.TEXT
    in_flight_max: int = IN_FLIGHT_MAX
    drain_s: int = DRAIN_S
    metrics: tuple[str, ...] = ()
    log_url: str = ""
    pool: str = ""
    creds: str = ""
    state_dir: str = Config().state_dir
