"""The running digest of a log: one value that stands for every byte of it, in order.

d(0) = H("tidegate.log.v1", pool); d(n) = H(d(n-1), seq, subject, body, Tg headers); H = BLAKE2b-16.
Two logs with the same digest at the same seq hold the same messages.
"""

from hashlib import blake2b
from struct import Struct

from events.base import PoolId
from events.log.base import Message

DIGEST_BYTES = 16
_head = Struct(">QQQ").pack


def start(pool: PoolId) -> bytes:
    """The digest before the first message."""
    return blake2b(b"tidegate.log.v1\0" + pool.encode(), digest_size=DIGEST_BYTES).digest()


def extend(digest: bytes, message: Message) -> bytes:
    """The digest after one more message. Lengths stand before the parts, so no two logs share their bytes."""
    subject = message.subject.encode()
    parts = digest + _head(message.seq, len(subject), len(message.body)) + subject + message.body
    if message.headers:
        parts += repr(sorted(message.headers.items())).encode()
    return blake2b(parts, digest_size=DIGEST_BYTES).digest()
