"""What the resources of one request ask for together: commands, and what each resource became (conformance.md 6).

ServiceRequests that share an accession number, else a requisition, are one order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from urllib.parse import unquote

from broker.config import Site
from broker.errors import DuplicateKey, InvalidValue, MissingField, Stale, UnknownKey
from broker.mwl.commands import (
    PRIORITIES,
    Command,
    Control,
    Identifier,
    OrderCommand,
    PatientCommand,
    PersonCommand,
    ProcedureCommand,
    StepCommand,
    VisitCommand,
)
from broker.ris_bridge import alike, http_road
from broker.ris_bridge.fhir import values
from broker.ris_bridge.fhir.elements import Appointment, Patient, Reference, ServiceRequest, Task
from broker.ris_bridge.fhir.orders_in import PROCEDURE_ID, STEP_ID, Item, Procedure, Reader, based_on, both

# ServiceRequest.status -> order controls: of one that is new, and of one that is known.
NEW: dict[str, tuple[Control, ...]] = {
    "active": ("NW",), "on-hold": ("NW", "HD"), "revoked": ("CA",), "entered-in-error": ("CA",),
}  # fmt: skip
KNOWN: dict[str, tuple[Control, ...]] = {
    "active": ("XO",), "on-hold": ("XO", "HD"), "revoked": ("CA",), "entered-in-error": ("CA",), "completed": ("SC",),
}  # fmt: skip
# Status of an Appointment or a Task -> what it says of its step; of a new order, those that leave it to be done.
PLANNED = ("proposed", "pending", "booked", "waitlist", "draft", "requested", "received", "accepted", "ready")
HERE = ("arrived", "checked-in")
ENDS: dict[str, Control] = {"cancelled": "CA", "entered-in-error": "CA", "noshow": "no_show", "rejected": "CA"}


@dataclass(frozen=True)
class Answered:
    """What one entry became: of a Patient, whom; of the others, which command, procedure and step. key: of what was
    there already. path, url_key: of the entry; the key that its url names."""

    kind: str
    who: tuple[Identifier, ...] = ()
    command: int = 0
    procedure: ProcedureCommand | None = None
    step: StepCommand | None = None
    key: str = ""
    path: str = ""
    url_key: str = ""


@dataclass
class Plan:
    commands: list[Command] = field(default_factory=list)
    answers: list[Answered] = field(default_factory=list)
    expected: list[tuple[str, str]] = field(default_factory=list)  # (key of a ServiceRequest, If-Match)


def plan(reader: Reader) -> Plan:
    """What all of them ask for, in the order patients, orders, what happens to these.

    Raises what the OperationOutcome says."""
    made = Plan()
    heard = Heard(reader)
    answers: dict[int, Answered] = {}
    updates = _updates(reader, answers)
    requests = list(_requests(reader, made, answers))
    orders = _orders(requests, reader.site)
    made.commands = [*updates, *orders]
    where = {id(one): n for n, order in enumerate(orders, start=len(updates)) for one in order.procedures}
    for one in requests:
        reader.in_budget()
        at = where[id(one.procedure)]
        answers[id(one.item)] = Answered("ServiceRequest", command=at, procedure=one.procedure, key=one.key)
        order = orders[at - len(updates)]
        whose = _accession(order) if order.accession_number else at
        for step, items in zip_longest(one.procedure.steps, one.items):
            for item in items or ():
                if step:
                    heard.add(item, whose, one.procedure, step.sps_id or id(step))
                answers[id(item)] = Answered(type(item.resource).__name__, (), at, one.procedure, step, one.key)
        made.commands += one.after
    for kind in (Task, Appointment):
        for item, _ in reader.all_of(kind):
            if id(item) not in answers:
                reader.in_budget()
                at = len(made.commands)
                order, *further = _of_known(reader, item)
                (procedure,), (step,) = order.procedures, order.procedures[0].steps
                number = step.sps_id or (step.appointment_number, step.appointment_issuer)
                heard.add(item, _accession(order), procedure, number)
                made.commands += [order, *further]
                answers[id(item)] = Answered(kind.__name__, (), at, procedure, step)
    made.answers = [replace(answers[id(item)], path=item.path, url_key=item.key) for item in reader.items]
    return made


class Heard:
    """What the Tasks, and what the Appointments, say of each step: two of one kind may not contradict each other."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._said: dict[tuple[object, ...], tuple[StepCommand, str]] = {}

    def add(self, item: Item, whose: object, procedure: ProcedureCommand, step: object) -> None:
        """whose: which order. step: which of its procedure. Raises InvalidValue at an element of the second."""
        assert isinstance(item.resource, Task | Appointment)
        numbers = procedure.requested_procedure_id or procedure.study_instance_uid or id(procedure)
        key = type(item.resource), whose, numbers, step
        own, end = self._reader.own(item), ENDS.get(item.resource.status, "")
        known, before = self._said.get(key, (own, end))
        are_two = known.sps_id and own.sps_id and known.sps_id != own.sps_id
        if are_two or end != before or alike.contradict(known, own, in_station=False):
            raise _contradiction(item)
        self._said[key] = both(known, own), end


