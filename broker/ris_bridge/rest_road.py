"""Orders over REST on their way into the inbox (contract.md 4)."""

import datetime as dt
import functools
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import bindparam
from sqlmodel import Session, col, select

from broker import db
from broker.archive import status
from broker.config import Settings, Site
from broker.errors import BrokerError, MissingField, Stale, UnknownKey
from broker.model.messages import Message
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStation, ScheduledStep
from broker.model.patients import Patient
from broker.mwl import order_finding as finding
from broker.mwl.commands import Command, PatientCommand, ProcedureCommand, StepCommand, VisitCommand
from broker.ris_bridge import http_road, labels, poll_orders, rest_orders
from broker.ris_bridge.effects import Asked, Cause, Done
from broker.ris_bridge.http_road import Known, Reply, Request
from broker.ris_bridge.inbox import Answer, Read, Received, Road
from broker.ris_bridge.rest_orders import Has

PROTOCOL = "rest"
ORDERS = "/api/v1/orders"
STEPS = "/api/v1/worklist"
CHANGE = "change it by PATCH"
PATH = re.compile(ORDERS + r"(?:/(\d{1,18})(?:/([a-z-]+))?)?")
PATH_OF_STEP = re.compile(STEPS + r"/(\d{1,18})/(label)")


@dataclass(frozen=True)
class Context:
    """text: the body. known, has: the order that the path names, its procedures. step: which it names, by Requested
    Procedure ID and SPS ID."""

    text: str
    site: Site
    known: Known | None = None
    has: tuple[Has, ...] = ()
    step: tuple[str, str] | None = None

    @property
    def order(self) -> Known:
        if self.known is None:
            raise UnknownKey("order_id", "no such order")
        return self.known


def place(context: Context) -> list[Command]:
    return [rest_orders.placed(rest_orders.new(context.text), context.site)]


def state(context: Context) -> list[Command]:
    return [poll_orders.command(context.text, context.site)]


def change(context: Context) -> list[Command]:
    body = rest_orders.change(context.text)
    order = rest_orders.changed(body, context.order, context.has, context.site)
    person = rest_orders.demographics(body, context.order, context.site)
    update = [PatientCommand("update", person, cause="PATCH")] if person else []
    return [*update, order]


def arrive(context: Context) -> list[Command]:
    at = rest_orders.body(rest_orders.Arrival, context.text).at
    order = context.order.command("note", place="order_id")
    moment = rest_orders.moment(at, context.site) if at else None
    return [VisitCommand("arrive", context.order.person, order=order, at=moment, cause="arrive", place="order_id")]


def bring_back(context: Context) -> list[Command]:
    body = rest_orders.body(rest_orders.BringBack, context.text)
    return [rest_orders.brought_back(body, context.order, context.has)]


def label(context: Context) -> list[Command]:
    """Of one step, by its key: null or nothing takes it away."""
    assert context.step is not None
    said = rest_orders.body(rest_orders.Label, context.text).said("label")
    if said is None:
        raise MissingField("label", "is required: null takes it away")
    procedure_id, sps_id = context.step
    procedure = ProcedureCommand(procedure_id, steps=(StepCommand(sps_id, label=said),))
    return [context.order.command("XO", procedures=(procedure,), place="step_id")]


def _control(control: str) -> Callable[[Context], list[Command]]:
    def read(context: Context) -> list[Command]:
        reason = rest_orders.body(rest_orders.Reason, context.text).reason or ""
        return [context.order.command(control, reason=reason, place="order_id")]

    return read


# Method and what stands behind the order's key -> what is asked for.
ACTIONS: dict[tuple[str, str], Callable[[Context], list[Command]]] = {
    ("POST", ""): place,
    ("PATCH", ""): change,
    ("POST", "cancel"): _control("CA"),
    ("POST", "arrive"): arrive,
    ("POST", "hold"): _control("HD"),
    ("POST", "release"): _control("RL"),
    ("POST", "no-show"): _control("no_show"),
    ("POST", "reinstate"): bring_back,
}
# The same, behind the step's key.
OF_STEP: dict[tuple[str, str], Callable[[Context], list[Command]]] = {("POST", "label"): label}

