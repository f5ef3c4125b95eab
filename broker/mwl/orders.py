"""Orders: what a message asks for becomes orders, requested procedures and steps (conformance.md 5.3)."""

import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlmodel import Session, col, select

from broker import audit, casebook, db, ids, outbox
from broker.config import Site
from broker.errors import DuplicateKey, MissingField, UnknownKey
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStation, ScheduledStep
from broker.mwl import identity, items, patients
from broker.mwl.commands import PRIORITIES, OrderCommand, ProcedureCommand, StepCommand
from broker.states import STEP, advance, can

ENDED = ("COMPLETED", "DISCONTINUED", "CANCELED", "EXPIRED", "NO_SHOW")
BEGUN = ("STARTED", "COMPLETED", "DISCONTINUED")
PROCEDURE_FIELDS = ("description", "code_value", "code_scheme", "code_meaning")
STEP_FIELDS = ("modality", "start_date", "start_time", "description")
PROCEDURE_KEYS = ("requested_procedure_id", "study_instance_uid", "placer_number", "filler_number")
NUMBERS = (("placer_number", "placer_issuer"), ("filler_number", "filler_issuer"))
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
    added = sum(_add_procedure(session, order, one, command, cause) for one in command.procedures)
    if added:
        _complete(order, command)
        audit.record(session, "order.update", f"order:{order.key}", actor=cause.actor, now=cause.now, added=added)
    else:
        _same(order, command, ("priority",), "order")
        _same_attributes(order, command.attributes, "order")
    order.last_event_at = _latest(order.last_event_at, command.at)
    session.add(order)
    session.flush()
    items.rebuild(session, order.key, now=cause.now)
    return order


def _complete(order: ImagingOrder, command: OrderCommand) -> None:
    """A further group of one accession number: what it knows more of the order, and the more urgent priority."""
    order.priority = max(order.priority, command.priority or order.priority, key=PRIORITIES.index)
    order.attributes = _present({**command.attributes, **order.attributes})


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
        what, added = f"procedure {known.requested_procedure_id}", 0
        _same(known, wanted, PROCEDURE_FIELDS, what)
        _same_attributes(known, wanted.attributes, what)
    for step in wanted.steps:
        row = _own_step(session, known, step)
        if row is None:
            _make_step(session, order, known, step, command, cause)
            added += 1
        else:
            _refuse_what_was_cancelled(order, row, command)
            _same(row, step, STEP_FIELDS, f"step {row.sps_id}")
            _same_attributes(row, step.attributes, f"step {row.sps_id}")
            if step.station_ae_titles is not None and items.stations(session, row.key) != list(step.station_ae_titles):
                raise DuplicateKey(f"step {row.sps_id}", "exists already with other stations; send a change (XO)")
    return added


def _refuse_what_was_cancelled(order: ImagingOrder, step: ScheduledStep, command: OrderCommand) -> None:
    """What is finished or cancelled never comes back silently; an old message that comes again changes nothing."""
    newer = command.at is None or order.last_event_at is None or command.at > order.last_event_at
    if step.status == "CANCELED" and newer:
        raise DuplicateKey(command.place or "order", f"step {step.sps_id} was cancelled; order it under new numbers")


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
    _add_numbers(step, wanted if _stated(wanted) else procedure)
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
    late = 0
    for wanted in command.procedures:
        procedure = _own_procedure(session, order, wanted)
        if procedure is None:
            procedure = _make_procedure(session, order, wanted, cause)
            changed.append("procedure")
        changed += _set_fields(procedure, wanted, PROCEDURE_FIELDS) + _add_numbers(procedure, wanted)
        changed += _merge_attributes(procedure, wanted.attributes)
        session.add(procedure)
        for step in wanted.steps:
            row = _own_step(session, procedure, step)
            if row is None:
                _make_step(session, order, procedure, step, command, cause)
                changed.append("step")
            elif row.status in ENDED:
                late += _would_change(session, row, step)
            else:
                changed += _change_step(session, row, step)
    if late:
        _ask_about_late(session, order, "late_change", f"a change came after {late} of its steps had ended", cause)
    order.last_event_at = _latest(order.last_event_at, command.at)
    session.add(order)
    if changed:
        audit.record(
            session, "order.update", f"order:{order.key}", actor=cause.actor, now=cause.now,
            changed=sorted(set(changed)),
        )  # fmt: skip
        session.flush()
        items.rebuild(session, order.key, now=cause.now)
    return order