def _contradiction(item: Item) -> InvalidValue:
    name = "identifier" if item.resource.identifier or isinstance(item.resource, ServiceRequest) else "basedOn"
    return InvalidValue(
        f"{item.path}.{name}", "another resource of this request says something else of the same procedure or step:"
        " give each an ID of its own", err="102",
    )  # fmt: skip


@dataclass(frozen=True)
class Ordered:
    """One ServiceRequest. items: for each of its steps the resources that it was read from. after: further commands,
    once the order is there. key: of the ServiceRequest that is here already."""

    item: Item
    order: OrderCommand
    items: tuple[list[Item], ...] = ()
    group: tuple[str, ...] = ()
    after: tuple[Command, ...] = ()
    key: str = ""

    @property
    def procedure(self) -> ProcedureCommand:
        return self.order.procedures[0]


def _updates(reader: Reader, answers: dict[int, Answered]) -> list[PatientCommand]:
    """A Patient that is a request's subject creates or completes the record, as an order's does; a PUT changes it."""
    made = []
    subjects = {id(reader.item(one.subject, Patient)) for _, one in reader.all_of(ServiceRequest)}
    for item, patient in reader.all_of(Patient):
        person = reader.person_of(item)
        if item.query:
            person = _led_by(person, _in_condition(reader, item, patient))
        if item.key:
            person = _led_by(person, _of_record(reader, item, person))
        is_known = item.query and reader.server.owner(person.identifiers[0])
        if item.method == "PUT" or not (id(item) in subjects or is_known):
            made.append(PatientCommand("update", person, cause="FHIR"))
        answers[id(item)] = Answered("Patient", person.identifiers)
    return made


def _led_by(person: PersonCommand, leading: Identifier) -> PersonCommand:
    """The leading identifier alone names whose record it is."""
    return replace(person, identifiers=(leading, *(one for one in person.identifiers if one != leading)))


def _in_condition(reader: Reader, item: Item, patient: Patient) -> Identifier:
    """What a condition asks for must be the resource's own: else it would be about one and change another."""
    value, system = _only_identifier(item)
    person = reader.person_of(item)
    for n, one in enumerate(patient.identifier):
        if one.value == value and system in (None, one.system or ""):
            known = reader.identified(one, f"{item.path}.identifier[{n}]")
            if known in person.identifiers:
                return known
    raise InvalidValue(item.path, "the condition is none of the resource's identifiers")


def _of_record(reader: Reader, item: Item, person: PersonCommand) -> Identifier:
    """Of the resource's identifiers the first that is the record's; none may be another record's."""
    record = reader.server.patient(item.key)
    if record is None:
        raise UnknownKey(item.path, "no such patient")
    owners = {one: reader.server.owner(one) for one in person.identifiers}
    mine = reader.server.owner(record)
    if set(owners.values()) - {None} != {mine}:
        raise DuplicateKey(f"{item.path}.identifier", "are not those of the patient whom the url names")
    return next(one for one, owner in owners.items() if owner == mine)


def _only_identifier(item: Item) -> tuple[str, str | None]:
    """The value and system that a conditional create or update asks for."""
    if not item.query:
        return "", None
    name, _, token = unquote(item.query).partition("=")
    if name != "identifier" or "&" in token:
        raise InvalidValue(item.path, "a condition is identifier=system|value", err="103")
    system, bar, value = token.rpartition("|")
    return value, system if bar else None


def _requests(reader: Reader, made: Plan, answers: dict[int, Answered]) -> Iterator[Ordered]:
    for item, request in reader.all_of(ServiceRequest):
        reader.in_budget()
        if item.query:
            value, system = _only_identifier(item)
            here = reader.server.procedures(value, system)
            if len(here) > 1:
                raise Stale(item.path, "the condition names several")
            if here and not reader.same(here[0].order.person, reader.subject(request, item.path)):
                raise Stale(f"{item.path}.subject", "the condition names an order of another patient")
            if here:  # and so is what came with it: it may have moved on since
                answers[id(item)] = Answered("ServiceRequest", key=here[0].key)
                for step, items in reader.steps(item, request):
                    for one in items:
                        answers[id(one)] = Answered(type(one.resource).__name__, step=step, key=here[0].key)
                continue
        if item.key:
            if item.match:
                made.expected.append((item.key, item.match))
            yield _known_request(reader, item, request)
        else:
            yield _new_request(reader, item, request)


