"""The most requests in time per unit of memory-time: those that hold the least KV for the shortest time go first.

Memory-time is KV tokens times how long they are held: the prompt's during prefill (half of it on average), prompt and
answer so far during decode, at the pace that the request asks for. A request in time counts one, whatever its size, as
it does in goodput. What this leaves behind are long prompts with long answers; fairness limits how far.

Source: the greedy rule of the knapsack problem (Dantzig, 1957), value per weight; BatchLLM's and Mooncake's cost of a
request as memory times time.

Example: 1,000 tokens held for 2 s go before 8,000 tokens held for 1 s.
"""

from events.base import NS_PER_MS
from policies.ordering.rule import Rule
from policies.waiting import Key, Waiting

PACE_DEFAULT_NS = 50 * NS_PER_MS
"""Time per output token of a request that asks for none."""


def key(one: Waiting) -> Key:
    """Memory-time in token microseconds, then the deadline."""
    prompt, output = one.request.prompt_tokens, one.foretold.expected
    decode_ns = output * (one.request.slo_tpot_ns or PACE_DEFAULT_NS)
    memory_time = prompt * one.work_ns // 2 + (prompt + output // 2) * decode_ns
    return (memory_time // 1_000, one.until_ns + one.work_ns)


RULE = Rule(key, sets_aside=True)
