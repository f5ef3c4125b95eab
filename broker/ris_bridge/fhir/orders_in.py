"""ServiceRequest, Patient, Appointment and Task as what HL7's segments become (conformance.md 6). Pure, but for what it
asks of `Server`.

A ServiceRequest is one requested procedure. Each Task is one of its steps, and so is each Appointment that joins none;
where there are neither, the request itself says when, where and on what. What is absent says nothing."""

import datetime as dt
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Protocol, TypeVar

from broker import ids
from broker.config import Site
from broker.errors import DuplicateKey, InvalidValue, MissingField, UnknownKey
from broker.mwl.commands import (
    Identifier,
    OrderCommand,
    PersonCommand,
    ProcedureCommand,
    StepCommand,
)
from broker.ris_bridge import alike, http_road, rest_orders
from broker.ris_bridge.fhir import elements, values
from broker.ris_bridge.fhir.elements import Appointment, Contained, Patient, Reference, Resource, ServiceRequest, Task
from broker.ris_bridge.hl7.patients_in import PERSONAL
from broker.ris_bridge.hl7.values import modality_of

R = TypeVar("R", bound=Resource)
AE_TITLE = "urn:dicom:ae-title"  # identifier.system of a Device
PROCEDURE_ID, STEP_ID = "Requested Procedure ID", "Scheduled Procedure Step ID"  # identifier.type.text
PRIORITY = {"routine": "ROUTINE", "urgent": "HIGH", "asap": "HIGH", "stat": "STAT"}
SEX = {"male": "M", "female": "F", "other": "O", "unknown": ""}
ORDERS = ("order", "original-order", "reflex-order", "filler-order", "instance-order")  # intent


@dataclass(frozen=True)
class Procedure:
    """A requested procedure that is known. key: of its ServiceRequest. steps: their SPS IDs. slots: the appointment
    numbers of these, with issuer. held: one of them is on hold."""

    key: str
    order: http_road.Known
    requested_procedure_id: str
    study_instance_uid: str
    steps: tuple[str, ...]
    slots: tuple[tuple[str, str], ...] = ()
    held: bool = False


class Server(Protocol):
    """What is here already. patient, procedure: by a key of ours; the leading identifier of a patient. owner: the key
    of the patient whose identifier it is. procedures: by an identifier with its system, None = any."""

    def patient(self, key: str) -> Identifier | None: ...
    def owner(self, identifier: Identifier) -> str | None: ...
    def procedure(self, key: str) -> Procedure | None: ...
    def procedures(self, value: str, system: str | None) -> list[Procedure]: ...


@dataclass(frozen=True)
class Item:
    """One resource that came. path: where, for errors. url: by which others name it. key: of a PUT; query: of a
    conditional create or update."""

    path: str
    resource: Resource
    method: str = "POST"
    url: str = ""
    key: str = ""
    query: str = ""
    match: str = ""


def _unbounded() -> None:
    """A budget of processor time without a limit."""


