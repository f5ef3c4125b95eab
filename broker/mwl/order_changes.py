"""What a message says of the procedures and steps of an order: made, filled, changed, or refused."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import bindparam, delete
from sqlmodel import Session, col

from broker import db
from broker.errors import DuplicateKey
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStation, ScheduledStep
from broker.mwl import items, order_identity, said, steps
from broker.mwl import order_finding as finding
from broker.mwl.commands import OrderCommand, ProcedureCommand, StepCommand
from broker.mwl.said import Telling
from broker.mwl.steps import Cause

PROCEDURE_FIELDS = ("description", "code_value", "code_scheme", "code_meaning")
STEP_FIELDS = ("modality", "start_date", "start_time", "description")
STATIONS = "stations"  # rows of their own
MIDNIGHT = "000000"  # of a step whose day alone is known: an item has a time (type 1), and whoever knows it may say it
UNSET_STATIONS = db.Prepared(delete(ScheduledStation).where(col(ScheduledStation.step_pk) == bindparam("step_pk")))


@dataclass
class Told:
    """procedures, steps: the rows that the message mentions. added: how many of them no message of its time or before
    had. late: ended steps that it would have changed."""

    procedures: list[RequestedProcedure] = field(default_factory=list)
    steps: list[ScheduledStep] = field(default_factory=list)
    added: int = 0
    late: int = 0


def tell_parts(
    session: Session,
    order: ImagingOrder,
    command: OrderCommand,
    telling: Telling,
    cause: Cause,
    *,
    is_new: bool = False,
) -> Told:
    """is_new: the order has no parts yet."""
    told = Told()
    rows: list[RequestedProcedure | None] = [None] * len(command.procedures)
    if not is_new:
        rows = finding.procedures(session, order, command.procedures, telling.place)
    for place, (row, wanted) in enumerate(zip(rows, command.procedures, strict=True)):
        row = row or _again(told.procedures, "requested_procedure_id", wanted)
        is_new = row is None
        if row is None:
            row = _make_procedure(session, order, wanted, command, place, telling, cause)
            told.added += 1
            telling.changed.append("procedure")
        else:
            said.tell(telling, row, said.contents(wanted, PROCEDURE_FIELDS), "procedure")
            said.named(row, telling.at)
            telling.changed += finding.add_numbers(row, wanted)
        told.procedures.append(row)
        rows_of = [None] * len(wanted.steps) if is_new else finding.steps_of(session, row, wanted.steps, telling.place)
        _tell_steps(session, order, row, command, list(zip(rows_of, wanted.steps, strict=True)), telling, told, cause)
    return told


def _tell_steps(
    session: Session,
    order: ImagingOrder,
    procedure: RequestedProcedure,
    command: OrderCommand,
    pairs: Sequence[tuple[ScheduledStep | None, StepCommand]],
    telling: Telling,
    told: Told,
    cause: Cause,
) -> None:
    """An unchanged step does not hide the next, and one that is not mentioned stays."""
    made: list[ScheduledStep] = []
    for place, (found, one) in enumerate(pairs):
        row = found or _again(made, "sps_id", one)
        if row is None:
            row = _make_step(session, order, procedure, one, command, place, telling, cause)
            made.append(row)
            told.added += 1
            telling.changed.append("step")
        else:
            told.late += _tell_step(session, row, one, command, telling)
            before = row.said.get(said.BORN, "")
            if said.named(row, telling.at):
                told.added += 1
                steps.inherit(session, (order, procedure, row), cause, until=before)
        told.steps.append(row)


def _tell_step(
    session: Session, step: ScheduledStep, wanted: StepCommand, command: OrderCommand, telling: Telling
) -> bool:
    """Whether it comes too late: newer than the end of the step, and would change it."""
    is_late = step.status in steps.HAVE_ENDED and telling.at >= step.said.get(said.ENDED, "")
    if command.control != "XO" and step.status == "CANCELED" and telling.at > step.said.get(said.ENDED, ""):
        raise DuplicateKey(telling.place, "one of its steps was cancelled; order it under new numbers")
    values, known = _step_contents(wanted), {STATIONS: items.stations(session, step.key)}
    if is_late and not telling.refuse:
        return bool(said.news(telling.at, step, values, known))
    new = said.tell(telling, step, values, "step", known)
    _set_midnight(step)
    if not is_late:
        telling.changed += finding.add_numbers(step, wanted)
    if STATIONS in new:
        UNSET_STATIONS.rows(session, step_pk=step.key)
        _add_stations(session, step, values[STATIONS])
    return False


def _step_contents(wanted: StepCommand) -> dict[str, Any]:
    titles = wanted.station_ae_titles
    stations = {} if titles is None else {STATIONS: list(dict.fromkeys(titles))}
    return said.contents(wanted, STEP_FIELDS) | stations


def _set_midnight(step: ScheduledStep) -> None:
    if step.start_date and not step.start_time and "start_time" not in step.said:
        step.start_time = MIDNIGHT


def _again(rows: Sequence[Any], name: str, wanted: Any) -> Any:
    """One that this message has made already, by its ID."""
    return next((row for row in rows if getattr(wanted, name) and getattr(row, name) == getattr(wanted, name)), None)


def _make_procedure(
    session: Session,
    order: ImagingOrder,
    wanted: ProcedureCommand,
    command: OrderCommand,
    place: int,
    telling: Telling,
    cause: Cause,
) -> RequestedProcedure:
    policies = command.policies
    number = order_identity.requested_procedure_id(session, order, wanted, policies, place)
    row = RequestedProcedure(
        order_pk=order.key,
        requested_procedure_id=number,
        study_instance_uid=order_identity.study_instance_uid(session, order, wanted, number, policies, cause.site),
    )
    finding.add_numbers(row, wanted)
    said.tell(replace(telling, refuse=False), row, said.contents(wanted, PROCEDURE_FIELDS), "procedure")
    said.named(row, telling.at)
    session.add(row)
    session.flush()
    return row


def _make_step(
    session: Session,
    order: ImagingOrder,
    procedure: RequestedProcedure,
    wanted: StepCommand,
    command: OrderCommand,
    place: int,
    telling: Telling,
    cause: Cause,
) -> ScheduledStep:
    step = ScheduledStep(
        requested_procedure_pk=procedure.key,
        order_pk=order.key,
        sps_id=order_identity.sps_id(order, procedure, wanted, command.policies, place),
        status_at=cause.now,
        accession_number=order.accession_number,
    )
    finding.add_numbers(step, wanted)
    if not (wanted.placer_number or wanted.filler_number):
        finding.add_numbers(step, procedure)
    said.named(step, telling.at)
    values = _step_contents(wanted)
    said.tell(replace(telling, refuse=False), step, values, "step", {STATIONS: []})
    _set_midnight(step)
    session.add(step)
    session.flush()
    _add_stations(session, step, values.get(STATIONS, ()))
    steps.inherit(session, (order, procedure, step), cause)
    return step


def _add_stations(session: Session, step: ScheduledStep, titles: Sequence[str]) -> None:
    for title in titles:
        db.append(session, ScheduledStation, {"step_pk": step.key, "ae_title": title})
