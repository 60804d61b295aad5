"""As near as possible to the engine with the prompt's prefix: the same engine, NVLink domain, NUMA node, host, rack.

KV can be moved between engines at the speed of what lies between them, and near engines share the tiers below HBM: so
an engine next to the prefix is worth more than one in another rack. Where nobody has a prefix that counts
(`affinity_tokens_min`), or engines carry no labels, load decides.

Labels come with `engine_registered` (`capability.labels`): `nvlink`, `numa`, `host`, `rack`. A NUMA node counts within
one host only.

Sources: NVIDIA Dynamo's and Kubernetes' topology-aware placement (nearest level that two share); LMCache's peer-to-peer
sharing within a node.
Example: prefix on e1 (host a, rack 1). e2 (host a): 0.50 and up; e3 (rack 1): 0.30 and up; e4 (rack 2): below.
"""

from policies.placement.candidate import Asked, Candidate, Labels, load_score

SAME = 800_000
LEVELS = (("nvlink", 700_000), ("numa", 600_000), ("host", 500_000), ("rack", 300_000))
"""What sharing each level is worth, nearest first; load makes up the rest, up to LOAD_PART of the score."""
LOAD_PART = 20


def score(candidate: Candidate, asked: Asked) -> int:
    """Nearness to the longest prefix, and a twentieth for load; half of it where it could not begin now."""
    near = nearness(candidate, asked) if asked.cached_max_tokens >= asked.affinity_tokens_min else 0
    return (near + load_score(candidate, asked) // LOAD_PART) // (2 if candidate.conflict else 1)


def nearness(candidate: Candidate, asked: Asked) -> int:
    """How near it is to where the longest prefix is."""
    if candidate.cached_tokens == asked.cached_max_tokens:
        return SAME
    return next((worth for level, worth in LEVELS if _share(candidate.labels, asked.home, level)), 0)


def _share(here: Labels, there: Labels, level: str) -> bool:
    if level == "numa" and here.get("host") != there.get("host"):
        return False
    return level in here and here[level] == there.get(level)
