"""Are two objects the same, whatever transfer syntax they came in? (reconciliation.md 3.5, rows 29, 29b, 30)

Asked only when a SOP Instance UID comes a second time with other bytes: the answer reads both files whole."""

import hashlib
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from struct import Struct
from typing import Any, BinaryIO, NamedTuple

from broker.archive.part10 import data_set_offset
from broker.archive.walk import ITEM, PIXEL_DATA, TEXT, UNDEFINED, VR_OF, Element, Walk
from broker.config import Limits

# VR -> array type of its numbers: what Explicit VR Big Endian turns round. Binary VRs not here are byte strings.
_NUMBERS = {
    "US": "H", "SS": "H", "AT": "H", "OW": "H", "UL": "I", "SL": "I", "FL": "I", "OL": "I", "OF": "I",
    "FD": "Q", "SV": "Q", "UV": "Q", "OD": "Q", "OV": "Q",
}  # fmt: skip
# Data Set Trailing Padding, and the offset tables of encapsulated frames, which a sender may leave out.
_NO_CONTENT = frozenset({0xFFFCFFFC, 0x7FE00001, 0x7FE00002, 0x7FE00003})
_PIXEL_GROUP = 0x7FE0
_HEAD = Struct(">IHQ")
# Attributes whose values say whose object this is and where it belongs, by the names of header.FACTS.
_IDENTITY = (
    "sop_class_uid", "sop_instance_uid", "study_instance_uid", "series_instance_uid", "patient_id",
    "issuer_of_patient_id", "patient_name", "birth_date", "sex", "accession_number", "accession_issuer",
    "request_attributes",
)  # fmt: skip


class Digest(NamedTuple):
    """whole: of every element as it would stand in Explicit VR Little Endian, without padding. pixels: of group 7FE0
    alone; encapsulated frames count by their bytes, fragmented as they please."""

    whole: str
    pixels: str

    def __str__(self) -> str:
        return f"{self.whole}:{self.pixels}"


@dataclass(frozen=True)
class Comparison:
    """A received object beside those that have its SOP Instance UID. others: by Instance key; None where the bytes
    cannot be read here, which counts as different. same: keys of those that it is a copy of, or of their rendition."""

    own: Digest
    others: Mapping[int, Digest | None]
    same: frozenset[int]

    def same_pixels(self, key: int) -> bool:
        other = self.others[key]
        return other is not None and other.pixels == self.own.pixels


def canonical_digest(file: BinaryIO, transfer_syntax: str, limits: Limits) -> Digest:
    """Of a Part 10 file of ours. Raises Unreadable."""
    # It passed the walk once when it came; hashing 4 GiB may take its time.
    limits = limits.model_copy(update={"header_seconds_max": float("inf")})
    walk = Walk(file, data_set_offset(file), transfer_syntax, limits)
    header, pixels = hashlib.sha256(), hashlib.sha256()
    into, offset_table = header, -1
    for element in walk:
        if not element.depth:
            into = pixels if element.tag >> 16 == _PIXEL_GROUP else header
            if element.tag == PIXEL_DATA:
                offset_table = element.offset + 8  # where the first item of encapsulated pixels has its value
        if element.tag in _NO_CONTENT or not element.tag & 0xFFFF or element.offset == offset_table:
            continue  # (gggg,0000) counts the bytes of one encoding (PS3.5 7.2)
        _add(into, walk, element, limits.header_text_bytes_max)
    header.update(pixels.digest())
    return Digest(header.hexdigest(), pixels.hexdigest())


def _add(into: "hashlib._Hash", walk: Walk, element: Element, text_bytes_max: int) -> None:
    fragment = element.tag == ITEM and element.vr == "OB"
    if element.vr in ("SQ", "") or element.length == UNDEFINED:
        into.update(_HEAD.pack(element.tag, element.depth, 0))  # what is inside follows
        return
    if VR_OF.get(element.tag) in TEXT and element.length <= text_bytes_max:
        value = walk.value(element).rstrip(b" \0")
        into.update(_HEAD.pack(element.tag, element.depth, len(value)) + value)
        return
    if not fragment:
        into.update(_HEAD.pack(element.tag, element.depth, element.length))
    for piece in _little_endian(walk, element):
        into.update(piece)


def _little_endian(walk: Walk, element: Element) -> Iterator[bytes]:
    kind = _NUMBERS.get(element.vr) if walk.encoding.byte_order == ">" else None
    for piece in walk.chunks(element):
        if kind is None or len(piece) % array(kind).itemsize:
            yield piece
        else:
            numbers = array(kind, piece)
            numbers.byteswap()
            yield numbers.tobytes()


def difference(first: dict[str, Any], second: dict[str, Any], same_pixels: bool) -> str:
    """The worst that sets apart two objects with one UID, from their facts: `identity`, `pixels` or `attributes`."""
    if any(first.get(name) != second.get(name) for name in _IDENTITY):
        return "identity"
    return "attributes" if same_pixels else "pixels"
