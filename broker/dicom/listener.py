"""The DICOM port: accept, count, hand each connection to a thread of its own (architecture.md 8, durability.md 1.8)."""

import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from broker import log
from broker.config import Settings
from broker.dicom import pdu
from broker.dicom.association import Association
from broker.dicom.negotiate import Asked, Negotiator, read
from broker.dicom.pdu import Gone, Violation, Wire
from broker.dicom.service import NodeInfo, Peer, Registry
from broker.errors import ConfigError

# A-ASSOCIATE-RJ: result, source, reason (PS3.8 9.3.4).
UNKNOWN_CALLING, UNKNOWN_CALLED, LOCAL_LIMIT = (1, 1, 3), (1, 1, 7), (2, 3, 2)
ACCEPT_POLL_SECONDS = 0.5


@dataclass(eq=False)
class Connection:
    sock: socket.socket
    address: str
    since: float = field(default_factory=time.monotonic)
    ae_title: str = ""  # empty: not associated yet
    association: Association | None = None
    thread: threading.Thread | None = None


class Listener:
    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        find_node: Callable[[str], NodeInfo | None],
        allowed_address: Callable[[NodeInfo, str], bool],
        refused: Callable[[str, str, str, str], None],
    ) -> None:
        """refused: told AE title, address, called title and the reason of each that was turned away."""
        self.settings, self.limits = settings, settings.limits
        self._find_node, self._allowed_address, self._refused = find_node, allowed_address, refused
        self._negotiator = Negotiator(registry, self.limits.dicom_pdu_bytes_advertised)
        self._titles = {settings.dicom.ae_title, *settings.dicom.ae_aliases}
        self._connections: set[Connection] = set()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._accepting: threading.Thread | None = None
        self.port = 0

    def start(self) -> None:
        host, port = self.settings.dicom.host, self.settings.dicom.port
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family, backlog=256)
        except OSError as error:
            raise ConfigError("dicom.port", f"cannot listen on {host}:{port}: {error.strerror}") from None
        self._socket.settimeout(ACCEPT_POLL_SECONDS)
        self.port = self._socket.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept, name="dicom", daemon=True)
        self._accepting.start()

    def stop(self, seconds: float) -> None:
        """Accept no more, let running requests finish for at most `seconds`, cut what is idle."""
        self._stopping.set()
        _cut(self._socket)  # wakes the accept
        if self._accepting:
            self._accepting.join()
        self._socket.close()
        deadline = time.monotonic() + seconds
        while (left := self._open_connections()) and time.monotonic() < deadline:
            for connection in left:
                if connection.association is None or not connection.association.busy:
                    _cut(connection.sock)
            left[0].thread.join(0.05)  # type: ignore[union-attr]
        for connection in self._open_connections():
            _cut(connection.sock)

    def _open_connections(self) -> list[Connection]:
        with self._lock:
            return [connection for connection in self._connections if connection.thread]

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                sock, peer = self._socket.accept()
            except TimeoutError:
                continue
            except OSError:
                if self._stopping.is_set():
                    return
                log.get().exception("dicom.accept")  # out of descriptors: wait for some to be given back
                time.sleep(ACCEPT_POLL_SECONDS)
                continue
            connection = Connection(sock, peer[0])
            if self._admit(connection):
                connection.thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
                connection.thread.start()
            else:
                sock.close()

    def _admit(self, new: Connection) -> bool:
        """Count it in. Of an address's silent connections the oldest gives way: eleven half-open sockets must not
        shut out the scanner that stands beside them (durability.md 0)."""
        limits = self.limits
        with self._lock:
            same = [other for other in self._connections if other.address == new.address]
            silent = sorted((other for other in same if not other.ae_title), key=lambda other: other.since)
            full = len(self._connections) >= limits.dicom_connections_max
            if full or len(same) >= limits.dicom_connections_per_address_max:
                victims = silent or sorted(
                    (other for other in self._connections if not other.ae_title), key=lambda other: other.since
                )
                if not victims:
                    log.get().warning("dicom.full", connections=len(self._connections), address=new.address)
                    return False
                _cut(victims[0].sock)
                self._connections.discard(victims[0])
            self._connections.add(new)
            return True

    def _serve(self, connection: Connection) -> None:
        try:
            _prepare(connection.sock)
            wire = Wire(connection.sock, self.limits.dicom_pdu_bytes_max, self.limits.dicom_pdu_seconds_max)
            try:
                self._associate(connection, wire)
            except Violation as error:
                log.get().warning("dicom.violation", address=connection.address, text=error.text)
                wire.send(pdu.abort(error.reason))
        except Gone:
            pass
        except Exception:  # our own bug costs this connection, not the port
            log.get().exception("dicom.connection", address=connection.address)
        finally:
            if connection.association:
                connection.association.close()
            connection.sock.close()
            with self._lock:
                self._connections.discard(connection)

    def _associate(self, connection: Connection, wire: Wire) -> None:
        limits = self.limits
        kind, body = wire.read(limits.dicom_associate_seconds_max, limits.dicom_associate_pdu_bytes_max)
        if kind != pdu.ASSOCIATE_RQ:
            raise Violation(pdu.UNEXPECTED_PDU, f"PDU type {kind:02X} before an association")
        request = bytes(body)
        asked = read(request, limits.dicom_contexts_max)
        node, rejection, reason = self._judge(asked, connection)
        if rejection:
            self._refused(asked.calling, connection.address, asked.called, reason)
            wire.send(pdu.reject(*rejection))
            return
        answer, contexts = self._negotiator.accept(request, limits.dicom_contexts_max)
        peer = Peer(asked.calling, asked.called, connection.address, uuid.uuid4().hex[:12], node)
        association = Association(wire, peer, contexts, asked.bytes_max, limits, self._stopping.is_set)
        connection.association = association
        wire.send(answer)
        association.run()

    def _judge(self, asked: Asked, connection: Connection) -> tuple[NodeInfo | None, tuple[int, int, int] | None, str]:
        """The node, or the rejection and its reason."""
        if asked.called not in self._titles:
            return None, UNKNOWN_CALLED, "called AE title is not ours"
        node = self._find_node(asked.calling)
        if node is None and self.settings.dicom.unknown_ae != "accept":
            return None, UNKNOWN_CALLING, "unknown AE title"
        if node is not None and not self._allowed_address(node, connection.address):
            return None, UNKNOWN_CALLING, "known AE title from another address"
        with self._lock:
            counts = Counter(other.ae_title for other in self._connections)
            if counts[asked.calling] >= self.limits.dicom_associations_per_ae_max:
                return None, LOCAL_LIMIT, "too many associations of this AE"
            connection.ae_title = asked.calling
        return node, None, ""


def _prepare(sock: socket.socket) -> None:
    """A dead peer frees its slot within 180 s, and small answers leave at once."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    timers = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6, "TCP_USER_TIMEOUT": 120_000}
    for option, value in timers.items():
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _cut(sock: socket.socket) -> None:
    """Wake the thread that reads from it."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        return
