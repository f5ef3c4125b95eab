"""Rows as FHIR R4 resources: what the intake answers, and what can be read again (conformance.md 6.1, 6.2).

A ServiceRequest is one requested procedure: the first of an order has the order's key, the others `order-procedure`.
Patient, Task and Appointment have the keys of patient and step. The version of a resource is a hash of what it
shows."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal
from urllib.parse import quote
from zoneinfo import ZoneInfo

from sqlmodel import Session, col, func, or_, select

from broker import __version__, clock, ids
from broker.archive import status
from broker.config import Settings
from broker.errors import UnknownKey
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStep
from broker.model.patients import Patient, PatientIdentifier
from broker.mwl import identity, items
from broker.ris_bridge.fhir import values
from broker.ris_bridge.fhir.orders_in import AE_TITLE, PROCEDURE_ID, STEP_ID

Resource = dict[str, Any]
Kind = Literal["Patient", "ServiceRequest", "Task", "Appointment"]
MEDIA = "application/fhir+json; charset=utf-8"
KEY = re.compile(r"(\d{1,18})(?:-(\d{1,18}))?")
# What the intake takes and reads: docs/conformance/fhir.md lists the same. Interactions, search parameters.
CAPABILITIES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "ServiceRequest": (("read", "create", "update", "search-type"), ("identifier",)),
    "Patient": (("read", "search-type"), ("identifier",)),
    "Task": (("read",), ()),
    "Appointment": (("read",), ()),
}
IN_TRANSACTION = {
    "ServiceRequest": "POST, POST with ifNoneExist, PUT", "Patient": "POST, POST with ifNoneExist, PUT",
    "Task": "POST, PUT", "Appointment": "POST, PUT",
}  # fmt: skip
PRIORITY = {"STAT": "stat", "HIGH": "urgent", "ROUTINE": "routine"}  # MEDIUM and LOW: FHIR has no word for them
AMBULATORY = {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "AMB"}
SEX = {"M": "male", "F": "female", "O": "other"}
# State of the order's document -> ServiceRequest.status, where it is not active (conformance.md 6.2).
REQUEST = {
    "ON_HOLD": "on-hold", "AVAILABLE": "completed", "REPORTED": "completed", "CANCELLED": "revoked",
    "DISCONTINUED": "revoked", "EXPIRED": "revoked",
}  # fmt: skip
# State of the step -> Task.status and businessStatus, Appointment.status.
STEP = {
    "SCHEDULED": ("accepted", "scheduled", "booked"), "ARRIVED": ("ready", "arrived", "arrived"),
    "READY": ("ready", "ready", "checked-in"), "STARTED": ("in-progress", "", "arrived"),
    "ON_HOLD": ("on-hold", "", "booked"), "COMPLETED": ("in-progress", "acquired", "fulfilled"),
    "CANCELED": ("cancelled", "", "cancelled"), "NO_SHOW": ("cancelled", "no show", "noshow"),
    "DISCONTINUED": ("failed", "", "fulfilled"), "EXPIRED": ("cancelled", "expired", "cancelled"),
}  # fmt: skip
ISSUES = {
    400: "structure", 401: "login", 403: "forbidden", 404: "not-found", 405: "not-supported", 409: "conflict",
    412: "conflict", 413: "too-long", 415: "not-supported", 422: "invalid", 429: "throttled", 503: "transient",
}  # fmt: skip
DETAILS = {"101": "required", "102": "value", "103": "code-invalid", "205": "duplicate"}  # ERR-3


def text(resource: Resource) -> str:
    return json.dumps(resource, ensure_ascii=False)


def etag(resource: Resource) -> str:
    return f'W/"{resource["meta"]["versionId"]}"'


def outcome(
    status_code: int, words: str, place: str = "", err: str = "", also: Sequence[tuple[str, str]] = ()
) -> Resource:
    """Why something is refused. place: FHIRPath. also: place and words of what else is wrong."""
    code = DETAILS.get(err, ISSUES.get(status_code, "exception")) if status_code == 422 else None
    issues = [
        {
            "severity": "error",
            "code": code or ISSUES.get(status_code, "exception"),
            "diagnostics": said,
            **({"expression": [where]} if where else {}),
        }
        for where, said in ((place, words), *also)
    ]
    return {"resourceType": "OperationOutcome", "issue": issues}


# Reads


def read(session: Session, kind: Kind, key: str, settings: Settings) -> Resource:
    """Raises UnknownKey."""
    return read_with(session, kind, key, Names(settings))


def read_with(session: Session, kind: Kind, key: str, names: "Names") -> Resource:
    made = _find(session, kind, key, names)
    if made is None:
        raise UnknownKey(kind, f"no such {kind}")
    return made


def _find(session: Session, kind: Kind, key: str, names: "Names") -> Resource | None:
    match = KEY.fullmatch(key)
    if match is None:
        return None
    if kind == "ServiceRequest":
        found = find_request(session, key)
        return service_request(session, *found, names) if found else None
    if match[2]:
        return None
    row = session.get(Patient if kind == "Patient" else ScheduledStep, int(match[1]))
    return SHOWN[kind](session, row, names) if row else None


def find_request(session: Session, key: str) -> tuple[ImagingOrder, RequestedProcedure] | None:
    match = KEY.fullmatch(key)
    order = session.get(ImagingOrder, int(match[1])) if match else None
    if match is None or order is None:
        return None
    found = session.get(RequestedProcedure, int(match[2]) if match[2] else _first(session, order.key))
    return (order, found) if found and found.order_pk == order.key and key_of(session, found) == key else None


def procedures(session: Session, order_pk: int) -> Sequence[RequestedProcedure]:
    query = select(RequestedProcedure).where(RequestedProcedure.order_pk == order_pk)
    return session.exec(query.order_by(col(RequestedProcedure.pk))).all()


def steps(session: Session, procedure: RequestedProcedure) -> Sequence[ScheduledStep]:
    query = select(ScheduledStep).where(ScheduledStep.requested_procedure_pk == procedure.key)
    return session.exec(query.order_by(col(ScheduledStep.pk))).all()


def key_of(session: Session, row: RequestedProcedure) -> str:
    return str(row.order_pk) if row.key == _first(session, row.order_pk) else f"{row.order_pk}-{row.key}"


def _first(session: Session, order_pk: int) -> int | None:
    """The procedure that has its order's key."""
    first = select(func.min(col(RequestedProcedure.pk))).where(RequestedProcedure.order_pk == order_pk)
    return session.exec(first).one()


