"""One association: PDUs in, requests to services, answers out (PS3.7, PS3.8). One thread each."""

import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache

from broker import db, log
from broker.config import Limits
from broker.dicom import dimse, pdu
from broker.dicom.negotiate import Context
from broker.dicom.pdu import Gone, Violation, Wire
from broker.dicom.service import (
    C_CANCEL_RQ,
    C_FIND_RQ,
    C_STORE_RQ,
    Command,
    Peer,
    Request,
    Response,
    Sink,
    refusal,
)
from broker.errors import BrokerError, DatabaseAway, NotAllowed, Unreadable, Unsupported

FLUSH_BYTES = 64 * 1024  # small answers leave together
# A device that sees a long list coming may cancel it: the first answers leave before the others are made, and the last
# ones not before it has had this time. A list of no more answers leaves at once.
FIRST_ANSWERS, CANCEL_SECONDS = 20, 0.003
LOOK_SECONDS = 0.001  # between two looks for a C-CANCEL-RQ
DONE, CANCELLED, PENDING = 0x0000, 0xFE00, (0xFF00, 0xFF01)
ANY_IDENTIFIER = b"."
SINKS_MAX = 2  # one being answered, one that begins: no peer may have more under way (PS3.7 D.3.3.3)
OUT_OF_RESOURCES, UNABLE_TO_PROCESS, PROCESSING_FAILURE = 0xA700, 0xC010, 0x0110


