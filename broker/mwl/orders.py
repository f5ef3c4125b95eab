"""Orders: what a message asks for becomes orders, requested procedures and steps (conformance.md 5.3)."""

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlmodel import Session, col, select

from broker import audit, casebook, db, ids, outbox
from broker.config import Site
from broker.errors import DuplicateKey, MissingField, UnknownKey
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStation, ScheduledStep
from broker.mwl import identity, items, patients
from broker.mwl.commands import OrderCommand, ProcedureCommand, StepCommand
from broker.states import STEP, advance, can

ENDED = ("COMPLETED", "DISCONTINUED", "CANCELED", "EXPIRED", "NO_SHOW")
PROCEDURE_FIELDS = ("description", "code_value", "code_scheme", "code_meaning")
STEP_FIELDS = ("modality", "start_date", "start_time", "description")
R = TypeVar("R", RequestedProcedure, ScheduledStep, ImagingOrder)


@dataclass(frozen=True)
class Cause:
    """Who does it, when, under which site rules, from which journalled message."""

    now: dt.datetime
    actor: str
    site: Site
    message_pk: int | None = None


def apply(
    session: Session,
    command: OrderCommand,
    *,
    now: dt.datetime,
    actor: str,
    site: Site,
    message_pk: int | None = None,
) -> ImagingOrder:
    """Do what ORC-1 says. DuplicateKey where it contradicts what is known, UnknownKey for an order never heard of.

    The same command again changes nothing; one older than the last applied changes nothing either."""
    cause = Cause(now, actor, site, message_pk)
    return {"NW": _new, "XO": _change, "CA": _cancel, "DC": _cancel}[command.control](session, command, cause)


# New


def _new(session: Session, command: OrderCommand, cause: Cause) -> ImagingOrder:
    if command.patient is None:
        raise MissingField("patient", "a new order names its patient")
    patient, conflicts = patients.for_order(session, command.patient, now=cause.now, actor=cause.actor)
    order = _by_accession(session, command.accession_number, command.accession_issuer)
    if order is None:
        _refuse_reused_numbers(session, command)
        order = ImagingOrder(
            patient_pk=patient.key,
            accession_number=command.accession_number or ids.short_id("A"),
            accession_issuer=command.accession_issuer,
            priority=command.priority or "ROUTINE",
            placed_at=command.at,
            attributes=_present(command.attributes),
            message_pk=cause.message_pk,
        )
        session.add(order)
        session.flush()
        audit.record(session, "order.create", f"order:{order.key}", actor=cause.actor, now=cause.now)
    elif order.patient_pk != patient.key:
        raise DuplicateKey("accession number", "is another patient's")
    _withhold(session, order, conflicts, cause)
    added = [_add_procedure(session, order, one, command, cause) for one in command.procedures]
    if any(added):
        audit.record(session, "order.update", f"order:{order.key}", actor=cause.actor, now=cause.now, added=sum(added))
    order.last_event_at = _latest(order.last_event_at, command.at)
    session.add(order)
    session.flush()
    items.rebuild(session, order.key, now=cause.now)
    return order


def _withhold(session: Session, order: ImagingOrder, conflicts: Sequence[str], cause: Cause) -> None:
    """An order that contradicts the patient's record is taken, offered to no device, and a person is asked
    (reconciliation.md 3.3)."""
    if not conflicts:
        return
    order.withheld = "patient_conflict"
    casebook.open_case(
        session, "patient_conflict", f"order:{order.key}", level="amber", reasons=conflicts, order_pk=order.key,
        now=cause.now, actor=cause.actor,
    )  # fmt: skip


def _add_procedure(
    session: Session, order: ImagingOrder, wanted: ProcedureCommand, command: OrderCommand, cause: Cause
) -> int:
    """How many rows were added. A procedure that exists takes further steps; one that differs is refused."""
    known = _own_procedure(session, order, wanted)
    if known is None:
        known = _make_procedure(session, order, wanted, cause)
        added = 1
    else:
        _same(known, wanted, PROCEDURE_FIELDS, f"procedure {known.requested_procedure_id}")
        added = 0
    for step in wanted.steps:
        row = _own_step(session, known, step)
        if row is None:
            _make_step(session, order, known, step, command, cause)
            added += 1
        else:
            _same(row, step, STEP_FIELDS, f"step {row.sps_id}")
    return added


