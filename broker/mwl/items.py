"""The worklist item of a step: encoded when something that it shows has changed, not when it is asked for."""

import datetime as dt
from collections.abc import Mapping, Sequence

from sqlalchemy import bindparam, or_, update
from sqlmodel import Session, col, select

from broker import casebook, db, outbox
from broker.errors import MissingField
from broker.model.images import ReconciliationCase
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStation, ScheduledStep, StepVersion
from broker.model.patients import Patient, PatientIdentifier
from broker.mwl import dataset, identity, texts

# What a device may be shown, or shown again by a release. Ended steps keep their last version.
LIVE = ("SCHEDULED", "ARRIVED", "READY", "STARTED", "ON_HOLD")
INCOMPLETE, CHARACTERS = "incomplete_order", "worklist_characters"
ACTOR = "broker"
ASKED = db.Prepared(
    db.columns(ReconciliationCase.pk)
    .where(ReconciliationCase.order_pk == bindparam("order_pk"), ReconciliationCase.state != "RESOLVED")
    .where(or_(col(ReconciliationCase.kind) == INCOMPLETE, col(ReconciliationCase.kind) == CHARACTERS))
    .limit(1)
)
STATIONS_OF_STEPS = db.Prepared(
    db.columns(ScheduledStep.pk, ScheduledStep.status, ScheduledStation.ae_title, ScheduledStation.start_date)
    .outerjoin(ScheduledStation, col(ScheduledStation.step_pk) == ScheduledStep.pk)
    .where(ScheduledStep.order_pk == bindparam("order_pk"))
    .order_by(col(ScheduledStep.pk), col(ScheduledStation.pk))
)
STATIONS = db.Prepared(
    db.columns(ScheduledStation.ae_title)
    .where(ScheduledStation.step_pk == bindparam("step_pk"))
    .order_by(col(ScheduledStation.pk))
)
DATES = db.Prepared(
    update(ScheduledStation)
    .where(col(ScheduledStation.step_pk) == bindparam("of_step"))
    .values(start_date=bindparam("on_date"), updated_at=ScheduledStation.updated_at)
)
WITHHELD = "step {} of {}, version {}, is not offered to {}: {}"  # exceptions.py reads it again
REASONS_MAX = 50  # of one case; a case that has as many has been seen


def rebuild(session: Session, order_pk: int, *, now: dt.datetime) -> None:
    """Encode the items of an order's live steps again; a new version only where the bytes changed.

    A step without a type 1 key is on no worklist; one case per order names what is missing (conformance.md 1.3, 7)."""
    order = db.get(session, ImagingOrder, order_pk)
    patient = db.get(session, Patient, order.patient_pk)
    known = identity.identifiers(session, patient.key)
    lacking, changed = [], False
    session.flush()
    live = {pk: titles for pk, (status, titles) in _stations_of(session, order_pk).items() if status in LIVE}
    for step_pk, titles in live.items():
        step = db.get(session, ScheduledStep, step_pk)
        missing, renewed = _make(session, order, patient, known, step, titles)
        if missing:
            lacking.append(f"step {step.sps_id} lacks {', '.join(missing)}")
        changed = renewed or changed
    _ask_for(session, order_pk, lacking, is_live=bool(live), now=now)
    if (changed or not live) and (case := casebook.find_open(session, CHARACTERS, f"order:{order_pk}")):
        resolution = {"action": "changed" if changed else "ended"}
        casebook.close_case(session, case, now=now, actor=ACTOR, resolution=resolution)
    outbox.touch(session, order_pk)


def renew_ended(session: Session, step: ScheduledStep) -> None:
    """What was said of it before its end has come after it: its row, its stations and what a device is shown of it for
    some hours say the same again. Of what it lacks nobody is asked any more."""
    order = db.get(session, ImagingOrder, step.order_pk)
    patient = db.get(session, Patient, order.patient_pk)
    session.flush()
    titles = _stations_of(session, order.key)[step.key][1]
    _make(session, order, patient, identity.identifiers(session, patient.key), step, titles)


def _make(
    session: Session,
    order: ImagingOrder,
    patient: Patient,
    known: Sequence[PatientIdentifier],
    step: ScheduledStep,
    titles: Mapping[str, str],
) -> tuple[list[str], bool]:
    """What it lacks, and whether a device may have been shown another version before. titles: see `_stations_of`."""
    if any(date != step.start_date for date in titles.values()):
        DATES.execute(session, {"of_step": step.key, "on_date": step.start_date})
    procedure = db.get(session, RequestedProcedure, step.requested_procedure_pk)
    missing: list[str] = []
    try:
        data = dataset.encode_item(dataset.build(patient, known, order, procedure, step, list(titles)))
    except MissingField as error:
        missing = missing_of(patient, known, procedure, step, list(titles)) or [error.place]
        data = b""
    step.patient_id, step.accession_number = known[0].value if known else "", order.accession_number
    step.name_key = texts.compared(patient.name)
    step.offerable = bool(data) and not order.withheld
    return missing, _renew(session, step, data)


