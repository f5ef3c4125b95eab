"""What a received object says about itself: its UIDs, and the facts that decide where it belongs.

Read on the way of one walk to the last byte. `FACTS` is the whole list."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydicom.datadict import dictionary_VR, tag_for_keyword

from broker.archive.part10 import data_set_offset
from broker.archive.walk import ITEM, PIXEL_DATA, UNDEFINED, Element, Walk
from broker.config import Limits
from broker.dicom import charset
from broker.errors import InvalidValue, MissingUid, OtherInstance, Unreadable

# Syntax for meaning, not for safety: no UID ever names a file (security V2). Leading zeros are wrong (PS3.5 9.1) and
# sent by devices in the field; refusing their images would lose an exposure (reconciliation.md P2).
_UID = re.compile(r"[0-9.]{1,64}")
# No text that we read may hold one (PS3.5 6.2), PostgreSQL takes no NUL at all, and what a person cannot see is no
# identity.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

_CODE = {"value": "CodeValue", "scheme": "CodingSchemeDesignator"}
_ISSUER = {"local": "LocalNamespaceEntityID", "universal": "UniversalEntityID"}
# Name of the fact -> DICOM keyword; for a sequence (keyword, facts of each item).
FACTS: dict[str, Any] = {
    "sop_class_uid": "SOPClassUID",
    "sop_instance_uid": "SOPInstanceUID",
    "study_instance_uid": "StudyInstanceUID",
    "series_instance_uid": "SeriesInstanceUID",
    "modality": "Modality",
    # who
    "patient_id": "PatientID",
    "issuer_of_patient_id": "IssuerOfPatientID",
    "other_patient_ids": (
        "OtherPatientIDsSequence",
        {"patient_id": "PatientID", "issuer_of_patient_id": "IssuerOfPatientID"},
    ),
    "patient_name": "PatientName",
    "birth_date": "PatientBirthDate",
    "sex": "PatientSex",
    "age": "PatientAge",
    "size": "PatientSize",
    "weight": "PatientWeight",
    # what for
    "accession_number": "AccessionNumber",
    "accession_issuer": ("IssuerOfAccessionNumberSequence", _ISSUER),
    "study_id": "StudyID",
    "request_attributes": (
        "RequestAttributesSequence",
        {
            "requested_procedure_id": "RequestedProcedureID",
            "sps_id": "ScheduledProcedureStepID",
            "accession_number": "AccessionNumber",
            "accession_issuer": ("IssuerOfAccessionNumberSequence", _ISSUER),
            "study_instance_uid": "StudyInstanceUID",
        },
    ),
    "performed_steps": ("ReferencedPerformedProcedureStepSequence", {"uid": "ReferencedSOPInstanceUID"}),
    # where and when
    "station_name": "StationName",
    "institution": "InstitutionName",
    "manufacturer": "Manufacturer",
    "model": "ManufacturerModelName",
    "serial_number": "DeviceSerialNumber",
    "timezone": "TimezoneOffsetFromUTC",
    "study_date": "StudyDate",
    "study_time": "StudyTime",
    "series_date": "SeriesDate",
    "series_time": "SeriesTime",
    "acquisition_date": "AcquisitionDate",
    "acquisition_time": "AcquisitionTime",
    "acquisition_datetime": "AcquisitionDateTime",
    "content_date": "ContentDate",
    "content_time": "ContentTime",
    # what of
    "series_number": "SeriesNumber",
    "instance_number": "InstanceNumber",
    "image_type": "ImageType",
    "body_part": "BodyPartExamined",
    "laterality": "Laterality",
    "image_laterality": "ImageLaterality",
    "anatomic_regions": ("AnatomicRegionSequence", _CODE),
    "procedure_codes": ("ProcedureCodeSequence", _CODE),
    "protocol_codes": ("PerformedProtocolCodeSequence", _CODE),
    "protocol_name": "ProtocolName",
    "burned_in": "BurnedInAnnotation",
    "quality_control": "QualityControlImage",
    "rows": "Rows",
    "columns": "Columns",
    "frames": "NumberOfFrames",
    "original_attributes": ("OriginalAttributesSequence", {"at": "AttributeModificationDateTime"}),
}
_LISTS = frozenset({"image_type"})  # more than one value is meant; elsewhere a backslash stays part of the text


@dataclass(frozen=True)
class Header:
    """facts: JSON-able, by the names of FACTS plus `pixels` ({"offset", "length"}; length None when encapsulated, None
    without pixels), `undecodable` (names of texts that their character set does not explain, or with a control
    character inside: such a text is kept with its bytes escaped) and `facts_cut` (names of which something was left out
    because the object says too much; what it says about itself is not known then). Every name is present: absent text
    is "", an absent sequence [], an absent number None."""

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    modality: str
    facts: dict[str, Any]


def read_header(path: Path, transfer_syntax: str, limits: Limits) -> Header:
    """The header of a Part 10 file of ours, after a walk to its last byte.

    Raises Unreadable where the data set is not whole, MissingUid where it cannot be filed."""
    with path.open("rb", buffering=0) as file:
        facts = _facts(Walk(file, data_set_offset(file), transfer_syntax, limits), limits)
    for name, place in (
        ("sop_instance_uid", "(0008,0018)"),
        ("study_instance_uid", "(0020,000D)"),
        ("series_instance_uid", "(0020,000E)"),
    ):
        if not facts[name]:
            raise MissingUid(place)
        if not _UID.fullmatch(facts[name]):
            raise MissingUid(place, "is no UID: 1 to 64 digits and dots are expected")
    return Header(
        facts["sop_class_uid"],
        facts["sop_instance_uid"],
        facts["study_instance_uid"],
        facts["series_instance_uid"],
        facts["modality"],
        facts,
    )


def check_command(header: Header, sop_class_uid: str, sop_instance_uid: str) -> None:
    """The command and its data set must mean the same instance (PS3.4 B.2.3)."""
    if header.sop_class_uid != sop_class_uid:
        raise InvalidValue("(0008,0016)", "differs from (0000,0002) of the command", tags=(0x00080016,))
    if header.sop_instance_uid != sop_instance_uid:
        raise OtherInstance("(0008,0018)", tags=(0x00080018,))


class _Wanted(NamedTuple):
    name: str
    vr: str
    items: "dict[int, _Wanted] | None"


_CHARACTER_SET = _Wanted("character_set", "CS", None)


def _wanted(facts: dict[str, Any]) -> dict[int, _Wanted]:
    table = {0x00080005: _CHARACTER_SET}  # an item may have its own (PS3.3 C.12.1.1.2)
    for name, what in facts.items():
        keyword, items = what if isinstance(what, tuple) else (what, None)
        tag = tag_for_keyword(keyword)
        assert tag is not None, keyword
        table[tag] = _Wanted(name, dictionary_VR(tag), _wanted(items) if items else None)
    return table


_WANTED = _wanted(FACTS)


class _Budget:
    """What may still be kept of one object, however much it says. cut: names of what was left out."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.bytes_left = limits, limits.header_facts_bytes_max
        self.cut: set[str] = set()

    def has_room(self, wanted: _Wanted, element: Element) -> bool:
        if not element.depth and wanted.vr == "UI":
            return True  # without these it could not be filed at all
        if element.length <= self.bytes_left:
            self.bytes_left -= element.length
            return True
        self.cut.add(wanted.name)
        return False