# Of what polling.py fetched: no route leads here.
FETCHED: dict[tuple[str, str], Callable[[Context], list[Command]]] = {("PUT", ""): state}


def take(request: Request, *, sender: str, peer: str, key: str, settings: Settings) -> Answer:
    named = _named(request)
    kind = f"{request.method} {'order' if named.step_pk is None else 'step'} {named.action}".rstrip()
    return http_road.take(request, PROTOCOL, ROAD, sender=sender, peer=peer, key=key, kind=kind, settings=settings)


def again(row: Message, settings: Settings) -> tuple[Received, Road]:
    """Keys are ours: one that named no order then must not reach the order that got it since."""
    road = replace(ROAD, read=functools.partial(_read, before=row.received_at))
    return http_road.again(row, road, settings)


@dataclass(frozen=True)
class Named:
    """What the path says. Of a new order neither key."""

    action: str
    order_pk: int | None = None
    step_pk: int | None = None


def _named(request: Request) -> Named:
    if match := PATH_OF_STEP.fullmatch(request.path):
        return Named(match[2], step_pk=int(match[1]))
    match = PATH.fullmatch(request.path)
    if match is None and request.path.startswith(f"{STEPS}/"):
        raise UnknownKey("step_id", "no such step")
    if match is None:
        raise UnknownKey("order_id", "no such order")
    return Named(match[2] or "", order_pk=int(match[1]) if match[1] else None)


def _read(received: Received, before: dt.datetime | None = None) -> Read:
    request = http_road.request_of(received.raw)
    named = _named(request)
    order_pk, step = named.order_pk, None
    if named.step_pk is not None:
        order_pk, step = db.read(_step, named.step_pk, before)
    known, has = (None, ()) if order_pk is None else db.read(_known, order_pk, before)
    wanted = request.headers.get("if-match", "")

    def check(session: Session) -> None:
        assert order_pk is not None
        finding.locked(session, order_pk)
        _, version = status.of_order(session, order_pk)
        tags = [one.strip() for one in wanted.split(",")]
        if tags == ["*"] or etag(session, order_pk, version) in tags:
            return
        if status_etag(order_pk, version) in tags:
            raise Stale("If-Match", f"is the ETag of the status document: take that of GET {ORDERS}/{order_pk}")
        raise Stale("If-Match")

    def tell(session: Session, done: Sequence[Done], cause: Cause) -> bytes:
        return _told(session, order_pk or next(one.order_pk for one in done if one.order_pk), cause).raw()

    def build() -> Asked:
        if named.step_pk is not None and step is None:
            raise UnknownKey("step_id", "no such step")
        if order_pk is not None and known is None:
            raise UnknownKey("order_id", "no such order")
        context = Context(http_road.text(request.body), received.settings.site, known, has, step)
        actions = ACTIONS | FETCHED if named.step_pk is None else OF_STEP
        commands = actions[request.method, named.action](context)
        own = db.read(labels.of_sender, received.sender)
        return Asked(tuple(labels.labelled(commands, own)), tell, check if wanted and order_pk else None)

    return http_road.read(received, build, rest_orders.keys(request.body), _refusal, CHANGE)


def _known(session: Session, order_pk: int, before: dt.datetime | None) -> tuple[Known | None, tuple[Has, ...]]:
    rows = session.exec(select(RequestedProcedure).where(RequestedProcedure.order_pk == order_pk)).all()
    ids = select(ScheduledStep.requested_procedure_pk, ScheduledStep.sps_id).where(ScheduledStep.order_pk == order_pk)
    steps = session.exec(ids).all()
    has = [Has(_numbers(row), tuple(sps_id for pk, sps_id in steps if pk == row.key)) for row in rows]
    return http_road.known(session, order_pk, before), tuple(has)


def _step(session: Session, step_pk: int, before: dt.datetime | None) -> tuple[int | None, tuple[str, str] | None]:
    """Its order; itself by the IDs of its procedure and its own."""
    step = session.get(ScheduledStep, step_pk)
    if step is None or (before and step.created_at > before):
        return None, None
    procedure = session.get_one(RequestedProcedure, step.requested_procedure_pk)
    return step.order_pk, (procedure.requested_procedure_id, step.sps_id)


