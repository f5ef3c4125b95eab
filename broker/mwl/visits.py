"""Arrivals and transfers: what happens to one visit reaches the orders of that visit, or the one that is named, and
never all that a patient has."""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlmodel import Session, col, select

from broker import audit, db
from broker.config import Site
from broker.errors import MissingField
from broker.model.orders import ImagingOrder
from broker.mwl import identity, items, said, steps
from broker.mwl import order_finding as finding
from broker.mwl.commands import Identifier, VisitCommand
from broker.mwl.said import Part, Telling
from broker.mwl.steps import Cause

LOCATION = "CurrentPatientLocation"


def apply(
    session: Session, command: VisitCommand, *, now: dt.datetime, actor: str, site: Site
) -> tuple[list[int], str]:
    """The orders that it reached, and what it became in words. A visit that no order belongs to changes nothing.

    Raises MissingField where it names neither visit nor order, UnknownKey for an order never heard of, DuplicateKey
    where that is another patient's, or a retired number leads to somebody else."""
    cause = Cause(now, actor, site)
    reached = _named_order(session, command) if command.order else _of_the_visit(session, command)
    for order, targets in reached:
        at = said.time_of(command.at, order.last_event_at, now)
        if command.event == "transfer":
            _move(session, order, command, at, cause)
        else:
            said.heard(order, command.at, now)
            effect = steps.happen(session, order, targets, command.event, at, command.cause or command.event, cause)
            if effect.older or effect.unborn:
                audit.record(
                    session, "order.update", f"order:{order.key}", actor=actor, now=now, outcome="stale",
                    cause=command.cause, control=command.event,
                )  # fmt: skip
    pks = [order.key for order, _ in reached]
    if not pks:
        return [], f"{command.event}: no order of this visit is known"
    return pks, f"{command.event} order {', '.join(map(str, pks))}"


def _named_order(session: Session, command: VisitCommand) -> list[tuple[ImagingOrder, Sequence[Part]]]:
    assert command.order is not None
    wanted = replace(command.order, patient=command.patient)
    order = finding.known(session, wanted)
    return [(order, finding.targets(session, order, wanted))]


def _of_the_visit(session: Session, command: VisitCommand) -> list[tuple[ImagingOrder, Sequence[Part]]]:
    if command.visit is None or not command.visit.value:
        raise MissingField(command.place or "visit", "names neither a visit nor an order", err="101")
    (patient,) = identity.locked(session, command.patient.identifiers[0])
    if patient is None:
        return []
    finding.refuse_somebody_else(session, patient, command.patient, command.at)
    rows = session.exec(
        select(ImagingOrder.pk, ImagingOrder.attributes)
        .where(ImagingOrder.patient_pk == patient.key)
        .order_by(col(ImagingOrder.pk))
    ).all()
    theirs = [pk for pk, attributes in rows if pk and _belongs(attributes, command.visit)]
    orders = [db.lock(session, ImagingOrder, pk) for pk in theirs]
    return [(order, [order]) for order in orders]


def _belongs(attributes: Mapping[str, Any], visit: Identifier) -> bool:
    """The same number of the same issuer, by its name or its universal ID; without an issuer, on both sides."""
    if attributes.get("AdmissionID") != visit.value:
        return False
    entities = attributes.get("IssuerOfAdmissionIDSequence")
    issuers = {
        entity[name]
        for entity in (entities if isinstance(entities, list) else ())
        for name in ("LocalNamespaceEntityID", "UniversalEntityID")
        if entity.get(name)
    }
    return visit.issuer in (issuers or {""})


def _move(session: Session, order: ImagingOrder, command: VisitCommand, at: str, cause: Cause) -> None:
    """Where the patient is, for the orders that are still to be done."""
    is_open = any(step.status in items.LIVE for step in steps.of(session, order.key))
    if command.location is None or not is_open:
        return
    said.heard(order, command.at, cause.now)
    telling = Telling(at)
    said.tell(telling, order, {LOCATION: command.location}, "order")
    session.add(order)
    if telling.changed:
        audit.record(
            session, "order.update", f"order:{order.key}", actor=cause.actor, now=cause.now, cause=command.cause,
            changed=telling.changed,
        )  # fmt: skip
        session.flush()
        items.rebuild(session, order.key, now=cause.now)