@dataclass(frozen=True)
class Reader:
    items: Sequence[Item]
    site: Site
    systems: Mapping[str, str]
    server: Server
    in_budget: Callable[[], None] = _unbounded
    _persons: dict[int, PersonCommand] = field(default_factory=dict)
    _own: dict[int, StepCommand] = field(default_factory=dict)

    # References

    def all_of(self, kind: type[R]) -> Iterator[tuple[Item, R]]:
        return ((item, item.resource) for item in self.items if isinstance(item.resource, kind))

    def item(self, reference: Reference | None, kind: type[Resource]) -> Item | None:
        """The entry that a reference names, by its fullUrl, its key or an identifier."""
        if reference is None:
            return None
        if reference.reference:
            return self._named.get((kind, reference.reference))
        one = reference.identifier
        return self._named.get((kind, one.system, one.value)) if one and one.value else None

    @cached_property
    def _named(self) -> dict[tuple[Any, ...], Item]:
        """The first of each name."""
        found: dict[tuple[Any, ...], Item] = {}
        for item in self.items:
            kind = type(item.resource)
            for name in (item.url, f"{kind.__name__}/{item.key}" if item.key else ""):
                found.setdefault((kind, name), item)
            for one in item.resource.identifier:
                found.setdefault((kind, one.system, one.value), item)
        return found

    @cached_property
    def _based(self) -> dict[int, list[Item]]:
        """The Tasks and Appointments of each ServiceRequest that came with them, by the identity of its item."""
        found: dict[int, list[Item]] = {}
        for item in self.items:
            self.in_budget()
            if isinstance(item.resource, Task | Appointment):
                above = (self.item(one, ServiceRequest) for one in based_on(item.resource))
                for one in {id(request) for request in above if request}:
                    found.setdefault(one, []).append(item)
        return found

    def _contained(self, reference: Reference | None, resource: Resource, path: str) -> Contained | None:
        if reference is None or not (reference.reference or "").startswith("#"):
            return None
        for n, one in enumerate(resource.contained):
            if f"#{one.get('id')}" == reference.reference:
                return elements.read(Contained, one, f"{path}.contained[{n}]")
        raise InvalidValue(path, "refers to a contained resource that is not there")

    # Patients

    def person_of(self, item: Item) -> PersonCommand:
        """Read once, however many refer to it."""
        if id(item) not in self._persons:
            self.in_budget()
            assert isinstance(item.resource, Patient)
            self._persons[id(item)] = self.person(item.resource, item.path)
        return self._persons[id(item)]

    def person(self, patient: Patient, path: str) -> PersonCommand:
        said = [
            (one, self.identified(one, f"{path}.identifier[{n}]"))
            for n, one in enumerate(patient.identifier)
            if one.value and one.use != "old"
        ]
        personal = tuple(known for _, known in said if known.type in PERSONAL)
        if not personal:
            raise MissingField(f"{path}.identifier", "a patient has an identifier")
        name = values.person(patient.name, self.site, f"{path}.name")
        if not name.pn:
            raise MissingField(f"{path}.name", "a patient has a name")
        others = [
            {"PatientID": known.value, "IssuerOfPatientID": known.issuer, "TypeOfPatientID": "TEXT"}
            for _, known in said if known.type not in PERSONAL
        ]  # fmt: skip
        leading = next(one for one, known in said if known.type in PERSONAL)
        return PersonCommand(
            identifiers=personal,
            name=name.pn,
            birth_date=values.birth_date(patient.birthDate, f"{path}.birthDate"),
            sex=SEX.get(patient.gender or "") or None,
            attributes={
                **({"OtherPatientIDsSequence": others} if others else {}),
                **_qualifiers(values.entity(leading, self.systems)),
            },
            romanised=name.romaji_derived,
        )

    def identified(self, one: elements.Identifier, path: str) -> Identifier:
        return values.identified(one, self.systems, self._issuer(one), path)

    def _issuer(self, one: elements.Identifier) -> str:
        """The site's issuer is that of its own patient numbers only."""
        return self.site.patient_id_issuer if (values.kind(one) or "PI") in PERSONAL else ""

    def subject(self, request: ServiceRequest, path: str) -> PersonCommand:
        """Whose order it is: a Patient that came with it, or one that is known here."""
        said, where = request.subject, f"{path}.subject"
        if not (said.reference or said.identifier):
            raise MissingField(where, "names no patient")
        person = self.patient(said, request, path, where)
        came = self.item(said, Patient) or (said.reference or "").startswith("#")
        if person is None or not (came or any(self.server.owner(one) for one in person.identifiers)):
            raise UnknownKey(where, "no such patient is known here; send the Patient with it")
        return person

    def patient(self, said: Reference, resource: Resource, path: str, where: str) -> PersonCommand | None:
        """Whom a reference names; None where nobody here can know.

        Raises UnknownKey for a key that nobody has, DuplicateKey where reference and identifier name two."""
        if _kind(said, resource) not in ("Patient", ""):
            return None
        person = self._referred(said, resource, path, where)
        if said.identifier is None or not said.identifier.value:
            return person
        named = PersonCommand((self.identified(said.identifier, f"{where}.identifier"),))
        if person and not self.same(person, named):
            raise DuplicateKey(where, "its reference and its identifier name two patients")
        return person or named

    def _referred(self, said: Reference, resource: Resource, path: str, where: str) -> PersonCommand | None:
        if item := self.item(said, Patient):
            return self.person_of(item)
        for n, one in enumerate(resource.contained):
            if said.reference and said.reference == f"#{one.get('id')}":
                inside = f"{path}.contained[{n}]"
                return self.person(elements.read(Patient, one, inside), inside)
        kind, _, key = (said.reference or "").partition("/")  # relative, so ours
        if kind != "Patient":
            return None
        known = self.server.patient(key)
        if known is None:
            raise UnknownKey(where, "no such patient is known here; send the Patient with it")
        return PersonCommand((known,))

    def same(self, one: PersonCommand, other: PersonCommand) -> bool:
        """By the leading identifiers alone: a family may share the others."""
        first, second = one.identifiers[0], other.identifiers[0]
        if _number(first) in map(_number, other.identifiers) or _number(second) in map(_number, one.identifiers):
            return True
        owner = self.server.owner(first)
        return owner is not None and owner == self.server.owner(second)

    def check_patient(self, person: PersonCommand, items: Sequence[Item]) -> None:
        """Tasks and Appointments may name the patient as well. Raises DuplicateKey where it is not the order's."""
        for item in items:
            for said, where in self._patients(item):
                other = self.patient(said, item.resource, item.path, where)
                if other and not self.same(person, other):
                    raise DuplicateKey(where, "is another patient than the order's")

    def _patients(self, item: Item) -> Iterator[tuple[Reference, str]]:
        resource = item.resource
        if isinstance(resource, Task) and resource.of:
            yield resource.of, f"{item.path}.for"
        for n, one in enumerate(resource.participant if isinstance(resource, Appointment) else ()):
            if one.actor and self._is_patient(one.actor, resource):
                yield one.actor, f"{item.path}.participant[{n}].actor"

    def _is_patient(self, actor: Reference, resource: Resource) -> bool:
        return _kind(actor, resource) == "Patient" or self.item(actor, Patient) is not None

    # Requests

    def order(self, request: ServiceRequest, path: str, steps: tuple[StepCommand, ...]) -> OrderCommand:
        """An order with this one procedure."""
        if request.intent not in ORDERS:
            raise InvalidValue(f"{path}.intent", "is no order: the broker takes orders only", err="103")
        if request.doNotPerform:
            raise InvalidValue(f"{path}.doNotPerform", "an order not to do something cannot be scheduled", err="103")
        accession, issuer = self._typed(request, path, "ACSN", "AccessionNumber", self.site.accession_issuer)
        return OrderCommand(
            control="NW",
            accession_number=accession,
            accession_issuer=issuer if accession else self.site.accession_issuer,
            priority=PRIORITY.get(request.priority or ""),
            procedures=(self._procedure(request, path, steps),),
            at=values.moment(request.authoredOn, self.site, f"{path}.authoredOn"),
            attributes={
                **self._requester(request, path),
                **self._visit(request, path),
                **_present("IssuerOfAccessionNumberSequence", self._entity(request, "ACSN")),
            },
            place=path,
        )

    def _procedure(self, request: ServiceRequest, path: str, steps: tuple[StepCommand, ...]) -> ProcedureCommand:
        placer = self._typed(request, path, "PLAC", "PlacerOrderNumberImagingServiceRequest")
        filler = self._typed(request, path, "FILL", "FillerOrderNumberImagingServiceRequest")
        concept = [request.code] if request.code else []
        codes = values.codes(concept, self.systems, f"{path}.code")
        code: dict[str, Any] = codes[0] if codes else {}
        reason = next((values.words(one) for one in request.reasonCode if values.words(one)), None)
        notes = "\n".join(one.text for one in request.note) or None
        return ProcedureCommand(
            requested_procedure_id=self._procedure_id(request, path),
            study_instance_uid=self._study_uid(request, path),
            placer_number=placer[0],
            placer_issuer=placer[1],
            filler_number=filler[0],
            filler_issuer=filler[1],
            description=values.shown(values.words(request.code), "RequestedProcedureDescription", f"{path}.code"),
            code_value=code.get("CodeValue"),
            code_scheme=code.get("CodingSchemeDesignator"),
            code_meaning=code.get("CodeMeaning"),
            attributes={
                "ReasonForTheRequestedProcedure": values.shown(
                    reason, "ReasonForTheRequestedProcedure", f"{path}.reasonCode"
                ),
                "RequestedProcedureComments": values.shown(notes, "RequestedProcedureComments", f"{path}.note"),
                **_present("OrderPlacerIdentifierSequence", self._entity(request, "PLAC")),
                **_present("OrderFillerIdentifierSequence", self._entity(request, "FILL")),
            },
            steps=tuple(replace(one, placer_number=placer[0], placer_issuer=placer[1], filler_number=filler[0],
                                filler_issuer=filler[1]) for one in steps),
        )  # fmt: skip

    def _identifier(self, request: ServiceRequest, kind: str) -> tuple[int, elements.Identifier] | None:
        """Of that kind; the placer's may be the one that says nothing of its kind."""
        said = [(n, one) for n, one in enumerate(request.identifier) if one.value and one.system != values.UID]
        typed = next(((n, one) for n, one in said if values.kind(one) == kind), None)
        if typed or kind != "PLAC":
            return typed
        return next(((n, one) for n, one in said if not (one.codings or one.words)), None)

    def _typed(self, request: ServiceRequest, path: str, kind: str, keyword: str, default: str = "") -> tuple[str, str]:
        found = self._identifier(request, kind)
        if found is None:
            return "", ""
        n, one = found
        return values.number(one, keyword, f"{path}.identifier[{n}]"), values.issuer(one, self.systems, default)

    def _entity(self, request: ServiceRequest, kind: str) -> list[dict[str, str]] | None:
        found = self._identifier(request, kind)
        return values.entity(found[1], self.systems) if found else None

    def _procedure_id(self, request: ServiceRequest, path: str) -> str:
        for n, one in enumerate(request.identifier):
            if one.words == PROCEDURE_ID:
                return values.number(one, "RequestedProcedureID", f"{path}.identifier[{n}]")
        return ""

    def _study_uid(self, request: ServiceRequest, path: str) -> str:
        said = ((n, one) for n, one in enumerate(request.identifier) if one.system == values.UID)
        return next((values.uid(one, f"{path}.identifier[{n}]") for n, one in said), "")

    def _requester(self, request: ServiceRequest, path: str) -> dict[str, Any]:
        """An organisation is the requesting service, anybody else the physician."""
        said, where = request.requester, f"{path}.requester"
        if said is None:
            return {}
        if said.type == "Organization" or (said.reference or "").startswith("Organization/"):
            return {"RequestingService": values.shown(said.display, "RequestingService", where)}
        return {"RequestingPhysician": self._name(said, request, path, where)}

    def _name(self, said: Reference, resource: Resource, path: str, where: str) -> str | None:
        inside = self._contained(said, resource, path)
        if inside and isinstance(inside.name, list):
            return values.person(inside.name, self.site, where).pn
        return values.person([elements.HumanName(text=said.display)], self.site, where).pn if said.display else None

    def _visit(self, request: ServiceRequest, path: str) -> dict[str, Any]:
        """The encounter's number, and where the patient is: by identifier, or contained."""
        said, where = request.encounter, f"{path}.encounter"
        inside = self._contained(said, request, path)
        one = (said and said.identifier) or next(iter(inside.identifier if inside else []), None)
        places = [place.location.display for place in (inside.location if inside else []) if place.location.display]
        found: dict[str, Any] = {}
        if places:
            found["CurrentPatientLocation"] = values.shown(places[0], "CurrentPatientLocation", where)
        if one and one.value:
            issuer = values.issuer(one, self.systems)
            named = values.entity(one, self.systems) or ([{"LocalNamespaceEntityID": issuer}] if issuer else [])
            found["AdmissionID"] = values.number(one, "AdmissionID", where)
            found["IssuerOfAdmissionIDSequence"] = named
        return found

    # Steps

    def steps(self, item: Item, request: ServiceRequest) -> list[tuple[StepCommand, list[Item]]]:
        """With the Tasks and Appointments that each was read from: what they say goes before what the request says."""
        whole = self._of_request(request, item.path)
        based = self._based.get(id(item), [])
        made = [(_over(whole, own), items) for own, items in self._tasks(based)]
        slots: dict[int, StepCommand] = {}  # what the Appointments of each step say
        for slot in based:
            self.in_budget()
            if not isinstance(slot.resource, Appointment):
                continue
            own = self.own(slot)
            n = self._joined(slot.resource, own, made)
            if n is None:
                n = len(made)
                made.append((whole, []))
            slots[n] = both(slots[n], own) if n in slots else own
            made[n] = (_over(made[n][0], slots[n]), [*made[n][1], slot])
        return made or [(whole, [])]

    def _tasks(self, based: Sequence[Item]) -> list[tuple[StepCommand, list[Item]]]:
        """Those of one SPS ID are one step."""
        made: dict[object, tuple[StepCommand, list[Item]]] = {}
        for one in based:
            if isinstance(one.resource, Task):
                self.in_budget()
                own = self.own(one)
                key = own.sps_id or id(one)
                known, items = made.get(key, (own, []))
                made[key] = (both(known, own) if items else own, [*items, one])
        return list(made.values())

    def own(self, item: Item) -> StepCommand:
        """What a Task or an Appointment says itself; read once."""
        if id(item) not in self._own:
            self._own[id(item)] = self.task(item) if isinstance(item.resource, Task) else self.slot(item)
        return self._own[id(item)]

    def _joined(
        self, appointment: Appointment, own: StepCommand, made: Sequence[tuple[StepCommand, list[Item]]]
    ) -> int | None:
        """Which step it is the time of: that of the Task that it names, that of its SPS ID, or the only one."""
        named = [self.item(one, Task) for one in appointment.supportingInformation]
        for n, (known, items) in enumerate(made):
            if any(one in items for one in named if one) or (own.sps_id and known.sps_id == own.sps_id):
                return n
        free = [n for n, (_, items) in enumerate(made) if all(isinstance(one.resource, Task) for one in items)]
        return free[0] if len(free) == 1 and not own.sps_id else None

    def _of_request(self, request: ServiceRequest, path: str) -> StepCommand:
        """Codes as with HL7: of the order's detail, else of the order."""
        period = request.occurrencePeriod or elements.Period()
        start = request.occurrenceDateTime or period.start
        at = values.moment(start, self.site, f"{path}.occurrence")
        details = values.codes(request.orderDetail, self.systems, f"{path}.orderDetail")
        sites = values.codes(request.bodySite, self.systems, f"{path}.bodySite")
        own = values.codes([request.code] if request.code else [], self.systems, f"{path}.code")
        protocol = (details or own) + sites or None
        words = next(filter(None, (values.words(c) for c in request.orderDetail if not values.modality([c]))), None)
        step = StepCommand(
            modality=values.modality([*request.orderDetail, *request.category]) or modality_of(protocol),
            description=values.shown(
                words or values.words(request.code), "ScheduledProcedureStepDescription", f"{path}.orderDetail"
            ),
            attributes={"ScheduledProtocolCodeSequence": protocol},
            **self._start(at),
        )
        devices = [(one, f"{path}.performer[{n}]") for n, one in enumerate(request.performer)]
        places = [(one, f"{path}.locationReference[{n}]") for n, one in enumerate(request.locationReference)]
        return self._where(step, request, path, devices, places)

    def task(self, item: Item) -> StepCommand:
        """What a Task says itself."""
        task, path = item.resource, item.path
        assert isinstance(task, Task)
        codes = values.codes([task.code] if task.code else [], self.systems, f"{path}.code")
        words = task.description or (values.words(task.code) if codes else None)
        period = (task.restriction and task.restriction.period) or elements.Period()
        at = values.moment(period.start, self.site, f"{path}.restriction.period.start")
        step = StepCommand(
            sps_id=self._step_id(item, untyped=True),
            modality=modality_of(codes),
            description=values.shown(words, "ScheduledProcedureStepDescription", path),
            attributes=_present("ScheduledProtocolCodeSequence", codes or None),
            **self._start(at),
        )
        owner = [(task.owner, f"{path}.owner")] if task.owner else []
        place = [(task.location, f"{path}.location")] if task.location else []
        return self._where(step, task, path, owner, place)

    def slot(self, item: Item) -> StepCommand:
        """What an Appointment says itself."""
        appointment, path = item.resource, item.path
        assert isinstance(appointment, Appointment)
        number, issuer = self._slot_number(item)
        step = StepCommand(
            sps_id=self._step_id(item, untyped=False),
            appointment_number=number,
            appointment_issuer=issuer,
            **self._start(values.moment(appointment.start, self.site, f"{path}.start")),
        )
        actors = [
            (one.actor, f"{path}.participant[{n}].actor")
            for n, one in enumerate(appointment.participant)
            if one.actor
            and not self._is_patient(one.actor, appointment)
            and _kind(one.actor, appointment) != "RelatedPerson"
        ]
        places = [one for one in actors if _kind(one[0], appointment) == "Location"]
        return self._where(step, appointment, path, [one for one in actors if one not in places], places)

    def _start(self, at: dt.datetime | None) -> dict[str, Any]:
        if at is None:
            return {}
        date, time = rest_orders.local(at, self.site)
        return {"start_date": date, "start_time": time}

    def _step_id(self, item: Item, *, untyped: bool) -> str:
        for n, one in enumerate(item.resource.identifier):
            if one.words == STEP_ID or (untyped and one.value and not (one.codings or one.words)):
                return values.number(one, "ScheduledProcedureStepID", f"{item.path}.identifier[{n}]")
        return ""

    def _slot_number(self, item: Item) -> tuple[str, str]:
        """As of a schedule message: the filler's number before the placer's."""
        said = [(n, one) for n, one in enumerate(item.resource.identifier) if one.value and one.words != STEP_ID]
        for kind in ("FILL", "PLAC", ""):
            for n, one in said:
                if values.kind(one) == kind:
                    path = f"{item.path}.identifier[{n}]"
                    number = values.number(one, "FillerOrderNumberImagingServiceRequest", path)
                    return number, values.issuer(one, self.systems)
        return "", ""

    def _where(
        self,
        step: StepCommand,
        resource: Resource,
        path: str,
        actors: Sequence[tuple[Reference, str]],
        places: Sequence[tuple[Reference, str]],
    ) -> StepCommand:
        """Devices are stations, other actors do it, places are where."""
        attributes = dict(step.attributes)
        titles: list[str] = []
        stations: list[str] = []
        for one, where in actors:
            if _kind(one, resource) == "Device":
                title, name = self._device(one, resource, path, where)
                titles += [title] if title else []
                stations += [name] if name else []
            elif (name := self._name(one, resource, path, where)) is not None:
                attributes.setdefault("ScheduledPerformingPhysicianName", name)
        for one, where in places:
            inside = self._contained(one, resource, path)
            text = one.display or (inside.name if inside and isinstance(inside.name, str) else None)
            if (place := values.shown(text, "ScheduledProcedureStepLocation", where)) is not None:
                attributes["ScheduledProcedureStepLocation"] = place
        if stations:
            attributes["ScheduledStationName"] = stations
        return replace(step, station_ae_titles=tuple(titles) or step.station_ae_titles, attributes=attributes)

    def _device(self, said: Reference, resource: Resource, path: str, where: str) -> tuple[str, str | None]:
        """AE title and station name. Raises InvalidValue where it names a device that nobody here can know."""
        inside = self._contained(said, resource, path)
        known = [said.identifier] if said.identifier else list(inside.identifier if inside else [])
        titles = [one.value for one in known if one.value and one.system in (AE_TITLE, None)]
        name = said.display or next((one.name for one in (inside.deviceName if inside else [])), None)
        if said.reference and inside is None and not titles:
            raise InvalidValue(where, f"a device is named by an identifier of {AE_TITLE}")
        if titles and not re.fullmatch(ids.AE_TITLE, titles[0] or ""):
            raise InvalidValue(where, "is no AE title: at most 16 ASCII characters")
        return (titles[0] if titles else ""), values.shown(name, "ScheduledStationName", where)


