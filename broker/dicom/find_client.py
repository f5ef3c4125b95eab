"""A C-FIND asked by us (PS3.7 9.1.2): one question, its answers as the bytes that came. What comes is hostile: every
length has its cap before anything is kept, and the whole its deadline. The association items are pynetdicom's."""

import contextlib
import socket
import struct
import time
from dataclasses import dataclass, field

from pydicom.uid import UID
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
)
from pynetdicom.presentation import PresentationContext

from broker.config import Limits
from broker.dicom import dimse, pdu
from broker.dicom.negotiate import APPLICATION_CONTEXT, IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION
from broker.dicom.pdu import Gone, Violation, Wire
from broker.dicom.service import C_FIND_RQ
from broker.dicom.tree import IMPLICIT_LE
from broker.errors import Unreadable

CONTEXT_ID = MESSAGE_ID = 1
DATASET_FOLLOWS = 0x0001
DONE, PENDING = 0x0000, (0xFF00, 0xFF01)
RELEASE_SECONDS = 2.0
# (result source, reason) of an A-ASSOCIATE-RJ that an administrator can mend (PS3.8 9.3.4).
REJECTIONS = {
    (1, 3): "it does not know our AE title: have it registered there, or say another with calling_ae_title",
    (1, 7): "it is not called so: mend ae_title",
    (3, 1): "it is busy",
    (3, 2): "it has too many associations",
}
# Final statuses by their first digits (PS3.4 Table C.4-1, conformance.md 1.9).
ENDINGS = {
    0xA700: "it has too many answers or no room: ask for less (modality, station, days)",
    0xA900: "it does not take these keys",
    0x0122: "it has no worklist",
    0x0124: "it does not permit us to ask",
    0xFE00: "it says that it was cancelled",
}
UNABLE = "it could not answer"


@dataclass(frozen=True)
class Provider:
    """called, calling: AE titles, its own and ours."""

    host: str
    port: int
    called: str
    calling: str


@dataclass(frozen=True)
class Bounds:
    """Of one question with all its answers."""

    seconds: float
    matches: int
    bytes: int
    limits: Limits


@dataclass
class Answers:
    """identifiers: Implicit VR Little Endian, as they came. error: why these are not all; empty = they are."""

    identifiers: list[bytes] = field(default_factory=list)
    error: str = ""


def ask(provider: Provider, sop_class: str, identifier: bytes, bounds: Bounds) -> Answers:
    """Never raises for what the other side does: what came before it went wrong is kept."""
    answers = Answers()
    until = time.monotonic() + bounds.seconds
    try:
        with contextlib.closing(_connected(provider, until)) as sock:
            wire = _Line(sock, bounds.limits, until)
            peer_bytes_max = _associate(wire, provider, sop_class)
            wire.send(_request(sop_class, identifier, peer_bytes_max))
            _collect(wire, answers, bounds)
    except Gone as error:
        late = time.monotonic() >= until or str(error) == "deadline"
        answers.error = f"gave no answer in {bounds.seconds:g} seconds" if late else "the connection broke off"
    except Violation as error:
        answers.error = f"broke the protocol: {error.text}"
    except _NoAnswer as error:
        answers.error = str(error)
    return answers


class _NoAnswer(Exception):
    """Why, for people."""


class _Line(Wire):
    """Ends for whatever is read or written when the time is over."""

    def __init__(self, sock: socket.socket, limits: Limits, until: float) -> None:
        super().__init__(sock, limits.dicom_pdu_bytes_max, limits.dicom_pdu_seconds_max)
        self.until = until

    def next(self) -> tuple[int, memoryview]:
        self.pdu_seconds_max = _left(self.until)
        return self.read(self.pdu_seconds_max)

    def _fill(self, wanted: int, seconds: float) -> None:
        super()._fill(wanted, min(seconds, _left(self.until)))

    def send(self, data: bytes) -> None:
        self.pdu_seconds_max = _left(self.until)
        super().send(data)


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise Gone("deadline")
    return left


