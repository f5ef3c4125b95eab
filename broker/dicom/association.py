"""One association: PDUs in, requests to services, answers out (PS3.7, PS3.8). One thread each."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

from broker import log
from broker.config import Limits
from broker.dicom import dimse, pdu
from broker.dicom.negotiate import Context
from broker.dicom.pdu import Gone, Violation, Wire
from broker.dicom.service import (
    C_CANCEL_RQ,
    C_STORE_RQ,
    Command,
    Peer,
    Request,
    Response,
    Sink,
    refusal,
)
from broker.errors import BrokerError, NotAllowed, Unreadable, Unsupported

FLUSH_BYTES = 64 * 1024  # small answers leave together
OUT_OF_RESOURCES, UNABLE_TO_PROCESS, PROCESSING_FAILURE = 0xA700, 0xC010, 0x0110


class Association:
    """Runs until release, abort or silence. peer_bytes_max: the longest PDU that the peer takes."""

    def __init__(
        self, wire: Wire, peer: Peer, contexts: dict[int, Context], peer_bytes_max: int, limits: Limits,
        stopping: Callable[[], bool],
    ) -> None:  # fmt: skip
        self.wire, self.peer, self.contexts, self.limits = wire, peer, contexts, limits
        self.peer_bytes_max, self.stopping = peer_bytes_max, stopping
        self._waiting: deque[tuple[Context, Command, bytes]] = deque()  # requests that came while one was answered
        self._cancelled: set[int] = set()
        self._assembler = Assembler(self)
        self.busy = False

    def run(self) -> None:
        while not self.stopping():
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
            self.wire.send(pdu.release_reply())
            return False
        if kind == pdu.ABORT:
            return False
        raise Violation(pdu.UNEXPECTED_PDU, f"PDU type {kind:02X} inside an association")

    # answers

    def _answer(self, context: Context, command: Command, data: bytes, sink: Sink | None) -> None:
        if command.field == C_CANCEL_RQ:
            return  # of a request that has been answered: ignored (PS3.7 9.3.2.3)
        self.busy = True
        out = bytearray()
        after = []
        try:
            for response in self._responses(context, command, data, sink):
                out += self._encoded(context, command, response)
                if response.after:
                    after.append(response.after)
                if len(out) >= FLUSH_BYTES:
                    self.wire.send(bytes(out))
                    out.clear()
            self.wire.send(bytes(out))
        finally:
            self._cancelled.discard(command.message_id)
            self.busy = False
        for then in after:
            then()

    def _responses(self, context: Context, command: Command, data: bytes, sink: Sink | None) -> Iterator[Response]:
        dimse_n = command.field >= 0x0100
        try:
            self._permit(context, command)
            yield from context.offer.service.handle(
                Request(
                    peer=self.peer, command=command, transfer_syntax=context.transfer_syntax, dataset=data, sink=sink,
                    extended=context.extended, cancelled=lambda: self._is_cancelled(command),
                )
            )  # fmt: skip
        except BrokerError as error:
            yield refusal(error, dimse_n=dimse_n)
        except (Gone, Violation):
            raise
        except Exception:  # a handler's bug costs one answer, never the port
            log.get().exception("dimse.failed", association=self.peer.association, command=f"{command.field:04X}")
            if dimse_n:
                yield Response(PROCESSING_FAILURE, comment="internal error, see the broker's log")
            else:
                status = OUT_OF_RESOURCES if command.field == C_STORE_RQ else UNABLE_TO_PROCESS
                yield Response(status, comment="internal error, see the broker's log")

    def _permit(self, context: Context, command: Command) -> None:
        if command.field not in context.offer.commands:
            raise Unsupported("Command Field", f"{command.field:04X} is no operation of this SOP class")
        permit(self.peer, context)

    def _encoded(self, context: Context, command: Command, response: Response) -> bytes:
        header = dimse.response(command, response, dimse_n=command.field >= 0x0100)
        out = pdu.p_data(context.id, header, is_command=True, peer_bytes_max=self.peer_bytes_max)
        if response.dataset:
            out += pdu.p_data(context.id, response.dataset, is_command=False, peer_bytes_max=self.peer_bytes_max)
        return out

    def _is_cancelled(self, command: Command) -> bool:
        """Look, without waiting, whether a C-CANCEL-RQ came; other requests queue behind the one being answered."""
        while command.message_id not in self._cancelled and self.wire.waiting():
            kind, body = self.wire.read(self.limits.dicom_pdu_seconds_max)
            if not self._take(kind, body, self._later):
                raise Gone("released while a request was answered")
        return command.message_id in self._cancelled

    def _later(self, context: Context, command: Command, data: bytes, sink: Sink | None) -> None:
        if command.field == C_CANCEL_RQ:
            self._cancelled.add(command.message_id)
            return
        if sink is not None or len(self._waiting) >= self.limits.dicom_pipelined_requests_max:
            raise Violation(pdu.UNEXPECTED_PDU, "too many requests before the answer")
        self._waiting.append((context, command, data))

    def close(self) -> None:
        self._assembler.abort()


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
            permit(self.association.peer, context)
            if command.sop_class != context.sop_class:
                raise Unsupported("Affected SOP Class UID", "differs from the presentation context")
            sink: Sink = context.offer.service.open(self.association.peer, command, context.transfer_syntax)
        except BrokerError as error:
            return Drain(error)
        return sink

    def _add_data(self, data: memoryview) -> None:
        limits = self.association.limits
        if self._sink is None:
            self._keep(data, limits.dicom_identifier_bytes_max)
            return
        self._received += len(data)
        try:
            if self._received > limits.dicom_object_bytes_max:
                raise Unreadable("data set", f"is larger than {limits.dicom_object_bytes_max} bytes")
            self._sink.write(data)
        except BrokerError as error:  # the rest is read and thrown away, and the association kept
            self._sink.abort()
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

    def abort(self) -> None:
        if self._sink is not None:
            self._sink.abort()
        self._reset()


class Drain:
    """Takes the place of a sink that refused: reads the object to its end, then says why."""

    def __init__(self, error: BrokerError) -> None:
        self.error = error

    def write(self, data: memoryview) -> None:
        return

    def finish(self) -> None:
        raise self.error

    def abort(self) -> None:
        return
