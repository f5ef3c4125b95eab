"""PDUs on a blocking socket (PS3.8 9.3): read with a deadline, and a cap checked before anything is allocated."""

import contextlib
import socket
import struct
import time
from collections.abc import Iterator

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = 1, 2, 3, 4, 5, 6, 7
HEADER_BYTES = 6
# A-ABORT reasons of the service provider (PS3.8 9.3.8).
NOT_SPECIFIED, UNRECOGNISED_PDU, UNEXPECTED_PDU, INVALID_PARAMETER = 0, 1, 2, 6


class Gone(Exception):
    """The peer closed or reset the connection, or let a deadline pass."""


class Violation(Exception):
    """The peer broke the protocol: A-ABORT with this reason."""

    def __init__(self, reason: int, text: str) -> None:
        self.reason, self.text = reason, text
        super().__init__(text)


class Wire:
    """A socket that gives whole PDUs. The view it returns is valid until the next read."""

    def __init__(self, sock: socket.socket, bytes_max: int, pdu_seconds_max: float) -> None:
        self.sock, self.bytes_max, self.pdu_seconds_max = sock, bytes_max, pdu_seconds_max
        self._buffer = bytearray(16 * 1024)
        self._have = 0  # bytes in the buffer
        self._used = 0  # of them, already handed out

    def read(self, first_byte_seconds_max: float, bytes_max: int | None = None) -> tuple[int, memoryview]:
        """PDU type and body. Raises Gone, or Violation for a PDU over the cap."""
        self._drop_used()
        self._fill(HEADER_BYTES, first_byte_seconds_max)
        kind, length = self._buffer[0], struct.unpack_from(">I", self._buffer, 2)[0]
        if not ASSOCIATE_RQ <= kind <= ABORT:
            raise Violation(UNRECOGNISED_PDU, f"PDU type {kind:02X}")
        if length > (bytes_max or self.bytes_max):
            raise Violation(INVALID_PARAMETER, f"PDU of {length} bytes")
        self._fill(HEADER_BYTES + length, self.pdu_seconds_max)
        self._used = HEADER_BYTES + length
        return kind, memoryview(self._buffer)[HEADER_BYTES : self._used]

    def waiting(self) -> bool:
        """Whether a whole PDU is here already; takes what the socket has without waiting."""
        self._drop_used()
        self.sock.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            self._receive(len(self._buffer) - self._have or 4096)
        if self._have < HEADER_BYTES:
            return False
        length: int = struct.unpack_from(">I", self._buffer, 2)[0]
        return length > self.bytes_max or self._have >= HEADER_BYTES + length

    def send(self, data: bytes) -> None:
        try:
            self.sock.settimeout(self.pdu_seconds_max)
            self.sock.sendall(data)
        except OSError as error:
            raise Gone(str(error)) from None

    def _drop_used(self) -> None:
        if self._used:
            rest = self._have - self._used
            self._buffer[:rest] = self._buffer[self._used : self._have]
            self._have, self._used = rest, 0

    def _fill(self, wanted: int, seconds: float) -> None:
        """The deadline is for all that is wanted, not for each receive: a byte now and then does not extend it."""
        deadline = time.monotonic() + seconds
        while self._have < wanted:
            left = deadline - time.monotonic()
            if left <= 0:
                raise Gone("deadline")
            self.sock.settimeout(left)
            _acknowledge(self.sock)
            try:
                self._receive(wanted - self._have)
            except TimeoutError:
                raise Gone("deadline") from None

    def _receive(self, at_least: int) -> None:
        if len(self._buffer) - self._have < at_least:
            grown = bytearray(min(self.bytes_max, max(2 * len(self._buffer), self._have + at_least)) + 64 * 1024)
            grown[: self._have] = self._buffer[: self._have]
            self._buffer = grown
        try:
            got = self.sock.recv_into(memoryview(self._buffer)[self._have :])
        except (BlockingIOError, TimeoutError):
            raise
        except OSError as error:
            raise Gone(str(error)) from None
        if not got:
            raise Gone("closed")
        self._have += got


def _acknowledge(sock: socket.socket) -> None:
    """At once what has come, for more is to come: a peer with Nagle's algorithm (DCMTK, pynetdicom) sends the data
    set of its request when its command set is acknowledged, which Linux puts off by 40 ms."""
    if hasattr(socket, "TCP_QUICKACK") and sock.family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):  # closed meanwhile: the read says so
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def fragments(body: memoryview) -> Iterator[tuple[int, bool, bool, memoryview]]:
    """The PDVs of a P-DATA PDU: (context id, is command, is last, data). PS3.8 9.3.5, E.2."""
    at = 0
    while at < len(body):
        if at + 6 > len(body):
            raise Violation(INVALID_PARAMETER, "PDV header cut")
        length, context, control = struct.unpack_from(">IBB", body, at)
        if length < 2 or at + 4 + length > len(body):
            raise Violation(INVALID_PARAMETER, "PDV length")
        yield context, bool(control & 1), bool(control & 2), body[at + 6 : at + 4 + length]
        at += 4 + length


def p_data(context: int, data: bytes, *, is_command: bool, peer_bytes_max: int) -> bytes:
    """All P-DATA PDUs for one command or data set. peer_bytes_max: the peer's maximum length, 0 = no limit."""
    room = (peer_bytes_max or 1024 * 1024) - 6
    out = []
    for at in range(0, len(data), room):
        part = data[at : at + room]
        control = (1 if is_command else 0) | (2 if at + room >= len(data) else 0)
        out.append(struct.pack(">BBIIBB", P_DATA, 0, len(part) + 6, len(part) + 2, context, control) + part)
    return b"".join(out)


def reject(result: int, source: int, reason: int) -> bytes:
    return struct.pack(">BBIBBBB", ASSOCIATE_RJ, 0, 4, 0, result, source, reason)


def release_reply() -> bytes:
    return struct.pack(">BBII", RELEASE_RP, 0, 4, 0)


def abort(reason: int = NOT_SPECIFIED) -> bytes:
    return struct.pack(">BBIBBBB", ABORT, 0, 4, 0, 0, 2, reason)