def requests(session: Session, value: str, issuer: str | None, *, is_uid: bool, limit: int) -> list[RequestedProcedure]:
    """Those that have this placer, filler or accession number, or Study UID. issuer: None = any."""
    if is_uid:
        query = select(RequestedProcedure).where(RequestedProcedure.study_instance_uid == value)
    else:
        numbers = [
            (RequestedProcedure.placer_number, RequestedProcedure.placer_issuer),
            (RequestedProcedure.filler_number, RequestedProcedure.filler_issuer),
            (ImagingOrder.accession_number, ImagingOrder.accession_issuer),
        ]
        same = [
            (col(number) == value) & (col(owner) == issuer) if issuer is not None else col(number) == value
            for number, owner in numbers
        ]
        query = select(RequestedProcedure).join(ImagingOrder, col(RequestedProcedure.order_pk) == ImagingOrder.pk)
        query = query.where(or_(*same))
    return list(session.exec(query.order_by(col(RequestedProcedure.pk)).limit(limit)).all())


def search(session: Session, kind: Kind, token: str, settings: Settings) -> list[Resource]:
    """By identifier: `value`, `system|value`, `|value` (without an issuer)."""
    names = Names(settings)
    system, bar, value = token.rpartition("|")
    issuer = names.issuer(system) if bar else None
    limit = settings.limits.list_items_max
    if kind == "Patient":
        query = select(PatientIdentifier.patient_pk).where(PatientIdentifier.value == value)
        if issuer is not None:
            query = query.where(PatientIdentifier.issuer == issuer)
        pks = session.exec(query.order_by(col(PatientIdentifier.pk)).limit(limit)).all()
        living = dict.fromkeys(identity.survivor(session, pk).key for pk in pks)
        return [patient(session, session.get_one(Patient, pk), names) for pk in living]
    is_uid = system == values.UID
    rows = requests(session, value.removeprefix(values.OID) if is_uid else value, issuer, is_uid=is_uid, limit=limit)
    return [service_request(session, session.get_one(ImagingOrder, row.order_pk), row, names) for row in rows]


