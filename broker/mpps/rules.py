"""What a modality may say about a performed step, and what it means (PS3.4 Table F.7.2-1, conformance.md 2.3, 2.4)."""

import datetime as dt
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from broker import ids
from broker.dicom.tree import CHARSET, Tree, vr_of
from broker.errors import EmptyField, InvalidValue, MissingField, WrongState

IN_PROGRESS, COMPLETED, DISCONTINUED = "IN PROGRESS", "COMPLETED", "DISCONTINUED"
FINAL = (COMPLETED, DISCONTINUED)
EVENTS = {IN_PROGRESS: "update", COMPLETED: "complete", DISCONTINUED: "discontinue"}
WRONG_ENTRY = ("110514", "DCM")  # Incorrect worklist entry selected, CID 9301

STATUS, SCHEDULED_STEPS, PERFORMED_SERIES, REASON = 0x00400252, 0x00400270, 0x00400340, 0x00400281
START_DATE, START_TIME, END_DATE, END_TIME = 0x00400244, 0x00400245, 0x00400250, 0x00400251
STUDY_UID, SERIES_UID, ACCESSION, PROCEDURE_ID, SPS_ID = 0x0020000D, 0x0020000E, 0x00080050, 0x00401001, 0x00400009
REFERENCED_STUDIES, REFERENCED_IMAGES, REFERENCED_OTHERS = 0x00081110, 0x00081140, 0x00400220
REFERENCED_CLASS, REFERENCED_INSTANCE = 0x00081150, 0x00081155
ACCESSION_ISSUER, LOCAL_ENTITY = 0x00080051, 0x00400031
PATIENT_ID, PATIENT_ID_ISSUER = 0x00100020, 0x00100021
MODALITY, STATION_AE, STATION_NAME = 0x00080060, 0x00400241, 0x00400242
CODE_VALUE, CODE_SCHEME, CODE_MEANING = 0x00080100, 0x00080102, 0x00080104


class Attribute(NamedTuple):
    """create: type in N-CREATE. settable: whether an N-SET may carry it. items: what its items hold."""

    tag: int
    create: int
    settable: bool = False
    items: tuple["Attribute", ...] = ()


