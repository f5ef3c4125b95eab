"""Fields of a message as they will stand in DICOM, checked where they are read (conformance.md 1.10, 5.4, 5.7). Pure.

Everywhere: None = the message does not say; empty = it says `""`, which deletes."""

import datetime as dt
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeVar
from zoneinfo import ZoneInfo

from pydicom.datadict import dictionary_VR

from broker import ids, log
from broker.config import Site
from broker.errors import InvalidValue, MissingField
from broker.ris_bridge.hl7.message import Segment, part

T = TypeVar("T")
NULL = '""'
CHARACTERS_MAX = {"AE": 16, "CS": 16, "SH": 16, "LO": 64, "ST": 1024, "LT": 10_240, "UC": 64}
LINES = ("ST", "LT")  # may hold line ends and backslashes (PS3.5 6.2)
CODE_STRING = re.compile(r"[A-Z0-9_ ]{1,16}")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
TIME = re.compile(r"([0-9]{8})([0-9]{2}(?:[0-9]{2}(?:[0-9]{2})?)?)?(?:\.([0-9]+))?([+-][0-9]{4})?")
LASTS = {0: dt.timedelta(days=1), 2: dt.timedelta(hours=1), 4: dt.timedelta(minutes=1), 6: dt.timedelta(seconds=1)}
YEARS = range(2, 9999)  # those that are years in every zone; .NET writes the first of all days for none
JJ1017_16, JJ1017_32 = (re.compile(rf"[0-9A-HJ-NP-Z]{{{length}}}") for length in (16, 32))  # without I and O
JJ1017_SCHEME = re.compile("JJ1017(?!-16S)", re.IGNORECASE)
# The others (tomography, bone density, therapy, portable, dental) are several modalities, or none.
JJ1017_MODALITIES = {"1": "CR", "2": "RF", "3": "XA", "6": "CT", "7": "MR", "8": "NM", "9": "US", "F": "MG"}


def null(value: str, change: Callable[[str], str | None]) -> str | None:
    if not value:
        return None
    return "" if value == NULL else change(value)


def first(values: Iterable[T | None]) -> T | None:
    """The first that is said."""
    return next((value for value in values if value is not None), None)


# Text


vr_of = cache(dictionary_VR)


def shown(segment: Segment, number: int, keyword: str, component: int = 1, *, repetition: int = 1) -> str | None:
    """Text for people: what does not fit the attribute is cut, and logged."""
    return null(segment.get(number, component, repetition=repetition), lambda text: fit(text, keyword, segment, number))


def fit(text: str, keyword: str, segment: Segment, number: int) -> str:
    """A backslash would make two values of one, a line end none at all."""
    vr = vr_of(keyword)
    if vr not in LINES:
        text = CONTROL.sub(" ", text.replace("\\", "/"))
    characters_max = CHARACTERS_MAX[vr]
    if len(text) > characters_max:
        log.get().info("hl7.text_cut", place=segment.place(number), characters_max=characters_max)
    return text[:characters_max].strip()


def exact(segment: Segment, number: int, keyword: str, component: int = 1, *, repetition: int = 1) -> str | None:
    """An identifier or a code: what does not fit is refused, never cut."""
    return null(
        segment.get(number, component, repetition=repetition),
        lambda text: checked(text, keyword, segment, number, component),
    )


def checked(text: str, keyword: str, segment: Segment, number: int, component: int = 1) -> str:
    text, characters_max = text.strip(), CHARACTERS_MAX[vr_of(keyword)]
    if len(text) > characters_max or "\\" in text or CONTROL.search(text):
        raise InvalidValue(
            f"{segment.place(number)}^{component}",
            f"is longer than {characters_max} characters, or holds a backslash or control characters", err="102",
        )  # fmt: skip
    return text


def required(segment: Segment, number: int, what: str, keyword: str) -> str:
    value = exact(segment, number, keyword)
    if not value:
        raise MissingField(segment.place(number), f"{what} is required")
    return value


def uid(segment: Segment, number: int) -> str | None:
    """Its first component; what stands for the application in RP and EI is not looked at."""

    def check(value: str) -> str:
        if not ids.valid_uid(value):
            raise InvalidValue(segment.place(number), "is no UID", err="102")
        return value

    return null(segment.get(number).strip(), check)


def modality(segment: Segment, number: int) -> str | None:
    return modality_of_text(segment.get(number).strip(), segment, number)


