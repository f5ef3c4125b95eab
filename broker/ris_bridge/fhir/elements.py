"""The parts of R4 resources that are read: strict in these, lenient in all others (profiles such as JP Core are taken,
never demanded)."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeVar

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from broker.errors import InvalidValue, Unreadable

M = TypeVar("M", bound="Element")
TEXT = r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*$"
DAY = r"(18|19|20|21)[0-9]{2}-[0-9]{2}-[0-9]{2}"  # years that stay years in every zone
DATE = rf"{DAY}|[0-9]{{4}}(-[0-9]{{2}})?"
TIME = rf"{DAY}T[0-9]{{2}}:[0-9]{{2}}(:[0-9]{{2}}(\.[0-9]+)?)?(Z|[+-][0-9]{{2}}:[0-9]{{2}})?|{DATE}"

Text = Annotated[str, Field(min_length=1, max_length=16_384, pattern=TEXT)]
Uri = Annotated[str, Field(min_length=1, max_length=1_024, pattern=r"^[^\s\x00-\x1f\x7f]+$")]
Date = Annotated[str, Field(pattern=f"^({DATE})$")]
Time = Annotated[str, Field(pattern=f"^({TIME})$")]


class Element(BaseModel):
    model_config = ConfigDict(extra="ignore")


class Coding(Element):
    system: Uri | None = None
    code: Text | None = None
    display: Text | None = None


class Concept(Element):
    coding: list[Coding] = []
    text: Text | None = None


class Period(Element):
    start: Time | None = None
    end: Time | None = None


class Identifier(Element):
    use: Text | None = None
    type: Concept = Concept()
    system: Uri | None = None
    value: Text | None = None
    assigner: "Reference | None" = None


class Reference(Element):
    reference: Uri | None = None
    type: Text | None = None
    identifier: Identifier | None = None
    display: Text | None = None


class Extension(Element):
    url: Uri
    valueCode: Text | None = None


class HumanName(Element):
    extension: list[Extension] = []
    use: Text | None = None
    text: Text | None = None
    family: Text | None = None
    given: list[Text] = []
    prefix: list[Text] = []
    suffix: list[Text] = []


class Note(Element):
    text: Text


class Place(Element):
    location: Reference


class DeviceName(Element):
    name: Text


class Contained(Element):
    """Practitioner, Device, Location, Encounter: what is read of them inside another resource."""

    resourceType: Text
    id: Text | None = None
    identifier: list[Identifier] = []
    name: list[HumanName] | Text | None = None
    deviceName: list[DeviceName] = []
    location: list[Place] = []


class Resource(Element):
    resourceType: Text
    id: Text | None = None
    contained: list[dict[str, Any]] = []
    identifier: list[Identifier] = []


class Patient(Resource):
    name: list[HumanName] = []
    birthDate: Date | None = None
    gender: Literal["male", "female", "other", "unknown"] | None = None


class ServiceRequest(Resource):
    requisition: Identifier | None = None
    status: Literal["draft", "active", "on-hold", "revoked", "completed", "entered-in-error", "unknown"]
    intent: Text
    doNotPerform: bool = False
    priority: Literal["routine", "urgent", "asap", "stat"] | None = None
    category: list[Concept] = []
    code: Concept | None = None
    orderDetail: list[Concept] = []
    subject: Reference
    encounter: Reference | None = None
    occurrenceDateTime: Time | None = None
    occurrencePeriod: Period = Period()
    authoredOn: Time | None = None
    requester: Reference | None = None
    performer: list[Reference] = []
    locationReference: list[Reference] = []
    reasonCode: list[Concept] = []
    bodySite: list[Concept] = []
    note: list[Note] = []


class Participant(Element):
    actor: Reference | None = None


class Appointment(Resource):
    status: Text
    basedOn: list[Reference] = []
    supportingInformation: list[Reference] = []
    start: Time | None = None
    description: Text | None = None
    participant: list[Participant] = []


class Restriction(Element):
    period: Period = Period()


class Task(Resource):
    status: Text
    basedOn: list[Reference] = []
    focus: Reference | None = None
    code: Concept | None = None
    description: Text | None = None
    owner: Reference | None = None
    location: Reference | None = None
    restriction: Restriction = Restriction()


class HttpRequest(Element):
    method: Literal["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH"]
    url: Uri
    ifNoneExist: Text | None = None
    ifMatch: Text | None = None


class Entry(Element):
    fullUrl: Uri | None = None
    resource: dict[str, Any]
    request: HttpRequest


class Bundle(Element):
    type: Text
    entry: list[Entry] = []


KINDS: dict[str, type[Resource]] = {
    "Patient": Patient, "ServiceRequest": ServiceRequest, "Appointment": Appointment, "Task": Task,
}  # fmt: skip


def json_of(text: str) -> dict[str, Any]:
    """Raises Unreadable."""
    try:
        found = pydantic_core.from_json(text, allow_inf_nan=False)
    except ValueError:
        raise Unreadable("", "the body is no JSON") from None
    if not isinstance(found, dict) or not isinstance(found.get("resourceType"), str):
        raise Unreadable("resourceType", "the body is no FHIR resource")
    return found


def read(kind: type[M], found: dict[str, Any], path: str) -> M:
    """Raises InvalidValue naming the first element that is wrong; never its value."""
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = re.sub(r"\.(\d+)", r"[\1]", ".".join(map(str, (path, *first["loc"]))))
        raise InvalidValue(where, first["msg"]) from None


TYPED = {"PLAC": "placer", "FILL": "filler", "ACSN": "accession"}
UNTYPED = {"Patient": "patient", "ServiceRequest": "placer", "Appointment": "appointment"}


def keys(raw: bytes) -> list[tuple[str, str]]:
    """What a body names that may be no resource, for the journal."""
    try:
        return list(_keys(pydantic_core.from_json(raw), ""))
    except ValueError:
        return []


def _keys(found: Any, kind: str) -> Iterator[tuple[str, str]]:
    for one in found if isinstance(found, list) else [found]:
        if not isinstance(one, dict):
            continue
        kind = str(one.get("resourceType", kind))
        value = one.get("value")
        if isinstance(value, str) and kind:
            yield from _key(one, value.removeprefix("urn:oid:"), kind)
        for name in ("entry", "resource", "contained", "identifier"):
            yield from _keys(one.get(name), kind)
        yield from _keys(one.get("subject"), "Patient")


def _key(identifier: dict[str, Any], value: str, kind: str) -> Iterator[tuple[str, str]]:
    if identifier.get("system") == "urn:dicom:uid":
        yield "study", value
        return
    said = identifier.get("type")
    text = str(said) if said else ""
    typed = next((name for code, name in TYPED.items() if f"'{code}'" in text), None)
    if name := typed or UNTYPED.get(kind if not said or kind == "Patient" else ""):
        yield name, value
