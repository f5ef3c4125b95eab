"""The DICOM port against peers that lie, stall and flood: the attacks of durability.md 0, at a real socket."""

import errno
import resource
import select
import socket
import struct
import threading
import time

import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_context
from pynetdicom.sop_class import CTImageStorage, Verification

from broker import config
from broker.dicom import pdu, verification
from broker.dicom.listener import Listener
from broker.dicom.service import C_FIND_RQ, C_STORE_RQ, NodeInfo, Offer, Registry, Response
from broker.errors import DatabaseAway, NoRoom
from tests import raw
from tests.house import eventually
from tests.objects import ct, encoded

RSS_GROWTH_MAX = 64 * 1024 * 1024
NODE = NodeInfo(1, "CT1", "127.0.0.1", False, "CT1", frozenset({"store", "worklist"}), "", None)
KEEPALIVE = {
    "SO_KEEPALIVE": 1, "TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6, "TCP_USER_TIMEOUT": 120_000,
    "TCP_NODELAY": 1,
}  # fmt: skip


class Sink:
    def __init__(self, store: "Store") -> None:
        self.bytes, self.store, self.aborted, self.finished = 0, store, False, False

    def write(self, data: memoryview) -> None:
        self.store.perhaps("write")
        if self.store.fail:
            raise NoRoom("staging")
        self.bytes += len(data)

    def finish(self) -> None:
        self.store.perhaps("finish")
        self.finished = True

    def abort(self) -> None:
        self.aborted = not self.finished


class Store:
    """fail: nothing can be kept. bug: where it fails as nobody expects. going: cleared, it keeps its answer back."""

    right = "store"

    def __init__(self) -> None:
        self.sinks: list[Sink] = []
        self.fail, self.bug = False, ""
        self.going = threading.Event()
        self.going.set()

    def perhaps(self, where: str) -> None:
        if self.bug == where:
            raise ZeroDivisionError("山田")

    def open(self, peer, command, transfer_syntax) -> Sink:
        self.perhaps("open")
        self.sinks.append(Sink(self))
        return self.sinks[-1]

    def handle(self, request):
        self.perhaps("handle")
        request.sink.finish()
        self.going.wait(10)
        yield Response(0x0000)

    def settled(self) -> bool:
        """Nothing is open any more."""
        return all(sink.finished or sink.aborted for sink in self.sinks)


class Find:
    """Answers twice, and looks for a C-CANCEL all the time while it is kept back."""

    right = "worklist"

    def __init__(self, store: Store) -> None:
        self.store = store

    def handle(self, request):
        yield Response(0xFF00, raw.ANY_NAME)
        while not self.store.going.wait(0.01):
            request.cancelled()
        yield Response(0x0000)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def nodes():
    """Who is known; a test may put another function in its place."""
    return [{"CT1": NODE}.get]


@pytest.fixture
def listener(store, nodes):
    settings = config.Settings()
    settings.dicom.port = 0
    settings.limits.dicom_associate_seconds_max = 1
    settings.limits.dicom_pdu_seconds_max = 1
    registry = Registry()
    for sop_class, offer in verification.offers():
        registry.add(sop_class, offer)
    syntaxes = (str(ExplicitVRLittleEndian), str(DeflatedExplicitVRLittleEndian), str(ImplicitVRLittleEndian))
    registry.add(CTImageStorage, Offer(store, syntaxes, frozenset({C_STORE_RQ}), is_storage=True))
    registry.add(raw.WORKLIST, Offer(Find(store), syntaxes, frozenset({C_FIND_RQ})))
    door = Listener(settings, registry, lambda ae: nodes[0](ae), lambda _node, _address: True, lambda *_: None)
    door.start()
    yield door
    store.going.set()
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


# What was begun and not finished leaves nothing


def whole_object() -> bytes:
    ds = ct()
    return raw.pdv(1, raw.command(raw.C_STORE, raw.CT, ds.SOPInstanceUID), is_command=True) + raw.pdv(1, encoded(ds))


def test_a_whole_object_is_let_go_when_the_same_pdu_ends_in_a_lie(listener, store):
    with raw.associated(listener.port, raw.CT) as peer:
        peer.send(raw.p_data(whole_object(), raw.pdv(99, b"")))
        assert peer.read()[0] == pdu.ABORT
    assert store.sinks
    assert eventually(store.settled)