def searchset(found: Sequence[Resource], url: str, ignored: Sequence[str] = ()) -> Resource:
    """ignored: parameters that are none here."""
    entries: list[Resource] = [
        {"fullUrl": f"{url.rpartition('/')[0]}/{one['resourceType']}/{one['id']}", "resource": one,
         "search": {"mode": "match"}} for one in found
    ]  # fmt: skip
    if ignored:
        issue = {"severity": "warning", "code": "not-supported",
                 "diagnostics": f"not a parameter of this search, ignored: {', '.join(ignored)}"}  # fmt: skip
        told = {"resourceType": "OperationOutcome", "issue": [issue]}
        entries.append({"resource": told, "search": {"mode": "outcome"}})
    return {"resourceType": "Bundle", "type": "searchset", "total": len(found), "entry": entries}


# The resources


class Names:
    """The names of issuers and code systems, both ways."""

    def __init__(self, settings: Settings) -> None:
        self.zone = ZoneInfo(settings.site.timezone)
        self.systems = values.table(settings.fhir.systems)
        self._uris = {name: uri for uri, name in self.systems.items()}
        self._schemes = {name: uri for uri, name in reversed(values.SCHEMES.items())}

    def issuer(self, system: str) -> str:
        return self.systems.get(system) or system.removeprefix(values.OID)

    def identifier(self, value: str, issuer: str, kind: str = "", words: str = "") -> Resource:
        """An issuer that is no URI stands as who assigned it."""
        made: Resource = {}
        if kind:
            made["type"] = {"coding": [{"system": values.V2_0203, "code": kind}]}
        if words:
            made["type"] = {"text": words}
        uri = self._uris.get(issuer) or (values.OID + issuer if ids.valid_uid(issuer) else issuer)
        if ":" in uri:
            made["system"] = uri
        elif issuer:
            made["assigner"] = {"display": issuer}
        return {**made, "value": value}

    def coding(self, code: Mapping[str, Any]) -> Resource:
        scheme, value = code["CodingSchemeDesignator"], code["CodeValue"]
        for context in code.get("ProtocolContextSequence", [])[:1]:  # JJ1017: its other half
            value += context["ConceptCodeSequence"][0]["CodeValue"]
        uri = self._uris.get(scheme) or self._schemes.get(scheme) or values.SCHEME + quote(scheme)
        return {"system": uri, "code": value, "display": code["CodeMeaning"]}


def human_names(name: str) -> list[Resource]:
    made = []
    for code, group in zip(("ABC", "IDE", "SYL"), name.split("="), strict=False):
        family, given, middle, prefix, suffix = [*group.split("^"), "", "", "", ""][:5]
        if not group:
            continue
        parts = {"family": family, "given": [part for part in (given, middle) if part],
                 "prefix": [prefix] if prefix else [], "suffix": [suffix] if suffix else []}  # fmt: skip
        made.append(
            {
                "extension": [{"url": values.REPRESENTATION, "valueCode": code}],
                "use": "official",
                "text": " ".join(part for part in (prefix, family, given, middle, suffix) if part),
                **{key: value for key, value in parts.items() if value},
            }
        )
    return made


def patient(session: Session, row: Patient, names: Names) -> Resource:
    """One who was merged says into whom."""
    made: Resource = {
        "identifier": [
            {**names.identifier(one.value, one.issuer, one.type), **({"use": "old"} if one.retired else {})}
            for one in identity.identifiers(session, row.key)
        ],
        "active": row.merged_into is None,
        "name": human_names(row.name),
    }
    if row.sex in SEX:
        made["gender"] = SEX[row.sex]
    if row.birth_date:
        made["birthDate"] = f"{row.birth_date[:4]}-{row.birth_date[4:6]}-{row.birth_date[6:]}"
    if row.merged_into is not None:
        survivor = identity.survivor(session, row.key).key
        made["link"] = [{"other": {"reference": f"Patient/{survivor}"}, "type": "replaced-by"}]
    return _whole("Patient", str(row.key), made, row)


