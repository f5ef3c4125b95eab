"""The DICOM port: accept, count, hand each connection to a thread of its own (architecture.md 8, durability.md 1.8)."""

import contextlib
import errno
import select
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace

from broker import log
from broker.config import Settings
from broker.dicom import pdu
from broker.dicom.association import Association
from broker.dicom.negotiate import Asked, Context, Negotiator, read
from broker.dicom.pdu import Gone, Violation, Wire
from broker.dicom.service import NodeInfo, Peer, Registry
from broker.errors import ConfigError, DatabaseAway

# A-ASSOCIATE-RJ: result, source, reason (PS3.8 9.3.4).
UNKNOWN_CALLING, UNKNOWN_CALLED, LOCAL_LIMIT = (1, 1, 3), (1, 1, 7), (2, 3, 2)
ACCEPT_PAUSE_SECONDS, STOP_SECONDS, LOOK_SECONDS = 0.5, 1.0, 0.01
SPARE_THREADS_MAX = 8  # that wait at the port


@dataclass(eq=False)
class Connection:
    sock: socket.socket
    address: str
    since: float = field(default_factory=time.monotonic)
    ae_title: str = ""  # empty: not associated yet
    stores_only: bool = False
    association: Association | None = None
    is_served: bool = False


class Rejected(Exception):
    """A-ASSOCIATE-RJ: result, source and reason, and ours in words."""

    def __init__(self, code: tuple[int, int, int], reason: str) -> None:
        self.code, self.reason = code, reason
        super().__init__(reason)