def test_an_object_that_comes_before_the_answer_to_a_query_is_let_go_with_its_association(listener, store):
    store.going.clear()
    with raw.associated(listener.port, raw.CT, raw.WORKLIST) as peer:
        peer.send(raw.message(3, raw.command(raw.C_FIND, raw.WORKLIST), raw.ANY_NAME))
        peer.send(raw.p_data(whole_object()))
        assert peer.read()[0] == pdu.ABORT
    assert store.sinks
    assert eventually(store.settled)


def test_no_peer_opens_more_than_one_object_beside_the_one_being_answered(listener, store):
    with raw.associated(listener.port, raw.CT) as peer:
        peer.send(raw.p_data(*[whole_object() for _ in range(100)]))
        assert peer.read()[0] == pdu.ABORT
    assert eventually(store.settled)
    assert len(store.sinks) <= 2


@pytest.mark.parametrize("where", ["open", "write", "finish", "handle"])
def test_a_bug_costs_one_answer_and_leaves_nothing_open(listener, store, where):
    store.bug = where
    with raw.associated(listener.port, raw.CT) as peer:
        peer.send(raw.store(ct()))
        status, comment = peer.status()
        assert status == 0xA700
        assert comment.isascii()
        assert eventually(store.settled)
        store.bug = ""
        peer.send(raw.store(ct()))
        assert peer.status() == (0x0000, "")
    assert store.settled()


# The port outlives what it lacks


def test_the_port_goes_on_when_no_thread_can_be_started(listener, monkeypatch):
    begin, failures = threading.Thread.start, [1, 1]

    def start(thread: threading.Thread) -> None:
        if threading.current_thread().name == "dicom" and failures:
            failures.pop()
            raise RuntimeError("can't start new thread")
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    for _ in range(2):
        assert ended(connect(listener))
    assert echo(listener) == 0x0000
    assert listener.is_accepting
    assert len(listener._connections) <= 1


class Poor:
    """A listening socket of a process that has no descriptor left, so and so often."""

    def __init__(self, sock: socket.socket, times: int) -> None:
        self._sock, self.times = sock, times

    def accept(self) -> tuple[socket.socket, tuple[str, int]]:
        """The kernel looks for a descriptor first, whether somebody knocks or not."""
        if self.times:
            self.times -= bool(select.select([self._sock], [], [], 0)[0])
            raise OSError(errno.EMFILE, "Too many open files")
        return self._sock.accept()

    def __getattr__(self, name: str) -> object:
        return getattr(self._sock, name)


def test_without_descriptors_the_oldest_silent_connection_gives_way(listener):
    listener.limits.dicom_associate_seconds_max = 60
    idle = [connect(listener) for _ in range(3)]
    assert eventually(lambda: len(listener._connections) == 3)
    listener._socket = Poor(listener._socket, 3)  # the second comes before the first could have helped
    assert echo(listener) == 0x0000  # by who waits in the kernel already
    time.sleep(1)  # nobody knocks: nobody need give way
    assert len(listener._connections) == 3
    knocking = connect(listener)
    assert all(ended(sock) for sock in idle[:2])
    knocking.close()
    assert echo(listener) == 0x0000
    assert idle[2] and len(listener._connections) >= 1


def test_the_port_says_that_it_is_dead_when_it_is(listener):
    assert listener.is_accepting
    listener.stop(1)
    assert not listener.is_accepting


# Everybody is told


@pytest.mark.parametrize(
    "context",
    [
        raw.context(1, (0x30, raw.VERIFICATION)),
        raw.context(1, (0x40, raw.IMPLICIT)),
        raw.context(1),
        raw.context(1, (0x30, ""), (0x40, "")),
        raw.context(1, (0x30, raw.VERIFICATION), (0x40, raw.IMPLICIT)) + raw.context(3, (0x30, raw.CT)),
        raw.context(1, (0x30, "1." * 60), (0x40, raw.IMPLICIT)),
    ],
    ids=["no transfer syntax", "no abstract syntax", "nothing", "empty names", "one good, one without", "no UID"],
)
def test_a_request_that_the_codec_cannot_answer_is_aborted_or_accepted_and_never_just_closed(listener, context):
    with raw.Raw(listener.port) as peer:
        peer.send(raw.request(context))
        assert peer.read()[0] in (pdu.ABORT, pdu.ASSOCIATE_AC)
    assert echo(listener) == 0x0000


def test_our_own_bug_is_an_abort(listener, nodes):
    nodes[0] = lambda _ae: 1 / 0
    with raw.Raw(listener.port) as peer:
        peer.send(raw.request(*raw.asks_for(raw.VERIFICATION)))
        assert peer.read()[0] == pdu.ABORT


