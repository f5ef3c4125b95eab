"""The worklist as people are listed it: by what they look for, or as one device gets it."""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from sqlalchemy import ColumnElement, and_, false, func, or_, tuple_
from sqlmodel import Session, col, select

from broker import access
from broker.config import Settings, StepState, Worklist
from broker.dicom.tree import Tree
from broker.errors import InvalidValue, UnknownKey
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStation, ScheduledStep
from broker.model.patients import Patient, PatientIdentifier
from broker.mwl import as_shown, matching, view, worklist
from broker.mwl.dataset import STEP_SEQUENCE
from broker.mwl.steps import HAVE_ENDED
from broker.mwl.worklist import Found

STATION, ACCESSION_NUMBER, MODALITY = 0x00400001, 0x00080050, 0x00080060
STATES = get_args(StepState)
WILD = set("*?\\")
Cursor = tuple[str, str, str, int]  # start date and time, SPS ID, key: of the last row that was told


@dataclass(frozen=True)
class Filters:
    """Empty: not asked for. ae_titles: any of them. first, last: of the start, YYYYMMDD. patient_id: any that leads to
    the patient. step_pks: these alone, whatever their state; None = all."""

    ae_titles: frozenset[str] = frozenset()
    first: str = ""
    last: str = ""
    modality: str = ""
    patient_id: str = ""
    accession_number: str = ""
    statuses: tuple[str, ...] = ()
    label: str = ""
    step_pks: tuple[int, ...] | None = None


def listing(
    session: Session, filters: Filters, said: Worklist, limit: int, after: Cursor | None = None, *, now: dt.datetime
) -> tuple[list[dict[str, Any]], Cursor | None]:
    """Rows by their start, and where to go on. Without a status: what the site does not hide."""
    place = (
        col(ScheduledStep.start_date),
        col(ScheduledStep.start_time),
        col(ScheduledStep.sps_id),
        col(ScheduledStep.pk),
    )
    query: Any = (
        select(ScheduledStep, RequestedProcedure, ImagingOrder, Patient)
        .join(RequestedProcedure, col(RequestedProcedure.pk) == col(ScheduledStep.requested_procedure_pk))
        .join(ImagingOrder, col(ImagingOrder.pk) == col(ScheduledStep.order_pk))
        .join(Patient, col(Patient.pk) == col(ImagingOrder.patient_pk))
        .where(*_conditions(filters, said, now))
        .order_by(*place)
        .limit(limit + 1)
    )
    if after is not None:
        query = query.where(tuple_(*place) > tuple_(*after))
    found = session.exec(query).all()
    titles = _titles(session, [step.key for step, *_ in found[:limit]])
    rows = [_row(step, procedure, order, patient, titles) for step, procedure, order, patient in found[:limit]]
    last = found[limit - 1][0] if len(found) > limit else None
    return rows, last and (last.start_date, last.start_time, last.sps_id, last.key)


def count(session: Session, filters: Filters, said: Worklist, *, now: dt.datetime) -> int:
    query = (
        select(func.count(col(ScheduledStep.pk)))
        .join(ImagingOrder, col(ImagingOrder.pk) == col(ScheduledStep.order_pk))
        .where(*_conditions(filters, said, now))
    )
    return session.exec(query).one()


def of_device(ae_title: str, filters: Filters, settings: Settings, now: dt.datetime) -> list[Found]:
    """What the device gets now: all that it may see; where no rule says what that is, what it gets when it asks for its
    own title, as most do. filters: keys with which it would ask, as far as a device can.

    Raises TooMany as for the device, InvalidValue for a title of several devices, DatabaseAway as access does."""
    title = device(ae_title)
    what = view.of(access.find_node(title), title, settings, now)
    return worklist.search(_query(filters, "" if what.sees else title), what, access.directory())


def device(ae_title: str) -> str:
    """The title of the device that is meant. Raises InvalidValue where there are several."""
    devices = access.directory().devices(ae_title)
    if len(devices) > 1:
        raise InvalidValue("ae", f"stands for several devices: ask for one of them ({', '.join(devices)})")
    return devices[0] if devices else ae_title


