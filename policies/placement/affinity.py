"""Requests that belong together go to the same engine, as far as its load allows: by session, else by how the prompt
begins.

Rendezvous hashing: every engine is drawn a number for the key, the highest wins. No table is kept, an engine that
leaves moves only its own keys, and every replay draws the same. One that is much busier than the mean, or has no room
now, is passed over, so that a busy session does not sink its engine.

Sources: Thaler and Ravishankar, "Using name-based mappings to increase hit rates" (1998); consistent hashing with
bounded loads (Mirrokni, Thorup and Zadimoghaddam, 2018).
Example: session s7 goes to e2 turn after turn; while e2 holds more than 1.5 times the mean, to the second in its order.
"""

from hashlib import blake2b

from events.base import PPM
from policies.placement.candidate import Asked, Candidate, load_score
from policies.placement.prefix_affinity import HALF, is_busy

DRAW_BYTES = 8


def score(candidate: Candidate, asked: Asked) -> int:
    """The upper half by the number drawn, if it has a key and the engine is free enough; the lower half by load."""
    if not asked.key or candidate.conflict or is_busy(candidate, asked):
        return load_score(candidate, asked) // 2
    return HALF + drawn_ppm(asked.key, candidate.engine_id) // 2


def drawn_ppm(key: str, engine_id: str) -> int:
    """What this engine draws for this key: the same in every process."""
    drawn = blake2b(f"{key}\0{engine_id}".encode(), digest_size=DRAW_BYTES).digest()
    return int.from_bytes(drawn, "big") * PPM >> (8 * DRAW_BYTES)
