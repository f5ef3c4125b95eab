"""The worklist item of a step: encoded when something that it shows has changed, not when it is asked for."""

import datetime as dt
from collections.abc import Sequence

from sqlmodel import Session, col, select

from broker import casebook, outbox
from broker.errors import MissingField
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStation, ScheduledStep, StepVersion
from broker.model.patients import Patient
from broker.mwl import dataset, identity

# What a device may be shown, or shown again by a release. Ended steps keep their last version.
LIVE = ("SCHEDULED", "ARRIVED", "READY", "STARTED", "ON_HOLD")
INCOMPLETE = "incomplete_order"


def rebuild(session: Session, order_pk: int, *, now: dt.datetime) -> None:
    """Encode the items of an order's live steps again; a new version only where the bytes changed.

    A step without a type 1 key is on no worklist; one case per order names what is missing (conformance.md 1.3, 7)."""
    order = session.get_one(ImagingOrder, order_pk)
    patient = session.get_one(Patient, order.patient_pk)
    known = identity.identifiers(session, patient.key)
    leading = known[0].value if known else ""
    lacking = []
    for procedure, step in _live(session, order_pk):
        try:
            item = dataset.build(patient, known, order, procedure, step, stations(session, step.key))
            data = dataset.encode_item(item)
        except MissingField as missing:
            lacking.append(f"step {step.sps_id} lacks {missing.place}")
            data = b""
        step.patient_id, step.accession_number = leading, order.accession_number
        step.offerable = bool(data) and not order.withheld
        _renew(session, step, data)
    _ask_for(session, order_pk, lacking, now=now)
    outbox.touch(session, order_pk)


def stations(session: Session, step_pk: int) -> list[str]:
    """Scheduled Station AE Titles of a step, in the order in which they were given."""
    return list(
        session.exec(
            select(ScheduledStation.ae_title)
            .where(ScheduledStation.step_pk == step_pk)
            .order_by(col(ScheduledStation.pk))
        ).all()
    )


def _live(session: Session, order_pk: int) -> Sequence[tuple[RequestedProcedure, ScheduledStep]]:
    return session.exec(
        select(RequestedProcedure, ScheduledStep)
        .where(ScheduledStep.requested_procedure_pk == RequestedProcedure.pk)
        .where(ScheduledStep.order_pk == order_pk, col(ScheduledStep.status).in_(LIVE))
        .order_by(col(ScheduledStep.pk))
    ).all()


def _renew(session: Session, step: ScheduledStep, data: bytes) -> None:
    if data and data != step.dataset:
        step.version += 1
        session.add(StepVersion(step_pk=step.key, version=step.version, dataset=data))
    step.dataset = data
    session.add(step)


def _ask_for(session: Session, order_pk: int, lacking: list[str], *, now: dt.datetime) -> None:
    subject = f"order:{order_pk}"
    case = casebook.find_open(session, INCOMPLETE, subject)
    if lacking and (case is None or case.reasons != lacking):
        casebook.open_case(
            session, INCOMPLETE, subject, level="amber", reasons=lacking, order_pk=order_pk, now=now, actor="broker"
        )
    elif case is not None and not lacking:
        casebook.close_case(session, case, now=now, actor="broker", resolution={"action": "completed"})