def _new_request(reader: Reader, item: Item, request: ServiceRequest) -> Ordered:
    controls = NEW.get(request.status)
    if controls is None:
        raise InvalidValue(
            f"{item.path}.status", "is no order that can be placed; send it when it is active", err="103"
        )
    steps = reader.steps(item, request)
    person = reader.subject(request, item.path)
    order = replace(
        reader.order(request, item.path, tuple(step for step, _ in steps)),
        control=controls[0],
        patient=person,
        begun=any(one.resource.status in HERE for _, items in steps for one in items),  # type: ignore[attr-defined]
        policies=http_road.policies(reader.site),
    )
    items = tuple(items for _, items in steps)
    reader.check_patient(person, [one for group in items for one in group])
    if controls[0] == "CA":
        return Ordered(item, replace(order, procedures=(replace(order.procedures[0], steps=()),)), items)
    for one in (one for group in items for one in group):
        if one.resource.status not in (*PLANNED, *HERE):  # type: ignore[attr-defined]
            raise InvalidValue(f"{one.path}.status", "says that it is over, of an order that is new", err="103")
    after = tuple(_about(order, control) for control in controls[1:])
    group = ("requisition", request.requisition.system or "", request.requisition.value or "") if (
        request.requisition and request.requisition.value) else ()  # fmt: skip
    return Ordered(item, order, items, group, after)


def _known_request(reader: Reader, item: Item, request: ServiceRequest) -> Ordered:
    """Absent elements stay as they are; its subject must be the order's patient, and its numbers the order's."""
    known = reader.server.procedure(item.key)
    if known is None:
        raise UnknownKey(item.path, "no such ServiceRequest")
    controls = KNOWN.get(request.status)
    if controls is None:
        raise InvalidValue(f"{item.path}.status", "an order does not go back to a draft", err="103")
    person = reader.subject(request, item.path)
    steps = reader.steps(item, request)
    reader.check_patient(known.order.person, [one for _, items in steps for one in items])
    for one in (item for _, items in steps for item in items):
        if one.resource.status not in PLANNED:  # type: ignore[attr-defined]
            raise InvalidValue(f"{one.path}.status", "is about the step alone: send it without its request", err="103")
    if not steps[0][1]:
        whole = steps[0][0]
        if len(known.steps) == 1:
            steps = [(replace(whole, sps_id=known.steps[0]), [])]
        elif whole.start_date or whole.station_ae_titles or request.orderDetail:
            raise InvalidValue(item.path, "has several steps: say in their Tasks when, where and how")
        else:
            steps = []
    order = reader.order(request, item.path, tuple(step for step, _ in steps))
    procedure = _own(order.procedures[0], known, item.path)
    if order.accession_number not in ("", known.order.accession_number):
        raise InvalidValue(f"{item.path}.identifier", "the accession number cannot be changed")
    mine = replace(
        order, accession_number=known.order.accession_number, accession_issuer=known.order.accession_issuer,
        patient=person, procedures=(procedure,), at=None,
    )  # fmt: skip
    if controls[0] != "XO":
        status = "CM" if request.status == "completed" else ""
        bare = replace(procedure, steps=())
        ended = replace(mine, control=controls[0], status=status, procedures=(bare,))
        return Ordered(item, ended, tuple(items for _, items in steps), key=item.key)
    further: list[Control] = [*controls[1:], *(["RL"] if known.held and request.status == "active" else [])]  # type: ignore[list-item]
    after = tuple(_about(mine, control) for control in further)
    return Ordered(item, replace(mine, control="XO"), tuple(items for _, items in steps), (), after, item.key)


def _own(said: ProcedureCommand, known: Procedure, path: str) -> ProcedureCommand:
    for name in ("requested_procedure_id", "study_instance_uid"):
        if getattr(said, name) not in ("", getattr(known, name)):
            raise InvalidValue(f"{path}.identifier", f"the {name.replace('_', ' ')} cannot be changed")
    return replace(
        said, requested_procedure_id=known.requested_procedure_id, study_instance_uid=known.study_instance_uid
    )


def _about(order: OrderCommand, control: Control) -> OrderCommand:
    """The same order and procedure, and nothing else of it."""
    bare = [
        ProcedureCommand(
            requested_procedure_id=one.requested_procedure_id, study_instance_uid=one.study_instance_uid,
            placer_number=one.placer_number, placer_issuer=one.placer_issuer, filler_number=one.filler_number,
            filler_issuer=one.filler_issuer,
        )
        for one in order.procedures
    ]  # fmt: skip
    return OrderCommand(
        control, order.accession_number, order.accession_issuer, patient=order.patient, procedures=tuple(bare),
        place=order.place,
    )  # fmt: skip


