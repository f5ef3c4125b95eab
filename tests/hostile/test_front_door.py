"""The DICOM port against peers that lie, stall and flood: the attacks of durability.md 0, at a real socket."""

import resource
import socket
import struct
import time

import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_context
from pynetdicom.sop_class import CTImageStorage, Verification

from broker import config
from broker.dicom import pdu, verification
from broker.dicom.listener import Listener
from broker.dicom.service import C_STORE_RQ, NodeInfo, Offer, Registry, Response
from broker.errors import NoRoom

RSS_GROWTH_MAX = 64 * 1024 * 1024
NODE = NodeInfo(1, "CT1", "127.0.0.1", False, "CT1", frozenset({"store"}), "", None)


class Sink:
    def __init__(self, fail: bool) -> None:
        self.bytes, self.fail, self.aborted, self.finished = 0, fail, False, False

    def write(self, data: memoryview) -> None:
        if self.fail:
            raise NoRoom("staging")
        self.bytes += len(data)

    def finish(self) -> None:
        self.finished = True

    def abort(self) -> None:
        self.aborted = True


class Store:
    right = "store"

    def __init__(self) -> None:
        self.sinks: list[Sink] = []
        self.fail = False

    def open(self, peer, command, transfer_syntax) -> Sink:
        self.sinks.append(Sink(self.fail))
        return self.sinks[-1]

    def handle(self, request):
        request.sink.finish()
        yield Response(0x0000)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def listener(store):
    settings = config.Settings()
    settings.dicom.port = 0
    settings.limits.dicom_associate_seconds_max = 1
    settings.limits.dicom_pdu_seconds_max = 1
    registry = Registry()
    for sop_class, offer in verification.offers():
        registry.add(sop_class, offer)
    syntaxes = (str(ExplicitVRLittleEndian), str(DeflatedExplicitVRLittleEndian), str(ImplicitVRLittleEndian))
    registry.add(CTImageStorage, Offer(store, syntaxes, frozenset({C_STORE_RQ}), is_storage=True))
    door = Listener(settings, registry, {"CT1": NODE}.get, lambda _node, _address: True, lambda *_: None)
    door.start()
    yield door
    door.stop(5)


def echo(listener) -> int:
    ae = AE("CT1")
    ae.add_requested_context(Verification)
    association = ae.associate("127.0.0.1", listener.port, ae_title="BROKER")
    assert association.is_established
    status = association.send_c_echo().Status
    association.release()
    return status


def connect(listener) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", listener.port))
    sock.settimeout(20)
    return sock


def request_pdu(abstract: str = "1.2.840.10008.1.1", syntax: str = "1.2.840.10008.1.2", contexts: int = 1) -> bytes:
    """A hand-made A-ASSOCIATE-RQ of CT1 to BROKER."""

    def item(kind: int, data: bytes) -> bytes:
        return struct.pack(">BBH", kind, 0, len(data)) + data

    body = struct.pack(">HH", 1, 0) + b"BROKER".ljust(16) + b"CT1".ljust(16) + bytes(32)
    body += item(0x10, b"1.2.840.10008.3.1.1.1")
    for n in range(contexts):
        body += item(
            0x20, bytes([(2 * n + 1) % 256, 0, 0, 0]) + item(0x30, abstract.encode()) + item(0x40, syntax.encode())
        )
    body += item(0x50, item(0x51, struct.pack(">I", 16384)) + item(0x52, b"1.2.3"))
    return struct.pack(">BBI", 1, 0, len(body)) + body


def associated(listener, abstract: str = "1.2.840.10008.1.1", syntax: str = "1.2.840.10008.1.2") -> socket.socket:
    sock = connect(listener)
    sock.sendall(request_pdu(abstract, syntax))
    assert read_pdu(sock)[0] == pdu.ASSOCIATE_AC
    return sock


def read_pdu(sock: socket.socket) -> tuple[int, bytes]:
    head = sock.recv(6, socket.MSG_WAITALL)
    if len(head) < 6:
        return 0, b""
    return head[0], sock.recv(struct.unpack(">I", head[2:])[0], socket.MSG_WAITALL)


def ended(sock: socket.socket) -> bool:
    """Whether the other side aborts or closes."""
    try:
        return read_pdu(sock)[0] in (0, pdu.ABORT)
    except ConnectionResetError:
        return True


def rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_silent_and_one_byte_connections_do_not_shut_out_a_scanner_and_go_away(listener):
    idle = [connect(listener) for _ in range(70)]
    for sock in idle[:35]:
        sock.sendall(b"\x01")
    assert echo(listener) == 0x0000
    assert all(ended(sock) for sock in idle)


def test_an_oversize_pdu_is_cut_before_memory_is_spent(listener):
    before = rss()
    for head in (b"\x01\x00\xff\xff\xff\xfe", b"\x01\x00\x7f\xff\xff\xff"):
        sock = connect(listener)
        sock.sendall(head)
        assert ended(sock)
    sock = associated(listener)
    sock.sendall(b"\x04\x00\xff\xff\xff\xfe")
    assert ended(sock)
    assert rss() - before < RSS_GROWTH_MAX
    assert echo(listener) == 0x0000


