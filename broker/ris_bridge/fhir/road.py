"""FHIR requests on their way into the inbox: a transaction, a ServiceRequest, its update (conformance.md 6)."""

import datetime as dt
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlmodel import Session

from broker import db
from broker.config import Settings
from broker.errors import BrokerError, DuplicateKey, InvalidValue, Stale, TooMany, UnknownKey, Unsupported
from broker.model.messages import Message
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStep
from broker.model.patients import Patient
from broker.mwl import identity
from broker.mwl import order_finding as finding
from broker.mwl.commands import Identifier, ProcedureCommand, StepCommand
from broker.ris_bridge import http_road, labels
from broker.ris_bridge.budget import budget
from broker.ris_bridge.effects import Asked, Cause, Done
from broker.ris_bridge.fhir import elements, resources
from broker.ris_bridge.fhir.elements import KINDS, Bundle
from broker.ris_bridge.fhir.orders_in import Item, Procedure, Reader
from broker.ris_bridge.fhir.plan import Answered, Plan, plan
from broker.ris_bridge.fhir.resources import MEDIA, Kind, Names, Resource
from broker.ris_bridge.http_road import Reply, Request
from broker.ris_bridge.inbox import Answer, Read, Received, Road

PROTOCOL = "fhir"
BASE = "/fhir"
CHANGE = "change it by PUT"
PATH = re.compile(BASE + r"(?:/(ServiceRequest)(?:/([A-Za-z0-9.-]{1,64}))?)?")
URL = re.compile(r"([A-Za-z]+)(?:/([A-Za-z0-9.-]{1,64}))?(?:\?(.*))?")
NUMBERS = ("requested_procedure_id", "study_instance_uid", "placer_number", "filler_number")
# Where a service says that something is wrong -> the element, the first whose resource came. Empty: none of them.
_numbers, _person = ("ServiceRequest.identifier",), ("ServiceRequest.subject", "Patient.identifier")
ELEMENTS: Mapping[str, tuple[str, ...]] = {
    "accession number": _numbers, "requested procedure id": _numbers, "study instance uid": _numbers, "order": _numbers,
    "patient": _person, "patient.id": _person, "body": ("",), "message": ("",),
}  # fmt: skip


def take(request: Request, *, sender: str, peer: str, key: str, settings: Settings) -> Answer:
    kind = f"{request.method} {'ServiceRequest' if 'ServiceRequest' in request.path else 'Bundle'}"
    return http_road.take(request, PROTOCOL, ROAD, sender=sender, peer=peer, key=key, kind=kind, settings=settings)


def again(row: Message, settings: Settings) -> tuple[Received, Road]:
    """Keys are ours: one that named nothing then must not reach what got it since."""
    road = replace(ROAD, read=functools.partial(_read, before=row.received_at))
    return http_road.again(row, road, settings)


def _read(received: Received, before: dt.datetime | None = None) -> Read:
    request = http_road.request_of(received.raw)
    settings = received.settings
    names = Names(settings)
    in_budget = budget(settings.limits.fhir_parse_seconds_max)
    found = _found(request.body)
    items: list[Item] = []

    def build() -> Asked:
        match = PATH.fullmatch(request.path)
        if match is None:
            raise Unsupported("", "is no path that takes orders")
        if isinstance(found, BrokerError):
            raise found
        in_budget()
        http_road.refuse_twice(http_road.text(request.body), _kind_of(found))
        _check_text(found, request.body, in_budget)
        items.extend(_one(found, request, match[2] or "") if match[1] else _all(found, settings, in_budget))
        made = plan(Reader(items, settings.site, names.systems, Known(names, in_budget, before), in_budget))

        def tell(session: Session, done: Sequence[Done], cause: Cause) -> bytes:
            answer = Answers(session, made, done, cause, names)
            return (answer.alone() if match[1] else answer.bundle()).raw()

        def check(session: Session) -> None:
            for key, wanted in made.expected:
                _check(session, key, wanted, names)

        label = db.read(labels.of_sender, received.sender)
        return Asked(tuple(labels.labelled(made.commands, label)), tell, check)

    said = () if isinstance(found, BrokerError) else elements.keys(found)
    return http_road.read(received, build, said, lambda error: _refusal(error, items), CHANGE)


def _found(body: bytes) -> Resource | BrokerError:
    try:
        return elements.json_of(http_road.text(body))
    except BrokerError as error:
        return error


