"""What a coerced rendition says differently, and the record of it: Original Attributes (PS3.3 C.12.1.1.9).

Pure. The received bytes stay as they are (ADR 0004); what is made here is a second object with the same UIDs. Values
stay raw bytes wherever nothing changes, and every text that does change is encoded by us, strictly: pydicom would read
and write what does not fit with replacement characters (conformance.md 1.6)."""

import copy
import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from zoneinfo import ZoneInfo

from pydicom import config
from pydicom.charset import convert_encodings, default_encoding
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

from broker.dicom import charset
from broker.dicom.tree import TEXT_VRS
from broker.errors import Unreadable

Value = str | list[Dataset]
Changes = Mapping[str, Value]  # by keyword; text as text
UTF8 = "ISO_IR 192"
CHARSET = 0x00080005
# Changing one of these would make another object, or tear it from those that refer to it (PS3.4 B.4.1.3).
NEVER = frozenset({"SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"})


@dataclass(frozen=True)
class Record:
    """What the Original Attributes item says of itself. reason: COERCE (reconciled) or CORRECT (a person mended an
    error). source: who sent the object. system: who changed it."""

    reason: Literal["COERCE", "CORRECT"]
    source: str
    system: str
    now: dt.datetime
    zone: str

    @property
    def moment(self) -> str:
        """DT with its offset."""
        return self.now.astimezone(ZoneInfo(self.zone)).strftime("%Y%m%d%H%M%S.%f%z")


@dataclass(frozen=True)
class Undecodable:
    """A text that is none in the character set that its object declares. path: (sequence, item from 1) down to it."""

    path: tuple[tuple[int, int], ...]
    tag: int
    value: bytes

    @property
    def top(self) -> int:
        return self.path[0][0] if self.path else self.tag


def coerce(ds: Dataset, changes: Changes, record: Record) -> Dataset:
    """A copy of `ds` with `changes` and one more Original Attributes item; `ds` itself where nothing changes.

    ds: everything before Pixel Data. Its character set stays if it can hold the new text; else the copy is in UTF-8."""
    if not changes:
        return ds
    if wrong := NEVER & changes.keys():
        raise ValueError(f"{', '.join(sorted(wrong))} must not change")
    made = copy.deepcopy(ds)
    declared = charset.terms(_declared(ds))
    tags: set[int] = {_tag(keyword) for keyword in changes}
    unreadable = _undecodable(ds, declared, tags)
    to_utf8 = not _fits(changes, declared)
    if to_utf8:
        unreadable += [one for one in _to_utf8(made, declared) if one not in unreadable]
        tags |= {CHARSET, *(one.top for one in unreadable)}
        made.SpecificCharacterSet = UTF8
    _apply(made, changes)
    made.InstanceCoercionDateTime = record.moment
    made.OriginalAttributesSequence = [
        *(made.get("OriginalAttributesSequence") or ()),
        _original(ds, sorted(tags), unreadable, record),
    ]
    if not to_utf8:  # pydicom itself writes UTF-8 without loss
        _encode(made, declared, *_encoding(ds))
    _seal(made, *_encoding(ds))
    return made


def _apply(ds: Dataset, changes: Changes) -> None:
    for keyword, value in changes.items():
        ds[_tag(keyword)] = new_element(_tag(keyword), dictionary_VR(_tag(keyword)), copy.deepcopy(value))


def _original(ds: Dataset, tags: Sequence[int], unreadable: Sequence[Undecodable], record: Record) -> Dataset:
    """Previous values: whole top-level attributes; empty where one was absent or no text of its character set.

    Listing (0008,0005) itself, the item is in the previous character set (PS3.3 C.12.1.1.9, PS3.5 6.1.2.3)."""
    previous = Dataset()
    empty = {one.top for one in unreadable}
    for tag in tags:
        element = None if tag in empty else ds.get_item(tag)
        previous[tag] = copy.deepcopy(element) if element is not None else _empty(tag, ds)
    _seal(previous, *_encoding(ds))
    item = Dataset()
    item.SourceOfPreviousValues = record.source
    item.AttributeModificationDateTime = record.moment
    item.ModifyingSystem = record.system
    item.ReasonForTheAttributeModification = record.reason
    item.ModifiedAttributesSequence = [previous]
    if unreadable:
        item.NonconformingModifiedAttributesSequence = [_nonconforming(one) for one in unreadable]
    return item


