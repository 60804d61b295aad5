"""How often an answer is written to its socket: what belongs together is one write, and nothing is kept back."""

import asyncio
from typing import Any

import pytest

from events.base import EngineId, RequestId
from services.engines.base import Chunk
from services.gateway.errors import unavailable
from services.gateway.front import _HttpSink
from services.gateway.held import Route
from services.gateway.http_server import OneWrite

STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"


class Socket(asyncio.Transport):
    """Keeps what is written, write by write."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []

    def write(self, data: Any) -> None:
        self.written.append(data)

    def close(self) -> None:
        self.written.append(b"closed")


def test_streams_head_goes_out_with_its_first_piece() -> None:
    socket = Socket()
    connection = OneWrite(socket)
    for data in (STREAM_HEAD, b"one", b"two"):
        connection.write(data)
    assert socket.written == [STREAM_HEAD + b"one", b"two"]


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_any_other_head_goes_out_at_once(head: bytes) -> None:
    socket = Socket()
    OneWrite(socket).write(head)
    assert socket.written == [head]


def test_head_without_a_piece_goes_out_before_the_connection_is_closed() -> None:
    socket = Socket()
    connection = OneWrite(socket)
    connection.write(STREAM_HEAD)
    connection.close()
    assert socket.written == [STREAM_HEAD, b"closed"]


async def _bodies(*pieces: bytes, fails: bool = False) -> list[tuple[bytes, bool]]:
    """What a stream of these pieces sends, and whether more was said to follow."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    sink = _HttpSink(send, RequestId("r"), stream=True)
    await sink.begin(Route(EngineId("e1"), "1:0"), Chunk(pieces[0]))
    for piece in pieces:
        await sink.send(piece)
    if fails:
        await sink.fail(unavailable("lost", code="engine_lost"))
    else:
        await sink.end()
    return [(message["body"], message["more_body"]) for message in sent[1:]]


async def test_last_word_and_end_are_one_write() -> None:
    assert await _bodies(b"data: {}\n\n", DONE) == [(b"data: {}\n\n", True), (DONE, False)]


async def test_what_follows_a_last_word_follows_it() -> None:
    assert await _bodies(DONE, b": more\n\n") == [(DONE + b": more\n\n", True), (b"", False)]


async def test_last_word_is_not_lost_when_the_engine_is() -> None:
    [(body, more)] = await _bodies(b"data: {}\n\n" + DONE, fails=True)
    assert body.startswith(b"data: {}\n\n" + DONE)
    assert b"engine_lost" in body
    assert not more
