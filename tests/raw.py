"""A DICOM peer that sends just the bytes that it is told to: what a library would never let through."""

import socket
import struct
from collections.abc import Iterator

from pydicom.dataset import Dataset
from pynetdicom.sop_class import CTImageStorage

from broker.dicom import dimse, pdu
from tests.objects import encoded

EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
VERIFICATION, WORKLIST, MPPS = "1.2.840.10008.1.1", "1.2.840.10008.5.1.4.31", "1.2.840.10008.3.1.2.3.3"
CT = str(CTImageStorage)
C_STORE, C_FIND, C_ECHO, N_SET, N_CREATE = 0x0001, 0x0020, 0x0030, 0x0120, 0x0140
ANY_NAME = struct.pack("<HHI", 0x0010, 0x0010, 0)


def item(kind: int, data: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(data)) + data


def context(number: int, *syntaxes: tuple[int, str]) -> bytes:
    """A presentation context of these items: (0x30, abstract syntax), (0x40, transfer syntax)."""
    return item(0x20, bytes([number, 0, 0, 0]) + b"".join(item(kind, name.encode()) for kind, name in syntaxes))


def request(*contexts: bytes, calling: str = "CT1", called: str = "BROKER") -> bytes:
    """An A-ASSOCIATE-RQ."""
    body = struct.pack(">HH", 1, 0) + called.encode().ljust(16) + calling.encode().ljust(16) + bytes(32)
    body += item(0x10, b"1.2.840.10008.3.1.1.1") + b"".join(contexts)
    body += item(0x50, item(0x51, struct.pack(">I", 16384)) + item(0x52, b"1.2.3"))
    return struct.pack(">BBI", 1, 0, len(body)) + body


def asks_for(*sop_classes: str) -> list[bytes]:
    """Contexts 1, 3, 5 … for them."""
    return [
        context(2 * n + 1, (0x30, uid), (0x40, EXPLICIT if uid == CT else IMPLICIT))
        for n, uid in enumerate(sop_classes)
    ]


class Raw:
    def __init__(self, port: int, *, seconds: float = 20) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.settimeout(seconds)

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def read(self) -> tuple[int, bytes]:
        """PDU type and body; type 0 where the other side closed."""
        try:
            head = self.sock.recv(6, socket.MSG_WAITALL)
            if len(head) < 6:
                return 0, b""
            return head[0], self.sock.recv(struct.unpack(">I", head[2:])[0], socket.MSG_WAITALL)
        except ConnectionResetError:
            return 0, b""

    def status(self) -> tuple[int, str]:
        """Of the next response that is not pending: status and Error Comment."""
        while True:
            kind, body = self.read()
            assert kind == pdu.P_DATA, f"PDU {kind}: {body!r}"
            if not body[5] & 1:
                continue
            values = dimse.parse(body[6:])
            (status,) = struct.unpack("<H", values[dimse.E["Status"]])
            if status & 0xFF00 != 0xFF00:
                return status, values.get(dimse.E["ErrorComment"], b"").decode().strip()


def associated(port: int, *sop_classes: str, calling: str = "CT1", seconds: float = 20) -> Raw:
    raw = Raw(port, seconds=seconds)
    raw.send(request(*asks_for(*sop_classes), calling=calling))
    answer = raw.read()
    assert answer[0] == pdu.ASSOCIATE_AC, answer
    return raw


def command(field: int, sop_class: str, sop_instance: str = "", *, message_id: int = 1, dataset: bool = True) -> bytes:
    def elements() -> Iterator[tuple[int, bytes]]:
        yield (0x0003 if field == N_SET else 0x0002), _even(sop_class)
        yield 0x0100, struct.pack("<H", field)
        yield 0x0110, struct.pack("<H", message_id)
        yield 0x0700, b"\0\0"
        yield 0x0800, struct.pack("<H", 0 if dataset else 0x0101)
        if sop_instance:
            yield (0x1001 if field == N_SET else 0x1000), _even(sop_instance)

    body = b"".join(struct.pack("<HHI", 0, tag, len(value)) + value for tag, value in elements())
    return struct.pack("<HHII", 0, 0, 4, len(body)) + body


def pdv(number: int, data: bytes, *, is_command: bool = False, is_last: bool = True) -> bytes:
    return struct.pack(">IBB", len(data) + 2, number, is_command | is_last << 1) + data


def p_data(*pdvs: bytes) -> bytes:
    body = b"".join(pdvs)
    return struct.pack(">BBI", pdu.P_DATA, 0, len(body)) + body


def message(number: int, head: bytes, data: bytes = b"") -> bytes:
    """A whole request in as many PDUs as it needs."""
    out = pdu.p_data(number, head, is_command=True, peer_bytes_max=16384)
    return out + (pdu.p_data(number, data, is_command=False, peer_bytes_max=16384) if data else b"")


def store(ds: Dataset, number: int = 1) -> bytes:
    return message(number, command(C_STORE, ds.SOPClassUID, ds.SOPInstanceUID), encoded(ds))


def _even(uid: str) -> bytes:
    return uid.encode() + b"\0" * (len(uid) % 2)
