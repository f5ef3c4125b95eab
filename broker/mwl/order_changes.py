"""What a message says of the procedures and steps of an order: made, filled, changed, or refused."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import bindparam, delete
from sqlmodel import Session, col

from broker import casebook, db
from broker.errors import DuplicateKey
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStation, ScheduledStep
from broker.mwl import items, order_identity, said, steps
from broker.mwl import order_finding as finding
from broker.mwl.commands import OrderCommand, ProcedureCommand, StepCommand
from broker.mwl.said import Telling
from broker.mwl.steps import Cause

PROCEDURE_FIELDS = ("description", "code_value", "code_scheme", "code_meaning")
STEP_FIELDS = ("modality", "start_date", "start_time", "description", "label")
STATIONS = "stations"  # rows of their own
MIDNIGHT = "000000"  # of a step whose day alone is known: an item has a time (type 1), and whoever knows it may say it
CONFLICT = "upstream_conflict"  # a case
OTHER_UID = "a list had it under another Study Instance UID, by which devices may know it; it has that of the order now"
BESIDE = "a list has other procedures or steps of this exam than were ordered, and both are on the worklist"
WORDS = {said.ENDED, *steps.PATHS}  # in `said`: what was said of a step, by whomever
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
        _set_uids(session, order, command, telling, cause)
        rows = finding.procedures(session, order, command.procedures, telling.place)
        rows = _taken_over(session, order, command, rows, telling, cause)
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
        rows_of: list[ScheduledStep | None] = [None] * len(wanted.steps)
        if not is_new:
            rows_of = finding.steps_of(session, row, wanted.steps, telling.place)
            rows_of = _steps_taken_over(session, order, row, command, rows_of, wanted, telling, cause)
        _tell_steps(session, order, row, command, list(zip(rows_of, wanted.steps, strict=True)), telling, told, cause)
    if told.added and telling.refuse:
        said.vouch(order)
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
            told.late += _tell_step(session, row, one, command, telling, cause)
            before = row.said.get(said.BORN, "")
            if said.named(row, telling.at):
                told.added += 1
                steps.inherit(session, (order, procedure, row), cause, until=before)
        told.steps.append(row)


def _tell_step(
    session: Session, step: ScheduledStep, wanted: StepCommand, command: OrderCommand, telling: Telling, cause: Cause
) -> bool:
    """Whether it comes too late: newer than the end of the step, and would change it."""
    if telling.refuse:
        _order_again(session, step, telling, cause)
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
    if new and step.status in steps.HAVE_ENDED:
        items.renew_ended(session, step)
    return False


# What a list was first to tell of, under other numbers


def is_of_lists_alone(row: said.Part) -> bool:
    """Nobody but a list has told of it. What has no times is from before there were lists."""
    told = [name for name in row.said if not name.startswith(said.LISTED) and name not in WORDS]
    return bool(row.said) and all(said.is_listed(row, name) for name in told)


def _taken_over(
    session: Session, order: ImagingOrder, command: OrderCommand, found: list[RequestedProcedure | None],
    telling: Telling, cause: Cause,
) -> list[RequestedProcedure | None]:  # fmt: skip
    """A list knows the exam by other IDs than those under which it is ordered: its only procedure becomes the ordered
    one. Where it is not plain which one is meant, or one has begun, a person is asked."""
    new = [place for place, row in enumerate(found) if row is None]
    if command.is_listed or not new:
        return found
    rows = [row for row in steps.procedures_of(session, order.key) if row not in found and is_of_lists_alone(row)]
    live = {row.key: own for row in rows if (own := _live(steps.of(session, order.key, row.key)))}
    rows = [row for row in rows if row.key in live]
    if not rows:
        return found
    wanted = command.procedures[new[0]]
    is_plain = len(new) == len(rows) == len(live[rows[0].key]) == len(wanted.steps) == 1
    if not is_plain or not _may_be_named(live[rows[0].key][0]):
        _ask(session, order, BESIDE, cause)
        return found
    (row,) = rows
    _set_uid(session, order, row, wanted.study_instance_uid, telling, cause)
    row.requested_procedure_id = wanted.requested_procedure_id or row.requested_procedure_id
    _vouch(session, (order, row), telling)
    return [row if place == new[0] else one for place, one in enumerate(found)]


def _set_uids(session: Session, order: ImagingOrder, command: OrderCommand, telling: Telling, cause: Cause) -> None:
    """A Study Instance UID that a list has made up does not stand against that of the order."""
    if command.is_listed:
        return
    wanted = {one.requested_procedure_id: one.study_instance_uid for one in command.procedures}
    for row in steps.procedures_of(session, order.key):
        uid = wanted.get(row.requested_procedure_id, "")
        if uid in ("", row.study_instance_uid) or not is_of_lists_alone(row):
            continue
        if all(map(_may_be_named, steps.of(session, order.key, row.key))):
            _set_uid(session, order, row, uid, telling, cause)


def _set_uid(
    session: Session, order: ImagingOrder, row: RequestedProcedure, uid: str, telling: Telling, cause: Cause
) -> None:
    if uid in ("", row.study_instance_uid):
        return
    if finding.OF_STUDY.first(session, uid=uid):
        raise DuplicateKey(telling.place, "its Study Instance UID belongs to another requested procedure")
    row.study_instance_uid = uid
    session.add(row)
    session.flush()
    telling.changed.append("ids")
    _ask(session, order, OTHER_UID, cause)


def _steps_taken_over(
    session: Session, order: ImagingOrder, procedure: RequestedProcedure, command: OrderCommand,
    found: list[ScheduledStep | None], wanted: ProcedureCommand, telling: Telling, cause: Cause,
) -> list[ScheduledStep | None]:  # fmt: skip
    """As _taken_over, of the steps of a procedure."""
    new = [place for place, row in enumerate(found) if row is None]
    if command.is_listed or not new:
        return found
    own = steps.of(session, order.key, procedure.key)
    rows = _live([row for row in own if row not in found and is_of_lists_alone(row)])
    if not rows:
        return found
    if not (len(new) == len(rows) == 1 and _may_be_named(rows[0])):
        _ask(session, order, BESIDE, cause)
        return found
    (row,) = rows
    row.sps_id = wanted.steps[new[0]].sps_id or row.sps_id
    _vouch(session, (order, procedure, row), telling)
    return [row if place == new[0] else one for place, one in enumerate(found)]


def _ask(session: Session, order: ImagingOrder, reason: str, cause: Cause) -> None:
    case = casebook.find_open(session, CONFLICT, f"order:{order.key}")
    reasons = list(dict.fromkeys([*(case.reasons if case else []), reason]))[: items.REASONS_MAX]
    casebook.open_case(
        session, CONFLICT, f"order:{order.key}", level="amber", reasons=reasons, order_pk=order.key, now=cause.now,
        actor=cause.actor,
    )  # fmt: skip


def _live(rows: Sequence[ScheduledStep]) -> list[ScheduledStep]:
    """On a worklist, or done: also what a list alone has taken off it."""
    return [
        row for row in rows if row.status not in ("CANCELED", "EXPIRED", "NO_SHOW") or said.is_listed(row, "cancel")
    ]


def _may_be_named(step: ScheduledStep) -> bool:
    return step.status not in steps.BEGUN


def _vouch(session: Session, rows: Sequence[said.Part], telling: Telling) -> None:
    """They are what others know, too, by what a change calls them. A new order says so itself when it is told."""
    for row in rows if not telling.refuse else ():
        said.vouch(row)
    session.add_all(rows)
    telling.changed.append("ids")
    session.flush()


# One step


def _order_again(session: Session, step: ScheduledStep, telling: Telling, cause: Cause) -> None:
    """What a list alone has taken off the worklist, and is ordered now."""
    if step.status != "CANCELED" or not said.is_listed(step, "cancel"):
        return
    order = db.get(session, ImagingOrder, step.order_pk)
    procedure = db.get(session, RequestedProcedure, step.requested_procedure_pk)
    if not said.newest((order, procedure), "cancel"):
        at = max(telling.at, step.said["cancel"])
        steps.happen(session, order, [step], said.BACK, at, "it is ordered", cause)


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
        label=command.label,  # not as something that was said: whoever says another later, or said it before, counts
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
        station = {
            "step_pk": step.key, "ae_title": title, "start_date": step.start_date, "is_open": step.status in steps.OPEN,
        }  # fmt: skip
        db.append(session, ScheduledStation, station)
