"""Elements of FHIR as they will stand in DICOM, checked where they are read, by the same rules as HL7's fields."""

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote
from zoneinfo import ZoneInfo

from pydicom.datadict import dictionary_VR

from broker import ids, log
from broker.config import Site
from broker.errors import InvalidValue
from broker.mwl.commands import Identifier as Known
from broker.ris_bridge import rest_orders
from broker.ris_bridge.fhir.elements import Coding, Concept, HumanName, Identifier
from broker.ris_bridge.hl7 import names
from broker.ris_bridge.hl7.values import CHARACTERS_MAX, CODE_STRING, CONTROL, LINES

OID = "urn:oid:"
UID = "urn:dicom:uid"
SCHEME = "urn:dicom:scheme:"  # ours: a Coding Scheme Designator that has no URI
DCM = "http://dicom.nema.org/resources/ontology/DCM"
V2_0203 = "http://terminology.hl7.org/CodeSystem/v2-0203"
REPRESENTATION = "http://hl7.org/fhir/StructureDefinition/iso21090-EN-representation"
GROUPS = {"ABC": "A", "IDE": "I", "SYL": "P"}
LEGAL = ("official", "usual", None)
SCHEMES = {  # PS3.16 table 8-1
    DCM: "DCM", "http://snomed.info/sct": "SCT", "http://loinc.org": "LN", "http://www.radlex.org": "RADLEX",
    "http://radlex.org": "RADLEX", "http://unitsofmeasure.org": "UCUM", "http://hl7.org/fhir/sid/icd-10": "I10",
}  # fmt: skip


def table(lines: Iterable[str]) -> dict[str, str]:
    """fhir.systems, `NAME=URI` each: URI -> the name by which HL7 and DICOM know it."""
    pairs = (line.partition("=") for line in lines)
    return {uri.strip(): name.strip() for name, _, uri in pairs}


# Identifiers


def kind(one: Identifier) -> str:
    """Its code of table 0203, empty where it has none."""
    return next((c.code or "" for c in one.codings if (c.system or V2_0203).endswith("v2-0203")), "")


def issuer(one: Identifier, systems: Mapping[str, str], default: str = "") -> str:
    """By the site's table, else the system itself: an OID as HL7 has it, bare."""
    if one.system:
        return systems.get(one.system) or one.system.removeprefix(OID)
    return (one.assigner and one.assigner.display) or default


def number(one: Identifier, keyword: str, path: str) -> str:
    """What does not fit is refused, never cut."""
    return exact(one.value or "", keyword, f"{path}.value")


def exact(text: str, keyword: str, path: str) -> str:
    text, characters_max = text.strip(), CHARACTERS_MAX[dictionary_VR(keyword)]
    if len(text) > characters_max or "\\" in text or CONTROL.search(text):
        raise InvalidValue(path, f"is longer than {characters_max} characters, or holds a backslash or line ends")
    return text


def identified(one: Identifier, systems: Mapping[str, str], default: str, path: str) -> Known:
    """A patient's."""
    name = exact(issuer(one, systems, default), "IssuerOfPatientID", f"{path}.system")
    return Known(number(one, "PatientID", path), name, kind(one) or "PI")


def entity(one: Identifier, systems: Mapping[str, str]) -> list[dict[str, str]] | None:
    """The universal ID of who assigned it, where the site has no name for it (PS3.3 10.14)."""
    system = one.system or ""
    if not system.startswith(OID) or system in systems:
        return None
    return [{"UniversalEntityID": system.removeprefix(OID), "UniversalEntityIDType": "ISO"}]


def uid(one: Identifier, path: str) -> str:
    value = (one.value or "").removeprefix(OID)
    if not ids.valid_uid(value):
        raise InvalidValue(f"{path}.value", "is no UID")
    return value


# Text


def shown(text: str | None, keyword: str, path: str) -> str | None:
    """Text for people: what does not fit the attribute is cut, and logged."""
    if text is None:
        return None
    vr = dictionary_VR(keyword)
    if vr not in LINES:
        text = CONTROL.sub(" ", text.replace("\\", "/"))
    if len(text) > CHARACTERS_MAX[vr]:
        log.get().info("fhir.text_cut", place=path, characters_max=CHARACTERS_MAX[vr])
    return text[: CHARACTERS_MAX[vr]].strip()