def _change_step(session: Session, step: ScheduledStep, wanted: StepCommand) -> list[str]:
    changed = _set_fields(step, wanted, STEP_FIELDS) + _merge_attributes(step, wanted.attributes)
    changed += _add_numbers(step, wanted)
    if wanted.station_ae_titles is not None and list(wanted.station_ae_titles) != items.stations(session, step.key):
        _set_stations(session, step, wanted.station_ae_titles)
        changed.append("stations")
    session.add(step)
    return changed


def _would_change(session: Session, step: ScheduledStep, wanted: StepCommand) -> bool:
    stations = wanted.station_ae_titles
    return (
        any(_differs(step, wanted, name) for name in STEP_FIELDS)
        or _merged(step.attributes, wanted.attributes) != step.attributes
        or (stations is not None and list(stations) != items.stations(session, step.key))
    )


def _ask_about_late(session: Session, order: ImagingOrder, kind: str, reason: str, cause: Cause) -> None:
    """What is finished or cancelled is not changed by a message; a person is asked (conformance.md 5.3)."""
    casebook.open_case(
        session, kind, f"order:{order.key}", level="amber", order_pk=order.key, now=cause.now, actor=cause.actor,
        reasons=[f"{reason}; nothing was changed there"],
    )  # fmt: skip


# Cancel


def _cancel(session: Session, command: OrderCommand, cause: Cause) -> ImagingOrder:
    """CA and DC: every step that has not begun is cancelled; one that has begun goes on. A CA that comes too late for
    some step is a question for a person (conformance.md 5.3); nothing is ever deleted by a cancel."""
    order = _known(session, command)
    if _is_stale(session, order, command, cause):
        return order
    late = 0
    for step in _mentioned(session, order, command):
        if can(STEP, step.status, "cancel"):
            move_step(session, step, "cancel", now=cause.now, actor=cause.actor, cause=f"ORC-1 {command.control}")
        elif step.status in BEGUN:
            late += 1
    if late and command.control == "CA":
        _ask_about_late(session, order, "late_cancel", f"a cancel came after {late} of its steps had begun", cause)
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


def _mentioned(session: Session, order: ImagingOrder, command: OrderCommand) -> Sequence[ScheduledStep]:
    """The steps that the command names: all of a procedure named without steps, all of the order without procedures.

    Raises UnknownKey where it names one that the order does not have: a cancel never reaches further than it says."""
    query = select(ScheduledStep).where(ScheduledStep.order_pk == order.pk).order_by(col(ScheduledStep.pk))
    steps = session.exec(query.with_for_update()).all()
    chosen: set[int] = set()
    for wanted in command.procedures:
        if _names_a_procedure(wanted):
            procedure = _own_procedure(session, order, wanted)
            own = [step for step in steps if procedure is not None and step.requested_procedure_pk == procedure.pk]
        else:
            own = list(steps)
        named = [set(_named_steps(own, step)) for step in wanted.steps if _names_a_step(step)]
        if not own or not all(named):
            raise UnknownKey(command.place or "order", "the order has no such requested procedure or scheduled step")
        chosen |= set().union(*named) if named else {step.key for step in own}
    return [step for step in steps if step.key in chosen] if command.procedures else steps


def _names_a_procedure(wanted: ProcedureCommand) -> bool:
    return bool(wanted.requested_procedure_id or wanted.study_instance_uid)


def _names_a_step(wanted: StepCommand) -> bool:
    return bool(wanted.sps_id or _stated(wanted))