def follow(session: Session, step: ScheduledStep, *, now: dt.datetime) -> None:
    """A step has ended, or come to life again: the item of an ended one is not encoded again with what changes, and
    what is asked about it need not be asked any more."""
    if step.status in LIVE or ASKED.first(session, order_pk=step.order_pk):
        session.flush()
        rebuild(session, step.order_pk, now=now)


def missing_of(
    patient: Patient,
    identifiers: Sequence[PatientIdentifier],
    procedure: RequestedProcedure,
    step: ScheduledStep,
    titles: Sequence[str],
) -> list[str]:
    """The keywords of type 1 that have no value: without all of them it is no valid worklist item."""
    values = {
        "PatientName": patient.name, "PatientID": identifiers[0].value if identifiers else "",
        "StudyInstanceUID": procedure.study_instance_uid, "RequestedProcedureID": procedure.requested_procedure_id,
        "ScheduledStationAETitle": titles, "ScheduledProcedureStepStartDate": step.start_date,
        "ScheduledProcedureStepStartTime": step.start_time, "Modality": step.modality,
        "ScheduledProcedureStepID": step.sps_id,
    }  # fmt: skip
    return [name for name in (*dataset.TYPE_1, *dataset.STEP_TYPE_1) if dataset.is_blank(values[name])]


def stations(session: Session, step_pk: int) -> list[str]:
    """Scheduled Station AE Titles of a step, in the order in which they were given."""
    session.flush()
    return [row.ae_title for row in STATIONS.rows(session, step_pk=step_pk)]


def _stations_of(session: Session, order_pk: int) -> dict[int, tuple[str, dict[str, str]]]:
    """By key of each step its status and its stations, with the date that it is listed under at each."""
    found: dict[int, tuple[str, dict[str, str]]] = {}
    for row in STATIONS_OF_STEPS.rows(session, order_pk=order_pk):
        found.setdefault(row.pk, (row.status, {}))[1].update({row.ae_title: row.start_date} if row.ae_title else {})
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


def _ask_for(session: Session, order_pk: int, lacking: list[str], *, is_live: bool, now: dt.datetime) -> None:
    subject = f"order:{order_pk}"
    case = casebook.find_open(session, INCOMPLETE, subject)
    if lacking and (case is None or case.reasons != lacking):
        casebook.open_case(
            session, INCOMPLETE, subject, level="amber", reasons=lacking, order_pk=order_pk, now=now, actor=ACTOR
        )
    elif case is not None and not lacking:
        resolution = {"action": "completed" if is_live else "ended"}
        casebook.close_case(session, case, now=now, actor=ACTOR, resolution=resolution)


def ask_about_characters(
    session: Session, ae_title: str, withheld: Sequence[tuple[int, int, str]], *, now: dt.datetime
) -> None:
    """One case per order: its character set keeps a device from what names the patient, so it is not offered the item
    (conformance.md 1.6). What a person has seen is not asked again until the item changes.

    withheld: (step, its version, why)."""
    known = (
        select(ScheduledStep, RequestedProcedure.requested_procedure_id)
        .join(RequestedProcedure, col(RequestedProcedure.pk) == col(ScheduledStep.requested_procedure_pk))
        .where(col(ScheduledStep.pk).in_([step_pk for step_pk, _, _ in withheld]))
    )
    steps = {step.key: (step, procedure_id) for step, procedure_id in session.exec(known)}
    reasons: dict[int, list[str]] = {}
    for step_pk, version, why in withheld:
        if step_pk in steps:
            step, procedure_id = steps[step_pk]  # an SPS ID is unique in its procedure only
            sentence = WITHHELD.format(step.sps_id, procedure_id, version, ae_title, why)
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
    seen = {reason for case in cases if case.resolved_by != ACTOR for reason in case.reasons}
    before = next((case.reasons for case in cases if case.state != "RESOLVED"), [])
    reasons = [*before, *(reason for reason in new if reason not in seen)][:REASONS_MAX]
    if reasons != before:
        casebook.open_case(
            session, CHARACTERS, subject, level="amber", reasons=reasons, order_pk=order_pk, now=now, actor=ACTOR
        )
