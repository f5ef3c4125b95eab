"""What a profile can fill: a closed list, and how each is read from its field. Pure.

A target is a field of a command (lower case) or an attribute of the worklist item by its DICOM keyword. Its level says
of what: `visit.` from PID on to the first order, of new orders alone (RAD-13); `order.` and `procedure.` from their
order group; `step.` from the same, with its own IPC."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydicom.datadict import dictionary_VR

from broker import ids
from broker.config import Site
from broker.errors import InvalidValue
from broker.mwl.commands import PRIORITIES
from broker.ris_bridge import rest_orders
from broker.ris_bridge.hl7 import values
from broker.ris_bridge.hl7.message import Segment, unescape
from broker.ris_bridge.hl7.names import XCN, XPN, person, technician
from broker.ris_bridge.hl7.values import NULL, null
from broker.ris_bridge.mapping.paths import ALL, ROW, Path, read

LEVELS = ("patient", "visit", "order", "procedure", "step")
Reader = Callable[[Segment, Path, str, Site], Any]
SEX = {"M", "F", "O"}
DECIMAL = re.compile(r"-?[0-9]{1,12}(\.[0-9]{1,3})?")
PARTED_DATE = re.compile(r"([0-9]{4})([-/])([0-9]{1,2})\2([0-9]{1,2})(?:[T ].*)?")
TECHNICIANS = {("OBR", number) for number in (32, 33, 34, 35)}  # NDL
LABEL_WORDS = rest_orders.PATTERNS[rest_orders.LABEL]
XPN_FIELDS = {("PID", 5), ("PID", 6), ("PID", 9), ("NK1", 2), ("GT1", 3), (ROW, 0)}


@dataclass(frozen=True)
class Kind:
    """read: None = not said. about: for people. parts: what one reading gives, where it is several values. check: of a
    value that stands in a profile (default, code table): a sentence where it is none; None: it takes neither. several:
    takes all repetitions. lines: of all such segments. absent: where nothing is said. caseless: so are its codes."""

    read: Reader
    about: str
    parts: tuple[str, ...] = ()
    check: Callable[[str, str], str] | None = None
    several: bool = False
    lines: bool = False
    absent: Any = None
    caseless: bool = False


@dataclass(frozen=True)
class Target:
    """name: without its level. attribute: it is a DICOM keyword."""

    level: str
    name: str
    kind: Kind
    attribute: bool

    @property
    def text(self) -> str:
        return f"{self.level}.{self.name}"


# Readers


def _text(segment: Segment, path: Path, keyword: str, site: Site) -> str | list[str] | None:
    if path.repetition == ALL:
        return values.texts(segment, path.number, keyword, path.component)
    return null(read(segment, path), lambda text: values.fit(text, keyword, segment, path.number))


def _key(segment: Segment, path: Path, keyword: str, site: Site) -> str | None:
    """`""` is no number: the next source is asked."""
    said = read(segment, path)
    if not said or said == NULL:
        return None
    return values.checked(said, keyword, segment, path.number, path.component) or None


def _number(keyword: str) -> Reader:
    def number(segment: Segment, path: Path, _: str, site: Site) -> tuple[str, str] | None:
        """EI: the number and its authority."""
        value = _key(segment, path, keyword, site)
        if value is None:
            return None
        return value, "" if path.whole else values.authority(segment, path.number, path.component + 1)

    return number


def _issuer(segment: Segment, path: Path, _: str, site: Site) -> str | None:
    said = read(segment, path).strip()
    return said if said and said != NULL else None


def _uid(segment: Segment, path: Path, _: str, site: Site) -> str | None:
    """Only the first component of RP and EI is the UID."""
    said = read(segment, path).strip()
    if not said or said == NULL:
        return None
    if not ids.valid_uid(said):
        raise InvalidValue(segment.place(path.number), "is no UID", err="102")
    return said


def _priority(segment: Segment, path: Path, _: str, site: Site) -> str | None:
    said = read(segment, path).strip().upper()
    if said and said not in PRIORITIES:
        return "ROUTINE"
    return said or None


def _span(segment: Segment, path: Path, _: str, site: Site) -> values.Span | None:
    return values.span(read(segment, path), site)


def _start(segment: Segment, path: Path, _: str, site: Site) -> tuple[str, str | None] | None:
    return values.start_of(read(segment, path), segment, path.number, site)


def _date(segment: Segment, path: Path, _: str, site: Site) -> str | None:
    """In files the parts of a date are written with - or / between them, too, and without their zeros."""

    def check(text: str) -> str:
        parted = PARTED_DATE.fullmatch(text)
        found = values.date(f"{parted[1]}{parted[3]:0>2}{parted[4]:0>2}" if parted else text)
        if found is None:
            raise InvalidValue(segment.place(path.number), "is no date: YYYYMMDD", err="102")
        return found

    return null(read(segment, path).strip(), check)


def _modality(segment: Segment, path: Path, _: str, site: Site) -> str | None:
    return values.modality_of_text(read(segment, path).strip(), segment, path.number)


def _coded(segment: Segment, path: Path, keyword: str, site: Site) -> str | None:
    def check(text: str) -> str:
        if not values.CODE_STRING.fullmatch(text):
            raise InvalidValue(
                segment.place(path.number), "is no code string: 16 capital letters, digits, _", err="102"
            )
        return text

    return null(read(segment, path).strip(), check)


def _label(segment: Segment, path: Path, _: str, site: Site) -> str | None:
    def check(text: str) -> str:
        if not re.fullmatch(rest_orders.LABEL, text):
            raise InvalidValue(segment.place(path.number), LABEL_WORDS, err="102")
        return text

    return null(read(segment, path).strip(), check)


def _sex(segment: Segment, path: Path, _: str, site: Site) -> str | None:
    return null(read(segment, path).strip(), lambda text: text if text in SEX else None)


def _whole_number(segment: Segment, path: Path, keyword: str, site: Site) -> int | str | None:
    said = read(segment, path).strip()
    if said == NULL:
        return ""
    return int(said) if said.isascii() and said.isdigit() else None


def _decimal(segment: Segment, path: Path, keyword: str, site: Site) -> str | None:
    return null(read(segment, path).strip(), lambda text: text if DECIMAL.fullmatch(text) else None)


def _name(segment: Segment, path: Path, _: str, site: Site) -> str | None:
    """The data type of the field: NDL, XPN, else XCN. A column is an XPN: `山田^太郎~ヤマダ^タロウ`. Signs alone delete
    nothing."""
    if (segment.name, path.number) in TECHNICIANS:
        said = technician(segment, path.number, site)
    else:
        kind = XPN if segment.name == ROW or (segment.name, path.number) in XPN_FIELDS else XCN
        said = person(segment, path.number, site, kind)
    return null(segment.field(path.number), lambda _: said or None)


def _codes(segment: Segment, path: Path, _: str, site: Site) -> list[dict[str, Any]] | None:
    return values.codes(segment, path.number, path.component)


def _code(segment: Segment, path: Path, _: str, site: Site) -> tuple[str | None, ...] | None:
    """The leading code. A field that holds a text alone says that there is no code: no other field's goes with it."""
    if not segment.field(path.number):
        return None
    if not segment.get(path.number, path.component):
        return None, None, None
    found = values.codes(segment, path.number, path.component)
    if not found:
        return "", "", ""
    return found[0]["CodeValue"], found[0]["CodingSchemeDesignator"], found[0]["CodeMeaning"]