def test_endless_data_for_a_command_or_an_identifier_is_cut(listener):
    before = rss()
    sock = associated(listener)
    fragment = struct.pack(">IBB", 16002, 1, 1) + bytes(16000)
    try:
        for _ in range(2000):
            sock.sendall(struct.pack(">BBI", 4, 0, len(fragment)) + fragment)
    except OSError:
        pass
    assert ended(sock)
    assert rss() - before < RSS_GROWTH_MAX
    assert echo(listener) == 0x0000


@pytest.mark.parametrize(
    "body",
    [
        struct.pack(">IBB", 100, 1, 3),  # PDV longer than its PDU
        struct.pack(">IBB", 1, 1, 3), b"\x00\x00", struct.pack(">IBB", 2, 99, 3),  # context that was never accepted
        struct.pack(">IBB", 2, 1, 2),  # data set before its command
        struct.pack(">IBB", 12, 1, 3) + struct.pack("<HHI", 0x0008, 0x0016, 2) + b"ab",  # no command element
        struct.pack(">IBB", 2, 1, 3),  # empty command set
    ],
)  # fmt: skip
def test_lies_inside_p_data_cost_that_association_only(listener, body):
    sock = associated(listener)
    sock.sendall(struct.pack(">BBI", 4, 0, len(body)) + body)
    assert ended(sock)
    assert echo(listener) == 0x0000


@pytest.mark.parametrize(
    "data",
    [b"\x63\x00\x00\x00\x00\x00", b"\x04\x00\x00\x00\x00\x06\x00\x00\x00\x02\x01\x03", b"GET / HTTP/1.1\r\n\r\n",
     b"\x01\x00\x00\x00\x00\x04abcd", request_pdu(contexts=400)],
)  # fmt: skip
def test_what_is_no_association_request_is_aborted(listener, data):
    sock = connect(listener)
    sock.sendall(data)
    assert ended(sock)
    assert echo(listener) == 0x0000


def test_a_half_sent_pdu_is_cut_at_its_deadline_although_bytes_trickle(listener):
    sock = connect(listener)
    data = request_pdu()
    started = time.monotonic()
    try:
        for byte in data[:60]:
            sock.sendall(bytes([byte]))
            time.sleep(0.1)
    except OSError:
        pass
    assert ended(sock)
    assert time.monotonic() - started < 60


def test_deflated_is_never_accepted(listener):
    ae = AE("CT1")
    ae.requested_contexts = [build_context(CTImageStorage, DeflatedExplicitVRLittleEndian), build_context(Verification)]
    association = ae.associate("127.0.0.1", listener.port, ae_title="BROKER")
    assert [str(context.abstract_syntax) for context in association.accepted_contexts] == [Verification]
    association.release()


def store_command(last: bool = True) -> bytes:
    elements = [
        (0x0002, CTImageStorage.encode() + b"\0" * (len(CTImageStorage) % 2)), (0x0100, struct.pack("<H", 1)),
        (0x0110, struct.pack("<H", 1)), (0x0700, struct.pack("<H", 0)), (0x0800, struct.pack("<H", 0)),
        (0x1000, b"1.2.3.4\0"),
    ]  # fmt: skip
    body = b"".join(struct.pack("<HHI", 0, tag, len(value)) + value for tag, value in elements)
    body = struct.pack("<HHII", 0, 0, 4, len(body)) + body
    return pdu.p_data(1, body, is_command=True, peer_bytes_max=16384)


def test_an_object_that_breaks_off_in_the_middle_is_aborted_and_never_finished(listener, store):
    sock = associated(listener, CTImageStorage, "1.2.840.10008.1.2.1")
    sock.sendall(store_command())
    fragment = struct.pack(">IBB", 1002, 1, 0) + bytes(1000)
    sock.sendall(struct.pack(">BBI", 4, 0, len(fragment)) + fragment)
    sock.close()
    deadline = time.monotonic() + 10
    while not (store.sinks and store.sinks[0].aborted) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert store.sinks[0].aborted
    assert not store.sinks[0].finished


def test_an_object_that_cannot_be_kept_is_drained_refused_and_the_association_lives(listener, store):
    store.fail = True
    sock = associated(listener, CTImageStorage, "1.2.840.10008.1.2.1")
    for expected in (0xA700, 0x0000):
        sock.sendall(store_command() + pdu.p_data(1, bytes(100_000), is_command=False, peer_bytes_max=16384))
        kind, body = read_pdu(sock)
        assert kind == pdu.P_DATA
        assert struct.pack("<HHI", 0, 0x0900, 2) + struct.pack("<H", expected) in body
        store.fail = False
    sock.sendall(struct.pack(">BBII", 5, 0, 4, 0))
    assert read_pdu(sock)[0] == pdu.RELEASE_RP