class Listener:
    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        find_node: Callable[[str], NodeInfo | None],
        allowed_address: Callable[[NodeInfo, str], bool],
        refused: Callable[[str, str, str, str], None],
    ) -> None:
        """find_node raises DatabaseAway where it cannot know. refused: told AE title, address, called title and the
        reason of each that was turned away; it raises nothing."""
        self.settings, self.limits = settings, settings.limits
        self._find_node, self._allowed_address, self._refused = find_node, allowed_address, refused
        self._negotiator = Negotiator(registry, self.limits.dicom_pdu_bytes_advertised)
        self._titles = {settings.dicom.ae_title, *settings.dicom.ae_aliases}
        self._connections: set[Connection] = set()
        self._lock, self._trouble = threading.Lock(), threading.Lock()
        self._stopping = threading.Event()
        self._waiting = 0  # threads at the port
        self._gives_way_from = 0.0  # monotonic
        self.port = 0

    def start(self) -> None:
        host, port = self.settings.dicom.host, self.settings.dicom.port
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family, backlog=256)
        except OSError as error:
            raise ConfigError("dicom.port", f"cannot listen on {host}:{port}: {error.strerror}") from None
        self.port = self._socket.getsockname()[1]
        self._waiting = 1
        threading.Thread(target=self._work, name="dicom", daemon=True).start()

    @property
    def is_accepting(self) -> bool:
        return self._waiting > 0 and not self._stopping.is_set()

    def stop(self, seconds: float) -> None:
        """Accept no more, let requests that have begun be answered for at most `seconds`, abort what is idle."""
        self._stopping.set()
        _cut(self._socket)  # wakes those who wait in accept
        until = time.monotonic() + STOP_SECONDS
        while self._waiting and time.monotonic() < until:
            time.sleep(LOOK_SECONDS)
        self._socket.close()
        deadline = time.monotonic() + seconds
        while (left := self._open_connections()) and time.monotonic() < deadline:
            for connection in left:
                if connection.association is None or not connection.association.busy:
                    _cut(connection.sock, socket.SHUT_RD)  # what was read this very moment can still be answered
            time.sleep(LOOK_SECONDS)
        for connection in self._open_connections():
            _cut(connection.sock)

    def _open_connections(self) -> list[Connection]:
        with self._lock:
            return [connection for connection in self._connections if connection.is_served]

    def _work(self) -> None:
        """Threads wait at the port, and who gets a connection serves it while another waits: nothing is handed over.
        Whatever goes wrong costs one connection, or half a second."""
        while not self._stopping.is_set():
            try:
                connection = self._accept_one()
            except Exception as error:
                if self._stopping.is_set():
                    break
                with self._trouble:
                    self._recover(error)
                continue
            if connection is not None:
                self._serve(connection)
                with self._lock:
                    if self._waiting >= SPARE_THREADS_MAX:
                        return
                    self._waiting += 1
        with self._lock:
            self._waiting -= 1

    def _recover(self, error: Exception) -> None:
        """What is missing (descriptors, threads) has half a second to be given back. The kernel says that there are no
        descriptors before somebody needs one: who is silent gives way to who knocks."""
        log.get().error("dicom.accept", exc_info=error)
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            if not poll.poll(ACCEPT_PAUSE_SECONDS * 1000):
                return
            if time.monotonic() >= self._gives_way_from:  # of all threads that wait, for who knocks now
                self._gives_way_from = time.monotonic() + 1.2 * ACCEPT_PAUSE_SECONDS
                with self._lock:
                    self._give_way(self._connections)
        time.sleep(ACCEPT_PAUSE_SECONDS)

    def _accept_one(self) -> Connection | None:
        """Somebody else waits when this returns a connection; None: there was no place for it."""
        sock, peer = self._socket.accept()
        connection = Connection(sock, peer[0])
        with contextlib.ExitStack() as otherwise:
            otherwise.callback(sock.close)
            if not self._admit(connection):
                return None
            otherwise.callback(self._forget, connection)
            self._let_another_wait()
            connection.is_served = True
            otherwise.pop_all()
        return connection

    def _let_another_wait(self) -> None:
        """Raises RuntimeError where there are no threads: then this one goes on to wait."""
        with self._lock:
            if self._waiting > 1:
                self._waiting -= 1
                return
        threading.Thread(target=self._work, name="dicom", daemon=True).start()

    def _admit(self, new: Connection) -> bool:
        """Count it in. Of an address's silent connections the oldest gives way: eleven half-open sockets must not
        shut out the scanner that stands beside them (durability.md 0)."""
        limits = self.limits
        with self._lock:
            same = [other for other in self._connections if other.address == new.address]
            full = len(self._connections) >= limits.dicom_connections_max
            if (full or len(same) >= limits.dicom_connections_per_address_max) and not (
                self._give_way(same) or self._give_way(self._connections)
            ):
                log.get().warning("dicom.full", connections=len(self._connections), address=new.address)
                return False
            self._connections.add(new)
            return True

    def _give_way(self, connections: Collection[Connection]) -> bool:
        """Cut the oldest of them that is not associated; False where all are."""
        silent = [connection for connection in connections if not connection.ae_title]
        if not silent:
            return False
        oldest = min(silent, key=lambda connection: connection.since)
        _cut(oldest.sock)
        self._connections.discard(oldest)
        return True

    def _forget(self, connection: Connection) -> None:
        with self._lock:
            self._connections.discard(connection)

    def _serve(self, connection: Connection) -> None:
        wire = Wire(connection.sock, self.limits.dicom_pdu_bytes_max, self.limits.dicom_pdu_seconds_max)
        try:
            _prepare(connection.sock)
            self._associate(connection, wire)
        except Violation as error:
            log.get().warning("dicom.violation", address=connection.address, text=error.text)
            _abort(wire, error.reason)
        except Gone:
            if self._stopping.is_set():
                _abort(wire)
        except Exception:  # our own bug costs this connection, not the port
            log.get().exception("dicom.connection", address=connection.address)
            _abort(wire)
        finally:
            if connection.association:
                connection.association.close()
            connection.sock.close()
            self._forget(connection)

    def _associate(self, connection: Connection, wire: Wire) -> None:
        limits = self.limits
        kind, body = wire.read(limits.dicom_associate_seconds_max, limits.dicom_associate_pdu_bytes_max)
        if kind != pdu.ASSOCIATE_RQ:
            raise Violation(pdu.UNEXPECTED_PDU, f"PDU type {kind:02X} before an association")
        request = bytes(body)
        asked = read(request, limits.dicom_contexts_max)
        try:
            node = self._judge(asked, connection)
            answer, contexts = self._negotiator.accept(request, limits.dicom_contexts_max)
            self._take_slot(connection, asked.calling, contexts.values())
        except Rejected as no:
            wire.send(pdu.reject(*no.code))  # before it is noted, which may take its time
            self._refused(asked.calling, connection.address, asked.called, no.reason)
            return
        except DatabaseAway:  # nothing is wrong with the device, as far as we know: it may try again
            log.get().error("dicom.no_database", address=connection.address)
            wire.send(pdu.reject(*LOCAL_LIMIT))
            return
        peer = Peer(asked.calling, asked.called, connection.address, uuid.uuid4().hex[:12], node)
        association = Association(
            wire, peer, contexts, asked.bytes_max, limits, self._stopping.is_set, lambda: self._forget(connection),
            self._known_now,
        )  # fmt: skip
        connection.association = association
        wire.send(answer)
        association.run()

    def _judge(self, asked: Asked, connection: Connection) -> NodeInfo | None:
        if asked.called not in self._titles:
            raise Rejected(UNKNOWN_CALLED, "called AE title is not ours")
        node = self._find_node(asked.calling)
        if node is None and self.settings.dicom.unknown_ae != "accept":
            raise Rejected(UNKNOWN_CALLING, "unknown AE title")
        if node is not None and not self._allowed_address(node, connection.address):
            raise Rejected(UNKNOWN_CALLING, "known AE title from another address")
        return node

    def _known_now(self, peer: Peer) -> Peer:
        """A device that is removed meanwhile may do nothing any more."""
        try:
            node = self._find_node(peer.ae_title)
        except DatabaseAway:
            return peer
        if node is None and peer.node is not None:
            node = replace(peer.node, rights=frozenset())
        return peer if node == peer.node else replace(peer, node=node)

    def _take_slot(self, connection: Connection, ae_title: str, contexts: Iterable[Context]) -> None:
        """A storm of images must leave room for worklist and MPPS (durability.md 1.8)."""
        limits = self.limits
        stores_only = _stores_only(contexts)
        storing_max = limits.dicom_storage_associations_max or limits.dicom_connections_max // 2
        with self._lock:
            if sum(other.ae_title == ae_title for other in self._connections) >= limits.dicom_associations_per_ae_max:
                raise Rejected(LOCAL_LIMIT, "too many associations of this AE")
            if stores_only and sum(other.stores_only for other in self._connections) >= storing_max:
                raise Rejected(LOCAL_LIMIT, "too many associations that store")
            connection.ae_title, connection.stores_only = ae_title, stores_only


def _stores_only(contexts: Iterable[Context]) -> bool:
    """Beside storage it can do nothing that needs a right (C-ECHO needs none)."""
    offers = [context.offer for context in contexts]
    return any(offer.is_storage for offer in offers) and all(
        offer.is_storage or not offer.service.right for offer in offers
    )


def _prepare(sock: socket.socket) -> None:
    """A dead peer frees its slot within 180 s, and small answers leave at once."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    timers = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6, "TCP_USER_TIMEOUT": 120_000}
    for option, value in timers.items():
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _cut(sock: socket.socket, how: int = socket.SHUT_RDWR) -> None:
    """Wake the thread that reads from it."""
    with contextlib.suppress(OSError):
        sock.shutdown(how)


def _abort(wire: Wire, reason: int = pdu.NOT_SPECIFIED) -> None:
    with contextlib.suppress(Gone):
        wire.send(pdu.abort(reason))