def _titles(segment: Segment, path: Path, _: str, site: Site) -> tuple[str, ...] | None:
    return values.ae_titles(segment, path.number, path.component)


def _entity(segment: Segment, path: Path, _: str, site: Site) -> list[dict[str, str]] | None:
    """EI and its universal ID: without one, the namespace says all there is."""
    if not segment.get(path.number, 3):
        return None
    return values.entity(*(segment.get(path.number, component) for component in (2, 3, 4)))


def _visit(segment: Segment, path: Path, keyword: str, site: Site) -> tuple[str, list[dict[str, str]]] | None:
    """CX: the number and who assigned it."""
    value = _key(segment, path, keyword, site)
    if value is None:
        return None
    return value, values.entity(*(segment.get(path.number, 4, n) for n in (1, 2, 3)))


def _lines(segment: Segment, path: Path, keyword: str, site: Site) -> str | None:
    """Of one segment, a repetition a line; those of several are joined by whoever has them all. In a cell the sign is
    text."""
    if path.whole and segment.name != ROW:
        sign = segment.delimiters[2]
        return unescape(segment.field(path.number).rstrip(sign).replace(sign, "\n"), segment.delimiters) or None
    return read(segment, path) or None


def joined(lines: list[str], keyword: str) -> str | None:
    said = [line for line in lines if line != NULL]
    return "\n".join(said)[: values.CHARACTERS_MAX["LT"]] if lines else None


# What may stand in a profile


def _one_of(known: Any, sentence: str) -> Callable[[str, str], str]:
    return lambda value, _: "" if value in known else sentence