class Association:
    """Runs until release, abort or silence. peer_bytes_max: the longest PDU that the peer takes."""

    def __init__(
        self, wire: Wire, peer: Peer, contexts: dict[int, Context], peer_bytes_max: int, limits: Limits,
        stopping: Callable[[], bool], released: Callable[[], None] = lambda: None,
        known_now: Callable[[Peer], Peer] = lambda peer: peer,
    ) -> None:  # fmt: skip
        """released: called before a release is confirmed, so that who comes again at once finds its place free.
        known_now: asked before each request, as the site may have changed what it knows of the peer."""
        self.wire, self.peer, self.contexts, self.limits = wire, peer, contexts, limits
        self.peer_bytes_max, self.stopping, self._released = peer_bytes_max, stopping, released
        self._known_now = known_now
        self._waiting: deque[tuple[Context, Command, bytes]] = deque()  # requests that came while one was answered
        self._cancelled: set[int] = set()
        self._looked_at = 0.0
        self._sent, self._may_cancel_until = 0, 0.0
        self._assembler = Assembler(self)
        self._sinks: set[Sink] = set()  # opened, and not finished yet
        self._answering = False

    @property
    def busy(self) -> bool:
        """Whether a request has begun and is not answered."""
        return self._answering or self._assembler.has_begun

    def run(self) -> None:
        while self._assembler.has_begun or not self.stopping():
            if self._waiting:
                context, command, data = self._waiting.popleft()
                self._answer(context, command, data, None)
                continue
            kind, body = self.wire.read(self.limits.dicom_idle_seconds_max)
            if not self._take(kind, body, self._answer):
                return
        self.wire.send(pdu.abort())

    def _take(self, kind: int, body: memoryview, serve: Callable[[Context, Command, bytes, Sink | None], None]) -> bool:
        """Work on one PDU; False when the association is over."""
        if kind == pdu.P_DATA:
            # Served after the loop: a service that looks for a C-CANCEL reads on, and `body` is gone then.
            messages = [self._assembler.add(*fragment) for fragment in pdu.fragments(body)]
            for message in filter(None, messages):
                serve(*message)
            return True
        if kind == pdu.RELEASE_RQ:
            self._released()
            self.wire.send(pdu.release_reply())
            return False
        if kind == pdu.ABORT:
            return False
        raise Violation(pdu.UNEXPECTED_PDU, f"PDU type {kind:02X} inside an association")

    # answers

    def _answer(self, context: Context, command: Command, data: bytes, sink: Sink | None) -> None:
        if command.field == C_CANCEL_RQ:
            return  # of a request that has been answered: ignored (PS3.7 9.3.2.3)
        self._answering, self._sent, self._may_cancel_until = True, 0, 0.0
        out = bytearray()
        after = []
        try:
            for n, response in enumerate(self._responses(context, command, data, sink)):
                if len(out) >= FLUSH_BYTES or (n == FIRST_ANSWERS and response.dataset):
                    self._sent = n  # also where the peer hangs up meanwhile: some of them may have reached it
                    self.wire.send(bytes(out))
                    out.clear()
                    self._may_cancel_until = self._may_cancel_until or time.monotonic() + CANCEL_SECONDS
                if response.status == CANCELLED:
                    out.clear()  # in the place of what is unsent
                out += self._encoded(context, command, response)
                if response.after:
                    after.append(response.after)
            self.wire.send(bytes(out))
        finally:
            self._cancelled.discard(command.message_id)
            if sink is not None:
                self.drop(sink)
            self._answering = False
        for then in after:
            then()

    def _responses(self, context: Context, command: Command, data: bytes, sink: Sink | None) -> Iterator[Response]:
        try:
            self._permit(context, command)
            yield from context.offer.service.handle(
                Request(
                    peer=self.peer, command=command, transfer_syntax=context.transfer_syntax, dataset=data, sink=sink,
                    extended=context.extended, cancelled=lambda: self._is_cancelled(command),
                    cancelled_at_the_end=lambda: self._is_cancelled_at_the_end(command), sent=lambda: self._sent,
                )
            )  # fmt: skip
            self._sinks.discard(sink)
        except (Gone, Violation):
            raise
        except Exception as error:
            yield self._failure(command, error)

    def _failure(self, command: Command, error: Exception) -> Response:
        """A handler's bug costs one answer, never the port."""
        dimse_n = command.field >= 0x0100
        if db.is_away(error):
            log.get().error("dimse.no_database", association=self.peer.association, command=f"{command.field:04X}")
            error = DatabaseAway("database")
        if isinstance(error, BrokerError):
            said = refusal(error, dimse_n=dimse_n)
            if command.field == C_FIND_RQ and isinstance(error, DatabaseAway):
                said.status = OUT_OF_RESOURCES  # A702 is of C-STORE alone (conformance.md 1.9, 3.1)
            return said
        log.get().error(
            "dimse.failed", association=self.peer.association, command=f"{command.field:04X}", exc_info=error
        )
        status = OUT_OF_RESOURCES if command.field == C_STORE_RQ else UNABLE_TO_PROCESS
        return Response(PROCESSING_FAILURE if dimse_n else status, comment="internal error, see the broker's log")

    def _permit(self, context: Context, command: Command) -> None:
        self.peer = self._known_now(self.peer)
        if command.field not in context.offer.commands:
            raise Unsupported("Command Field", f"{command.field:04X} is no operation of this SOP class")
        permit(self.peer, context)

    def _encoded(self, context: Context, command: Command, response: Response) -> bytes:
        if response.status in PENDING:
            out = _pending(context.id, command, response.status, self.peer_bytes_max)
            return out + _identifier(context.id, response.dataset, self.peer_bytes_max)
        header = dimse.response(command, response, dimse_n=command.field >= 0x0100)
        out = pdu.p_data(context.id, header, is_command=True, peer_bytes_max=self.peer_bytes_max)
        if response.dataset:
            out += pdu.p_data(context.id, response.dataset, is_command=False, peer_bytes_max=self.peer_bytes_max)
        return out

    def _is_cancelled(self, command: Command, until: float = 0.0) -> bool:
        """Look whether a C-CANCEL-RQ came, and wait for it until then; other requests queue behind the one being
        answered."""
        now = time.monotonic()
        if not until and now - self._looked_at < LOOK_SECONDS:
            return command.message_id in self._cancelled
        self._looked_at = now
        while command.message_id not in self._cancelled and (
            self.wire.waiting() or self._something_comes(until - time.monotonic())
        ):
            kind, body = self.wire.read(self.limits.dicom_pdu_seconds_max)
            if not self._take(kind, body, self._later):
                raise Gone("released while a request was answered")
        return command.message_id in self._cancelled

    def _is_cancelled_at_the_end(self, command: Command) -> bool:
        """A list that left at once cannot be cancelled any more."""
        return self._may_cancel_until > 0 and self._is_cancelled(command, self._may_cancel_until)

    def _something_comes(self, seconds: float) -> bool:
        if seconds <= 0:
            return False
        if hasattr(socket, "TCP_QUICKACK"):  # a peer under Nagle keeps the rest of its PDU until the start is confirmed
            self.wire.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        poll = select.poll()  # select.select takes no descriptor above 1023
        poll.register(self.wire.sock, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def _later(self, context: Context, command: Command, data: bytes, sink: Sink | None) -> None:
        if command.field == C_CANCEL_RQ:
            self._cancelled.add(command.message_id)
            return
        if sink is not None or len(self._waiting) >= self.limits.dicom_pipelined_requests_max:
            raise Violation(pdu.UNEXPECTED_PDU, "too many requests before the answer")
        self._waiting.append((context, command, data))

    # sinks

    def open_sink(self, context: Context, command: Command) -> Sink:
        """Raises Violation where the peer has too many objects under way, and what the service raises."""
        self.peer = self._known_now(self.peer)
        permit(self.peer, context)
        if command.sop_class != context.sop_class:
            raise Unsupported("Affected SOP Class UID", "differs from the presentation context")
        if len(self._sinks) >= SINKS_MAX:
            raise Violation(pdu.UNEXPECTED_PDU, "too many objects before the answer")
        sink: Sink = context.offer.service.open(self.peer, command, context.transfer_syntax)
        self._sinks.add(sink)
        return sink

    def drop(self, sink: Sink) -> None:
        """Nothing of an object that is not finished stays behind."""
        if sink in self._sinks:
            self._sinks.discard(sink)
            try:
                sink.abort()
            except Exception:  # the others must go, too
                log.get().exception("dimse.not_aborted", association=self.peer.association)

    def close(self) -> None:
        for sink in list(self._sinks):
            self.drop(sink)


@lru_cache(256)
def _pending(context: int, command: Command, status: int, peer_bytes_max: int) -> bytes:
    """The command set of every answer of a list: they differ in their identifiers alone."""
    header = dimse.response(command, Response(status, ANY_IDENTIFIER), dimse_n=False)
    return pdu.p_data(context, header, is_command=True, peer_bytes_max=peer_bytes_max)


@lru_cache(4096)
def _identifier(context: int, dataset: bytes, peer_bytes_max: int) -> bytes:
    """Most items are asked for again as they were."""
    return pdu.p_data(context, dataset, is_command=False, peer_bytes_max=peer_bytes_max)


def permit(peer: Peer, context: Context) -> None:
    """0124 for a known node without the right (conformance.md 1.9, 2.4)."""
    right = context.offer.service.right
    if right and peer.node is not None and right not in peer.node.rights:
        raise NotAllowed("association", f"this AE has no right '{right}' here")


class Assembler:
    """Puts the fragments of one message together: commands and identifiers in memory up to their caps, the data set of
    a C-STORE straight into its sink."""

    def __init__(self, association: Association) -> None:
        self.association = association
        self._reset()

    def _reset(self) -> None:
        self._context: Context | None = None
        self._command: Command | None = None
        self._buffer = bytearray()
        self._sink: Sink | None = None
        self._received = 0

    @property
    def has_begun(self) -> bool:
        return self._context is not None

    def add(
        self, context_id: int, is_command: bool, is_last: bool, data: memoryview
    ) -> tuple[Context, Command, bytes, Sink | None] | None:
        """The whole message once its last fragment is here."""
        context = self.association.contexts.get(context_id)
        if context is None or (self._context is not None and context is not self._context):
            raise Violation(pdu.INVALID_PARAMETER, f"presentation context {context_id}")
        self._context = context
        if is_command != (self._command is None):
            raise Violation(pdu.UNEXPECTED_PDU, "command and data set fragments out of order")
        if is_command:
            return self._add_command(context, is_last, data)
        assert self._command is not None
        self._add_data(data)
        return self._done(context, self._command) if is_last else None

    def _add_command(
        self, context: Context, is_last: bool, data: memoryview
    ) -> tuple[Context, Command, bytes, Sink | None] | None:
        self._keep(data, self.association.limits.dicom_command_bytes_max)
        if not is_last:
            return None
        try:
            self._command = dimse.command(dimse.parse(bytes(self._buffer)))
        except Unreadable as error:
            raise Violation(pdu.INVALID_PARAMETER, str(error)) from None
        self._buffer.clear()
        if not self._command.has_dataset:
            return self._done(context, self._command)
        if self._command.field == C_STORE_RQ and context.offer.is_storage:
            self._sink = self._open(context, self._command)
        return None

    def _open(self, context: Context, command: Command) -> Sink:
        try:
            return self.association.open_sink(context, command)
        except Violation:
            raise
        except Exception as error:
            return Drain(error)

    def _add_data(self, data: memoryview) -> None:
        limits = self.association.limits
        if self._sink is None:
            is_n = self._command is not None and self._command.field >= 0x0100
            self._keep(data, limits.dicom_attributes_bytes_max if is_n else limits.dicom_identifier_bytes_max)
            return
        self._received += len(data)
        try:
            if self._received > limits.dicom_object_bytes_max:
                raise Unreadable("data set", f"is larger than {limits.dicom_object_bytes_max} bytes")
            self._sink.write(data)
        except Exception as error:  # the rest is read and thrown away, and the association kept
            self.association.drop(self._sink)
            self._sink = Drain(error)

    def _keep(self, data: memoryview, bytes_max: int) -> None:
        if len(self._buffer) + len(data) > bytes_max:
            raise Violation(pdu.INVALID_PARAMETER, f"more than {bytes_max} bytes of a command or identifier")
        self._buffer += data

    def _done(self, context: Context, command: Command) -> tuple[Context, Command, bytes, Sink | None]:
        message = (context, replace(command, sop_class=command.sop_class or context.sop_class), bytes(self._buffer),
                   self._sink)  # fmt: skip
        self._reset()
        return message


class Drain:
    """Takes the place of a sink that refused: reads the object to its end, then says why."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def write(self, data: memoryview) -> None:
        return

    def finish(self) -> None:
        raise self.error

    def abort(self) -> None:
        return