class _Node:
    """A data set or item that holds something wanted. last: what its newest element is to us."""

    def __init__(self, table: dict[int, _Wanted], budget: _Budget) -> None:
        self.table, self.budget = table, budget
        self.raw: dict[str, bytes] = {}
        self.items: dict[str, list[_Node]] = {}
        self.last: _Wanted | None = None

    def open_item(self) -> "_Node | None":
        if self.last is None or self.last.items is None:
            return None
        items = self.items[self.last.name]
        if len(items) >= self.budget.limits.header_items_max:
            self.budget.cut.add(self.last.name)
            return None
        items.append(_Node(self.last.items, self.budget))
        return items[-1]

    def take(self, element: Element, walk: Walk) -> None:
        limits = self.budget.limits
        self.last = wanted = self.table.get(element.tag)
        if wanted is None:
            return
        if wanted.name in self.raw or wanted.name in self.items:
            # Which of the two is meant? Readers differ, so an identity could be one here and another at a viewer.
            raise Unreadable(wanted.name, "occurs twice in one data set")
        if wanted.items is not None:
            self.items[wanted.name] = []
        elif element.length > limits.header_value_bytes_max:
            raise Unreadable(wanted.name, f"is longer than {limits.header_value_bytes_max} (header_value_bytes_max)")
        else:
            self.raw[wanted.name] = walk.value(element) if self.budget.has_room(wanted, element) else b""


