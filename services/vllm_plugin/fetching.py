"""Fetch or recompute, within a step: whether a request gets its slices from the disk or computes them.

A run of slices is judged as a whole and once per request (policies/memory/gate.py says why), by the speed of the disk
as last measured, what stands in its queue now, and the pace at which this engine computes prompts.
"""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from events.base import NS_PER_S, RequestId
from events.slice import Tier
from policies.memory.delegate_ops import FetchAsked
from services.vllm_plugin import hints
from services.vllm_plugin.memory import Memory
from services.vllm_plugin.prompt import prompt_of
from services.vllm_plugin.ssd_jobs import Job

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import ReqContext

WEIGHT: Final = 4
"""One part in so many of the measured speed is the last job's."""


class Link(NamedTuple):
    """The disk now: bytes per second as last measured (0 = not yet), and the bytes that are to be read before."""

    bytes_per_s: int
    queue_bytes: int


class Speed:
    """Of one direction of a link, by the jobs that it did: each from the later of its own beginning and the end of the
    one before, so that waiting for others does not count."""

    def __init__(self) -> None:
        self.bytes_per_s = 0
        self._free_ns = 0

    def moved(self, job: Job, bytes_: int) -> None:
        """A job ended, and moved so much."""
        took_ns = job.ended_ns - max(job.began_ns, self._free_ns)
        self._free_ns = max(self._free_ns, job.ended_ns)
        self.took(bytes_, took_ns)

    def took(self, bytes_: int, took_ns: int) -> None:
        """So much was moved in so long."""
        if bytes_ and took_ns > 0:
            now = bytes_ * NS_PER_S // took_ns
            self.bytes_per_s += (now - self.bytes_per_s) // WEIGHT if self.bytes_per_s else now


class Fetches:
    """What was decided for a request: which slices come from the disk, and which are computed."""

    def __init__(self) -> None:
        self.worth: dict[bytes, bool] = {}


class Gate:
    """`there` says whether the disk has a slice. What is decided is kept with the request."""

    def __init__(self, memory: Memory, there: Callable[[bytes], bool]) -> None:
        self._memory, self._there = memory, there

    def worth(self, key: bytes, context: "ReqContext", link: Link) -> bool:
        """Whether this slice, which the disk has, is fetched for this request."""
        fetches = _fetches(context)
        if key not in fetches.worth:
            run = self._run(key, context)
            fetches.worth.update(dict.fromkeys(run, self._ask(run, context, link)))
        return fetches.worth.get(key, False)  # It can be lost between one look and the next.

    def refuse(self, key: bytes, context: "ReqContext") -> None:
        """Not for this request: it was tried."""
        _fetches(context).worth[key] = False

    def forget(self, context: "ReqContext") -> None:
        """The request computes now: should it have to come again, it is asked again."""
        context.set_state(Fetches())

    def _run(self, key: bytes, context: "ReqContext") -> list[bytes]:
        """From this slice on, what need not be computed if this one is fetched."""
        prompt = prompt_of(context)
        run: list[bytes] = []
        for other in prompt.keys[prompt.places[key] :] if key in prompt.places else [key]:
            if not (self._there(other) or self._in_dram(other)):
                break
            run.append(other)
        return run

    def _ask(self, run: Sequence[bytes], context: "ReqContext", link: Link) -> bool:
        fetched = [key for key in run if not self._in_dram(key)]
        choice = self._memory.bridge.choose(
            FetchAsked(
                at_ns=time.monotonic_ns(),
                tier=Tier.SSD,
                slices=self._memory.naming.names(fetched),
                size=len(fetched) * self._memory.slice_bytes,
                queue_bytes=link.queue_bytes,
                bytes_per_s=link.bytes_per_s,
                recompute_ns=self._memory.recompute_ns(len(run)),
                for_request=hints.of(context.kv_transfer_params).request_id or RequestId(context.req_id),
            )
        )
        assert choice is not None, "a question has an answer"
        return bool(choice.chosen)

    def _in_dram(self, key: bytes) -> bool:
        return self._memory.residency.holds(Tier.DRAM, key)


def _fetches(context: "ReqContext") -> Fetches:
    fetches: Fetches | None = context.get_state(Fetches)
    if fetches is None:
        fetches = Fetches()
        context.set_state(fetches)
    return fetches