def _nonconforming(one: Undecodable) -> Dataset:
    """PS3.3 Table 10-20, Selector Attribute Macro, with the bytes as they came."""
    item = Dataset()
    item.SelectorAttribute = one.tag
    if one.path:
        item.SelectorSequencePointer = [tag for tag, _ in one.path]
        item.SelectorSequencePointerItems = [number for _, number in one.path]
    item.NonconformingDataElementValue = one.value + b"\0" * (len(one.value) % 2)
    return item


# Character sets


def _fits(changes: Changes, charsets: Sequence[str]) -> bool:
    trial = Dataset()
    _apply(trial, changes)
    try:
        _encode(trial, charsets, implicit=False, little=True)
    except ValueError:
        return False
    return True


def _declared(ds: Dataset) -> str:
    value = ds.get("SpecificCharacterSet") or ""
    return value if isinstance(value, str) else "\\".join(value)


def _undecodable(ds: Dataset, charsets: Sequence[str], tags: set[int]) -> list[Undecodable]:
    """Those of `tags` whose present value cannot be read."""
    found: list[Undecodable] = []
    for tag in sorted(tags):
        element = ds.get_item(tag)
        if isinstance(element, RawDataElement) and _vr(element) in TEXT_VRS and _text(element, charsets) is None:
            found.append(Undecodable((), tag, element.value or b""))
    return found


def _to_utf8(ds: Dataset, charsets: Sequence[str], path: tuple[tuple[int, int], ...] = ()) -> Iterator[Undecodable]:
    """Encode every text anew, in place; those that cannot be read keep what is readable of them and are told.

    An item with a Specific Character Set of its own says how it is encoded and stays as it is."""
    for tag in list(ds.keys()):
        element = ds.get_item(tag)
        assert element is not None
        vr = _vr(element)
        if vr == "SQ":
            for number, item in enumerate(ds[tag].value or (), start=1):
                if CHARSET not in item:
                    yield from _to_utf8(item, charsets, (*path, (int(tag), number)))
        elif vr in TEXT_VRS and isinstance(element, RawDataElement):
            text = _text(element, charsets)
            if text is None:
                raw = element.value or b""
                yield Undecodable(path, int(tag), raw)
                text = raw.decode("ascii", errors="replace")
            ds[tag] = new_element(tag, vr, text)


def _text(element: RawDataElement, charsets: Sequence[str]) -> str | None:
    try:
        return charset.decode(element.value or b"", charsets, _vr(element))
    except Unreadable:
        return None


def _encode(ds: Dataset, charsets: Sequence[str], implicit: bool, little: bool) -> None:
    """Turn text that is still text into bytes. ValueError where a character does not fit into `charsets`."""
    for tag in list(ds.keys()):
        element = ds.get_item(tag)
        if not isinstance(element, DataElement):
            continue
        if element.VR == "SQ":
            for item in element.value or ():
                own = charset.terms(_declared(item)) if CHARSET in item else charsets
                _encode(item, own, implicit, little)
                if item.original_encoding == (None, None):
                    _seal(item, implicit, little)
        elif element.VR in TEXT_VRS:
            values = element.value if element.VM > 1 else [element.value or ""]
            data = charset.encode("\\".join(str(value) for value in values), charsets, element.VR)
            data += b" " * (len(data) % 2)
            ds[tag] = RawDataElement(tag, element.VR, len(data), data, 0, implicit, little)


# pydicom


def _seal(ds: Dataset, implicit: bool, little: bool) -> None:
    """Tell pydicom that the raw values are in the data set's encoding already: it writes them as they are."""
    declared = ds.get("SpecificCharacterSet")
    ds.set_original_encoding(implicit, little, convert_encodings(declared) if declared else default_encoding)


def _encoding(ds: Dataset) -> tuple[bool, bool]:
    """(implicit VR, little endian); those of Explicit VR Little Endian for a data set that was never read."""
    implicit, little = ds.original_encoding
    return bool(implicit), little is not False


def new_element(tag: int | str, vr: str, value: Value) -> DataElement:
    """Without pydicom's checks: their warnings hold the value."""
    return DataElement(tag, vr, value, validation_mode=config.IGNORE)


def _empty(tag: int, ds: Dataset) -> DataElement:
    present = ds.get_item(tag)
    return DataElement(tag, _vr(present) if present is not None else dictionary_VR(tag), None)


def _vr(element: DataElement | RawDataElement) -> str:
    """In Implicit VR the dictionary's; a private element without one is bytes to us."""
    if element.VR:
        return str(element.VR)
    try:
        return dictionary_VR(element.tag)
    except KeyError:
        return "UN"


def _tag(keyword: str) -> BaseTag:
    tag = tag_for_keyword(keyword)
    assert tag is not None, f"{keyword} is no DICOM keyword"
    return Tag(tag)
