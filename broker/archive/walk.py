"""Walk a data set on disk, element by element, to its very last byte; no value is loaded on the way.

pydicom takes a cut-off object without a word (durability.md 0.8), and what we acknowledge must be whole. The caps hold
whatever a peer sends: elements, depth, text length, processor time (durability.md 1.8)."""

import os
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from struct import Struct
from typing import BinaryIO, NamedTuple

from pydicom._dicom_dict import DicomDictionary
from pydicom.datadict import tag_for_keyword
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian
from pydicom.valuerep import EXPLICIT_VR_LENGTH_16, EXPLICIT_VR_LENGTH_32, STR_VR

from broker.config import Limits
from broker.errors import Unreadable

ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
PIXEL_DATA = 0x7FE00010
UNDEFINED = 0xFFFFFFFF
VR_OF: dict[int, str] = {tag: entry[0] for tag, entry in DicomDictionary.items()}
TEXT = frozenset(str(vr) for vr in STR_VR)
# Explicit VR: name on the wire -> (name, whether its length has 32 bits). Source: PS3.5 7.1.2.
_VRS = {str(vr).encode(): (str(vr), False) for vr in EXPLICIT_VR_LENGTH_16}
_VRS |= {str(vr).encode(): (str(vr), True) for vr in EXPLICIT_VR_LENGTH_32}
# PS3.5 7.1 and PS3.7 6.3: command and file meta groups are no part of a data set; the odd ones are never used.
_NO_DATA_SET_GROUPS = frozenset({0x0000, 0x0001, 0x0002, 0x0003, 0x0005, 0x0007, 0xFFFE, 0xFFFF})
# Sequences that grow with the exam, not with the header: frames, contours, structured report content, evidence lists.
# A cath lab's dose report or a radiotherapy structure set has 100,000 elements in them and is no attack.
_GROWING = frozenset(
    tag
    for keyword in (
        "PerFrameFunctionalGroupsSequence", "ContentSequence", "ROIContourSequence", "BeamSequence", "IonBeamSequence",
        "SurfaceSequence", "GraphicAnnotationSequence", "WaveformAnnotationSequence", "ReferencedSeriesSequence",
        "CurrentRequestedProcedureEvidenceSequence", "SourceImageSequence", "ReferencedImageSequence",
    )
    if (tag := tag_for_keyword(keyword)) is not None
)  # fmt: skip
_CHUNK = 8192  # bytes read at once: a header is two or three of them
_PIECE = 1024 * 1024
_CHECK_MASK = 1023  # one element in 1,024 looks at the clock


class Element(NamedTuple):
    """depth: number of items around it. tag ITEM: an item begins (depth counts it already, vr is empty), or it is one
    fragment of encapsulated pixels (vr is OB). offset: of the value in the data set. length: UNDEFINED where the
    standard lets it be. vr: as sent; in Implicit VR the dictionary's, `UN` where that does not know the tag; `SQ`
    wherever items follow."""

    depth: int
    tag: int
    vr: str
    offset: int
    length: int


class Encoding(NamedTuple):
    explicit: bool
    byte_order: str  # of struct
    head: Struct
    short: Struct
    long: Struct


def _encoding(explicit: bool, byte_order: str) -> Encoding:
    return Encoding(explicit, byte_order, *(Struct(byte_order + form) for form in ("HHL", "H", "L")))


_IMPLICIT, _EXPLICIT, _EXPLICIT_BIG = _encoding(False, "<"), _encoding(True, "<"), _encoding(True, ">")


def encoding_of(transfer_syntax: str) -> Encoding:
    """Every syntax is Explicit VR Little Endian but two (PS3.5 A.1, A.3). Deflate never comes this far."""
    if transfer_syntax == ImplicitVRLittleEndian:
        return _IMPLICIT
    return _EXPLICIT_BIG if transfer_syntax == ExplicitVRBigEndian else _EXPLICIT


@dataclass(slots=True)
class _Count:
    limit: str
    left: int


Steps = Generator[Element, None, int]  # what a part of the walk yields, and where it ended


