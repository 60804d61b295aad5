"""The engine where the request costs least: its own time to the first token, and the time it takes from all others.

The prediction counts the prefill work in line, the resident decode context and the cached prefix. What of it is the
request's own prefill counts WORK_WEIGHT times more, for whoever comes after it waits for that too: a prompt follows its
prefix not only where that is the quicker way, but as long as another engine's time to compute it anew is worth more
than the wait. Under load nothing is as scarce as prefill time.

Source: the marginal cost of a job on a shared queue (its own delay and the one that it causes; Pigou's tax).
Example, with the weight 2: behind 60 ms of work here, then 10 ms of its own: 70 + 2 x 10 = 90. At once there, but 40 ms
of its own: 40 + 2 x 40 = 120. It goes here.
"""

from events.base import PPM
from policies.placement.candidate import Asked, Candidate

WORK_WEIGHT = 2


def score(candidate: Candidate, asked: Asked) -> int:
    """By how much it costs less than the worst could."""
    cost_ns, most_ns = cost(candidate.ttft_ns, candidate.work_ns), cost(asked.ttft_max_ns, asked.work_max_ns)
    return PPM - PPM * cost_ns // max(most_ns, 1)


def cost(ttft_ns: int, work_ns: int) -> int:
    """What a request costs that has its first token after so long, and so much work of its own."""
    return ttft_ns + WORK_WEIGHT * work_ns