def _like(pattern: "str | re.Pattern[str]", sentence: str) -> Callable[[str, str], str]:
    return lambda value, _: "" if re.fullmatch(pattern, value) else sentence


def _fits(value: str, keyword: str) -> str:
    characters_max = values.CHARACTERS_MAX.get(dictionary_VR(keyword), 64) if keyword else 64
    bad = len(value) > characters_max or "\\" in value or values.CONTROL.search(value)
    return f"is longer than {characters_max} characters, or holds a backslash" if bad else ""


def _fits_code(value: str, _: str) -> str:
    """`code^meaning^scheme`, as the field would say it."""
    segment = Segment("PRF", ["PRF", value], ROW_SIGNS)
    try:
        found = values.codes(segment, 1)
    except InvalidValue as error:
        return error.text
    return "" if found else "is no code: code^meaning^scheme"


ROW_SIGNS = "\0^~\0\0"

TEXT = Kind(_text, "text, cut to what the attribute holds; with [*] one value for each repetition", check=_fits)
SINGLE = Kind(_text, "text, cut to what the attribute holds", check=_fits)
LINES = Kind(_lines, "text of all such segments of its group, one line each", check=_fits, lines=True)
NAME = Kind(_name, "name of three groups from XPN, XCN or NDL", check=_fits)
CODES = Kind(
    _codes, "codes from a CE, of all repetitions; JJ1017 of 32 characters is split", check=_fits_code, several=True
)
ENTITY = Kind(_entity, "who assigned it, where a universal ID is said")
CODED = Kind(_coded, "code string", check=_like(values.CODE_STRING, "is no code string"))
NUMBER = Kind(_whole_number, "whole number", check=_like(r"[0-9]{1,5}", "is no whole number"))
DECIMALS = Kind(_decimal, "decimal number", check=_like(DECIMAL, "is no number"))
DATE = Kind(_date, "date", check=_like(r"[0-9]{8}", "is no date: YYYYMMDD"))
KEY = Kind(_key, "identifier: refused where it does not fit, never cut", check=_fits, absent="")
ISSUER = Kind(_issuer, "who assigned it", check=_fits)
UID = Kind(_uid, "UID", check=lambda value, _: "" if ids.valid_uid(value) else "is no UID", absent="")

