"""What a workload is: arrivals in time order, with the truth that only an engine will find out."""

import msgspec

from events.base import RequestKind
from replay.workloads.slo import Slo


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """One request of a workload. `at_ns` counts from the start of the run.

    `prefix` are ids of the prompt's leading parts, `prefix_tokens` tokens each (the last may be cut by the
    prompt's end); two prompts share a prefix as far as their ids are equal. `output_tokens` is the true length.

    In a closed loop a turn with an `after` comes `think_ns` after the end of that request, and not at all if that one
    had no answer; `at_ns` is then where it stood in its trace, which an open loop goes by.

    `slo` None = that of the run. `estimated`: the prompt's length was guessed from its text.
    """

    at_ns: int
    request_id: str
    kind: RequestKind = RequestKind.LLM
    tenant: str = "default"
    model: str = "llama-3-8b"
    prompt_tokens: int
    output_tokens: int
    tokens_max: int = 0
    prefix: tuple[int, ...] = ()
    prefix_tokens: int = 512
    inputs: int = 1
    priority: int = 0
    session: str = ""
    after: str = ""
    think_ns: int = 0
    slo: Slo | None = None
    estimated: bool = False
