"""What a socket is asked for, and when (PS3.8 9.3)."""

import socket
import struct

from broker.dicom.pdu import P_DATA, Wire

BODY = b"command"


class Line:
    """A socket whose peer sends a PDU in pieces; said: what it was asked, in order."""

    family = socket.AF_INET

    def __init__(self, *pieces: bytes) -> None:
        self.pieces, self.said = list(pieces), []

    def settimeout(self, _seconds: float) -> None:
        pass

    def setsockopt(self, level: int, option: int, value: int) -> None:
        assert (level, option, value) == (socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        self.said.append("acknowledge")

    def recv_into(self, view: memoryview) -> int:
        self.said.append("wait")
        piece = self.pieces.pop(0)
        view[: len(piece)] = piece
        return len(piece)


def test_what_came_is_acknowledged_before_each_wait_for_more():
    """A peer with Nagle's algorithm sends its data set when its command set is acknowledged; Linux forgets the option
    with every acknowledgement."""
    pdu = struct.pack(">BBI", P_DATA, 0, len(BODY)) + BODY
    line = Line(pdu[:3], pdu[3:8], pdu[8:])
    kind, body = Wire(line, 1024, 1).read(1)
    assert (kind, bytes(body)) == (P_DATA, BODY)
    assert line.said == ["acknowledge", "wait"] * 3


def test_a_pdu_that_is_here_is_handed_out_without_another_word_to_the_socket():
    pdu = struct.pack(">BBI", P_DATA, 0, len(BODY)) + BODY
    line = Line(pdu + pdu)
    wire = Wire(line, 1024, 1)
    wire.read(1)
    line.said.clear()
    assert bytes(wire.read(1)[1]) == BODY
    assert line.said == []
