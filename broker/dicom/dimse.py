"""DIMSE command sets (PS3.7 E): group 0000, always Implicit VR Little Endian."""

import struct
from collections.abc import Iterator

from broker.dicom.service import Command, Response
from broker.errors import Unreadable

NO_DATASET = 0x0101
RESPONSE = 0x8000
# Elements that we read or write: keyword -> element number (PS3.7 E.1).
E = {
    "CommandGroupLength": 0x0000, "AffectedSOPClassUID": 0x0002, "RequestedSOPClassUID": 0x0003,
    "CommandField": 0x0100, "MessageID": 0x0110, "MessageIDBeingRespondedTo": 0x0120, "Priority": 0x0700,
    "CommandDataSetType": 0x0800, "Status": 0x0900, "OffendingElement": 0x0901, "ErrorComment": 0x0902,
    "ErrorID": 0x0903, "AffectedSOPInstanceUID": 0x1000, "RequestedSOPInstanceUID": 0x1001,
    "AttributeIdentifierList": 0x1005, "ActionTypeID": 0x1008,
}  # fmt: skip
COMMENT_CHARACTERS_MAX = 64  # Error Comment is LO


def parse(data: bytes) -> dict[int, bytes]:
    """Element number -> value. Raises Unreadable where it is no command set."""
    values: dict[int, bytes] = {}
    at = 0
    while at < len(data):
        if at + 8 > len(data):
            raise Unreadable("command set", "ends inside an element")
        group, element, length = struct.unpack_from("<HHI", data, at)
        at += 8
        if group != 0x0000 or at + length > len(data):
            raise Unreadable("command set", "holds something that is no command element")
        values[element] = data[at : at + length]
        at += length
    return values


def command(values: dict[int, bytes]) -> Command:
    """The request that the elements say. Raises Unreadable where Command Field or an id is missing or malformed."""
    return Command(
        field=_number(values, "CommandField"),
        message_id=_number(values, "MessageIDBeingRespondedTo" if "MessageID" not in _names(values) else "MessageID"),
        sop_class=_text(values, "AffectedSOPClassUID") or _text(values, "RequestedSOPClassUID"),
        sop_instance=_text(values, "AffectedSOPInstanceUID") or _text(values, "RequestedSOPInstanceUID"),
        priority=_number(values, "Priority", 0),
        action_type=_number(values, "ActionTypeID", 0),
        attributes=tuple(_tags(values.get(E["AttributeIdentifierList"], b""))),
        has_dataset=_number(values, "CommandDataSetType", NO_DATASET) != NO_DATASET,
    )


def response(request: Command, answer: Response, *, dimse_n: bool) -> bytes:
    """The command set of a response."""
    pending = (answer.status & 0xFF00) == 0xFF00
    elements = [
        (E["AffectedSOPClassUID"], _uid(request.sop_class)),
        (E["CommandField"], _us(request.field | RESPONSE)),
        (E["MessageIDBeingRespondedTo"], _us(request.message_id)),
        (E["CommandDataSetType"], _us(0x0001 if answer.dataset else NO_DATASET)),
        (E["Status"], _us(answer.status)),
    ]
    if answer.offending:
        elements.append((E["OffendingElement"], b"".join(map(_tag, answer.offending))))
    if answer.comment and not pending:
        elements.append((E["ErrorComment"], _padded(comment(answer.comment))))
    if answer.error_id is not None:
        elements.append((E["ErrorID"], _us(answer.error_id)))
    instance = answer.sop_instance or request.sop_instance
    if instance:
        elements.append((E["AffectedSOPInstanceUID"], _uid(instance)))
    if answer.attributes and dimse_n:
        elements.append((E["AttributeIdentifierList"], b"".join(map(_tag, answer.attributes))))
    body = b"".join(struct.pack("<HHI", 0, element, len(value)) + value for element, value in elements)
    return struct.pack("<HHII", 0, 0, 4, len(body)) + body


def comment(text: str) -> str:
    """An Error Comment: ASCII, at most 64 characters, no backslash (LO would split there)."""
    plain = text.encode("ascii", "ignore").decode("ascii").replace("\\", "/")
    return plain[:COMMENT_CHARACTERS_MAX]


def _names(values: dict[int, bytes]) -> set[str]:
    return {name for name, element in E.items() if element in values}


def _number(values: dict[int, bytes], name: str, default: int | None = None) -> int:
    value = values.get(E[name])
    if value is None and default is not None:
        return default
    if value is None or len(value) != 2:
        raise Unreadable("command set", f"{name} is missing or no US")
    number: int = struct.unpack("<H", value)[0]
    return number


def _text(values: dict[int, bytes], name: str) -> str:
    try:
        return values.get(E[name], b"").rstrip(b"\0 ").decode("ascii")
    except UnicodeDecodeError:
        raise Unreadable("command set", f"{name} is no UID") from None


def _tags(value: bytes) -> Iterator[int]:
    for at in range(0, len(value) - len(value) % 4, 4):
        group, element = struct.unpack_from("<HH", value, at)
        yield group << 16 | element


def _tag(tag: int) -> bytes:
    return struct.pack("<HH", tag >> 16, tag & 0xFFFF)


def _us(number: int) -> bytes:
    return struct.pack("<H", number)


def _uid(uid: str) -> bytes:
    value = uid.encode("ascii", "replace")
    return value + b"\0" * (len(value) % 2)


def _padded(text: str) -> bytes:
    return (text + " " * (len(text) % 2)).encode("ascii")