def service_request(
    session: Session, order: ImagingOrder, procedure: RequestedProcedure, names: Names, key: str = ""
) -> Resource:
    """key: where it is known; else it is looked up."""
    own = steps(session, procedure)
    attributes = {**order.attributes, **procedure.attributes}
    identifiers = [
        names.identifier(value, issuer, kind)
        for kind, value, issuer in (
            ("PLAC", procedure.placer_number, procedure.placer_issuer),
            ("FILL", procedure.filler_number, procedure.filler_issuer),
            ("ACSN", order.accession_number, order.accession_issuer),
        )
        if value
    ]
    identifiers.append({"system": values.UID, "value": values.OID + procedure.study_instance_uid})
    identifiers.append(names.identifier(procedure.requested_procedure_id, "", words=PROCEDURE_ID))
    contained, references = _contained(attributes, names)
    made: Resource = {
        **({"contained": contained} if contained else {}),
        "identifier": identifiers,
        "status": REQUEST.get(_state(session, order), "active"),
        "intent": "order",
        **({"priority": PRIORITY[order.priority]} if order.priority in PRIORITY else {}),
        "subject": {"reference": f"Patient/{order.patient_pk}"},
        **references,
    }
    modalities = list(dict.fromkeys(step.modality for step in own if step.modality))
    if modalities:
        made["category"] = [{"coding": [{"system": values.DCM, "code": one}]} for one in modalities]
    if code := _concept(procedure, names):
        made["code"] = code
    if order.placed_at:
        made["authoredOn"] = clock.iso(order.placed_at)
    if reason := attributes.get("ReasonForTheRequestedProcedure"):
        made["reasonCode"] = [{"text": reason}]
    if note := attributes.get("RequestedProcedureComments"):
        made["note"] = [{"text": note}]
    if len(own) == 1:  # of several, their Tasks say it
        made |= _alone(session, own[0], names)
    return _whole("ServiceRequest", key or key_of(session, procedure), made, order, procedure, *own)


def _contained(attributes: Mapping[str, Any], names: Names) -> tuple[list[Resource], Resource]:
    """Who asked, and the visit: resources inside, with what refers to them."""
    inside: list[Resource] = []
    references: Resource = {}
    if physician := attributes.get("RequestingPhysician"):
        inside.append({"resourceType": "Practitioner", "id": "requester", "name": human_names(physician)})
        references["requester"] = {"reference": "#requester", "type": "Practitioner"}
    elif service := attributes.get("RequestingService"):
        references["requester"] = {"type": "Organization", "display": service}
    visit, location = attributes.get("AdmissionID"), attributes.get("CurrentPatientLocation")
    if visit or location:
        encounter: Resource = {"resourceType": "Encounter", "id": "visit", "status": "unknown", "class": AMBULATORY}
        if visit:
            entity: Resource = next(iter(attributes.get("IssuerOfAdmissionIDSequence", [])), {})
            issuer = entity.get("LocalNamespaceEntityID") or entity.get("UniversalEntityID", "")
            encounter["identifier"] = [names.identifier(visit, issuer)]
        if location:
            encounter["location"] = [{"location": {"display": location}}]
        inside.append(encounter)
        references["encounter"] = {"reference": "#visit"}
    return inside, references


def _concept(procedure: RequestedProcedure, names: Names) -> Resource:
    code = {"CodeValue": procedure.code_value, "CodingSchemeDesignator": procedure.code_scheme,
            "CodeMeaning": procedure.code_meaning}  # fmt: skip
    coding = {"coding": [names.coding(code)]} if procedure.code_value else {}
    return {**coding, **({"text": procedure.description} if procedure.description else {})}


def _alone(session: Session, step: ScheduledStep, names: Names) -> Resource:
    made: Resource = {}
    codes = step.attributes.get("ScheduledProtocolCodeSequence", [])
    if codes or step.description:
        made["orderDetail"] = [{"coding": [names.coding(one)]} for one in codes] or [{}]
        if step.description:
            made["orderDetail"][0]["text"] = step.description
    if start := _start(step, names):
        made["occurrenceDateTime"] = start
    if devices := _devices(session, step):
        made["performer"] = devices
    if place := step.attributes.get("ScheduledProcedureStepLocation"):
        made["locationReference"] = [{"display": place}]
    return made


def _devices(session: Session, step: ScheduledStep) -> list[Resource]:
    stations = step.attributes.get("ScheduledStationName", [])
    names = [stations] if isinstance(stations, str) else list(stations)
    titles = items.stations(session, step.key)
    return [
        {"type": "Device", "identifier": {"system": AE_TITLE, "value": title},
         **({"display": names[n]} if n < len(names) else {})}
        for n, title in enumerate(titles)
    ]  # fmt: skip