def _check_text(found: Resource, body: bytes, in_budget: Callable[[], None]) -> None:
    in_budget()
    if b"\\u0000" in body and (where := http_road.nul(found, in_budget)) is not None:
        place = elements.path_of(_kind_of(found), where)[: http_road.PLACE_CHARACTERS_MAX]
        raise InvalidValue(place, "holds NUL, which is no character of a text")


def _kind_of(found: Resource) -> str:
    """Whatever else stands there may be anything."""
    kind: str = found["resourceType"]
    return kind if kind in (*KINDS, "Bundle") else "resourceType"


def _one(found: Resource, request: Request, key: str) -> list[Item]:
    kind = _kind_of(found)
    if kind != "ServiceRequest":
        raise InvalidValue(kind, "is no ServiceRequest, which the path says")
    if key and found.get("id") != key:
        raise InvalidValue("ServiceRequest.id", "is not the id in the path")
    headers = request.headers
    resource = elements.read(elements.ServiceRequest, found, kind)
    return [
        Item(kind, resource, request.method, key=key, query=_query(headers.get("if-none-exist", "")),
             match=headers.get("if-match", ""))
    ]  # fmt: skip


def _query(text: str) -> str:
    """`Type?name=value`, or what follows the question mark."""
    return text.rpartition("?")[2].strip()


def _all(found: Resource, settings: Settings, in_budget: Callable[[], None]) -> list[Item]:
    """All or nothing: no batch, and no resource that the broker would have to leave aside."""
    entries, entries_max = found.get("entry"), settings.limits.fhir_entries_max
    if isinstance(entries, list) and len(entries) > entries_max:
        raise TooMany("Bundle.entry", f"at most {entries_max} in one transaction: send the others in a further one")
    bundle = elements.read(Bundle, found, "Bundle")
    if found["resourceType"] != "Bundle" or bundle.type != "transaction":
        raise InvalidValue("Bundle.type", "only transactions are taken here", err="103")
    items = []
    for n, entry in enumerate(bundle.entry):
        in_budget()
        path = f"Bundle.entry[{n}]"
        kind = entry.resource.get("resourceType")
        url = URL.fullmatch(entry.request.url)
        if not isinstance(kind, str) or kind not in KINDS:
            raise InvalidValue(f"{path}.resource", f"is none of {', '.join(KINDS)}, which a transaction may hold")
        if url is None or url[1] != kind:
            raise InvalidValue(f"{path}.request.url", "does not name the type of the resource")
        method = entry.request.method
        if method not in ("POST", "PUT") or (method == "POST" and (url[2] or url[3])):
            raise InvalidValue(f"{path}.request.method", f"of a {kind}: {resources.IN_TRANSACTION[kind]}", err="103")
        if method == "PUT" and not url[2] and (kind == "ServiceRequest" or not url[3]):
            raise InvalidValue(f"{path}.request.url", "a PUT names the resource by its id")
        read = elements.read(KINDS[kind], entry.resource, f"{path}.resource")
        if url[2] and read.id != url[2]:
            raise InvalidValue(f"{path}.resource.id", "is not the id in the request's url")
        query = url[3] or _query(entry.request.ifNoneExist or "")
        items.append(
            Item(
                f"{path}.resource", read, method, entry.fullUrl or "", url[2] or "", query, entry.request.ifMatch or ""
            )
        )
    return items


# What is here already


@dataclass(frozen=True)
class Known:
    """Looked up before the transaction: keys and identifiers of what exists do not change. before: when the request
    came, where it is looked at once more: what was made since has got its key since."""

    names: Names
    in_budget: Callable[[], None]
    before: dt.datetime | None = None

    def patient(self, key: str) -> Identifier | None:
        self.in_budget()
        return db.read(_leading, int(key), self.before) if re.fullmatch(r"\d{1,18}", key) else None

    def owner(self, identifier: Identifier) -> str | None:
        self.in_budget()
        return db.read(_owner, identifier)

    def procedure(self, key: str) -> Procedure | None:
        self.in_budget()
        return db.read(_procedure, key, self.before)

    def procedures(self, value: str, system: str | None) -> list[Procedure]:
        self.in_budget()
        return db.read(_procedures, value, system, self.names)


def _leading(session: Session, pk: int, before: dt.datetime | None) -> Identifier | None:
    row = session.get(Patient, pk)
    if row is None or (before and row.created_at > before):
        return None
    return identity.leading(session, identity.survivor(session, pk).key)