REFERENCE = (Attribute(REFERENCED_CLASS, 1), Attribute(REFERENCED_INSTANCE, 1))
SCHEDULED_STEP = (
    Attribute(STUDY_UID, 1), Attribute(REFERENCED_STUDIES, 2, items=REFERENCE), Attribute(ACCESSION, 2),
    Attribute(PROCEDURE_ID, 2), Attribute(0x00321060, 2), Attribute(SPS_ID, 2), Attribute(0x00400007, 2),
    Attribute(0x00400008, 2), Attribute(ACCESSION_ISSUER, 3, items=(Attribute(LOCAL_ENTITY, 3),)),
)  # fmt: skip
CODE = (Attribute(CODE_VALUE, 3), Attribute(CODE_SCHEME, 3), Attribute(CODE_MEANING, 3))
SERIES = (
    Attribute(0x00081050, 2), Attribute(0x00081070, 2), Attribute(0x00181030, 1), Attribute(SERIES_UID, 1),
    Attribute(0x0008103E, 2), Attribute(0x00080054, 2), Attribute(REFERENCED_IMAGES, 2, items=REFERENCE),
    Attribute(REFERENCED_OTHERS, 2, items=REFERENCE),
)  # fmt: skip
TABLE = (
    Attribute(SCHEDULED_STEPS, 1, items=SCHEDULED_STEP),
    # patient
    Attribute(0x00100010, 2), Attribute(PATIENT_ID, 2), Attribute(0x00100030, 2), Attribute(0x00100040, 2),
    Attribute(PATIENT_ID_ISSUER, 3), Attribute(0x00100024, 3), Attribute(0x00101002, 3), Attribute(0x00081120, 2),
    # visit
    Attribute(0x00380010, 3), Attribute(0x00380014, 3), Attribute(0x00380060, 3), Attribute(0x00380064, 3),
    Attribute(0x00380062, 3),
    # performed step
    Attribute(0x00400253, 1), Attribute(STATION_AE, 1), Attribute(STATION_NAME, 2), Attribute(0x00400243, 2),
    Attribute(START_DATE, 1), Attribute(START_TIME, 1), Attribute(STATUS, 1, settable=True),
    Attribute(0x00400254, 2, settable=True), Attribute(0x00400255, 2, settable=True),
    Attribute(0x00081032, 2, settable=True), Attribute(0x00401012, 3, settable=True),
    Attribute(END_DATE, 2, settable=True), Attribute(END_TIME, 2, settable=True),
    Attribute(0x00400280, 3, settable=True), Attribute(REASON, 3, settable=True, items=CODE),
    # images
    Attribute(MODALITY, 1), Attribute(0x00200010, 2), Attribute(0x00400260, 2, settable=True),
    Attribute(PERFORMED_SERIES, 2, settable=True, items=SERIES),
)  # fmt: skip
KNOWN = {attribute.tag: attribute for attribute in TABLE}
FINAL_TYPE_1 = (END_DATE, END_TIME, PERFORMED_SERIES)
# What we act on must be what its VR says (PS3.5 6.2, 9.1); the rest, a birth date for one, is kept as it was said.
ACTED_ON = frozenset(
    {
        STATUS, START_DATE, START_TIME, END_DATE, END_TIME, STUDY_UID, SERIES_UID, REFERENCED_INSTANCE, ACCESSION,
        PROCEDURE_ID, SPS_ID, LOCAL_ENTITY, PATIENT_ID, PATIENT_ID_ISSUER, MODALITY, STATION_AE, STATION_NAME,
        CODE_VALUE, CODE_SCHEME, CODE_MEANING,
    }
)  # fmt: skip
DATE, OLD_DATE = re.compile(r"[0-9]{8}"), re.compile(r"[0-9]{4}\.[0-9]{2}\.[0-9]{2}")
TIME = re.compile(r"([01][0-9]|2[0-3])([0-5][0-9](([0-5][0-9]|60)(\.[0-9]{1,6})?)?)?")
OLD_TIME = re.compile(r"[0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]+)?)?")


@dataclass(frozen=True)
class Change:
    """What an N-SET makes of a performed step. ignored: attributes that no N-SET may change, and that it tried to
    (warning 0107). missing: what a final state demands and the device did not say (lenient mode)."""

    event: str
    dataset: Tree
    ignored: tuple[int, ...] = ()
    missing: tuple[int, ...] = ()


def check_create(said: Tree, *, strict: bool) -> Tree:
    """The data set of a new performed step: text without its character sets, absent type 2 as empty. Not strict: dates
    and times may have the forms of ACR-NEMA.

    Raises InvalidValue (0106), MissingField (0120), EmptyField (0121), each with the attributes. Attributes that no
    table knows are kept."""
    dataset = without_charsets(said)
    if text(dataset, STATUS) not in ("", IN_PROGRESS):
        # PS3.4 F.7.2.1.3: a performed step is born IN PROGRESS, whatever the modality wants.
        raise InvalidValue("(0040,0252)", "must be IN PROGRESS in N-CREATE", tags=(STATUS,))
    _refuse_malformed(dataset, TABLE, strict=strict)
    if absent := _absent(dataset, TABLE, 2 if strict else 1):
        raise MissingField(names(absent), tags=absent)
    if empty := _empty(dataset, TABLE):
        raise EmptyField(names(empty), tags=empty)
    return _with_type_2(dataset, TABLE)