def _named_steps(steps: Iterable[ScheduledStep], wanted: StepCommand) -> Iterator[int]:
    """By SPS ID; by the numbers of its order group where it states none."""
    for step in steps:
        if step.sps_id == wanted.sps_id if wanted.sps_id else _has_numbers(step, wanted):
            yield step.key


def _has_numbers(row: Any, wanted: Any) -> bool:
    """At least one of the numbers stated, and none of them otherwise."""
    known = [(number, issuer) for number, issuer in _stated(wanted) if getattr(row, number)]
    return bool(known) and all(
        (getattr(row, number), getattr(row, issuer)) == (getattr(wanted, number), getattr(wanted, issuer))
        for number, issuer in known
    )


def _stated(wanted: Any) -> list[tuple[str, str]]:
    """Which of NUMBERS it has."""
    return [pair for pair in NUMBERS if getattr(wanted, pair[0])]


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


def find(session: Session, command: OrderCommand) -> int | None:
    """The order that all stated numbers name: placer and filler number, accession number, Study UID.

    A number that no order has says nothing (a filler number may be new), but the accession number of the order found
    must be the stated one. Raises DuplicateKey where they name different orders, or more than one."""
    named = [orders for orders in _named_orders(session, command) if orders]
    if not named:
        return None
    found = set.intersection(*named)
    if len(found) != 1:
        several = "more than one order" if found else "different orders"
        raise DuplicateKey(command.place or "order", f"its numbers name {several} here; state the accession number")
    (order_pk,) = found
    order = session.get_one(ImagingOrder, order_pk)
    stated = (command.accession_number, command.accession_issuer)
    if command.accession_number and stated != (order.accession_number, order.accession_issuer):
        raise DuplicateKey(command.place or "order", "its numbers belong to an order with another accession number")
    return order_pk


def _named_orders(session: Session, command: OrderCommand) -> Iterator[set[int]]:
    """For each stated number the orders that have it."""
    if command.accession_number:
        pk = _pk_by_accession(session, command.accession_number, command.accession_issuer)
        yield {pk} if pk else set()
    stated = [one for wanted in command.procedures for one in (wanted, *wanted.steps)]
    for number, issuer in NUMBERS:
        for value, owner in dict.fromkeys((getattr(one, number), getattr(one, issuer)) for one in stated):
            if value:
                yield {
                    order_pk
                    for table in (RequestedProcedure, ScheduledStep)
                    for order_pk in session.exec(
                        select(table.order_pk).where(getattr(table, number) == value, getattr(table, issuer) == owner)
                    )
                }
    for uid in filter(None, (wanted.study_instance_uid for wanted in command.procedures)):
        query = select(RequestedProcedure.order_pk).where(RequestedProcedure.study_instance_uid == uid)
        yield set(session.exec(query).all())


def _known(session: Session, command: OrderCommand) -> ImagingOrder:
    """Locked. Raises UnknownKey for an order never heard of, DuplicateKey where the message is about somebody else."""
    order_pk = find(session, command)
    if order_pk is None:
        raise UnknownKey(command.place or "order", "no order has this placer, filler or accession number")
    order = _locked(session, order_pk)
    if command.patient is not None:
        leading = command.patient.identifiers[0]
        whose = identity.find(session, leading.value, leading.issuer)
        if whose is None or whose.pk != order.patient_pk:
            raise DuplicateKey("patient.id", "the order is another patient's")
    return order


def _locked(session: Session, order_pk: int) -> ImagingOrder:
    """Patient before order (architecture.md 7)."""
    patient_pk = session.exec(select(ImagingOrder.patient_pk).where(ImagingOrder.pk == order_pk)).one()
    db.lock(session, type(identity.survivor(session, patient_pk)), patient_pk)
    return db.lock(session, ImagingOrder, order_pk)


def _by_accession(session: Session, number: str, issuer: str) -> ImagingOrder | None:
    pk = _pk_by_accession(session, number, issuer) if number else None
    return _locked(session, pk) if pk else None


