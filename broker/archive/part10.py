"""The File Meta Information around the bytes of a peer (PS3.10 7.1): written by us, read back by us."""

from typing import BinaryIO

from broker.dicom.negotiate import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION
from broker.dicom.service import Command
from broker.errors import Unreadable

PREAMBLE_BYTES = 128
_START_BYTES = PREAMBLE_BYTES + 4 + 12  # "DICM" and the group length
_TRANSFER_SYNTAX, _SOURCE_AE = 0x0010, 0x0016


def file_meta(command: Command, transfer_syntax: str, source_ae: str) -> bytes:
    """Preamble and File Meta. The preamble is zeros: a peer's could be a program (security V16)."""
    elements = b"".join(
        (
            _element(0x0001, b"OB", b"\0\1"),
            _element(0x0002, b"UI", _text(command.sop_class, b"\0")),
            _element(0x0003, b"UI", _text(command.sop_instance, b"\0")),
            _element(_TRANSFER_SYNTAX, b"UI", _text(transfer_syntax, b"\0")),
            _element(0x0012, b"UI", _text(IMPLEMENTATION_CLASS_UID, b"\0")),
            _element(0x0013, b"SH", _text(IMPLEMENTATION_VERSION, b" ")),
            _element(_SOURCE_AE, b"AE", _text(source_ae, b" ")),
        )
    )
    return bytes(PREAMBLE_BYTES) + b"DICM" + _element(0x0000, b"UL", len(elements).to_bytes(4, "little")) + elements


def data_set_offset(file: BinaryIO) -> int:
    """Where the data set begins; the file, taken from its start, is left there."""
    start = file.read(_START_BYTES)
    if len(start) < _START_BYTES or start[PREAMBLE_BYTES : PREAMBLE_BYTES + 4] != b"DICM":
        raise Unreadable("file", "has no File Meta Information")
    return file.seek(_START_BYTES + int.from_bytes(start[-4:], "little"))


def read_meta(file: BinaryIO) -> tuple[str, str]:
    """Transfer syntax and Source AE title; the file, taken from its start, is left where the data set begins."""
    size = data_set_offset(file) - _START_BYTES
    file.seek(_START_BYTES)
    meta, at = file.read(size), 0
    values: dict[int, str] = {}
    while at + 12 <= len(meta):
        number, is_long = int.from_bytes(meta[at + 2 : at + 4], "little"), meta[at + 4 : at + 6] == b"OB"
        length = int.from_bytes(meta[at + 8 : at + 12] if is_long else meta[at + 6 : at + 8], "little")
        at += 12 if is_long else 8
        values[number] = meta[at : at + length].decode("ascii", "replace").rstrip(" \0")
        at += length
    if _TRANSFER_SYNTAX not in values:
        raise Unreadable("file", "names no transfer syntax")
    return values[_TRANSFER_SYNTAX], values.get(_SOURCE_AE, "")


def _element(number: int, vr: bytes, value: bytes) -> bytes:
    length = bytes(2) + len(value).to_bytes(4, "little") if vr == b"OB" else len(value).to_bytes(2, "little")
    return b"\x02\x00" + number.to_bytes(2, "little") + vr + length + value


def _text(value: str, padding: bytes) -> bytes:
    raw = value.encode("ascii", "replace")
    return raw + padding * (len(raw) % 2)