def _numbers(row: RequestedProcedure) -> dict[str, str]:
    said = row.requested_procedure_id, row.study_instance_uid, row.placer_number, row.filler_number
    return dict(zip(rest_orders.PROCEDURE_KEYS, said, strict=True))


def _told(session: Session, order_pk: int, cause: Cause) -> Reply:
    """201 where this request made the order."""
    document, version = status.of_order(session, order_pk)
    headers = {"ETag": etag(session, order_pk, version)}
    order = session.get_one(ImagingOrder, order_pk)
    if order.message_pk != cause.message_pk:
        return Reply(200, "application/json", document, headers)
    return Reply(201, "application/json", document, {"Location": f"{ORDERS}/{order_pk}", **headers})


# Of what a PATCH can say, the rest: the status document shows no text, no name and no priority.
OF: Any = bindparam("order_pk")
WHOLE = db.Prepared(
    db.columns(ImagingOrder.priority, ImagingOrder.attributes, Patient.name, Patient.birth_date, Patient.sex)
    .join(Patient, Patient.pk == ImagingOrder.patient_pk)
    .where(ImagingOrder.pk == OF)
)
PARTS = db.Prepared(
    db.columns(
        RequestedProcedure.pk, RequestedProcedure.placer_number, RequestedProcedure.placer_issuer,
        RequestedProcedure.filler_number, RequestedProcedure.filler_issuer, RequestedProcedure.description,
        RequestedProcedure.code_value, RequestedProcedure.code_scheme, RequestedProcedure.code_meaning,
        RequestedProcedure.attributes, col(ScheduledStep.pk).label("step_pk"), ScheduledStep.sps_id,
        ScheduledStep.modality, ScheduledStep.start_date, ScheduledStep.start_time,
        col(ScheduledStep.description).label("step_description"),
        col(ScheduledStep.attributes).label("step_attributes"), col(ScheduledStep.label).label("step_label"),
        ScheduledStation.ae_title,
    )
    .outerjoin(ScheduledStep, ScheduledStep.requested_procedure_pk == RequestedProcedure.pk)
    .outerjoin(ScheduledStation, ScheduledStation.step_pk == ScheduledStep.pk)
    .where(RequestedProcedure.order_pk == OF)
    .order_by(RequestedProcedure.pk, ScheduledStep.pk, ScheduledStation.pk)
)  # fmt: skip


def etag(session: Session, order_pk: int, version: int) -> str:
    """Of an order: another one after everything that a PATCH can change. version: of its status document."""
    rows = [list(row) for query in (WHOLE, PARTS) for row in query.rows(session, order_pk=order_pk)]
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]
    return f'"{order_pk}.{version}.{digest}"'


def status_etag(order_pk: int, version: int) -> str:
    """Of the status document."""
    return f'"{order_pk}.{version}"'


def is_known(tag: str, wanted: str) -> bool:
    """Whether If-None-Match names this status document: by its ETag, or by that of its order, which says more."""
    return any(one in wanted for one in (tag, tag.removesuffix('"') + "."))


def document(session: Session, order_pk: int) -> tuple[str, str]:
    """The status document, and the ETag of the order."""
    found, version = status.of_order(session, order_pk)
    return found, etag(session, order_pk, version)


def _refusal(error: BrokerError) -> Reply:
    """RFC 9457."""
    where, text = http_road.place(error)
    code = http_road.http_status(error)
    problem: dict[str, Any] = {
        "type": "about:blank", "title": error.title, "status": code, "detail": text, "place": where,
    }  # fmt: skip
    if error.also:
        problem["errors"] = [{"field": place, "problem": words} for place, words in ((where, text), *error.also)]
    return Reply(code, "application/problem+json", json.dumps(problem, ensure_ascii=False), http_road.retry(code))


ROAD = Road(read=_read, refuse=lambda _, error: _refusal(error).raw())
