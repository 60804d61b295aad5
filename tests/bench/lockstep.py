"""An engine and its clients in one process, in lockstep: a stream's next token is sent when its last one has arrived
at the client. So every token passes a proxy by itself: one that is slow cannot hide it by taking several at once.

Both sides are as lean as Python gets, so that what stands between them is the limit.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple, Self
from urllib.parse import urlsplit

import msgspec

PATH = "/v1/completions"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
TOKEN = (
    b'data: {"id":"cmpl-0123456789abcdef","object":"text_completion","created":1700000000,"model":"bench","choices":'
    b'[{"index":0,"text":" token","logprobs":null,"finish_reason":null,"stop_reason":null}],"usage":null}\n\n'
)
TOKEN_HEAD = b'data: {"id"'
DONE = b"data: [DONE]\n\n"
END = b"0\r\n\r\n"
READ_BYTES = 1 << 16


class StreamOptions(msgspec.Struct):
    include_usage: bool = False


class Body(msgspec.Struct):
    """Of a body, what the answer depends on. The prompt's first id is the stream's number."""

    prompt: list[int]
    max_tokens: int
    stream_options: StreamOptions = msgspec.field(default_factory=StreamOptions)


class Engine:
    """Answers every POST as vLLM does, one event a write."""

    def __init__(self, streams: int) -> None:
        self.url = ""
        self.turns = [asyncio.Semaphore(1) for _ in range(streams)]

    @classmethod
    @asynccontextmanager
    async def serving(cls, streams: int) -> AsyncIterator[Self]:
        """For the block, at `url`."""
        engine = cls(streams)
        server = await asyncio.start_server(engine._serve, "127.0.0.1", 0)
        engine.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield engine
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                [length] = [line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                await self._answer(msgspec.json.decode(await reader.readexactly(int(length)), type=Body), writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def _answer(self, body: Body, writer: asyncio.StreamWriter) -> None:
        turn, token = self.turns[body.prompt[0]], _piece(TOKEN)
        writer.write(HEAD)
        for _ in range(body.max_tokens):
            await turn.acquire()
            writer.write(token)
        await turn.acquire()
        if body.stream_options.include_usage:
            usage = b'"usage":{"prompt_tokens":%d,"completion_tokens":%d}' % (len(body.prompt), body.max_tokens)
            writer.write(_piece(b'data: {"choices":[],%s}\n\n' % usage))
        writer.write(_piece(DONE) + END)
        turn.release()  # For the stream's next request.


class Answer(NamedTuple):
    """Tokens that came, and seconds until the first of them."""

    tokens: int
    ttft_s: float


class Client:
    """One stream's connection, kept from request to request."""

    def __init__(
        self, number: int, turn: asyncio.Semaphore, host: str,
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter,
    ) -> None:  # fmt: skip
        self._number, self._turn, self._host, self._reader, self._writer = number, turn, host, reader, writer

    @classmethod
    async def connect(cls, url: str, number: int, engine: Engine) -> Self:
        """To a proxy before the engine, or to the engine."""
        parts = urlsplit(url)
        assert parts.hostname is not None, "an address has a host"
        opened = await asyncio.open_connection(parts.hostname, parts.port)
        return cls(number, engine.turns[number], parts.netloc, *opened)

    async def ask(self, model: str, prompt: list[int], tokens: int) -> Answer:
        """One stream, read to its end. AssertionError when it is anything but whole."""
        fields = {"model": model, "prompt": [self._number, *prompt], "max_tokens": tokens, "stream": True}
        body = msgspec.json.encode(fields)
        head = f"POST {PATH} HTTP/1.1\r\nhost: {self._host}\r\ncontent-type: application/json\r\n"
        start = time.perf_counter()
        self._writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        data, came, ttft_s = b"", 0, 0.0
        while not data.endswith(END):
            piece = await self._reader.read(READ_BYTES)
            assert piece, f"the stream broke off: {data[-500:]!r}"
            data += piece
            if TOKEN_HEAD in piece:
                ttft_s = ttft_s or time.perf_counter() - start
                came += 1
                self._turn.release()
        assert data.startswith(b"HTTP/1.1 200"), data[:500]
        assert DONE in data, data[-500:]
        assert came == data.count(TOKEN_HEAD) == tokens, f"{came} of {tokens} tokens came, each by itself"
        return Answer(tokens, ttft_s)

    def close(self) -> None:
        """Give the connection back."""
        self._writer.close()


def _piece(data: bytes) -> bytes:
    """One piece of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)