def _make_procedure(
    session: Session, order: ImagingOrder, wanted: ProcedureCommand, cause: Cause
) -> RequestedProcedure:
    number = wanted.requested_procedure_id or ids.short_id("R")
    study_uid = wanted.study_instance_uid or ids.derived_uid(
        cause.site.uid_root, order.accession_issuer, order.accession_number, wanted.placer_issuer, wanted.placer_number,
        wanted.filler_issuer, wanted.filler_number, number,
    )  # fmt: skip
    if session.exec(select(RequestedProcedure).where(RequestedProcedure.study_instance_uid == study_uid)).first():
        raise DuplicateKey("study instance uid", "belongs to another requested procedure")
    row = RequestedProcedure(
        order_pk=order.key,
        requested_procedure_id=number,
        study_instance_uid=study_uid,
        placer_number=wanted.placer_number,
        placer_issuer=wanted.placer_issuer,
        filler_number=wanted.filler_number,
        filler_issuer=wanted.filler_issuer,
        attributes=_present(wanted.attributes),
    )
    _set_fields(row, wanted, PROCEDURE_FIELDS)
    session.add(row)
    session.flush()
    return row


def _make_step(
    session: Session,
    order: ImagingOrder,
    procedure: RequestedProcedure,
    wanted: StepCommand,
    command: OrderCommand,
    cause: Cause,
) -> None:
    step = ScheduledStep(
        requested_procedure_pk=procedure.key,
        order_pk=order.key,
        sps_id=wanted.sps_id or ids.short_id("S"),
        status_at=cause.now,
        accession_number=order.accession_number,
        attributes=_present(wanted.attributes),
    )
    _set_fields(step, wanted, STEP_FIELDS)
    session.add(step)
    session.flush()
    _set_stations(session, step, wanted.station_ae_titles or ())
    if command.begun:  # ORC-5 IP: scheduled, and the patient is here
        move_step(session, step, "arrive", now=cause.now, actor=cause.actor, cause="order")


# Change


def _change(session: Session, command: OrderCommand, cause: Cause) -> ImagingOrder:
    order = _known(session, command)
    if _is_stale(session, order, command, cause):
        return order
    changed: list[str] = []
    if command.priority is not None and command.priority != order.priority:
        order.priority = command.priority
        changed.append("priority")
    changed += _merge_attributes(order, command.attributes)
    for wanted in command.procedures:
        procedure = _own_procedure(session, order, wanted)
        if procedure is None:
            procedure = _make_procedure(session, order, wanted, cause)
            changed.append("procedure")
        changed += _set_fields(procedure, wanted, PROCEDURE_FIELDS)
        changed += _merge_attributes(procedure, wanted.attributes)
        session.add(procedure)
        for step in wanted.steps:
            changed += _change_step(session, order, procedure, step, command, cause)
    order.last_event_at = _latest(order.last_event_at, command.at)
    session.add(order)
    if changed:
        audit.record(
            session,
            "order.update",
            f"order:{order.key}",
            actor=cause.actor,
            now=cause.now,
            changed=sorted(set(changed)),
        )
        session.flush()
        items.rebuild(session, order.key, now=cause.now)
    return order


def _change_step(
    session: Session,
    order: ImagingOrder,
    procedure: RequestedProcedure,
    wanted: StepCommand,
    command: OrderCommand,
    cause: Cause,
) -> list[str]:
    step = _own_step(session, procedure, wanted)
    if step is None:
        _make_step(session, order, procedure, wanted, command, cause)
        return ["step"]
    if step.status in ENDED:  # what is finished or cancelled never comes back silently
        return []
    changed = _set_fields(step, wanted, STEP_FIELDS) + _merge_attributes(step, wanted.attributes)
    if wanted.station_ae_titles is not None and list(wanted.station_ae_titles) != items.stations(session, step.key):
        _set_stations(session, step, wanted.station_ae_titles)
        changed.append("stations")
    session.add(step)
    return changed


# Cancel