# Names


def person(said: Sequence[HumanName], site: Site, path: str) -> names.Name:
    """The legal name, by its representations; without one, the script decides."""
    uses = LEGAL if any(one.use in LEGAL for one in said) else [one.use for one in said[:1]]
    return rest_orders.name([(_group(one), _parts(one)) for one in said if one.use in uses], site, path)


def _group(one: HumanName) -> str:
    code = next((e.valueCode for e in one.extension if e.url == REPRESENTATION), None)
    return GROUPS.get(code or "", "")


def _parts(one: HumanName) -> list[str]:
    """[family, given, middle, suffix, prefix]. A name that is only text stays in one piece, but for kanji and kana with
    a space between."""
    if not (one.family or one.given):
        return [one.text or "", "", "", "", ""]
    given, *middle = one.given or [""]
    return [one.family or "", given, " ".join(middle), " ".join(one.suffix), " ".join(one.prefix)]


# Times


def moment(text: str | None, site: Site, path: str) -> dt.datetime | None:
    """Aware; without an offset it is the site's time. Raises InvalidValue for a year or a month alone."""
    if text is None:
        return None
    try:
        if len(text) < len("2025-12-01"):
            raise ValueError
        at = dt.datetime.fromisoformat(text)
    except ValueError:
        raise InvalidValue(path, "is no time of a calendar: YYYY-MM-DDThh:mm:ss+zz:zz") from None
    return at if at.tzinfo else at.replace(tzinfo=ZoneInfo(site.timezone))


def birth_date(text: str | None, path: str) -> str | None:
    """A year or a month alone says nothing that can be compared (conformance.md 5.4)."""
    if text is None or len(text) < len("1970-01-01"):
        return None
    try:
        return dt.date.fromisoformat(text).strftime("%Y%m%d")
    except ValueError:
        raise InvalidValue(path, "is no date of a calendar") from None


# Codes


def scheme(system: str | None, systems: Mapping[str, str]) -> str:
    """Coding Scheme Designator, empty where the system has no name here."""
    if not system:
        return ""
    own = unquote(system.removeprefix(SCHEME)) if system.startswith(SCHEME) else ""
    return systems.get(system) or SCHEMES.get(system) or own


def code(one: Coding, text: str, systems: Mapping[str, str], path: str) -> dict[str, Any]:
    """Raises InvalidValue for a code system that has no name here: its codes could be another's."""
    designator = scheme(one.system, systems)
    if one.system and not designator:
        raise InvalidValue(f"{path}.system", "this code system has no name here; fhir.systems gives it one")
    meaning = shown(one.display or text, "CodeMeaning", f"{path}.display") or ""
    return rest_orders.code(one.code or "", meaning, exact(designator, "CodingSchemeDesignator", path), f"{path}.code")


def codes(said: Sequence[Concept], systems: Mapping[str, str], path: str) -> list[dict[str, Any]]:
    """Of each concept the first coding that is a code; a modality is none."""
    found = []
    for n, concept in enumerate(said):
        codings = [(m, one) for m, one in enumerate(concept.coding) if one.code and not _modality(one)]
        known = [(m, one) for m, one in codings if not one.system or scheme(one.system, systems)]
        for m, one in (known or codings)[:1]:
            found.append(code(one, concept.text or "", systems, f"{path}[{n}].coding[{m}]"))
    return found


def modality(said: Iterable[Concept]) -> str | None:
    return next(filter(None, (_modality(one) for concept in said for one in concept.coding)), None)


def _modality(one: Coding) -> str:
    """DCM has numbers for what is no modality."""
    value = one.code or ""
    return value if one.system == DCM and value.isalpha() and CODE_STRING.fullmatch(value) else ""


def words(concept: Concept | None) -> str | None:
    """What a person reads: the text, else the first display."""
    if concept is None:
        return None
    return concept.text or next((one.display for one in concept.coding if one.display), None)
