"""The parts of R4 resources that are read: strict in these, lenient in all others (profiles such as JP Core are taken,
never demanded)."""

from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from broker.errors import Unreadable
from broker.ris_bridge import http_road, json_faults

M = TypeVar("M", bound="Element")
T = TypeVar("T")
ITEMS_MAX = 100  # of each list inside a resource
LOOKED_AT_MAX = 10_000  # elements of a body, for what the journal finds it by
TEXT = f"^[^{http_road.NO_TEXT}]*$"
DAY = r"(18|19|20|21)[0-9]{2}-[0-9]{2}-[0-9]{2}"  # years that stay years in every zone
DATE = rf"{DAY}|[0-9]{{4}}(-[0-9]{{2}})?"
TIME = rf"{DAY}T[0-9]{{2}}:[0-9]{{2}}(:[0-9]{{2}}(\.[0-9]+)?)?(Z|[+-][0-9]{{2}}:[0-9]{{2}})?|{DATE}"

URI, ONE_DATE, ONE_TIME = rf"^[^\s{http_road.ONE_LINE}]+$", f"^({DATE})$", f"^({TIME})$"
PATTERNS = {
    TEXT: "must hold no control, direction or zero-width character but tabs and line ends",
    URI: "must be a URI, without blanks and control, direction or zero-width characters",
    ONE_DATE: "must be written as YYYY, YYYY-MM or YYYY-MM-DD; the year of a day must lie between 1800 and 2199",
    ONE_TIME: "must be written as YYYY-MM-DDThh:mm:ss+zz:zz, or as a date; its year must lie between 1800 and 2199",
}

Text = Annotated[str, Field(min_length=1, max_length=16_384, pattern=TEXT)]
Uri = Annotated[str, Field(min_length=1, max_length=1_024, pattern=URI)]
Date = Annotated[str, Field(pattern=ONE_DATE)]
Time = Annotated[str, Field(pattern=ONE_TIME)]
Items = Annotated[list[T], Field(max_length=ITEMS_MAX)]


class Element(BaseModel):
    model_config = ConfigDict(extra="ignore")

    @field_validator("*", mode="before")
    @classmethod
    def _without_blanks(cls, value: Any) -> Any:
        """At the ends of a text they say nothing, and a text of nothing else is none (PS3.5 6.2)."""
        return value.strip(http_road.BLANKS) or None if isinstance(value, str) else value


class Coding(Element):
    system: Uri | None = None
    code: Text | None = None
    display: Text | None = None


class Concept(Element):
    coding: Items[Coding] = []
    text: Text | None = None


class Period(Element):
    start: Time | None = None
    end: Time | None = None


class Identifier(Element):
    use: Text | None = None
    type: Concept | None = None
    system: Uri | None = None
    value: Text | None = None
    assigner: "Reference | None" = None

    @property
    def codings(self) -> list[Coding]:
        """Of its type."""
        return self.type.coding if self.type else []

    @property
    def words(self) -> str | None:
        """Of its type."""
        return self.type.text if self.type else None


class Reference(Element):
    reference: Uri | None = None
    type: Text | None = None
    identifier: Identifier | None = None
    display: Text | None = None


class Extension(Element):
    url: Uri
    valueCode: Text | None = None


class HumanName(Element):
    extension: Items[Extension] = []
    use: Text | None = None
    text: Text | None = None
    family: Text | None = None
    given: Items[Text] = []
    prefix: Items[Text] = []
    suffix: Items[Text] = []


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
    identifier: Items[Identifier] = []
    name: Items[HumanName] | Text | None = None
    deviceName: Items[DeviceName] = []
    location: Items[Place] = []


class Resource(Element):
    resourceType: Text
    id: Text | None = None
    contained: Items[dict[str, Any]] = []
    identifier: Items[Identifier] = []


class Patient(Resource):
    name: Items[HumanName] = []
    birthDate: Date | None = None
    gender: Literal["male", "female", "other", "unknown"] | None = None


class ServiceRequest(Resource):
    requisition: Identifier | None = None
    status: Literal["draft", "active", "on-hold", "revoked", "completed", "entered-in-error", "unknown"]
    intent: Text
    doNotPerform: bool = False
    priority: Literal["routine", "urgent", "asap", "stat"] | None = None
    category: Items[Concept] = []
    code: Concept | None = None
    orderDetail: Items[Concept] = []
    subject: Reference
    encounter: Reference | None = None
    occurrenceDateTime: Time | None = None
    occurrencePeriod: Period | None = None
    authoredOn: Time | None = None
    requester: Reference | None = None
    performer: Items[Reference] = []
    locationReference: Items[Reference] = []
    reasonCode: Items[Concept] = []
    bodySite: Items[Concept] = []
    note: Items[Note] = []


class Participant(Element):
    actor: Reference | None = None


class Appointment(Resource):
    status: Text
    basedOn: Items[Reference] = []
    supportingInformation: Items[Reference] = []
    start: Time | None = None
    description: Text | None = None
    participant: Items[Participant] = []


class Restriction(Element):
    period: Period | None = None


class Task(Resource):
    status: Text
    basedOn: Items[Reference] = []
    focus: Reference | None = None
    of: Reference | None = Field(default=None, alias="for")
    code: Concept | None = None
    description: Text | None = None
    owner: Reference | None = None
    location: Reference | None = None
    restriction: Restriction | None = None


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
    found = http_road.json_of(text, "")
    if not isinstance(found, dict) or not isinstance(found.get("resourceType"), str):
        raise Unreadable("resourceType", "the body is no FHIR resource")
    return found


def read(kind: type[M], found: dict[str, Any], path: str) -> M:
    """Raises InvalidValue naming the elements that are wrong; never their values."""
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        said = error.errors(include_url=False, include_input=False)
        raise json_faults.refusal(said, PATTERNS, lambda where: path_of(path, where)) from None


def path_of(path: str, where: json_faults.Where) -> str:
    """FHIRPath of an element below path."""
    return path + "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in json_faults.plain(where))


TYPED = {"PLAC": "placer", "FILL": "filler", "ACSN": "accession"}
UNTYPED = {"Patient": "patient", "ServiceRequest": "placer", "Appointment": "appointment"}


def keys(found: Any) -> Iterator[tuple[str, str]]:
    """What a body names that may be no resource, for the journal."""
    for one, kind in islice(_elements(found, ""), LOOKED_AT_MAX):
        value = one.get("value")
        if isinstance(value, str) and kind:
            yield from _key(one, value.strip(http_road.BLANKS).removeprefix("urn:oid:"), kind)


def _elements(found: Any, above: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Those that may be identifiers, and in what resource."""
    for one in found if isinstance(found, list) else [found]:
        if not isinstance(one, dict):
            continue
        said = one.get("resourceType")
        kind = said if isinstance(said, str) else above
        yield one, kind
        for name in ("entry", "resource", "contained", "identifier"):
            yield from _elements(one.get(name), kind)
        yield from _elements(one.get("subject"), "Patient")


def _key(identifier: dict[str, Any], value: str, kind: str) -> Iterator[tuple[str, str]]:
    if identifier.get("system") == "urn:dicom:uid":
        yield "study", value
        return
    said = identifier.get("type")
    text = str(said) if said else ""
    typed = next((name for code, name in TYPED.items() if f"'{code}'" in text), None)
    if name := typed or UNTYPED.get(kind if not said or kind == "Patient" else ""):
        yield name, value
