"""What two machines say to each other about slices, and how it is kept whole on the line.

    frame = length of the message, length of the piece, checksum; the message (msgpack); the piece (raw bytes of KV)

The checksum is BLAKE3-16 under a key that both derive from the pool's key and two nonces; it covers the frame's number
in its direction too. So damage, a replay, a frame left out and a stranger are all noticed before a byte is used. It
hides nothing: KV of tenants travels in the clear, so the line must be trusted not to listen (or be a tunnel).

    client Hello -> server Welcome | Refused
    client Get   -> server Offer | Failed         -> client Go -> server Piece, Piece ...   (or client No)
    client Put   -> server Go | Stored | Failed   -> client Piece, Piece ... -> server Stored | Failed
"""

import hmac
import socket
import struct
from collections.abc import Callable

import msgspec
from blake3 import blake3

from events.base import NS_PER_S, SliceId
from kvstore.transfer.base import CHUNK_BYTES_MAX, TransferFault

VERSION = 1
KEY_BYTES = 32
NONCE_BYTES = 16
MESSAGE_BYTES_MAX = 4096
_CHECKSUM_BYTES = 16
_FRAME = struct.Struct(f">II{_CHECKSUM_BYTES}s")

LeftNs = Callable[[], int]
"""How long the next step on the line may take; raises when there is no time left."""


class LineBroken(Exception):
    """The line is of no use any more. `fault` says whether it was damage or the other side's end."""

    def __init__(self, fault: TransferFault, why: str) -> None:
        super().__init__(why)
        self.fault, self.why = fault, why


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="t"):
    """What a frame says."""


class Hello(_Message, frozen=True, kw_only=True, tag="hello"):
    """A client's first word."""

    version: int
    namespace: bytes
    nonce: bytes


class Welcome(_Message, frozen=True, kw_only=True, tag="welcome"):
    """The server's answer; `proof` shows that it has the key."""

    nonce: bytes
    proof: bytes


class Refused(_Message, frozen=True, kw_only=True, tag="refused"):
    """The server will not talk: another version, another namespace, too many connections."""

    why: str


class Get(_Message, frozen=True, kw_only=True, tag="get"):
    """Give me this slice."""

    slice_id: SliceId


class Put(_Message, frozen=True, kw_only=True, tag="put"):
    """Take this slice."""

    slice_id: SliceId
    slice_bytes: int


class Offer(_Message, frozen=True, kw_only=True, tag="offer"):
    """It has so many bytes."""

    slice_bytes: int


class Go(_Message, frozen=True, kw_only=True, tag="go"):
    """Send it."""


class No(_Message, frozen=True, kw_only=True, tag="no"):
    """Do not send it."""


class Piece(_Message, frozen=True, kw_only=True, tag="piece"):
    """A KVChunk; its bytes follow."""

    slice_id: SliceId
    index: int
    count: int
    offset: int
    slice_bytes: int


class Stored(_Message, frozen=True, kw_only=True, tag="stored"):
    """The slice is there, whole; `new` unless it was before."""

    new: bool


class Failed(_Message, frozen=True, kw_only=True, tag="failed"):
    """It did not work, and nothing was kept."""

    fault: TransferFault
    why: str


Message = Hello | Welcome | Refused | Get | Put | Offer | Go | No | Piece | Stored | Failed
_decoder = msgspec.msgpack.Decoder(Message)
_encoder = msgspec.msgpack.Encoder()


def session_key(key: bytes, *, namespace: bytes, client: bytes, server: bytes) -> bytes:
    """The key of one connection."""
    return blake3(client + server + namespace, key=key).digest()


def proof(session: bytes) -> bytes:
    """What only a side that has the key can say."""
    return blake3(b"welcome", key=session).digest()


class Wire:
    """One side of one connection; for one thread at a time. Any error leaves it unusable."""

    def __init__(self, line: socket.socket, *, client: bool) -> None:
        self._line = line
        self._me, self._peer = (b"c", b"s") if client else (b"s", b"c")
        self._key = bytes(KEY_BYTES)
        self._sent = self._received = 0
        self._piece = bytearray()

    def use(self, key: bytes) -> None:
        """From here on everything is under this key; before, the checksum only notices damage."""
        self._key = key

    def send(self, message: Message, left_ns: LeftNs, piece: memoryview | bytes = b"") -> None:
        """Send a message, and a piece with it. LineBroken; what `left_ns` raises."""
        body = _encoder.encode(message)
        assert len(body) <= MESSAGE_BYTES_MAX, "messages are small"
        summed = self._checksum(self._me, self._sent, body, piece)
        self._sent += 1
        self._send_all(_FRAME.pack(len(body), len(piece), summed) + body, left_ns)
        if piece:
            self._send_all(piece, left_ns)

    def receive(self, left_ns: LeftNs) -> tuple[Message, memoryview]:
        """The next message and its piece, which lasts until the next call. LineBroken; what `left_ns` raises."""
        head = bytearray(_FRAME.size)
        self._receive_all(memoryview(head), left_ns)
        body_bytes, piece_bytes, summed = _FRAME.unpack(head)
        if body_bytes > MESSAGE_BYTES_MAX or piece_bytes > CHUNK_BYTES_MAX:
            raise LineBroken(TransferFault.DAMAGED, "a frame is larger than the limit")
        body = bytearray(body_bytes)
        self._receive_all(memoryview(body), left_ns)
        if len(self._piece) < piece_bytes:
            self._piece = bytearray(piece_bytes)
        piece = memoryview(self._piece)[:piece_bytes]
        self._receive_all(piece, left_ns)
        if not hmac.compare_digest(self._checksum(self._peer, self._received, body, piece), summed):
            raise LineBroken(TransferFault.DAMAGED, "a frame has another checksum")
        self._received += 1
        try:
            return _decoder.decode(body), piece
        except msgspec.MsgspecError as error:
            raise LineBroken(TransferFault.REFUSED, f"a message of another version: {error}") from error

    def _checksum(self, side: bytes, number: int, body: bytes | bytearray, piece: bytes | memoryview) -> bytes:
        digest = blake3(side + number.to_bytes(8, "big") + len(body).to_bytes(4, "big"), key=self._key)
        digest.update(body)
        digest.update(piece)
        return digest.digest(length=_CHECKSUM_BYTES)

    def _send_all(self, data: bytes | memoryview, left_ns: LeftNs) -> None:
        view = memoryview(data)
        while view.nbytes:
            self._line.settimeout(left_ns() / NS_PER_S)
            try:
                view = view[self._line.send(view) :]
            except TimeoutError as error:
                raise LineBroken(TransferFault.TIMEOUT, "the other side does not listen") from error
            except OSError as error:
                raise LineBroken(TransferFault.PEER_GONE, str(error)) from error

    def _receive_all(self, view: memoryview, left_ns: LeftNs) -> None:
        while view.nbytes:
            self._line.settimeout(left_ns() / NS_PER_S)
            try:
                count = self._line.recv_into(view)
            except TimeoutError as error:
                raise LineBroken(TransferFault.TIMEOUT, "the other side does not answer") from error
            except OSError as error:
                raise LineBroken(TransferFault.PEER_GONE, str(error)) from error
            if count == 0:
                raise LineBroken(TransferFault.PEER_GONE, "the other side closed the line")
            view = view[count:]

    def wake(self) -> None:
        """End whatever waits on this line now, from any thread."""
        try:
            self._line.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # It is closed or broken already, and so waits for nothing.

    def close(self) -> None:
        """Give the socket back."""
        self._line.close()
