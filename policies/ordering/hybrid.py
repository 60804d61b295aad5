"""LLM and embedding requests take turns by the urgency of their quotas; within a kind as `slo_aware`.

Embeddings come in waves of many small jobs with early deadlines. Ordered by deadline alone they would keep an LLM
prompt waiting as long as the wave lasts, and one long prompt would make a wave late. So each kind gets engine time in
proportion to its urgency, as quota published it last (equal shares before that), and what one kind does not use the
other has (`policies.ordering.kind_turns`).

Example: urgency 3 to 1 for LLM. Of four units of prefill work that go, three are LLM's as long as both kinds wait.
"""

from policies.ordering import slo_aware
from policies.ordering.rule import Rule

RULE = Rule(slo_aware.key, sets_aside=True, by_urgency=True)