def modality_of_text(text: str, segment: Segment, number: int) -> str | None:
    def check(value: str) -> str:
        if not CODE_STRING.fullmatch(value):
            raise InvalidValue(segment.place(number), "is no DICOM modality such as CT", err="102")
        return value

    return null(text, check)


def ae_titles(segment: Segment, number: int, component: int = 1) -> tuple[str, ...] | None:
    """Several are legal in DICOM (PS3.3 C.4.10), and sent as repetitions."""
    if segment.field(number) == NULL:
        return ()
    titles = [part(value, segment.delimiters, component).strip() for value in segment.repetitions(number)]
    for title in titles:
        if title and not re.fullmatch(ids.AE_TITLE, title):
            raise InvalidValue(segment.place(number), "is no AE title: at most 16 ASCII characters", err="102")
    return tuple(filter(None, titles)) or None


def texts(segment: Segment, number: int, keyword: str, component: int = 1) -> list[str] | str | None:
    """One value for each repetition."""
    if segment.field(number) == NULL:
        return ""
    repetitions = range(1, len(segment.repetitions(number)) + 1)
    found = [shown(segment, number, keyword, component, repetition=n) for n in repetitions]
    return [text for text in found if text] or None


# Who assigned it


def authority(segment: Segment, number: int, component: int, default: str = "") -> str:
    """The namespace of an EI, else its universal ID: an identifier whose authority is named is never the site's own."""
    return segment.get(number, component).strip() or segment.get(number, component + 1).strip() or default


def refuse_two_orders(sources: Sequence[Sequence[tuple[Segment, int]]]) -> None:
    """ORC-2 and OBR-2 are one number, and so are ORC-3 and OBR-3. sources: of the placer, and of the filler number,
    where the message says it. Two filler numbers beside one placer number tell no two orders apart: a report may have a
    number of its own there."""
    for of_one in sources:
        said = [(one, number) for one, number in of_one if one.get(number).strip() not in ("", NULL)]
        for one, number in said[1:]:
            first, at = said[0]
            owners = {authority(first, at, 2), authority(one, number, 2)} - {""}
            if first.get(at).strip() != one.get(number).strip() or len(owners) > 1:
                place = f"{first.name}-{at}"
                raise InvalidValue(one.place(number), f"names another order than {place}: send the same", err="102")
        if len(said) > 1:
            return


def authority_of_cx(segment: Segment, number: int, repetition: int, default: str = "") -> str:
    """As `authority`, of CX.4, where the parts are subcomponents."""
    parts = (segment.get(number, 4, n, repetition).strip() for n in (1, 2))
    return next(filter(None, parts), default)


def entity(namespace: str, universal: str = "", kind: str = "") -> list[dict[str, str]]:
    """An HL7v2 Hierarchic Designator (PS3.3 10.14)."""
    said = {"LocalNamespaceEntityID": namespace, "UniversalEntityID": universal, "UniversalEntityIDType": kind}
    said = {name: value for name, value in said.items() if value}
    return [said] if said else []


# Times


def moment(value: str, site: Site) -> dt.datetime | None:
    """Aware; without an offset it is the site's time. None for what is no time."""
    match = TIME.fullmatch(value.strip())
    if not match or int(match[1][:4]) not in YEARS:
        return None
    digits, offset = (match[1] + (match[2] or "")).ljust(14, "0"), match[4]
    fraction = (match[3] or "" if len(match[2] or "") == len("HHMMSS") else "")[:6].ljust(6, "0")
    try:
        if offset:
            return dt.datetime.strptime(digits + fraction + offset, "%Y%m%d%H%M%S%f%z")
        return dt.datetime.strptime(digits + fraction, "%Y%m%d%H%M%S%f").replace(tzinfo=ZoneInfo(site.timezone))
    except ValueError:
        return None


class Span(NamedTuple):
    """What a time names: a date a day, `2025120108` an hour. ends: no longer in it."""

    begins: dt.datetime
    ends: dt.datetime


def span(value: str, site: Site) -> Span | None:
    """None for what is no time."""
    begins = moment(value, site)
    if begins is None:
        return None
    match = TIME.fullmatch(value.strip())
    assert match
    digits = len(match[2] or "")
    lasts = LASTS[digits]
    if digits == len("HHMMSS") and match[3]:
        lasts = dt.timedelta(microseconds=10 ** (6 - min(len(match[3]), 6)))
    return Span(begins, begins + lasts)