def _owner(session: Session, one: Identifier) -> str | None:
    found = identity.find(session, one.value, one.issuer)
    return str(found.key) if found else None


def _procedure(session: Session, key: str, before: dt.datetime | None = None) -> Procedure | None:
    found = resources.find_request(session, key)
    if found is None or (before and found[1].created_at > before):
        return None
    order, row = found
    known = http_road.known(session, order.key, before)
    if known is None:
        return None
    own = resources.steps(session, row)
    return Procedure(
        key, known, row.requested_procedure_id, row.study_instance_uid, tuple(step.sps_id for step in own),
        tuple((step.appointment_number, step.appointment_issuer) for step in own if step.appointment_number),
        any(step.status == "ON_HOLD" for step in own),
    )  # fmt: skip


def _procedures(session: Session, value: str, system: str | None, names: Names) -> list[Procedure]:
    is_uid = system == resources.values.UID
    issuer = None if system is None else names.issuer(system)
    rows = resources.requests(
        session, value.removeprefix("urn:oid:") if is_uid else value, issuer, is_uid=is_uid, limit=2
    )
    return [one for row in rows if (one := _procedure(session, resources.key_of(session, row)))]


def _check(session: Session, key: str, wanted: str, names: Names) -> None:
    """If-Match: the version that its sender has read is still the one."""
    found = resources.find_request(session, key)
    if found is None:
        raise UnknownKey("ServiceRequest.id", "no such ServiceRequest")
    finding.locked(session, found[0].key)
    session.expire_all()  # what another process committed while we waited counts
    found = resources.find_request(session, key)
    assert found is not None, "nothing is deleted"
    now = resources.etag(resources.service_request(session, *found, names)).removeprefix("W/")
    if wanted.strip() != "*" and now not in [one.strip().removeprefix("W/") for one in wanted.split(",")]:
        raise Stale("If-Match")


# The answer


class Answers:
    def __init__(self, session: Session, made: Plan, done: Sequence[Done], cause: Cause, names: Names) -> None:
        self._session, self._plan, self._done, self._cause, self._names = session, made, done, cause, names
        self._procedures: dict[int, RequestedProcedure] = {}
        self._chosen: set[int] = set()  # their keys
        self._taken: set[tuple[str, int]] = set()
        # Read once: an answer of 500 entries about one order would read all of it 500 times.
        self._of_order: dict[int, OwnProcedures] = {}
        self._of_procedure: dict[int, Sequence[ScheduledStep]] = {}

    def bundle(self) -> Reply:
        entries = [{"response": self._response(*self._row(one))} for one in self._plan.answers]
        made: Resource = {"resourceType": "Bundle", "type": "transaction-response", "entry": entries}
        return Reply(200, MEDIA, resources.text(made))

    def alone(self) -> Reply:
        kind, key, row = self._row(self._plan.answers[0])
        made = self._read(kind, key, row)
        code = 201 if self._is_new(row) else 200
        headers = {"ETag": resources.etag(made), "Location": f"{BASE}/{kind}/{key}"}
        return Reply(code, MEDIA, resources.text(made), headers)

    def _response(self, kind: Kind, key: str, row: Any) -> Resource:
        if row is None:
            return {"status": "200 OK"}
        made = self._read(kind, key, row)
        return {
            "status": "201 Created" if self._is_new(row) else "200 OK",
            "location": f"{kind}/{key}",
            "etag": resources.etag(made),
            "lastModified": made["meta"]["lastUpdated"],
        }

    def _read(self, kind: Kind, key: str, row: Any) -> Resource:
        if kind == "ServiceRequest":
            order = self._session.get_one(ImagingOrder, row.order_pk)
            return resources.service_request(self._session, order, row, self._names, key)
        return resources.SHOWN[kind](self._session, row, self._names)

    def _is_new(self, row: Any) -> bool:
        return bool(row.created_at >= self._cause.now)

    def _row(self, answered: Answered) -> tuple[Kind, str, Any]:
        """What an entry became: its type, key and row; of a Task that ended with its order, no row."""
        if answered.who:
            found = (identity.find(self._session, one.value, one.issuer) for one in answered.who)
            person = next(filter(None, found), None)
            if person is None:
                place = f"{answered.path}.identifier"
                raise UnknownKey(place, "nobody here has its identifiers, and no order came with it")
            return "Patient", str(person.key), person
        procedure = self._procedure(answered)
        if answered.kind == "ServiceRequest":
            return "ServiceRequest", resources.key_of(self._session, procedure), procedure
        kind: Kind = "Task" if answered.kind == "Task" else "Appointment"
        step = self._step(procedure, answered, kind)
        if answered.url_key:
            self._check_url(answered, [step] if step else self._of_procedure[procedure.key])
        return kind, str(step.key) if step else "", step

    def _check_url(self, answered: Answered, steps: Sequence[ScheduledStep]) -> None:
        """The url of a PUT and the resource in it name the same step; also one that was there when the request came."""
        said_at = self._cause.said_at
        if not any(str(one.key) == answered.url_key and (not said_at or one.created_at <= said_at) for one in steps):
            raise DuplicateKey(f"{answered.path}.id", f"names another {answered.kind} than the rest of it does")

    def _procedure(self, answered: Answered) -> RequestedProcedure:
        if answered.key and (found := resources.find_request(self._session, answered.key)):
            return found[1]
        order_pk = self._done[answered.command].order_pk
        if order_pk is None or answered.procedure is None:
            raise UnknownKey(answered.path, "has become no order")
        if id(answered.procedure) not in self._procedures:
            if order_pk not in self._of_order:
                self._of_order[order_pk] = OwnProcedures(resources.procedures(self._session, order_pk))
            same = self._of_order[order_pk].like(answered.procedure)
            free = [row for row in same if self._is_new(row) and row.key not in self._chosen]
            self._procedures[id(answered.procedure)] = chosen = (free or same)[0]
            self._chosen.add(chosen.key)
        return self._procedures[id(answered.procedure)]

    def _step(self, procedure: RequestedProcedure, answered: Answered, kind: Kind) -> ScheduledStep | None:
        wanted = answered.step
        if procedure.key not in self._of_procedure:
            self._of_procedure[procedure.key] = resources.steps(self._session, procedure)
        rows = self._of_procedure[procedure.key]
        if wanted is None:
            return rows[0] if len(rows) == 1 else None
        free = [row for row in rows if (kind, row.key) not in self._taken]
        found = next((row for row in rows if _is_step(row, wanted)), next(iter(free), None))
        if found:
            self._taken.add((kind, found.key))
        return found