class Walk:
    """Iterate over the elements of the data set between `start` and the end of `file`.

    Raises Unreadable, naming the byte, where the bytes are not one whole data set or exceed a cap."""

    def __init__(self, file: BinaryIO, start: int, transfer_syntax: str, limits: Limits) -> None:
        self._descriptor, self._start = file.fileno(), start
        self._size = os.fstat(self._descriptor).st_size - start
        self._window, self._base = b"", 0
        self._limits = limits
        self._growing = _Count("header_frame_elements_max", limits.header_frame_elements_max)
        self.encoding = encoding_of(transfer_syntax)

    def value(self, element: Element) -> bytes:
        return os.pread(self._descriptor, element.length, self._start + element.offset)

    def chunks(self, element: Element) -> Iterator[bytes]:
        """A value of any length in pieces of 1 MiB."""
        for at in range(0, element.length, _PIECE):
            size = min(_PIECE, element.length - at)
            yield os.pread(self._descriptor, size, self._start + element.offset + at)

    def __iter__(self) -> Iterator[Element]:
        self._deadline = time.thread_time() + self._limits.header_seconds_max
        count = _Count("header_elements_max", self._limits.header_elements_max)
        yield from self._elements(0, self._size, None, self.encoding, 0, count)

    # Each part takes where it begins, the first byte that is no longer its own, and the tag that ends it before that
    # where its length is undefined (None: it ends at that byte).

    def _elements(
        self, position: int, stop: int, end: int | None, encoding: Encoding, depth: int, count: _Count
    ) -> Steps:
        while position != stop or end:
            tag, vr, offset, length = self._head(position, stop, encoding)
            if tag == end and not length:
                return offset
            if tag >> 16 in _NO_DATA_SET_GROUPS:
                raise Unreadable(_at(position), f"{_name(tag)} cannot stand here")
            count.left -= 1
            if count.left & _CHECK_MASK == 0 or count.left < 0:
                self._check(count, position)
            inner = encoding
            if vr == "UN" and (length == UNDEFINED or VR_OF.get(tag) == "SQ"):
                # PS3.5 6.2.2: a sequence of unknown VR is encoded in Implicit VR Little Endian, whatever is around it.
                vr, inner = "SQ", _IMPLICIT
            yield Element(depth, tag, vr, offset, length)
            if length != UNDEFINED and offset + length <= stop and vr != "SQ":
                if length > self._limits.header_text_bytes_max and vr in TEXT:
                    raise Unreadable(_at(offset), f"{_name(tag)} is a text of {length} bytes (header_text_bytes_max)")
                position = offset + length
            else:
                position = yield from self._value(tag, vr, offset, length, stop, inner, depth, count)
        return position

    def _value(
        self, tag: int, vr: str, offset: int, length: int, stop: int, encoding: Encoding, depth: int, count: _Count
    ) -> Steps:
        """A value that has parts, or no length, or does not fit."""
        stop, end = _extent(tag, offset, length, stop, SEQUENCE_END)
        if end and tag == PIXEL_DATA and vr in ("OB", "OW"):  # PS3.5 A.4
            return (yield from self._fragments(offset, stop, encoding, depth))
        if vr == "SQ":
            count = self._growing if tag in _GROWING else count
            return (yield from self._items(offset, stop, end, encoding, depth, count))
        if end:
            raise Unreadable(_at(offset), f"{_name(tag)} has no length")
        return stop

    def _items(self, position: int, stop: int, end: int | None, encoding: Encoding, depth: int, count: _Count) -> Steps:
        if depth >= self._limits.header_depth_max:
            raise Unreadable(_at(position), f"nested deeper than {self._limits.header_depth_max} (header_depth_max)")
        while position != stop or end:
            tag, vr, offset, length = self._head(position, stop, encoding)
            if tag == end and not length:
                return offset
            if tag != ITEM:
                raise Unreadable(_at(position), f"{_name(tag)} where an item is expected")
            count.left -= 1
            if count.left & _CHECK_MASK == 0 or count.left < 0:
                self._check(count, position)
            yield Element(depth + 1, tag, vr, offset, length)
            extent = _extent(tag, offset, length, stop, ITEM_END)
            position = yield from self._elements(offset, *extent, encoding, depth + 1, count)
        return position

    def _fragments(self, position: int, stop: int, encoding: Encoding, depth: int) -> Steps:
        while True:
            tag, _, offset, length = self._head(position, stop, encoding)
            if tag == SEQUENCE_END and not length:
                return offset
            if tag != ITEM or length == UNDEFINED:
                raise Unreadable(_at(position), f"{_name(tag)} where a fragment is expected")
            self._growing.left -= 1
            self._check(self._growing, position)
            yield Element(depth + 1, tag, "OB", offset, length)
            position, _ = _extent(tag, offset, length, stop, SEQUENCE_END)

    def _head(self, position: int, stop: int, encoding: Encoding) -> tuple[int, str, int, int]:
        """(tag, VR, offset of the value, its length) of what begins at `position`."""
        at = position - self._base
        if not 0 <= at <= len(self._window) - 12:
            self._window, self._base, at = os.pread(self._descriptor, _CHUNK, self._start + position), position, 0
        if position + 8 > stop:
            raise Unreadable(_at(position), f"{max(0, stop - position)} bytes are left where an element begins")
        group, number, length = encoding.head.unpack_from(self._window, at)
        tag = group << 16 | number
        if group == 0xFFFE:
            return tag, "", position + 8, length
        if not encoding.explicit:
            return tag, VR_OF.get(tag, "UN"), position + 8, length
        found = _VRS.get(self._window[at + 4 : at + 6])
        if found is None:
            raise Unreadable(_at(position), f"{_name(tag)} has no value representation of PS3.5 6.2")
        vr, is_long = found
        if not is_long:
            return tag, vr, position + 8, encoding.short.unpack_from(self._window, at + 6)[0]
        if position + 12 > stop:
            raise Unreadable(_at(position), f"{stop - position} bytes are left where {_name(tag)} begins")
        return tag, vr, position + 12, encoding.long.unpack_from(self._window, at + 8)[0]

    def _check(self, count: _Count, position: int) -> None:
        if count.left < 0:
            raise Unreadable(_at(position), f"more elements than {count.limit}")
        # This thread's processor time: a busy machine is no fault of the object.
        if time.thread_time() > self._deadline:
            raise Unreadable(_at(position), "takes too long to walk (header_seconds_max)")


def _extent(tag: int, offset: int, length: int, stop: int, end: int) -> tuple[int, int | None]:
    """(stop, end) of a value of that length; Unreadable where it reaches over what is around it."""
    if length == UNDEFINED:
        return stop, end
    if offset + length > stop:
        raise Unreadable(_at(offset), f"{_name(tag)} announces {length} bytes, {stop - offset} are left")
    return offset + length, None


def _at(position: int) -> str:
    return f"byte {position}"


def _name(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