def _kind(reference: Reference, resource: Resource) -> str:
    if reference.type:
        return reference.type
    said = reference.reference or ""
    if said.startswith("#"):
        return next((str(one.get("resourceType")) for one in resource.contained if f"#{one.get('id')}" == said), "")
    if "/" in said:
        return said.split("/")[-2]
    return "Device" if reference.identifier and reference.identifier.system == AE_TITLE else ""


def _number(one: Identifier) -> tuple[str, str]:
    return one.value, one.issuer


def _present(name: str, value: Any) -> dict[str, Any]:
    return {} if value is None else {name: value}


def _qualifiers(entity: list[dict[str, str]] | None) -> dict[str, Any]:
    return _present("IssuerOfPatientIDQualifiersSequence", entity)


def based_on(resource: Task | Appointment) -> list[Reference]:
    return [*resource.basedOn, *([resource.focus] if isinstance(resource, Task) and resource.focus else [])]


def both(known: StepCommand, own: StepCommand) -> StepCommand:
    return replace(alike.both(known, own), sps_id=known.sps_id or own.sps_id)


def _over(below: StepCommand, said: StepCommand) -> StepCommand:
    """What is said goes before what stands below it."""
    names = (one.name for one in fields(StepCommand) if one.name != "attributes")
    return replace(
        below,
        attributes={**below.attributes, **{k: v for k, v in said.attributes.items() if v is not None}},
        **{name: value for name in names if (value := getattr(said, name))},
    )