def _cancel(session: Session, command: OrderCommand, cause: Cause) -> ImagingOrder:
    """CA and DC: every step that has not begun is cancelled; one that has begun goes on. A CA that comes too late for
    some step is a question for a person (conformance.md 5.3); nothing is ever deleted by a cancel."""
    order = _known(session, command)
    if _is_stale(session, order, command, cause):
        return order
    late = 0
    for step in _mentioned(session, order, command.procedures):
        if can(STEP, step.status, "cancel"):
            move_step(session, step, "cancel", now=cause.now, actor=cause.actor, cause=f"ORC-1 {command.control}")
        elif step.status == "STARTED":
            late += 1
    if late and command.control == "CA":
        casebook.open_case(
            session, "late_cancel", f"order:{order.key}", level="amber", order_pk=order.key, now=cause.now,
            reasons=[f"a cancel came after {late} of its steps had begun; nothing was cancelled there"],
            actor=cause.actor,
        )  # fmt: skip
    audit.record(
        session,
        "order.cancel",
        f"order:{order.key}",
        actor=cause.actor,
        now=cause.now,
        control=command.control,
        late=late,
    )
    order.last_event_at = _latest(order.last_event_at, command.at)
    session.add(order)
    return order


def _mentioned(session: Session, order: ImagingOrder, wanted: Sequence[ProcedureCommand]) -> Sequence[ScheduledStep]:
    """The steps that the command names: all of a procedure named without steps, all of the order without procedures."""
    query = select(ScheduledStep).where(ScheduledStep.order_pk == order.pk).order_by(col(ScheduledStep.pk))
    steps = session.exec(query.with_for_update()).all()
    chosen = set()
    for one in wanted:
        procedure = _own_procedure(session, order, one)
        if procedure is not None:
            named = {step.sps_id for step in one.steps if step.sps_id}
            chosen |= {
                s.key for s in steps if s.requested_procedure_pk == procedure.pk and (not named or s.sps_id in named)
            }
    return [step for step in steps if step.key in chosen] if chosen else steps


# Steps


def move_step(session: Session, step: ScheduledStep, event: str, *, now: dt.datetime, actor: str, cause: str) -> None:
    """The one place where a step's status changes. Raises WrongState where the table has no such arrow."""
    before = step.status
    step.status = advance(STEP, step.status, event)
    if step.status != before:
        step.status_at = now
        session.add(step)
        audit.record(
            session, "step.change", f"step:{step.key}", actor=actor, now=now, event=event, cause=cause, before=before,
            after=step.status,
        )  # fmt: skip
    outbox.touch(session, step.order_pk)


# Finding


def find(session: Session, command: OrderCommand) -> ImagingOrder | None:
    """By placer number, else filler number, else accession number, each with its issuer; Study UID last."""
    for wanted in command.procedures:
        for number, issuer, columns in (
            (wanted.placer_number, wanted.placer_issuer, ("placer_number", "placer_issuer")),
            (wanted.filler_number, wanted.filler_issuer, ("filler_number", "filler_issuer")),
        ):
            if number:
                query = select(RequestedProcedure).where(
                    getattr(RequestedProcedure, columns[0]) == number, getattr(RequestedProcedure, columns[1]) == issuer
                )
                if row := session.exec(query).first():
                    return _locked(session, row.order_pk)
    if command.accession_number and (
        order := _by_accession(session, command.accession_number, command.accession_issuer)
    ):
        return order
    for uid in filter(None, (wanted.study_instance_uid for wanted in command.procedures)):
        by_uid = select(RequestedProcedure).where(RequestedProcedure.study_instance_uid == uid)
        if row := session.exec(by_uid).first():
            return _locked(session, row.order_pk)
    return None


def _known(session: Session, command: OrderCommand) -> ImagingOrder:
    order = find(session, command)
    if order is None:
        raise UnknownKey(command.place or "order", "no order has this placer, filler or accession number")
    return order


def _locked(session: Session, order_pk: int) -> ImagingOrder:
    """Patient before order (architecture.md 7)."""
    patient_pk = session.exec(select(ImagingOrder.patient_pk).where(ImagingOrder.pk == order_pk)).one()
    db.lock(session, type(identity.survivor(session, patient_pk)), patient_pk)
    return db.lock(session, ImagingOrder, order_pk)