def with_shown(
    rows: Sequence[dict[str, Any]], ae_title: str, settings: Settings, now: dt.datetime
) -> list[dict[str, Any]]:
    """Rows of what the device gets, each with what it makes of it; what it is not offered any more is left out."""
    shown = {one["step_id"]: one for one in as_shown.listing(device(ae_title), settings, now)}
    names = ("character_set", "record", "shown", "warnings")
    return [{**row, **{name: shown[row["step_id"]][name] for name in names}} for row in rows if row["step_id"] in shown]


def _query(filters: Filters, station: str) -> Tree:
    dates = f"{filters.first}-{filters.last}" if filters.first or filters.last else ""
    step = {STATION: ("AE", station), matching.START_DATE: ("DA", dates), MODALITY: ("CS", filters.modality)}
    accession_number = "" if set(filters.accession_number) & WILD else filters.accession_number
    return {ACCESSION_NUMBER: ("SH", accession_number), STEP_SEQUENCE: ("SQ", [{**step}])}


def check_title(session: Session, ae_title: str) -> None:
    """Raises UnknownKey where no device has it and no order names it."""
    named = select(ScheduledStation.pk).where(ScheduledStation.ae_title == ae_title).limit(1)
    if not access.directory().kind(ae_title) and session.exec(named).first() is None:
        raise UnknownKey("ae", "no device, alias or group has this AE title, and no order names it")


def _conditions(filters: Filters, said: Worklist, now: dt.datetime) -> list[ColumnElement[bool]]:
    step = ScheduledStep
    found: list[ColumnElement[bool]] = [col(step.offerable).is_(True)]
    for column, value in (
        (col(step.modality), filters.modality),
        (col(step.label), filters.label),
        (col(ImagingOrder.accession_number), filters.accession_number),
    ):
        if value:
            found.append(column == value)
    if filters.first:
        found.append(col(step.start_date) >= filters.first)
    if filters.last:
        found.append(col(step.start_date) <= filters.last)
    if filters.ae_titles:
        scheduled = select(ScheduledStation.step_pk).where(col(ScheduledStation.ae_title).in_(filters.ae_titles))
        found.append(col(step.pk).in_(scheduled))
    if filters.patient_id:
        owners = select(PatientIdentifier.patient_pk).where(PatientIdentifier.value == filters.patient_id)
        found.append(col(ImagingOrder.patient_pk).in_(owners))
    if filters.step_pks is not None:
        found.append(col(step.pk).in_(filters.step_pks))
    elif filters.statuses:
        found.append(col(step.status).in_(filters.statuses))
    else:
        found.append(_not_hidden(said, now))
    return found


def _not_hidden(said: Worklist, now: dt.datetime) -> ColumnElement[bool]:
    """What has begun or ended stays for its hours."""
    hours: Mapping[str, float] = {"STARTED": said.started_hours, **dict.fromkeys(HAVE_ENDED, said.finished_hours)}
    kinds = [
        and_(
            col(ScheduledStep.status) == status,
            *([col(ScheduledStep.status_at) >= now - dt.timedelta(hours=hours[status])] if status in hours else []),
        )
        for status in STATES
        if status not in said.hide_rest
    ]
    return or_(false(), *kinds)


def _titles(session: Session, step_pks: Sequence[int]) -> dict[int, list[str]]:
    query = select(ScheduledStation.step_pk, ScheduledStation.ae_title)
    query = query.where(col(ScheduledStation.step_pk).in_(step_pks)).order_by(col(ScheduledStation.pk))
    found: dict[int, list[str]] = {pk: [] for pk in step_pks}
    for step_pk, title in session.exec(query):
        found[step_pk].append(title)
    return found


def _row(
    step: ScheduledStep,
    procedure: RequestedProcedure,
    order: ImagingOrder,
    patient: Patient,
    titles: Mapping[int, list[str]],
) -> dict[str, Any]:
    return {
        "step_id": step.key, "order_id": order.key, "accession_number": order.accession_number,
        "requested_procedure_id": procedure.requested_procedure_id, "sps_id": step.sps_id, "modality": step.modality,
        "start_date": step.start_date, "start_time": step.start_time, "state": step.status,
        "station_ae_titles": titles[step.key], "description": step.description, "label": step.label,
        "patient": {"id": step.patient_id, "name": patient.name},
    }  # fmt: skip
