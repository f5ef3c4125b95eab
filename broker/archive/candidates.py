"""The worklist items that a study may belong to, and their patients, as facts. Reads only."""

import datetime as dt
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from sqlalchemy import func
from sqlmodel import Session, col, or_, select

from broker import clock
from broker.archive.devices import Devices
from broker.archive.facts import Decided, Item, Offer, Performed, Person, Seen
from broker.archive.links import OPEN
from broker.config import Settings
from broker.dicom import tree
from broker.dicom.tree import EXPLICIT_LE
from broker.model.images import Study, StudyOrder
from broker.model.orders import (
    ImagingOrder,
    OfferedItem,
    RequestedProcedure,
    ScheduledStation,
    ScheduledStep,
    StepVersion,
)
from broker.model.patients import Patient
from broker.model.work import AuditEvent
from broker.mwl import identity, normalise

LISTED_DAYS = 7  # a device without any worklist item in that time works without one (D3)
PATIENT_NAME, PATIENT_ID, ISSUER, BIRTH_DATE = 0x00100010, 0x00100020, 0x00100021, 0x00100030


@dataclass(frozen=True)
class About:
    """Which study, and what it is read with."""

    session: Session
    study: Study
    devices: Devices
    settings: Settings
    now: dt.datetime


def find(
    about: About, seen: Sequence[Seen], performed: Sequence[Performed], decided: Decided | None
) -> tuple[list[Item], list[Person]]:
    """Items of every order that the study's links name or that a named patient has open, with their patients."""
    session = about.session
    patients = {pk for one in seen for pk in one.patients}
    orders = _orders(about, seen, performed) | set(decided.orders if decided else ()) | _open_orders(about, patients)
    rows = session.exec(
        select(ScheduledStep, RequestedProcedure, ImagingOrder)
        .where(ScheduledStep.requested_procedure_pk == RequestedProcedure.pk)
        .where(RequestedProcedure.order_pk == ImagingOrder.pk, col(ImagingOrder.pk).in_(orders))
        .order_by(col(ScheduledStep.pk))
    ).all()
    steps = [step.key for step, _, _ in rows]
    stations, arrivals = _stations(session, about.devices, steps), _arrivals(session, steps)
    offers = _offers(about, steps, {one.device for one in seen})
    elsewhere = _used_steps(session, about.study.key, steps)
    zone = ZoneInfo(about.settings.site.timezone)
    items = [
        _item(
            step, procedure, order, zone, tuple(stations.get(step.key, ())), arrivals.get(step.key),
            step.key in elsewhere, tuple(offers.get(step.key, ())),
        )
        for step, procedure, order in rows
    ]  # fmt: skip
    patients |= {item.patient_pk for item in items}
    if decided and decided.patient_pk:
        patients.add(decided.patient_pk)
    return items, [person(session, pk) for pk in sorted(patients)]


def _orders(about: About, seen: Sequence[Seen], performed: Sequence[Performed]) -> set[int]:
    """Orders that a link may name; whether it does is for links.py to say."""
    session, requests = about.session, [request for one in seen for request in one.requests]
    said = {one.accession_number for one in seen} | {one.accession_number for one in requests}
    numbers = (said | {normalise.plain(number) for number in said}) - {""}
    pairs = [(one.procedure_id, one.sps_id) for one in requests if one.procedure_id and one.sps_id]
    found = session.exec(
        select(ScheduledStep.order_pk)
        .join(RequestedProcedure, col(ScheduledStep.requested_procedure_pk) == col(RequestedProcedure.pk))
        .join(ImagingOrder, col(ScheduledStep.order_pk) == col(ImagingOrder.pk))
        .where(
            or_(
                RequestedProcedure.study_instance_uid == about.study.study_instance_uid,
                col(RequestedProcedure.requested_procedure_id).in_({pair[0] for pair in pairs})
                & col(ScheduledStep.sps_id).in_({pair[1] for pair in pairs}),
                col(ScheduledStep.pk).in_({pk for one in performed for pk in one.steps}),
                col(ImagingOrder.accession_number).in_(numbers),
            )
        )
    ).all()
    return set(found)


def _open_orders(about: About, patients: Collection[int]) -> set[int]:
    """The newest that these patients have open."""
    return set(
        about.session.exec(
            select(ImagingOrder.pk)
            .join(ScheduledStep, col(ScheduledStep.order_pk) == col(ImagingOrder.pk))
            .where(col(ImagingOrder.patient_pk).in_(patients), col(ScheduledStep.status).in_(OPEN))
            .group_by(col(ImagingOrder.pk))
            .order_by(func.max(ScheduledStep.start_date).desc(), col(ImagingOrder.pk).desc())
            .limit(about.settings.limits.case_candidates_max)
        )
    ) - {None}  # type: ignore[return-value]