def happened(*said: Span | None) -> dt.datetime | None:
    """When: the first that is said. A date beside the second of that day at which the message was made says less than
    that second does, and midnight is not meant: of one that lies within another, the finer counts."""
    found: Span | None = None
    for one in said:
        if one and (found is None or (found.begins <= one.begins and one.ends <= found.ends)):
            found = one
    return found.begins if found else None


def start_of(value: str, segment: Segment, number: int, site: Site) -> tuple[str, str | None] | None:
    """DICOM date and time in the site's zone. A date alone says nothing of the time."""
    if not value:
        return None
    if value == NULL:
        return "", ""
    at = moment(value, site)
    if at is None:
        raise InvalidValue(segment.place(number), "is no time: YYYYMMDDHHMM[SS][+ZZZZ]", err="102")
    if len(value.strip()) == 8:
        return value.strip(), None
    here = at.astimezone(ZoneInfo(site.timezone))
    return here.strftime("%Y%m%d"), here.strftime("%H%M%S")


def date(value: str) -> str | None:
    """YYYYMMDD, of a date or a time. None for what is none: a year alone says nothing that can be compared, and of
    seven digits nobody knows which date they are."""
    match = TIME.fullmatch(value.strip())
    digits = match[1] if match and int(match[1][:4]) in YEARS else ""
    try:
        dt.datetime.strptime(digits, "%Y%m%d")  # noqa: DTZ007
    except ValueError:
        return None
    return digits


# Codes


def code(value: str, meaning: str, scheme: str) -> dict[str, Any]:
    return {"CodeValue": value, "CodingSchemeDesignator": scheme or "99LOCAL", "CodeMeaning": meaning or value}


def codes(segment: Segment, number: int, component: int = 1) -> list[dict[str, Any]] | None:
    """One for each repetition of a CE; from its fourth component, the alternate code. None where it says none; empty
    where it says `""`, or none that can be kept."""
    if segment.field(number) == NULL:
        return []
    found, dropped = [], False
    for n in range(1, len(segment.repetitions(number)) + 1):
        value = segment.get(number, component, repetition=n).strip()
        if not value or value == NULL:
            continue
        meaning = shown(segment, number, "CodeMeaning", component + 1, repetition=n) or ""
        scheme = segment.get(number, component + 2, repetition=n).strip().replace(NULL, "")
        if JJ1017_SCHEME.match(scheme) or (not scheme and JJ1017_32.fullmatch(value)):
            made = jj1017(value, meaning, scheme)
            if made is None:
                log.get().warning("hl7.code_dropped", place=segment.place(number))
                dropped = True
            else:
                found.append(made)
            continue
        for keyword, at in (("CodeValue", component), ("CodingSchemeDesignator", component + 2)):
            exact(segment, number, keyword, at, repetition=n)
        found.append(code(value, meaning, scheme))
    return found or ([] if dropped else None)


def jj1017(value: str, meaning: str, scheme: str) -> dict[str, Any] | None:
    """16M, and of 32 characters 16S as its protocol context (TID 15200, conformance.md 5.9). None for what is no such
    code, as in the distributed tables' rows of 31 digits: its text says more than a code that is shifted by one."""
    extension = scheme.upper().partition("/")[2]
    designator = f"JJ1017-16M/{extension}" if extension else "JJ1017-16M"
    if len(designator) > CHARACTERS_MAX["SH"]:
        return None
    if JJ1017_32.fullmatch(value):
        return {**code(value[:16], meaning, designator), "ProtocolContextSequence": [_conditions(value[16:])]}
    return code(value, meaning, designator) if JJ1017_16.fullmatch(value) else None


def _conditions(value: str) -> dict[str, Any]:
    return {
        "ValueType": "CODE",
        "ConceptNameCodeSequence": [code("123016", "Imaging Conditions", "DCM")],
        "ConceptCodeSequence": [code(value, value, "JJ1017-16S")],
    }


def modality_of(protocol: list[dict[str, Any]] | None) -> str | None:
    """Digit 1 of a JJ1017 code, for messages that name no modality (conformance.md 5.9)."""
    codes_16m = (one for one in protocol or () if one["CodingSchemeDesignator"].startswith("JJ1017-16M"))
    return first(JJ1017_MODALITIES.get(one["CodeValue"][0]) for one in codes_16m)