def _facts(walk: Walk, limits: Limits) -> dict[str, Any]:
    budget = _Budget(limits)
    root = _Node(_WANTED, budget)
    nodes = [root]  # around the element, outermost first, as long as they hold something wanted
    pixels = None
    for element in walk:
        around = element.depth + (element.tag != ITEM)
        del nodes[around:]
        if len(nodes) < around:
            continue
        if element.tag == ITEM:
            if (item := nodes[-1].open_item()) is not None:
                nodes.append(item)
        else:
            nodes[-1].take(element, walk)
            if element.tag == PIXEL_DATA and not element.depth:
                length = None if element.length == UNDEFINED else element.length
                pixels = {"offset": element.offset, "length": length}
    undecodable: set[str] = set()
    facts = _values(root, ("",), walk.encoding.byte_order, undecodable)
    for holder in (facts, *facts["request_attributes"]):
        holder["accession_issuer"] = _issuer(holder["accession_issuer"])
    facts["performed_steps"] = [item["uid"] for item in facts["performed_steps"]]
    return facts | {"pixels": pixels, "undecodable": sorted(undecodable), "facts_cut": sorted(budget.cut)}


def _issuer(items: list[dict[str, str]]) -> str:
    """HL7v2 Hierarchic Designator Macro (PS3.3 10.14): either name of the issuer, the local one first."""
    return next((item["local"] or item["universal"] for item in items), "")


def _values(node: _Node, charsets: Sequence[str], byte_order: str, undecodable: set[str]) -> dict[str, Any]:
    """What was taken from `node`, by name. undecodable: collects the names of texts that are none in their charset."""
    if "character_set" in node.raw:
        charsets = charset.terms(node.raw["character_set"].decode("ascii", "replace"))
    values: dict[str, Any] = {}
    for wanted in node.table.values():
        if wanted is _CHARACTER_SET:
            continue
        raw = node.raw.get(wanted.name, b"")
        if wanted.items is not None:
            values[wanted.name] = [
                _values(item, charsets, byte_order, undecodable) for item in node.items.get(wanted.name, [])
            ]
        elif wanted.vr == "US":
            values[wanted.name] = int.from_bytes(raw[:2], "big" if byte_order == ">" else "little") if raw else None
        else:
            values[wanted.name] = _text(raw, charsets, wanted, undecodable)
    return values


def _text(raw: bytes, charsets: Sequence[str], wanted: _Wanted, undecodable: set[str]) -> str | list[str]:
    try:
        text = charset.decode(raw, charsets, wanted.vr)
    except Unreadable:
        undecodable.add(wanted.name)
        text = raw.decode("ascii", "backslashreplace")
    text = text.lstrip(" ").rstrip(" \0")  # NUL is the padding of some devices; anywhere else it is none
    if _CONTROL.search(text):
        undecodable.add(wanted.name)
        text = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
    if wanted.name in _LISTS:
        return [value.strip() for value in text.split("\\")] if text else []
    return text