def _connected(provider: Provider, until: float) -> socket.socket:
    """Address after address, together no longer than there is time."""
    trouble: OSError | None = None
    try:
        found = socket.getaddrinfo(provider.host, provider.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise _NoAnswer(f"its host is not known: {getattr(error, 'strerror', '') or 'no name'}") from None
    for family, kind, protocol, _, address in found:
        try:
            sock = socket.socket(family, kind, protocol)
        except OSError as error:  # a family that this computer does not have
            trouble = error
            continue
        try:
            sock.settimeout(_left(until))
            sock.connect(address)
        except OSError as error:
            sock.close()
            trouble = error
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
    if isinstance(trouble, TimeoutError):
        raise Gone("deadline")
    raise _NoAnswer(f"cannot be connected to: {trouble.strerror if trouble else 'no address'}")


# The association


def _associate(wire: _Line, provider: Provider, sop_class: str) -> int:
    """The longest PDU that it takes."""
    wire.send(_associate_rq(provider, sop_class, wire.bytes_max))
    kind, body = wire.next()
    if kind == pdu.ASSOCIATE_RJ:
        source, reason = (body[2], body[3]) if len(body) >= 4 else (0, 0)
        raise _NoAnswer(f"refused the association: {REJECTIONS.get((source, reason), f'reason {source}/{reason}')}")
    if kind == pdu.ABORT:
        raise _NoAnswer("ended the association at once")
    if kind != pdu.ASSOCIATE_AC:
        raise Violation(pdu.UNEXPECTED_PDU, f"PDU type {kind:02X} in answer to A-ASSOCIATE-RQ")
    try:
        accepted = A_ASSOCIATE_AC()
        accepted.decode(b"\x02\x00" + len(body).to_bytes(4, "big") + bytes(body))
        primitive = accepted.to_primitive()
        results = {one.context_id: one for one in primitive.presentation_context_definition_results_list}
        result = results[CONTEXT_ID].result
        syntaxes = [str(one) for one in results[CONTEXT_ID].transfer_syntax] if result == 0 else []
        bytes_max = int(primitive.maximum_length_received or 0)
    except Exception:  # the codec's errors are many
        raise Violation(pdu.INVALID_PARAMETER, "A-ASSOCIATE-AC cannot be decoded") from None
    if result != 0:
        raise _NoAnswer("offers no worklist (the SOP class was not accepted)")
    if syntaxes != [IMPLICIT_LE] or 0 < bytes_max < 128:
        raise Violation(pdu.INVALID_PARAMETER, "A-ASSOCIATE-AC accepts what was not offered")
    return bytes_max


def _associate_rq(provider: Provider, sop_class: str, bytes_max: int) -> bytes:
    """Implicit VR Little Endian alone, which everybody takes (PS3.5 10.1): so what is kept of an answer needs no word
    of its syntax beside it."""
    context = PresentationContext()
    context.context_id, context.abstract_syntax = CONTEXT_ID, UID(sop_class)
    context.add_transfer_syntax(IMPLICIT_LE)
    length, implementation, version = (
        MaximumLengthNotification(),
        ImplementationClassUIDNotification(),
        ImplementationVersionNameNotification(),
    )
    length.maximum_length_received = bytes_max
    implementation.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    version.implementation_version_name = IMPLEMENTATION_VERSION
    asked = A_ASSOCIATE()
    asked.application_context_name = UID(APPLICATION_CONTEXT)
    asked.calling_ae_title, asked.called_ae_title = provider.calling, provider.called
    asked.presentation_context_definition_list = [context]
    asked.user_information = [length, implementation, version]
    request = A_ASSOCIATE_RQ()
    request.from_primitive(asked)
    encoded: bytes = request.encode()
    return encoded


# The question and its answers


def _request(sop_class: str, identifier: bytes, peer_bytes_max: int) -> bytes:
    uid = sop_class.encode() + b"\0" * (len(sop_class) % 2)
    elements = (
        ("AffectedSOPClassUID", uid),
        ("CommandField", struct.pack("<H", C_FIND_RQ)),
        ("MessageID", struct.pack("<H", MESSAGE_ID)),
        ("Priority", struct.pack("<H", 0)),
        ("CommandDataSetType", struct.pack("<H", DATASET_FOLLOWS)),
    )
    body = b"".join(struct.pack("<HHI", 0, dimse.E[name], len(value)) + value for name, value in elements)
    command = struct.pack("<HHII", 0, 0, 4, len(body)) + body
    return b"".join(
        pdu.p_data(CONTEXT_ID, data, is_command=is_command, peer_bytes_max=peer_bytes_max)
        for data, is_command in ((command, True), (identifier, False))
    )


def _collect(wire: _Line, answers: Answers, bounds: Bounds) -> None:
    """Until the final status, or a bound."""
    limits = bounds.limits
    most = {True: limits.dicom_command_bytes_max, False: limits.dicom_identifier_bytes_max}
    command, buffer, received = b"", bytearray(), 0
    while True:
        kind, body = wire.next()
        if kind in (pdu.ABORT, pdu.RELEASE_RQ):
            raise _NoAnswer("ended the association before its last answer")
        if kind != pdu.P_DATA:
            raise Violation(pdu.UNEXPECTED_PDU, f"PDU type {kind:02X} inside an association")
        for context, is_command, is_last, data in pdu.fragments(body):
            if context != CONTEXT_ID or is_command == bool(command):
                raise Violation(pdu.INVALID_PARAMETER, "fragments out of order")
            received += 0 if is_command else len(data)
            if received > bounds.bytes or (not is_command and len(answers.identifiers) == bounds.matches):
                _stop(wire)
                what = f"{bounds.bytes} bytes of answers" if received > bounds.bytes else f"{bounds.matches} answers"
                raise _NoAnswer(f"has more than {what}: ask for less (modality, station, days)")
            if len(buffer) + len(data) > most[is_command]:
                raise Violation(pdu.INVALID_PARAMETER, f"more than {most[is_command]} bytes of a command or identifier")
            buffer += data
            if not is_last:
                continue
            whole, command = bytes(buffer), b""
            buffer.clear()
            if not is_command:
                answers.identifiers.append(whole)
            elif (ending := _ending(whole)) is None:
                command = whole
            else:
                answers.error = ending
                _release(wire)
                return


def _ending(command: bytes) -> str | None:
    """What a final response says, empty for success; None: an answer, whose identifier follows."""
    try:
        values = dimse.parse(command)
        said = {name: struct.unpack("<H", values[dimse.E[name]])[0] for name in
                ("CommandField", "MessageIDBeingRespondedTo", "CommandDataSetType", "Status")}  # fmt: skip
    except (Unreadable, KeyError, struct.error):
        raise Violation(pdu.INVALID_PARAMETER, "a command set cannot be read") from None
    status = said["Status"]
    if (said["CommandField"], said["MessageIDBeingRespondedTo"]) != (C_FIND_RQ | dimse.RESPONSE, MESSAGE_ID):
        raise Violation(pdu.UNEXPECTED_PDU, "a command that answers nothing")
    if (status in PENDING) != (said["CommandDataSetType"] != dimse.NO_DATASET):
        raise Violation(pdu.INVALID_PARAMETER, "an answer without its identifier, or a final one with it")
    if status in PENDING:
        return None
    if status == DONE:
        return ""
    family = status if status in ENDINGS else status & 0xFF00
    return f"status {status:04X}: {ENDINGS.get(family, UNABLE)}"


def _release(wire: _Line) -> None:
    """All is said: whether the other side is polite does not count."""
    wire.until = min(wire.until, time.monotonic() + RELEASE_SECONDS)
    with contextlib.suppress(Gone, Violation):
        wire.send(struct.pack(">BBII", pdu.RELEASE_RQ, 0, 4, 0))
        wire.next()


def _stop(wire: _Line) -> None:
    with contextlib.suppress(Gone):
        wire.send(pdu.abort())