class OwnProcedures:
    """The procedures of one order, by their numbers."""

    def __init__(self, rows: Sequence[RequestedProcedure]) -> None:
        self._rows = rows
        self._with: dict[tuple[str, str], list[RequestedProcedure]] = {}
        for row in rows:
            for name in NUMBERS:
                self._with.setdefault((name, getattr(row, name)), []).append(row)

    def like(self, wanted: ProcedureCommand) -> Sequence[RequestedProcedure]:
        """Those that have all the numbers that it states; all of the order where none has."""
        stated = [(name, value) for name in NUMBERS if (value := getattr(wanted, name))]
        rows = min((self._with.get(one, []) for one in stated), key=len, default=self._rows)
        return [row for row in rows if all(getattr(row, name) == value for name, value in stated)] or self._rows


def _is_step(row: ScheduledStep, wanted: StepCommand) -> bool:
    if wanted.sps_id:
        return row.sps_id == wanted.sps_id
    return bool(wanted.appointment_number) and row.appointment_number == wanted.appointment_number


def _refusal(error: BrokerError, items: Sequence[Item] = ()) -> Reply:
    where, text = http_road.place(error)
    code = http_road.http_status(error)
    outcome = resources.outcome(code, text, element(where, items), error.err, error.also)
    return Reply(code, MEDIA, resources.text(outcome), http_road.retry(code))


def element(place: str, items: Sequence[Item]) -> str:
    """Of what a service says: with the entry's path where one entry alone can be meant."""
    if place not in ELEMENTS:
        return place
    paths: dict[str, list[str]] = {}
    for item in items:
        paths.setdefault(type(item.resource).__name__, []).append(item.path)
    named = [one.partition(".") for one in ELEMENTS[place]]
    kind, dot, name = next((one for one in named if one[0] in paths), named[0])
    (*_, path), is_one = paths.get(kind, [kind]), len(paths.get(kind, ())) == 1
    return f"{path if is_one else kind}{dot}{name}"


ROAD = Road(read=_read, refuse=lambda _, error: _refusal(error).raw())
