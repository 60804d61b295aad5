"""A request inside vLLM's scheduler, as who drives it sees it; and a step that was scheduled and has not ended."""

from typing import Any, Final

from replay.engines.job import SimRequest

TOKEN: Final = [2]
"""What a step makes for a sequence that decodes; nobody reads it."""
NO_TOKEN: Final[list[int]] = []
VECTOR: Final = ()
"""What it makes for an input whose last token was computed."""


class Inside:
    """A request inside, and what vLLM has of it: `names` of its parts (one, or one for each input of an embedding), of
    which `left` have not ended."""

    __slots__ = ("cached", "left", "names", "preemptions", "request")

    def __init__(self, request: SimRequest) -> None:
        self.request = request
        self.names: list[str] = []
        self.left = self.cached = self.preemptions = 0


class Part:
    """One of vLLM's requests."""

    __slots__ = ("job", "prompt_tokens", "request")

    def __init__(self, job: Inside, request: Any) -> None:
        self.job, self.request, self.prompt_tokens = job, request, request.num_prompt_tokens


class Step:
    """A step that is scheduled: what vLLM scheduled and for whom, what it makes for each, and when it ends."""

    __slots__ = ("end_fs", "made", "names", "output", "prompt_tokens", "vectors")

    def __init__(self, output: Any) -> None:
        self.output = output
        self.names: list[str] = list(output.num_scheduled_tokens)
        self.made: list[list[int]] = []
        self.vectors: list[object] = []
        self.prompt_tokens = self.end_fs = 0