def check_set(stored: Tree, status: str, said: Tree, *, strict: bool) -> Change:
    """The data set after an N-SET; each sequence that it holds replaces the stored one (PS3.4 F.7.2.2.2).

    Raises WrongState for a step that is final, InvalidValue (0106), EmptyField (0121: an N-SET knows no 0120)."""
    if status in FINAL:
        raise WrongState("", "Performed Procedure Step Object may no longer be updated")
    changes = without_charsets(said)
    _refuse_malformed(changes, [KNOWN[tag] for tag in changes if tag in KNOWN and KNOWN[tag].settable], strict=strict)
    new_status = text(changes, STATUS) if STATUS in changes else status
    if new_status not in EVENTS:
        raise InvalidValue("(0040,0252)", "must be IN PROGRESS, COMPLETED or DISCONTINUED", tags=(STATUS,))
    fixed = tuple(tag for tag in changes if tag in KNOWN and not KNOWN[tag].settable)
    ignored = tuple(tag for tag in fixed if _bare(changes[tag][1]) != _bare(stored.get(tag, ("", ""))[1]))
    if ignored and strict:
        raise InvalidValue(names(ignored), "cannot be changed by N-SET", tags=ignored)
    changes = {tag: element for tag, element in changes.items() if tag not in fixed}
    for item in items(changes, PERFORMED_SERIES):
        if lacking := _absent(item, SERIES, 2 if strict else 1) or _empty(item, SERIES):
            raise EmptyField(names(lacking), tags=lacking)
    dataset = {**stored, **_with_type_2(changes, [KNOWN[PERFORMED_SERIES]] if PERFORMED_SERIES in changes else [])}
    missing = tuple(tag for tag in FINAL_TYPE_1 if new_status in FINAL and not dataset.get(tag, ("", ""))[1])
    if missing and strict:
        raise EmptyField(names(missing), "must have a value in a final state", tags=missing)
    return Change(EVENTS[new_status], dataset, ignored, missing)


def step_event(performed: Iterable[tuple[str, bool]]) -> str | None:
    """What the performed steps of one scheduled step, taken together, tell it; None while one of them goes on.

    performed: (status, wrong entry). An exam of several parts is complete with its last part, and stays so if one
    part was given up; a part that was made under a wrong entry says nothing about this step."""
    parts = [status for status, wrong_entry in performed if not wrong_entry]
    if not parts:
        return "wrong_entry"
    if IN_PROGRESS in parts:
        return None
    return "complete" if COMPLETED in parts else "discontinue"


def reason(dataset: Tree) -> tuple[str, str, str]:
    """(value, scheme, meaning) of the discontinuation reason; a wrong worklist entry goes before other reasons."""
    codes = [
        tuple(text(item, tag) for tag in (CODE_VALUE, CODE_SCHEME, CODE_MEANING)) for item in items(dataset, REASON)
    ]
    value, scheme, meaning = min(codes, key=lambda code: code[:2] != WRONG_ENTRY, default=("", "", ""))
    return value, scheme, meaning


def announced(dataset: Tree) -> dict[str, list[str]]:
    """Series Instance UID -> SOP Instance UIDs of its images and other objects, each once."""
    series: dict[str, dict[str, None]] = {}
    for item in items(dataset, PERFORMED_SERIES):
        references = [*items(item, REFERENCED_IMAGES), *items(item, REFERENCED_OTHERS)]
        series.setdefault(text(item, SERIES_UID), {}).update(
            (text(one, REFERENCED_INSTANCE), None) for one in references
        )
    return {uid: list(listed) for uid, listed in series.items()}


def select(dataset: Tree, tags: Collection[int]) -> tuple[Tree, bool]:
    """What an N-GET returns, and whether it asked for something that we do not have (warning 0001). No tags: all.

    The character set of the answer is the answer's."""
    if not tags:
        return dataset, False
    tags = set(tags) - {CHARSET}
    found = {tag: dataset.get(tag) or _nothing(tag) for tag in tags if tag in dataset or tag in KNOWN}
    return found, len(found) < len(tags)


# Reading a data set


def text(dataset: Tree, tag: int) -> str:
    value = dataset.get(tag, ("", ""))[1]
    return value.strip() if isinstance(value, str) else ""


def items(dataset: Tree, tag: int) -> list[Tree]:
    value = dataset.get(tag, ("SQ", []))[1]
    return value if isinstance(value, list) else []


def names(tags: Iterable[int]) -> str:
    return " ".join(f"({tag >> 16:04X},{tag & 0xFFFF:04X})" for tag in tags)


def moment(dataset: Tree, date: int, time: int) -> tuple[str, str] | None:
    """DA and TM as PS3.5 has them now; None where one of them is not said: half a moment is none."""
    day, hour = _present_form(text(dataset, date)), _present_form(text(dataset, time))
    return (day, hour) if day and hour else None