def _by_accession(session: Session, number: str, issuer: str) -> ImagingOrder | None:
    if not number:
        return None
    query = select(ImagingOrder.pk).where(
        ImagingOrder.accession_number == number, ImagingOrder.accession_issuer == issuer
    )
    pk = session.exec(query).first()
    return _locked(session, pk) if pk else None


def _refuse_reused_numbers(session: Session, command: OrderCommand) -> None:
    """Another accession number for a placer and filler number that an order has already: two orders for one request.
    The placer number alone may be shared, where the filler splits what was asked."""
    for wanted in command.procedures:
        if not (wanted.placer_number and wanted.filler_number):
            continue
        query = select(RequestedProcedure.order_pk).where(
            RequestedProcedure.placer_number == wanted.placer_number,
            RequestedProcedure.placer_issuer == wanted.placer_issuer,
            RequestedProcedure.filler_number == wanted.filler_number,
            RequestedProcedure.filler_issuer == wanted.filler_issuer,
        )
        if (other := session.exec(query).first()) is not None:
            raise DuplicateKey(
                command.place or "order", f"its placer and filler number belong to order {other} already"
            )


def _own_procedure(session: Session, order: ImagingOrder, wanted: ProcedureCommand) -> RequestedProcedure | None:
    rows = session.exec(
        select(RequestedProcedure).where(RequestedProcedure.order_pk == order.pk).order_by(col(RequestedProcedure.pk))
    ).all()
    for name in ("requested_procedure_id", "study_instance_uid"):
        if value := getattr(wanted, name):
            return next((row for row in rows if getattr(row, name) == value), None)
    for number, issuer in (("placer_number", "placer_issuer"), ("filler_number", "filler_issuer")):
        if value := getattr(wanted, number):
            same = [r for r in rows if getattr(r, number) == value and getattr(r, issuer) == getattr(wanted, issuer)]
            if same:
                return same[0]
    return rows[0] if len(rows) == 1 and not wanted.placer_number and not wanted.filler_number else None


def _own_step(session: Session, procedure: RequestedProcedure, wanted: StepCommand) -> ScheduledStep | None:
    rows = session.exec(
        select(ScheduledStep)
        .where(ScheduledStep.requested_procedure_pk == procedure.pk)
        .order_by(col(ScheduledStep.pk))
        .with_for_update()
    ).all()
    if wanted.sps_id:
        return next((row for row in rows if row.sps_id == wanted.sps_id), None)
    return rows[0] if len(rows) == 1 else None


# Small things


def _is_stale(session: Session, order: ImagingOrder, command: OrderCommand, cause: Cause) -> bool:
    """Older than the last applied: answered as if applied, nothing changes (conformance.md 5.3)."""
    if command.at is None or order.last_event_at is None or command.at >= order.last_event_at:
        return False
    audit.record(
        session, "order.update", f"order:{order.key}", actor=cause.actor, now=cause.now, outcome="stale",
        control=command.control,
    )  # fmt: skip
    return True


def _latest(a: dt.datetime | None, b: dt.datetime | None) -> dt.datetime | None:
    return max(filter(None, (a, b)), default=None)


def _present(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value not in (None, "")}


def _merge_attributes(row: R, said: dict[str, Any]) -> list[str]:
    """None: not said. Empty: delete."""
    merged = _present({**row.attributes, **{name: value for name, value in said.items() if value is not None}})
    if merged == row.attributes:
        return []
    row.attributes = merged
    return ["attributes"]


def _set_fields(row: Any, said: Any, names: Iterable[str]) -> list[str]:
    changed = []
    for name in names:
        value = getattr(said, name)
        if value is not None and value != getattr(row, name):
            setattr(row, name, value)
            changed.append(name)
    return changed


def _same(row: Any, said: Any, names: Iterable[str], what: str) -> None:
    for name in names:
        value = getattr(said, name)
        if value is not None and value != getattr(row, name):
            raise DuplicateKey(what, f"exists already with another {name.replace('_', ' ')}; send a change (XO)")


def _set_stations(session: Session, step: ScheduledStep, titles: Sequence[str]) -> None:
    for row in session.exec(select(ScheduledStation).where(ScheduledStation.step_pk == step.key)):
        session.delete(row)
    session.flush()
    session.add_all(ScheduledStation(step_pk=step.key, ae_title=title) for title in dict.fromkeys(titles))
    session.flush()