def _item(
    step: ScheduledStep, procedure: RequestedProcedure, order: ImagingOrder, zone: ZoneInfo, devices: tuple[str, ...],
    arrived_at: dt.datetime | None, other_study: bool, offers: tuple[Offer, ...],
) -> Item:  # fmt: skip
    start = clock.aware(step.start_date, step.start_time, str(zone))
    in_patient = any(order.attributes.get(name) for name in ("AdmissionID", "CurrentPatientLocation"))
    return Item(
        step_pk=step.key,
        procedure_pk=procedure.key,
        order_pk=order.key,
        patient_pk=order.patient_pk,
        accession_number=order.accession_number,
        accession_issuer=order.accession_issuer,
        procedure_id=procedure.requested_procedure_id,
        sps_id=step.sps_id,
        study_uid=procedure.study_instance_uid,
        modality=step.modality,
        status=step.status,
        devices=devices,
        start=start.astimezone(zone) if start else None,
        # A day without a time of day becomes midnight on the worklist, whose start time is of type 1.
        any_time=step.start_time in ("", "000000") or in_patient or order.priority == "STAT",
        placed_at=order.placed_at,
        arrived_at=arrived_at,
        cancelled_at=step.status_at if step.status == "CANCELED" else None,
        other_study=other_study,
        offers=offers,
    )


def person(session: Session, pk: int) -> Person:
    """With the names that ADT gave it before, where birth date and sex stayed (reconciliation.md 3.3)."""
    patient = session.get_one(Patient, pk)
    before = [
        version.name for version in identity.history(session, pk)
        if version.cause.startswith("ADT") and (version.birth_date, version.sex) == (patient.birth_date, patient.sex)
    ]  # fmt: skip
    return Person(pk, patient.name, patient.birth_date, patient.sex, tuple(dict.fromkeys(before)))


def _stations(session: Session, devices: Devices, steps: Sequence[int]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for row in session.exec(select(ScheduledStation).where(col(ScheduledStation.step_pk).in_(steps))):
        found.setdefault(row.step_pk, []).append(devices.of(row.ae_title))
    return found


def _arrivals(session: Session, steps: Sequence[int]) -> dict[int, dt.datetime]:
    """The last check-in of each step, from the audit trail: the step itself has gone on since."""
    subjects = {f"step:{pk}": pk for pk in steps}
    rows = session.exec(
        select(AuditEvent)
        .where(col(AuditEvent.subject).in_(subjects), AuditEvent.action == "step.change")
        .order_by(col(AuditEvent.pk))
    )
    return {subjects[row.subject]: row.at for row in rows if row.detail["after"] == "ARRIVED"}


def _used_steps(session: Session, study_pk: int, steps: Sequence[int]) -> set[int]:
    """Steps for which another study was decided."""
    query = select(StudyOrder.step_pk).where(col(StudyOrder.step_pk).in_(steps), StudyOrder.study_pk != study_pk)
    return {pk for pk in session.exec(query) if pk is not None}


def other_studies(about: About, procedures: Collection[int]) -> dict[int, int]:
    """Requested procedure -> how many other studies were decided for it."""
    rows = about.session.exec(
        select(StudyOrder.requested_procedure_pk, func.count())
        .where(col(StudyOrder.requested_procedure_pk).in_(procedures), StudyOrder.study_pk != about.study.pk)
        .group_by(col(StudyOrder.requested_procedure_pk))
    ).all()
    return dict(rows)


# What the devices were shown


def _offers(about: About, steps: Sequence[int], devices: Collection[str]) -> dict[int, list[Offer]]:
    of_title = {title: device for device in devices for title in about.devices.titles(device)}
    rows = about.session.exec(
        select(OfferedItem, StepVersion.dataset)
        .where(StepVersion.step_pk == OfferedItem.step_pk, StepVersion.version == OfferedItem.version)
        .where(col(OfferedItem.step_pk).in_(steps), col(OfferedItem.ae_title).in_(of_title))
        .order_by(col(OfferedItem.first_at))
    ).all()
    found: dict[int, list[Offer]] = {}
    for row, dataset in rows:
        found.setdefault(row.step_pk, []).append(_offer(about, of_title[row.ae_title], row.first_at, dataset))
    return found


def _offer(about: About, device: str, at: dt.datetime, dataset: bytes) -> Offer:
    shown = tree.read(dataset, EXPLICIT_LE, about.settings.limits)
    value, issuer, name, birth_date = (
        str(shown.get(tag, ("", ""))[1]) for tag in (PATIENT_ID, ISSUER, PATIENT_NAME, BIRTH_DATE)
    )
    whom = identity.named(about.session, value, issuer, about.settings.site)
    return Offer(device, at, whom.patients[0] if len(whom.patients) == 1 else None, name, birth_date)


def listed(about: About, names: Collection[str]) -> tuple[str, ...]:
    """Those of the devices that were shown any worklist item lately."""
    since = about.now - dt.timedelta(days=LISTED_DAYS)
    titles = {title: name for name in names for title in about.devices.titles(name)}
    rows = about.session.exec(
        select(OfferedItem.ae_title)
        .where(col(OfferedItem.ae_title).in_(titles), col(OfferedItem.last_at) >= since)
        .distinct()
    )
    return tuple(sorted({titles[title] for title in rows}))
