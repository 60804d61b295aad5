"""The settings of a pool's stream, and the refusal of a stream that could lose history."""

from nats.js.api import DiscardPolicy, RePublish, RetentionPolicy, StorageType, StreamConfig

from events.base import LogError, PoolId
from events.subjects import log_of, stream_of

DUPLICATE_WINDOW_S = 120.0


def settings(pool: PoolId, *, replicas: int, bytes_max: int) -> StreamConfig:
    """A stream that drops nothing by itself: full means that it refuses. `bytes_max` 0 = what the server allows.

    Purge stays possible for the archiver; deleting single messages does not.
    """
    return StreamConfig(
        name=stream_of(pool),
        description="Tidegate: the log of one pool",
        subjects=[log_of(pool)],
        storage=StorageType.FILE,
        retention=RetentionPolicy.LIMITS,
        discard=DiscardPolicy.NEW,
        max_bytes=bytes_max or -1,
        num_replicas=replicas,
        duplicate_window=DUPLICATE_WINDOW_S,
        deny_delete=True,
        allow_direct=True,
        republish=RePublish(src=log_of(pool), dest=f"watch.{log_of(pool)}"),
    )


def check(found: StreamConfig, pool: PoolId, *, where: str) -> None:
    """LogError that names every setting under which the stream could lose, change or hide messages."""
    wanted = settings(pool, replicas=1, bytes_max=0)
    wrong = [
        f"{name}={got!s} (must be {must!s})"
        for name, got, must in (
            ("subjects", found.subjects, wanted.subjects),
            ("storage", _word(found.storage), StorageType.FILE.value),
            ("retention", _word(found.retention), RetentionPolicy.LIMITS.value),
            ("discard", _word(found.discard), DiscardPolicy.NEW.value),
            ("max_age", found.max_age or 0, 0),
            ("max_msgs_per_subject", max(found.max_msgs_per_subject, 0), 0),
            ("deny_delete", bool(found.deny_delete), True),
            ("allow_rollup_hdrs", bool(found.allow_rollup_hdrs), False),
            ("allow_msg_ttl", bool(found.allow_msg_ttl), False),
            ("allow_msg_schedules", bool(found.allow_msg_schedules), False),
            ("sealed", bool(found.sealed), False),
            ("no_ack", bool(found.no_ack), False),
            ("mirror", bool(found.mirror), False),
            ("sources", bool(found.sources), False),
            ("subject_transform", bool(found.subject_transform), False),
            ("persist_mode", _word(found.persist_mode) or "default", "default"),
        )
        if got != must
    ]
    if (found.duplicate_window or 0) < DUPLICATE_WINDOW_S:
        wrong.append(f"duplicate_window={found.duplicate_window}s (must be {DUPLICATE_WINDOW_S:.0f}s or more)")
    if wrong:
        what = f"stream {stream_of(pool)} is not a log: {', '.join(wrong)}"
        raise LogError(what, where=where, mend="take another pool name, or change the stream's settings")


def _word(value: object) -> str:
    """The server's word for an enum, whether nats-py made it one or left it a string."""
    return str(getattr(value, "value", value) or "")