def _orders(requests: Sequence[Ordered], site: Site) -> list[OrderCommand]:
    """New requests of one accession number, else of one requisition, are one order."""
    accessions: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for one in requests:
        if one.group and one.order.accession_number:
            accessions.setdefault(one.group, set()).add(_accession(one.order))
    made: dict[object, OrderCommand] = {}
    for one in requests:
        key: object = id(one.item)
        if one.order.control == "NW":
            _refuse_missing(one.order, site)
            shared = accessions.get(one.group, set())
            key = _accession(one.order) if one.order.accession_number else (
                next(iter(shared)) if len(shared) == 1 else one.group or key)  # fmt: skip
        made[key] = _with(made[key], one.order) if key in made else one.order
    came = {id(one.procedure): one for one in requests}
    for order in made.values():
        if found := alike.contradiction(order.procedures):
            at, step = found
            one = came[id(order.procedures[at])]
            raise _contradiction(one.item if step is None else next(iter(one.items[step]), one.item))
    return list(made.values())


def _accession(order: OrderCommand) -> tuple[str, ...]:
    return order.accession_number, order.accession_issuer


def _with(known: OrderCommand, more: OrderCommand) -> OrderCommand:
    if known.patient != more.patient:
        raise InvalidValue(f"{more.place}.subject", "requests of one order are about one patient")
    priorities = [one.priority for one in (known, more) if one.priority]
    first, second = (known, more) if known.accession_number else (more, known)
    return replace(
        known,
        accession_number=first.accession_number,
        accession_issuer=first.accession_issuer,
        procedures=(*known.procedures, *more.procedures),
        begun=known.begun or more.begun,
        priority=max(priorities, key=PRIORITIES.index, default=None),
        attributes={**second.attributes, **{k: v for k, v in first.attributes.items() if v is not None}},
    )


def _refuse_missing(order: OrderCommand, site: Site) -> None:
    """Identifiers that this site wants from the sender."""
    procedure = order.procedures[0]
    wanted = [
        (site.missing_accession_number, order.accession_number, "an accession number (ACSN)"),
        (site.missing_requested_procedure_id, procedure.requested_procedure_id, f"one of type '{PROCEDURE_ID}'"),
        (site.missing_study_instance_uid, procedure.study_instance_uid, f"one of system {values.UID}"),
        *((site.missing_sps_id, step.sps_id, f"a Task with one of type '{STEP_ID}'") for step in procedure.steps),
    ]
    for policy, value, what in wanted:
        if policy == "reject" and not value:
            raise MissingField(f"{order.place}.identifier", f"{what} is required here")


def _of_known(reader: Reader, item: Item) -> tuple[OrderCommand, *tuple[Command, ...]]:
    """A Task or Appointment of an order that came before: a new time, an end, an arrival."""
    resource, path = item.resource, item.path
    assert isinstance(resource, Task | Appointment)
    own = reader.own(item)
    references = based_on(resource) if isinstance(resource, Task) else resource.basedOn
    named = {one.key: one for one in (_named(reader, said, path) for said in references) if one}
    if not named:
        raise UnknownKey(f"{path}.basedOn", "names no ServiceRequest that is known here or came with it")
    if len(named) > 1:
        raise DuplicateKey(f"{path}.basedOn", "names several ServiceRequests: send one for each")
    (known,) = named.values()
    reader.check_patient(known.order.person, [item])
    if not own.sps_id and len(known.steps) == 1:
        own = replace(own, sps_id=known.steps[0])
    procedure = ProcedureCommand(
        requested_procedure_id=known.requested_procedure_id, study_instance_uid=known.study_instance_uid, steps=(own,)
    )
    if not own.sps_id and (own.appointment_number, own.appointment_issuer) not in known.slots:
        raise MissingField(f"{path}.identifier", "the request has several steps: say which one")
    control = ENDS.get(resource.status, "XO")
    if resource.status not in (*PLANNED, *HERE, *ENDS):
        raise InvalidValue(f"{path}.status", "is for the broker to say, which sees the exam", err="103")
    order = known.order.command(control, procedures=(procedure,), place=path)
    if resource.status not in HERE:
        return (order,)
    note = replace(order, control="note")
    return order, VisitCommand("arrive", known.order.person, order=note, cause="FHIR", place=path)


def _named(reader: Reader, said: Reference, path: str) -> Procedure | None:
    """By a key of ours, which is relative, or by an identifier. What another server names by its URL is not ours."""
    kind, _, key = (said.reference or "").partition("/")
    known = reader.server.procedure(key) if kind == "ServiceRequest" else None
    one = said.identifier
    if one is None or not one.value or (known is None and kind == "ServiceRequest"):
        return known
    here = reader.server.procedures(one.value, one.system)
    if len(here) > 1:
        raise Stale(path, "the identifier names several")
    if known and [procedure.key for procedure in here] != [known.key]:
        raise DuplicateKey(f"{path}.basedOn", "its reference and its identifier name two requests")
    return known or next(iter(here), None)