def without_charsets(dataset: Tree) -> Tree:
    """(0008,0005) holds for the request that carried it, and group lengths (PS3.5 7.2) for its bytes; what is stored is
    Unicode, and a data set of its own."""
    return {
        tag: (vr, [without_charsets(item) for item in value] if isinstance(value, list) else value)
        for tag, (vr, value) in dataset.items()
        if tag != CHARSET and tag & 0xFFFF
    }


def _refuse_malformed(dataset: Tree, table: Sequence[Attribute], *, strict: bool) -> None:
    if tags := _malformed(dataset, table, strict):
        raise InvalidValue(names(tags), "malformed", tags=tags)


def _malformed(dataset: Tree, table: Sequence[Attribute], strict: bool) -> tuple[int, ...]:
    """A sequence where text belongs, or the other way round; of what we act on, whatever its VR cannot hold. Also in
    items."""
    found: list[int] = []
    for attribute in table:
        value, vr = dataset.get(attribute.tag, ("", ""))[1], vr_of(attribute.tag)
        fits = isinstance(value, list) == (vr == "SQ") and (attribute.tag not in ACTED_ON or _fits(value, vr, strict))
        if value and not fits:
            found.append(attribute.tag)
        for item in items(dataset, attribute.tag):
            found += _malformed(item, attribute.items, strict)
    return tuple(dict.fromkeys(found))


def _fits(value: object, vr: str, strict: bool) -> bool:
    """NUL stands inside where a device wrote past the end of its text; PostgreSQL cannot keep it."""
    if not isinstance(value, str) or "\0" in value:
        return False
    if vr == "UI":
        return ids.valid_uid(value.strip())
    if vr not in ("DA", "TM"):
        return True
    plain = value.strip() if strict else _present_form(value.strip())
    return _is_date(plain) if vr == "DA" else TIME.fullmatch(plain) is not None


def _is_date(value: str) -> bool:
    try:
        return DATE.fullmatch(value) is not None and bool(dt.date.fromisoformat(value))
    except ValueError:
        return False


def _present_form(value: str) -> str:
    """The forms of ACR-NEMA 300, 1970.01.01 and 09:30:00, without their separators (PS3.5 6.2)."""
    if OLD_DATE.fullmatch(value):
        return value.replace(".", "")
    return value.replace(":", "") if OLD_TIME.fullmatch(value) else value


def _absent(dataset: Tree, table: Sequence[Attribute], type_max: int) -> tuple[int, ...]:
    """Attributes of type 1 to `type_max` that are not there, also in items."""
    found = [attribute.tag for attribute in table if attribute.create <= type_max and attribute.tag not in dataset]
    for attribute in table:
        for item in items(dataset, attribute.tag):
            found += _absent(item, attribute.items, type_max)
    return tuple(dict.fromkeys(found))


def _empty(dataset: Tree, table: Sequence[Attribute]) -> tuple[int, ...]:
    """Attributes of type 1 that are there without a value, also in items."""
    found = [a.tag for a in table if a.create == 1 and a.tag in dataset and not dataset[a.tag][1]]
    for attribute in table:
        for item in items(dataset, attribute.tag):
            found += _empty(item, attribute.items)
    return tuple(dict.fromkeys(found))


def _with_type_2(dataset: Tree, table: Sequence[Attribute]) -> Tree:
    """The data set with every absent type 2 attribute of `table` as an empty one, also in items."""
    filled = dict(dataset)
    for attribute in table:
        if attribute.create == 2 and attribute.tag not in dataset:
            filled[attribute.tag] = _nothing(attribute.tag)
        elif attribute.items and attribute.tag in dataset:
            filled[attribute.tag] = (
                "SQ",
                [_with_type_2(one, attribute.items) for one in items(dataset, attribute.tag)],
            )
    return filled


def _nothing(tag: int) -> tuple[str, str | bytes | list[Tree]]:
    vr = vr_of(tag)
    return vr, [] if vr == "SQ" else ""


def _bare(value: "str | bytes | list[Tree]") -> object:
    """For comparison: without empty elements, which a device may send or leave out. None where nothing is said."""
    if isinstance(value, list):
        return [{tag: _bare(inner) for tag, (_, inner) in item.items() if inner} for item in value] or None
    return value or None
