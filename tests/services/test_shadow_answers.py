"""What a shadow says from another version of the program, and what it compared without saying anything new."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from events.base import PoolId, Recorded
from events.control import ShadowCompared
from services.runtime.orders import Orders, Refused
from services.shadow import ShadowSpeaksOtherwise, status_of, stop_of

POOL = PoolId("p")


class Answering:
    """A shadow whose answers are these bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def request(self, _subject: str, _payload: bytes, **_named: object) -> SimpleNamespace:
        return SimpleNamespace(data=self._data)


@pytest.mark.parametrize("data", [b'{"name":"s"}', b"not json", b""])
@pytest.mark.parametrize("ask", [status_of, stop_of])
async def test_an_answer_of_another_version_is_one_line(ask: Any, data: bytes) -> None:
    with pytest.raises(ShadowSpeaksOtherwise, match="another version of the program"):
        await ask(cast(Any, Answering(data)), POOL)


def compared(words: int, standing: int) -> Recorded:
    event = ShadowCompared(
        shadow="s", policy="first_come", actor="quota", settings={}, code_version="", since_seq=1, to_seq=9,
        words=words, standing=standing,
    )  # fmt: skip
    return Recorded(seq=9, item=0, event=event)


async def test_an_idle_pool_cannot_earn_a_promotion_by_ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    async def reports(_orders: Orders) -> list[Recorded]:
        return [compared(words=5_000, standing=4_997)]

    monkeypatch.setattr(Orders, "_shadow_reports", reports)
    nothing = cast(Any, None)
    with pytest.raises(Refused, match="compared 3 decisions"):
        await Orders(nothing, nothing, nothing).promote(words_min=100)