def _pk_by_accession(session: Session, number: str, issuer: str) -> int | None:
    return session.exec(
        select(ImagingOrder.pk).where(ImagingOrder.accession_number == number, ImagingOrder.accession_issuer == issuer)
    ).first()


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
    """By Requested Procedure ID, else Study UID, else placer and filler number. DuplicateKey where it is known with
    another Study UID: its pictures may be on their way already."""
    rows = session.exec(
        select(RequestedProcedure).where(RequestedProcedure.order_pk == order.pk).order_by(col(RequestedProcedure.pk))
    ).all()
    found = next((row for row in rows if _is_procedure(row, wanted)), None)
    if found is None and len(rows) == 1 and not any(getattr(wanted, name) for name in PROCEDURE_KEYS):
        found = rows[0]
    if found and wanted.study_instance_uid not in ("", found.study_instance_uid):
        raise DuplicateKey(
            f"procedure {found.requested_procedure_id}", "has another Study Instance UID, which cannot be changed"
        )
    return found


def _is_procedure(row: RequestedProcedure, wanted: ProcedureCommand) -> bool:
    for name in ("requested_procedure_id", "study_instance_uid"):
        if value := getattr(wanted, name):
            return bool(getattr(row, name) == value)
    return _has_numbers(row, wanted)


def _own_step(session: Session, procedure: RequestedProcedure, wanted: StepCommand) -> ScheduledStep | None:
    rows = session.exec(
        select(ScheduledStep)
        .where(ScheduledStep.requested_procedure_pk == procedure.pk)
        .order_by(col(ScheduledStep.pk))
        .with_for_update()
    ).all()
    if _names_a_step(wanted):
        named = set(_named_steps(rows, wanted))
        if len(named) > 1:
            raise DuplicateKey(
                f"procedure {procedure.requested_procedure_id}", "has several such steps; state the SPS ID"
            )
        return next((row for row in rows if row.key in named), None)
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
    return {name: value for name, value in attributes.items() if value not in (None, "", [])}


def _merged(known: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    """None: not said. Empty: delete."""
    return _present({**known, **{name: value for name, value in said.items() if value is not None}})


def _merge_attributes(row: R, said: dict[str, Any]) -> list[str]:
    merged = _merged(row.attributes, said)
    if merged == row.attributes:
        return []
    row.attributes = merged
    return ["attributes"]


def _set_fields(row: Any, said: Any, names: Iterable[str]) -> list[str]:
    changed = [name for name in names if _differs(row, said, name)]
    for name in changed:
        setattr(row, name, getattr(said, name))
    return changed


def _differs(row: Any, said: Any, name: str) -> bool:
    value = getattr(said, name)
    return value is not None and value != getattr(row, name)


def _add_numbers(row: Any, said: Any) -> list[str]:
    """A filler number often comes with the first change. One that is there stays: others find the order by it."""
    added = []
    for number, issuer in NUMBERS:
        if getattr(said, number) and not getattr(row, number):
            setattr(row, number, getattr(said, number))
            setattr(row, issuer, getattr(said, issuer))
            added.append(number)
    return added


def _same(row: Any, said: Any, names: Iterable[str], what: str) -> None:
    for name in names:
        if _differs(row, said, name):
            raise DuplicateKey(what, f"exists already with another {name.replace('_', ' ')}; send a change (XO)")


def _same_attributes(row: R, said: dict[str, Any], what: str) -> None:
    merged = _merged(row.attributes, said)
    for name in sorted(merged.keys() | row.attributes.keys()):
        if merged.get(name) != row.attributes.get(name):
            raise DuplicateKey(what, f"exists already with another {name}; send a change (XO)")


def _set_stations(session: Session, step: ScheduledStep, titles: Sequence[str]) -> None:
    for row in session.exec(select(ScheduledStation).where(ScheduledStation.step_pk == step.key)):
        session.delete(row)
    session.flush()
    session.add_all(ScheduledStation(step_pk=step.key, ae_title=title) for title in dict.fromkeys(titles))
    session.flush()
