"""The worklist item of a step: encoded when something that it shows has changed, not when it is asked for."""

import datetime as dt
from collections.abc import Sequence

from sqlalchemy import bindparam
from sqlmodel import Session, col, select

from broker import casebook, db, outbox
from broker.errors import MissingField
from broker.model.images import ReconciliationCase
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStation, ScheduledStep, StepVersion
from broker.model.patients import Patient
from broker.mwl import dataset, identity

# What a device may be shown, or shown again by a release. Ended steps keep their last version.
LIVE = ("SCHEDULED", "ARRIVED", "READY", "STARTED", "ON_HOLD")
INCOMPLETE, CHARACTERS = "incomplete_order", "worklist_characters"
STATIONS_OF_STEPS = db.Prepared(
    db.columns(ScheduledStep.pk, ScheduledStep.status, ScheduledStation.ae_title)
    .outerjoin(ScheduledStation, col(ScheduledStation.step_pk) == ScheduledStep.pk)
    .where(ScheduledStep.order_pk == bindparam("order_pk"))
    .order_by(col(ScheduledStep.pk), col(ScheduledStation.pk))
)
STATIONS = db.Prepared(
    db.columns(ScheduledStation.ae_title)
    .where(ScheduledStation.step_pk == bindparam("step_pk"))
    .order_by(col(ScheduledStation.pk))
)
REASONS_MAX = 50  # of one case; a case that has as many has been seen


def rebuild(session: Session, order_pk: int, *, now: dt.datetime) -> None:
    """Encode the items of an order's live steps again; a new version only where the bytes changed.

    A step without a type 1 key is on no worklist; one case per order names what is missing (conformance.md 1.3, 7)."""
    order = db.get(session, ImagingOrder, order_pk)
    patient = db.get(session, Patient, order.patient_pk)
    known = identity.identifiers(session, patient.key)
    leading = known[0].value if known else ""
    lacking, changed = [], False
    session.flush()
    for step_pk, titles in _live(session, order_pk).items():
        step = db.get(session, ScheduledStep, step_pk)
        procedure = db.get(session, RequestedProcedure, step.requested_procedure_pk)
        try:
            item = dataset.build(patient, known, order, procedure, step, titles)
            data = dataset.encode_item(item)
        except MissingField as missing:
            lacking.append(f"step {step.sps_id} lacks {missing.place}")
            data = b""
        step.patient_id, step.accession_number = leading, order.accession_number
        step.offerable = bool(data) and not order.withheld
        changed = _renew(session, step, data) or changed
    _ask_for(session, order_pk, lacking, now=now)
    if changed and (case := casebook.find_open(session, CHARACTERS, f"order:{order_pk}")):
        casebook.close_case(session, case, now=now, actor="broker", resolution={"action": "changed"})
    outbox.touch(session, order_pk)


def stations(session: Session, step_pk: int) -> list[str]:
    """Scheduled Station AE Titles of a step, in the order in which they were given."""
    session.flush()
    return [row.ae_title for row in STATIONS.rows(session, step_pk=step_pk)]


def _live(session: Session, order_pk: int) -> dict[int, list[str]]:
    """By key of each live step its stations."""
    found: dict[int, list[str]] = {}
    for row in STATIONS_OF_STEPS.rows(session, order_pk=order_pk):
        if row.status in LIVE:
            found.setdefault(row.pk, []).extend([row.ae_title] if row.ae_title else [])
    return found


def _renew(session: Session, step: ScheduledStep, data: bytes) -> bool:
    """Whether a device may have been shown another version before."""
    renewed = bool(data) and data != step.dataset
    if renewed:
        step.version += 1
        db.append(session, StepVersion, {"step_pk": step.key, "version": step.version, "dataset": data})
    step.dataset = data
    session.add(step)
    return renewed and step.version > 1


def _ask_for(session: Session, order_pk: int, lacking: list[str], *, now: dt.datetime) -> None:
    subject = f"order:{order_pk}"
    case = casebook.find_open(session, INCOMPLETE, subject)
    if lacking and (case is None or case.reasons != lacking):
        casebook.open_case(
            session, INCOMPLETE, subject, level="amber", reasons=lacking, order_pk=order_pk, now=now, actor="broker"
        )
    elif case is not None and not lacking:
        casebook.close_case(session, case, now=now, actor="broker", resolution={"action": "completed"})


def ask_about_characters(
    session: Session, ae_title: str, withheld: Sequence[tuple[int, int, str]], *, now: dt.datetime
) -> None:
    """One case per order: its character set keeps a device from what names the patient, so it is not offered the item
    (conformance.md 1.6). What a person has seen is not asked again until the item changes.

    withheld: (step, its version, why)."""
    known = select(ScheduledStep).where(col(ScheduledStep.pk).in_([step_pk for step_pk, _, _ in withheld]))
    steps = {step.key: step for step in session.exec(known)}
    reasons: dict[int, list[str]] = {}
    for step_pk, version, why in withheld:
        if step := steps.get(step_pk):
            sentence = f"step {step.sps_id}, version {version}, is not offered to {ae_title}: {why}"
            reasons.setdefault(step.order_pk, []).append(sentence)
    for order_pk, new in sorted(reasons.items()):
        _add_reasons(session, order_pk, new, now=now)


def _add_reasons(session: Session, order_pk: int, new: Sequence[str], *, now: dt.datetime) -> None:
    subject = f"order:{order_pk}"
    cases = session.exec(
        select(ReconciliationCase)
        .where(ReconciliationCase.kind == CHARACTERS, ReconciliationCase.subject == subject)
        .with_for_update()
    ).all()
    seen = {reason for case in cases for reason in case.reasons}
    before = next((case.reasons for case in cases if case.state != "RESOLVED"), [])
    reasons = [*before, *(reason for reason in new if reason not in seen)][:REASONS_MAX]
    if reasons != before:
        casebook.open_case(
            session, CHARACTERS, subject, level="amber", reasons=reasons, order_pk=order_pk, now=now, actor="broker"
        )