def test_a_device_of_which_nobody_knows_anything_may_try_again(listener, nodes):
    def away(_ae: str) -> None:
        raise DatabaseAway("node")

    nodes[0] = away
    with raw.Raw(listener.port) as peer:
        peer.send(raw.request(*raw.asks_for(raw.VERIFICATION)))
        assert peer.read() == (pdu.ASSOCIATE_RJ, bytes([0, 2, 3, 2]))


# Slots


def test_storage_takes_at_most_half_of_all_connections(listener):
    listener.limits.dicom_connections_max, listener.limits.dicom_associations_per_ae_max = 8, 100
    storing = [raw.associated(listener.port, raw.CT) for _ in range(3)]
    storing.append(raw.associated(listener.port, raw.CT, raw.VERIFICATION))
    for sop_classes in ([raw.CT], [raw.VERIFICATION, raw.CT]):
        with raw.Raw(listener.port) as peer:
            peer.send(raw.request(*raw.asks_for(*sop_classes)))
            assert peer.read() == (pdu.ASSOCIATE_RJ, bytes([0, 2, 3, 2]))
    others = [raw.associated(listener.port, raw.WORKLIST) for _ in range(3)]
    assert echo(listener) == 0x0000
    storing.pop().sock.close()
    assert eventually(lambda: len(listener._connections) <= 6)
    raw.associated(listener.port, raw.CT).sock.close()
    for peer in storing + others:
        peer.sock.close()


def test_the_share_of_storage_can_be_set(listener):
    listener.limits.dicom_storage_associations_max = 1
    with raw.associated(listener.port, raw.CT), raw.Raw(listener.port) as second:
        second.send(raw.request(*raw.asks_for(raw.CT)))
        assert second.read()[0] == pdu.ASSOCIATE_RJ


def test_a_dead_peer_is_noticed_by_the_system(listener):
    with raw.associated(listener.port, raw.VERIFICATION):
        (connection,) = listener._connections
        options = {
            name: connection.sock.getsockopt(
                socket.SOL_SOCKET if name.startswith("SO_") else socket.IPPROTO_TCP, getattr(socket, name)
            )
            for name in KEEPALIVE
        }
    assert options == KEEPALIVE


# The end


def stopping(listener, store) -> threading.Thread:
    """The stop, begun while an answer is kept back, which is then let go."""
    thread = threading.Thread(target=listener.stop, args=[20])
    thread.start()
    time.sleep(0.3)
    assert thread.is_alive()
    store.going.set()
    return thread


def test_a_store_and_a_query_in_work_are_answered_before_the_end(listener, store):
    store.going.clear()
    with raw.associated(listener.port, raw.CT) as sender, raw.associated(listener.port, raw.WORKLIST) as asker:
        sender.send(raw.store(ct()))
        asker.send(raw.message(1, raw.command(raw.C_FIND, raw.WORKLIST), raw.ANY_NAME))
        assert eventually(lambda: sum(one.association.busy for one in listener._connections) == 2)
        thread = stopping(listener, store)
        assert sender.status()[0] == asker.status()[0] == 0x0000
        assert sender.read()[0] == asker.read()[0] == pdu.ABORT
        thread.join(20)
    assert not thread.is_alive()


def test_an_object_half_sent_at_the_end_is_taken_and_answered(listener, store):
    data = raw.store(ct(PixelData=bytes(40_000), Rows=100, Columns=200))
    with raw.associated(listener.port, raw.CT) as sender, raw.associated(listener.port, raw.CT) as idle:
        sender.send(data[:20_000])
        assert eventually(lambda: any(one.association.busy for one in listener._connections))
        thread = threading.Thread(target=listener.stop, args=[20])
        thread.start()
        assert idle.read()[0] == pdu.ABORT
        sender.send(data[20_000:])
        assert sender.status() == (0x0000, "")
        thread.join(20)
    assert store.sinks[0].finished


def test_an_object_that_never_ends_is_cut_when_the_time_to_stop_is_over(listener, store):
    with raw.associated(listener.port, raw.CT) as sender:
        sender.send(raw.store(ct())[:-100])
        assert eventually(lambda: any(one.association.busy for one in listener._connections))
        started = time.monotonic()
        listener.stop(1)
        assert time.monotonic() - started < 5
    assert eventually(store.settled)
