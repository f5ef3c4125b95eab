"""The DICOM port: accept, count, hand each connection to a thread of its own (architecture.md 8, durability.md 1.8)."""

import contextlib
import errno
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

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
ACCEPT_POLL_SECONDS = 0.5


@dataclass(eq=False)
class Connection:
    sock: socket.socket
    address: str
    since: float = field(default_factory=time.monotonic)
    ae_title: str = ""  # empty: not associated yet
    stores_only: bool = False
    association: Association | None = None
    thread: threading.Thread | None = None


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

    @property
    def is_accepting(self) -> bool:
        return self._accepting is not None and self._accepting.is_alive()

    def stop(self, seconds: float) -> None:
        """Accept no more, let requests that have begun be answered for at most `seconds`, abort what is idle."""
        self._stopping.set()
        _cut(self._socket)  # wakes the accept
        if self._accepting:
            self._accepting.join()
        self._socket.close()
        deadline = time.monotonic() + seconds
        while (left := self._open_connections()) and time.monotonic() < deadline:
            for connection in left:
                if connection.association is None or not connection.association.busy:
                    _cut(connection.sock, socket.SHUT_RD)  # what was read this very moment can still be answered
            left[0].thread.join(0.05)  # type: ignore[union-attr]
        for connection in self._open_connections():
            _cut(connection.sock)

    def _open_connections(self) -> list[Connection]:
        with self._lock:
            return [connection for connection in self._connections if connection.thread]

    def _accept(self) -> None:
        """This thread is the port: whatever goes wrong costs one connection, or half a second."""
        while not self._stopping.is_set():
            try:
                self._accept_one()
            except TimeoutError:
                continue
            except Exception as error:
                if self._stopping.is_set():
                    return
                log.get().exception("dicom.accept")
                if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
                    with self._lock:
                        self._give_way(self._connections)
                time.sleep(ACCEPT_POLL_SECONDS)  # for what is missing (descriptors, threads) to be given back

    def _accept_one(self) -> None:
        sock, peer = self._socket.accept()
        connection = Connection(sock, peer[0])
        with contextlib.ExitStack() as otherwise:
            otherwise.callback(sock.close)
            if self._admit(connection):
                otherwise.callback(self._forget, connection)
                thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
                thread.start()
                connection.thread = thread
                otherwise.pop_all()

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
        association = Association(wire, peer, contexts, asked.bytes_max, limits, self._stopping.is_set)
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
