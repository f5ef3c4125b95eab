"""MLLP: 0B message 1C 0D over TCP, with TLS on a port of its own (conformance.md 5.6). asyncio for framing and
deadlines only."""

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from broker import db, log
from broker.config import Hl7, Settings
from broker.errors import ConfigError
from broker.ris_bridge import journal
from broker.ris_bridge.hl7.road import Reply, peer_of
from broker.ris_bridge.turns import TURNS, Turn

START, END = b"\x0b", b"\x1c\x0d"
CHUNK_BYTES = 64 * 1024
BACKLOG = 128
PAUSE_SECONDS = 0.2  # after accept failed: out of descriptors; who knocks stays in the backlog
NOTE_SECONDS_BETWEEN = 0.1  # one commit notes what was answered meanwhile
STOP_SHARE = 0.9  # of the time to stop: for answers; the rest is for whoever waits until we have stopped
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"  # of TLS 1.2; those of 1.3 are all as good

Handle = Callable[[bytes, str, Turn], Reply | None]


@dataclass(eq=False)
class Connection:
    """spoken: it has sent a whole message. Who has not gives way to a new one when the port is full."""

    address: str
    task: "asyncio.Task[None] | None" = None
    spoken: bool = False


class MllpServer:
    """handle(message, peer, turn) runs in a thread and gives the reply; None = close without one. port, tls_port: 0
    where there is none."""

    def __init__(self, settings: Settings, handle: Handle) -> None:
        self.settings, self.limits, self._handle = settings, settings.limits, handle
        self._open: dict[Connection, None] = {}  # the oldest first
        self._tasks: set[asyncio.Task[None]] = set()  # connections, and the one that notes
        self._waiting: set[asyncio.Task[None]] = set()  # connections without a message in work
        self._doors: list[tuple[socket.socket, asyncio.Task[None]]] = []
        # As many as connections: messages that wait for one about their patient keep nobody else waiting.
        self._workers = ThreadPoolExecutor(self.limits.mllp_connections_max, "hl7-message")
        self._sent: list[int] = []
        self._noter: asyncio.Task[None] | None = None
        self._stopping = False
        self.port = self.tls_port = 0

    async def start(self) -> None:
        hl7 = self.settings.hl7
        try:
            if isinstance(hl7.port, int):
                self.port = self._listen("hl7.port", hl7.port, None)
            if hl7.tls_port is not None:
                self.tls_port = self._listen("hl7.tls_port", hl7.tls_port, tls_context(hl7))
            if not self._doors:
                raise ConfigError("hl7.port", "is off, and there is no hl7.tls_port: nobody could send anything")
        except ConfigError:
            await self.stop()
            raise

    @property
    def is_accepting(self) -> bool:
        return not any(task.done() for _, task in self._doors)

    async def stop(self) -> None:
        """Connections that wait for a message end at once, those with one in work when it is answered."""
        self._stopping = True
        for door, task in self._doors:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            door.close()
        for task in self._waiting:
            task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.limits.stop_seconds_max * STOP_SHARE):
                while self._tasks:
                    await asyncio.wait(self._tasks)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._workers.shutdown(wait=False)

    # Who comes in

    def _listen(self, setting: str, port: int, tls: ssl.SSLContext | None) -> int:
        host = self.settings.hl7.host
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            door = socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError as error:
            raise ConfigError(setting, f"cannot listen on {host}:{port}: {error.strerror}") from None
        door.setblocking(False)
        self._doors.append((door, asyncio.get_running_loop().create_task(self._accept(door, tls))))
        return int(door.getsockname()[1])

    async def _accept(self, door: socket.socket, tls: ssl.SSLContext | None) -> None:
        """Never waits for anybody who was let in: a TLS handshake is its connection's own affair."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, address = await loop.sock_accept(door)
            except OSError as error:
                log.get().error("hl7.accept_failed", kind=errno.errorcode.get(error.errno or 0, ""))
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            if not self._has_room(address[0]):
                log.get().warning("hl7.full", peer=address[0])
                sock.close()
                continue
            connection = Connection(address[0])
            self._open[connection] = None
            connection.task = loop.create_task(self._converse(connection, sock, tls))
            self._tasks.add(connection.task)
            self._waiting.add(connection.task)
            connection.task.add_done_callback(self._left)

    def _left(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        self._waiting.discard(task)
        self._open = {connection: None for connection in self._open if connection.task is not task}
        if not task.cancelled() and task.exception():
            log.get().error("hl7.connection_failed", exc_info=task.exception())

    def _has_room(self, address: str) -> bool:
        """Where it is full, the oldest that has never sent a message gives way (durability.md 1.8)."""
        of_address = [connection for connection in self._open if connection.address == address]
        if len(of_address) >= self.limits.mllp_connections_per_address_max:
            crowd: Iterable[Connection] = of_address
        elif len(self._open) >= self.limits.mllp_connections_max:
            crowd = self._open
        else:
            return True
        silent = next((connection for connection in crowd if not connection.spoken), None)
        if silent is None:
            return False
        log.get().info("hl7.gave_way", peer=silent.address)
        del self._open[silent]
        assert silent.task is not None
        silent.task.cancel()
        return True

    async def _converse(self, connection: Connection, sock: socket.socket, tls: ssl.SSLContext | None) -> None:
        writer = None
        try:
            reader, writer = await self._streams(sock, tls)
            names = names_of(writer.get_extra_info("peercert") or {})
            await self._serve(reader, writer, connection, peer_of(connection.address, names))
        except (OSError, TimeoutError, asyncio.CancelledError) as error:
            if writer is None and not isinstance(error, asyncio.CancelledError):
                reason = getattr(error, "reason", None) or type(error).__name__
                log.get().warning("hl7.tls_refused", peer=connection.address, reason=reason)
        finally:
            if writer is not None:
                writer.close()

    async def _streams(
        self, sock: socket.socket, tls: ssl.SSLContext | None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """As asyncio.open_connection gives them, of a connection that was accepted. Raises OSError where the handshake
        fails or takes too long."""
        prepare(sock)
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=CHUNK_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        seconds = self.limits.mllp_tls_seconds_max if tls else None
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol, sock, ssl=tls, ssl_handshake_timeout=seconds, ssl_shutdown_timeout=seconds
        )
        transport.set_write_buffer_limits(0)  # drained: all of it is in the socket
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    # What it says

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: Connection, peer: str
    ) -> None:
        task, loop, buffer = connection.task, asyncio.get_running_loop(), bytearray()
        assert task is not None
        while not self._stopping:
            self._waiting.add(task)
            frame = await self._frame(reader, buffer, peer)
            self._waiting.discard(task)
            if frame is None:
                return
            connection.spoken = True
            turn = TURNS.draw()
            try:
                reply = await loop.run_in_executor(self._workers, self._handle, frame, peer, turn)
            finally:
                turn.done()
            if reply is None:
                return
            if reply.raw:
                writer.write(START + reply.raw + END)
                await asyncio.wait_for(writer.drain(), self.limits.mllp_frame_seconds_max)
            self._note_sent(reply.message_pks)

    def _note_sent(self, message_pks: Iterable[int]) -> None:
        self._sent += message_pks
        if self._sent and (self._noter is None or self._noter.done()):
            self._noter = asyncio.create_task(self._note())
            self._tasks.add(self._noter)
            self._noter.add_done_callback(self._tasks.discard)

    async def _note(self) -> None:
        """Beside the connections: no message waits for it, and its failure breaks none."""
        while self._sent:
            await asyncio.sleep(0 if self._stopping else NOTE_SECONDS_BETWEEN)
            sent, self._sent = self._sent, []
            try:
                await asyncio.to_thread(db.run, journal.note_sent, sent)
            except Exception:  # the answers are out, which is what counts
                log.get().exception("hl7.note_failed", messages=len(sent))

    async def _frame(self, reader: asyncio.StreamReader, buffer: bytearray, peer: str) -> bytes | None:
        """The next message; None when the peer closed, sent half a frame too slowly, or too much."""
        while True:
            start = buffer.find(START)
            del buffer[: start if start >= 0 else len(buffer)]  # junk before a frame
            if buffer:
                break
            chunk = await asyncio.wait_for(reader.read(CHUNK_BYTES), self.limits.mllp_idle_seconds_max)
            if not chunk:
                return None
            buffer += chunk
        searched = 0
        async with asyncio.timeout(self.limits.mllp_frame_seconds_max):
            while (end := buffer.find(END, max(0, searched - 1))) < 0:
                searched = len(buffer)
                if searched > self.limits.mllp_frame_bytes_max:
                    log.get().warning("hl7.frame_too_long", peer=peer, bytes=searched)
                    return None
                chunk = await reader.read(CHUNK_BYTES)
                if not chunk:
                    return None
                buffer += chunk
        frame = bytes(buffer[1:end])
        del buffer[: end + len(END)]
        if START in frame:  # the sender broke one off and began anew: two halves are no message
            log.get().warning("hl7.frame_broken_off", peer=peer)
            frame = frame[frame.rindex(START) + 1 :]
        return frame


def prepare(sock: socket.socket) -> None:
    """A dead peer frees its slot within 180 s, although a living one may be idle for a day (durability.md 1.7)."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    timers = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6, "TCP_USER_TIMEOUT": 120_000}
    for option, value in timers.items():
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def tls_context(hl7: Hl7) -> ssl.SSLContext:
    """TLS 1.2 or newer; nobody without a certificate of our authority. Raises ConfigError naming the setting."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.verify_mode = ssl.CERT_REQUIRED
    for name in ("tls_cert", "tls_key", "tls_ca"):
        if getattr(hl7, name) is None:
            raise ConfigError(f"hl7.{name}", "is required where hl7.tls_port is set")
    try:
        context.load_cert_chain(
            str(hl7.tls_cert), str(hl7.tls_key), password=""
        )  # no prompt: a key with one is refused
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError("hl7.tls_cert", f"cannot be loaded with hl7.tls_key: {_why(error)}") from None
    try:
        context.load_verify_locations(str(hl7.tls_ca))
    except (OSError, ValueError) as error:
        raise ConfigError("hl7.tls_ca", f"cannot be loaded: {_why(error)}") from None
    return context


def _why(error: Exception) -> str:
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)


def names_of(certificate: dict) -> list[str]:
    """Common name and DNS names of a verified client certificate, as ssl.getpeercert gives it."""
    subject = [value for part in certificate.get("subject", ()) for name, value in part if name == "commonName"]
    return subject + [value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"]
