"""One value that stands for every byte of a log, in order."""

import pytest

from events.base import PoolId
from events.log.base import Message
from events.log.digest import DIGEST_BYTES, extend, start

POOL = PoolId("p1")
MESSAGE = Message(1, "tg.v1.p1.fact.clock.ticked", b'{"n":1}', {"Tg-A": "1", "Tg-B": "2"})


def test_the_digest_of_a_log_never_changes_from_version_to_version() -> None:
    assert extend(start(POOL), MESSAGE).hex() == "1871b12e3bdf944d7769538b23e54e45"
    assert extend(start(POOL), MESSAGE._replace(headers={})).hex() == "c7ca5147d20a80300dfb0100330f5fc9"
    assert len(start(POOL)) == DIGEST_BYTES


@pytest.mark.parametrize(
    "other",
    [
        MESSAGE._replace(seq=2),
        MESSAGE._replace(subject="tg.v1.p1.fact.clock.tickee"),
        MESSAGE._replace(body=b'{"n":2}'),
        MESSAGE._replace(body=b'{"n":1} '),
        MESSAGE._replace(headers={"Tg-A": "1"}),
        MESSAGE._replace(headers={}),
        MESSAGE._replace(headers={"Tg-A": "2", "Tg-B": "1"}),
        # The border between two parts moved: the bytes in a row are the same.
        MESSAGE._replace(subject=MESSAGE.subject + "{", body=MESSAGE.body[1:]),
    ],
)
def test_every_part_of_a_message_counts(other: Message) -> None:
    assert extend(start(POOL), other) != extend(start(POOL), MESSAGE)


def test_the_order_of_headers_does_not_count() -> None:
    turned = MESSAGE._replace(headers={"Tg-B": "2", "Tg-A": "1"})
    assert extend(start(POOL), turned) == extend(start(POOL), MESSAGE)


def test_pool_and_order_of_messages_count() -> None:
    second = MESSAGE._replace(seq=2)
    assert start(POOL) != start(PoolId("p2"))
    assert extend(extend(start(POOL), MESSAGE), second) != extend(extend(start(POOL), second), MESSAGE)