def _start(step: ScheduledStep, names: Names) -> str | None:
    start = clock.aware(step.start_date, step.start_time, names.zone.key) if step.start_date else None
    return start.astimezone(names.zone).isoformat() if start else None


def task(session: Session, step: ScheduledStep, names: Names) -> Resource:
    order, procedure = _above(session, step)
    code, business, _ = STEP[step.status]
    if step.status == "COMPLETED" and _state(session, order) in ("AVAILABLE", "REPORTED"):
        code, business = "completed", ""
    made: Resource = {
        "identifier": [names.identifier(step.sps_id, "", words=STEP_ID)],
        "basedOn": [{"reference": f"ServiceRequest/{key_of(session, procedure)}"}],
        "status": code,
        "intent": "order",
        "for": {"reference": f"Patient/{order.patient_pk}"},
        **({"businessStatus": {"text": business}} if business else {}),
        **({"description": step.description} if step.description else {}),
    }
    if codes := step.attributes.get("ScheduledProtocolCodeSequence"):
        made["code"] = {"coding": [names.coding(one) for one in codes]}
    if start := _start(step, names):
        made["restriction"] = {"period": {"start": start}}
    if devices := _devices(session, step):
        made["owner"] = devices[0]
    return _whole("Task", str(step.key), made, step)


def appointment(session: Session, step: ScheduledStep, names: Names) -> Resource:
    order, procedure = _above(session, step)
    identifiers = [names.identifier(step.sps_id, "", words=STEP_ID)]
    if step.appointment_number:
        identifiers.append(names.identifier(step.appointment_number, step.appointment_issuer))
    start = _start(step, names)
    made: Resource = {
        "identifier": identifiers,
        "status": STEP[step.status][2] if start else "proposed",
        "basedOn": [{"reference": f"ServiceRequest/{key_of(session, procedure)}"}],
        **({"start": start} if start else {}),
        "participant": [
            {"actor": actor, "status": "accepted"}
            for actor in [{"reference": f"Patient/{order.patient_pk}"}, *_devices(session, step)]
        ],
    }
    return _whole("Appointment", str(step.key), made, step)


def _above(session: Session, step: ScheduledStep) -> tuple[ImagingOrder, RequestedProcedure]:
    return session.get_one(ImagingOrder, step.order_pk), session.get_one(
        RequestedProcedure, step.requested_procedure_pk
    )


SHOWN: dict[str, Callable[[Session, Any, Names], Resource]] = {
    "Patient": patient, "Task": task, "Appointment": appointment,
}  # fmt: skip


def _state(session: Session, order: ImagingOrder) -> str:
    return _state_in(status.of_order(session, order.key)[0])


@lru_cache(maxsize=1)
def _state_in(document: str) -> str:
    """Read once: all ServiceRequests of an order show its state, and an order may have hundreds."""
    return str(json.loads(document)["state"])


def _whole(kind: Kind, key: str, made: Resource, *rows: Any) -> Resource:
    version = hashlib.sha256(text(made).encode()).hexdigest()[:16]
    at = max(row.updated_at for row in rows)
    return {
        "resourceType": kind,
        "id": key,
        "meta": {"versionId": version, "lastUpdated": clock.iso(at)},
        **made,
    }


# What there is


def capabilities(settings: Settings) -> Resource:
    resources = [
        {
            "type": kind,
            "interaction": [{"code": code} for code in interactions],
            "versioning": "versioned",
            "conditionalCreate": "create" in interactions,
            **({"searchParam": [{"name": name, "type": "token"} for name in names]} if names else {}),
            "documentation": f"in a transaction: {IN_TRANSACTION[kind]}",
        }
        for kind, (interactions, names) in CAPABILITIES.items()
    ]
    return {
        "resourceType": "CapabilityStatement",
        "status": "active",
        "date": "2025-12-01",
        "kind": "instance",
        "software": {"name": "ris-broker", "version": __version__},
        "implementation": {"description": settings.site.name},
        "fhirVersion": "4.0.1",
        "format": ["application/fhir+json"],
        "rest": [
            {
                "mode": "server",
                "security": {"description": "Authorization: Bearer, with a token of role ris, ehr or qc"},
                "resource": resources,
                "interaction": [{"code": "transaction"}],
            }
        ],
    }