BY_VR = {
    "LO": SINGLE, "SH": SINGLE, "ST": SINGLE, "UC": SINGLE, "LT": LINES, "PN": NAME, "CS": CODED, "US": NUMBER,
    "DS": DECIMALS, "DA": DATE,
}  # fmt: skip
SEVERAL = ("ScheduledStationName", "Allergies", "MedicalAlerts", "PatientTelephoneNumbers")  # VM 1-n
# Keywords whose exact length matters more than that something is shown.
KEYWORDS = {
    "order.accession_number": "AccessionNumber",
    "procedure.requested_procedure_id": "RequestedProcedureID",
    "procedure.description": "RequestedProcedureDescription",
    "procedure.code_value": "CodeValue",
    "procedure.code_scheme": "CodingSchemeDesignator",
    "procedure.code_meaning": "CodeMeaning",
    "step.sps_id": "ScheduledProcedureStepID",
    "step.description": "ScheduledProcedureStepDescription",
    "patient.id": "PatientID",
    "patient.issuer": "IssuerOfPatientID",
    "order.accession_issuer": "IssuerOfPatientID",
    "order.reason": "ReasonForTheRequestedProcedure",
}
FIELDS: dict[str, Kind] = {
    "patient.id": KEY,
    "patient.issuer": ISSUER,
    "patient.name": NAME,
    "patient.birth_date": DATE,
    "patient.sex": Kind(_sex, "M, F or O", check=_one_of(SEX, "is no sex: M, F or O")),
    "order.accession_number": KEY,
    "order.accession_issuer": ISSUER,
    "order.priority": Kind(_priority, f"one of {', '.join(PRIORITIES)}; else ROUTINE",
                           check=_one_of(PRIORITIES, f"is no priority: {', '.join(PRIORITIES)}"), caseless=True),
    "order.at": Kind(_span, "the order's own time, for the stale guard"),
    "order.reason": Kind(_text, "why it is cancelled or changed", check=_fits, absent=""),
    "procedure.placer_number": Kind(_number("PlacerOrderNumberImagingServiceRequest"), "EI: number and authority, of"
                                    " procedure and steps", parts=("placer_number", "placer_issuer"), absent=""),
    "procedure.filler_number": Kind(_number("FillerOrderNumberImagingServiceRequest"), "EI: number and authority, of"
                                    " procedure and steps", parts=("filler_number", "filler_issuer"), absent=""),
    "procedure.requested_procedure_id": KEY,
    "procedure.study_instance_uid": UID,
    "procedure.description": SINGLE,
    "procedure.code": Kind(_code, "CE: code, scheme and meaning", parts=("code_value", "code_scheme", "code_meaning"),
                           check=_fits_code),
    "procedure.code_value": Kind(_key, "code alone", check=_fits),
    "procedure.code_scheme": Kind(_key, "its scheme alone", check=_fits),
    "procedure.code_meaning": SINGLE,
    "step.sps_id": KEY,
    "step.modality": Kind(_modality, "DICOM modality; else from the first digit of a JJ1017 code",
                          check=_like(values.CODE_STRING, "is no DICOM modality such as CT")),
    "step.station_ae_titles": Kind(_titles, "AE titles, of all repetitions", several=True,
                                   check=_like(ids.AE_TITLE, "is no AE title")),
    "step.start": Kind(_start, "date and time, in the site's zone", parts=("start_date", "start_time")),
    "step.description": SINGLE,
    "step.label": Kind(_label, "the worklist that it stands on: refused where a node could not name it, never cut",
                       check=_like(rest_orders.LABEL, LABEL_WORDS)),
    "step.appointment_number": Kind(_number("PlacerOrderNumberImagingServiceRequest"), "EI: number and authority of the"
                                    " slot", parts=("appointment_number", "appointment_issuer"), absent=""),
}  # fmt: skip
OF_THE_ITEM = (
    # patient
    "PatientWeight PatientSize PatientState PregnancyStatus MedicalAlerts Allergies SpecialNeeds EthnicGroup "
    "Occupation SmokingStatus AdditionalPatientHistory PatientComments PatientAddress PatientTelephoneNumbers "
    "CountryOfResidence RegionOfResidence PatientReligiousPreference LastMenstrualDate "
    "ConfidentialityConstraintOnPatientDataDescription "
    # visit
    "CurrentPatientLocation PatientInstitutionResidence ReferringPhysicianName VisitStatusID VisitComments "
    "InstitutionName RouteOfAdmissions AdmittingDiagnosesDescription AdmittingDate ServiceEpisodeID "
    # imaging service request
    "RequestingPhysician RequestingService ImagingServiceRequestComments OrderEnteredBy OrderEntererLocation "
    "OrderCallbackPhoneNumber IssueDateOfImagingServiceRequest IssuerOfAccessionNumberSequence "
    "OrderPlacerIdentifierSequence OrderFillerIdentifierSequence "
    # requested procedure
    "ReasonForTheRequestedProcedure ReasonForRequestedProcedureCodeSequence RequestedProcedureComments "
    "RequestedProcedureLocation PatientTransportArrangements NamesOfIntendedRecipientsOfResults ReportingPriority "
    "ConfidentialityCode BarcodeValue "
).split()
OF_THE_STEP = (
    "ScheduledPerformingPhysicianName ScheduledProtocolCodeSequence ScheduledStationName "
    "ScheduledProcedureStepLocation PreMedication RequestedContrastAgent ScheduledProcedureStepEndDate "
    "CommentsOnTheScheduledProcedureStep"
).split()
ADMISSION = Kind(_visit, "CX: number and who assigned it", parts=("AdmissionID", "IssuerOfAdmissionIDSequence"))


def _of_keyword(keyword: str) -> Kind:
    if keyword in SEVERAL:
        return TEXT
    vr = dictionary_VR(keyword)
    if vr == "SQ":
        return CODES if keyword.endswith("CodeSequence") else ENTITY
    return BY_VR[vr]


def _all() -> dict[str, Target]:
    kinds = dict(FIELDS)
    for keyword in OF_THE_ITEM:
        kinds |= {f"{level}.{keyword}": _of_keyword(keyword) for level in LEVELS if level != "step"}
    kinds |= {f"{level}.AdmissionID": ADMISSION for level in ("visit", "order")}
    kinds |= {f"step.{keyword}": _of_keyword(keyword) for keyword in OF_THE_STEP}
    parts = {name: name.partition(".") for name in kinds}
    return {
        name: Target(parts[name][0], parts[name][2], kind, parts[name][2][0].isupper()) for name, kind in kinds.items()
    }


TARGETS = _all()


def keyword_of(target: Target) -> str:
    """What says how long it may be."""
    return target.name if target.attribute else KEYWORDS.get(target.text, "")
