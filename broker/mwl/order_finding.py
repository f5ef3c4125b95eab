"""Which order, procedure and step a message means: by all the numbers that it states, each with its issuer."""

import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import bindparam
from sqlmodel import Session, col

from broker import db
from broker.errors import DuplicateKey, UnknownKey
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStep
from broker.model.patients import Patient
from broker.mwl import identity, patients, steps
from broker.mwl.commands import OrderCommand, PersonCommand, ProcedureCommand, StepCommand
from broker.mwl.said import Part

NUMBERS = (("placer_number", "placer_issuer"), ("filler_number", "filler_issuer"))
STEP_NUMBERS = (*NUMBERS, ("appointment_number", "appointment_issuer"))  # of a step; a procedure has no appointment
TABLES = (RequestedProcedure, ScheduledStep)
P = TypeVar("P", RequestedProcedure, ScheduledStep)
W = TypeVar("W", ProcedureCommand, StepCommand)
PATIENT_OF = db.Prepared(db.columns(ImagingOrder.patient_pk).where(ImagingOrder.pk == bindparam("order_pk")))
OF_ANY_ISSUER = db.Prepared(
    db.columns(ImagingOrder.pk, ImagingOrder.accession_issuer, ImagingOrder.patient_pk).where(
        ImagingOrder.accession_number == bindparam("number")
    )
)
OF_ACCESSION = db.Prepared(
    db.columns(ImagingOrder.pk).where(
        ImagingOrder.accession_number == bindparam("number"), ImagingOrder.accession_issuer == bindparam("issuer")
    )
)
OF_STUDY = db.Prepared(
    db.columns(RequestedProcedure.order_pk).where(RequestedProcedure.study_instance_uid == bindparam("uid"))
)


# The order


def find(session: Session, command: OrderCommand, *, besides: int | None = None) -> int | None:
    """The order that all stated numbers name: placer, filler and accession number, appointment, Study UID last.

    A number that no order has says nothing (a filler number may be new), but the accession number of the order found
    must be the stated one. A number that several have (a placer number whose request was split) needs another beside
    it. Raises DuplicateKey where they name different orders, or more than one. besides: an order that is not meant."""
    named = [orders for all_ in _named_orders(session, command) if (orders := all_ - {besides})]
    if not named:
        return None
    found = set.intersection(*named)
    if len(found) != 1:
        several = "more than one order" if found else "different orders"
        raise DuplicateKey(command.place or "order", f"its numbers name {several} here; state the accession number")
    (order_pk,) = found
    assert order_pk is not None
    order = db.get(session, ImagingOrder, order_pk)
    if command.accession_number and not _has_accession(order, command):
        raise DuplicateKey(command.place or "order", "its numbers belong to an order with another accession number")
    return order_pk


def known(session: Session, command: OrderCommand, *, besides: int | None = None) -> ImagingOrder:
    """Locked. Raises UnknownKey for an order never heard of, DuplicateKey where the message is about somebody else."""
    order_pk = find(session, command, besides=besides)
    if order_pk is None:
        raise UnknownKey(command.place or "order", "no order has this placer, filler or accession number")
    order = locked(session, order_pk)
    if command.patient is not None:
        check_patient(session, order, command.patient, command.at)
    return order


def placed(session: Session, command: OrderCommand, patient: Patient) -> ImagingOrder | None:
    """The order that a new one is already, locked. patient: whose it is said to be, locked already.

    Raises DuplicateKey where it is another patient's, whom it does not wait for."""
    order_pk = pk_of_placed(session, command)
    if order_pk is None:
        _refuse_number_of_another(session, command, patient)
        return None
    if _patient_pk(session, order_pk) != patient.key:
        place = "accession number" if command.accession_number else command.place or "order"
        raise DuplicateKey(place, "is another patient's")
    return db.lock(session, ImagingOrder, order_pk)


def _refuse_number_of_another(session: Session, command: OrderCommand, patient: Patient) -> None:
    """Two issuers may give the same number. Where one of the two orders names none, and both patients are numbered by
    one authority, it is one hospital, and one number of it."""
    if not command.accession_number or command.patient is None:
        return
    authority = command.patient.identifiers[0].issuer
    for row in OF_ANY_ISSUER.rows(session, number=command.accession_number):
        if row.patient_pk == patient.key or "" not in (row.accession_issuer, command.accession_issuer):
            continue
        if authority in [one.issuer for one in identity.identifiers(session, row.patient_pk)]:
            raise DuplicateKey("accession number", "is another patient's, and one of the two does not name its issuer")


def pk_of_placed(session: Session, command: OrderCommand) -> int | None:
    """By its accession number; where it has none, or none with an issuer, by the placer and filler number of a
    procedure or step, of which none may be another."""
    if not command.accession_number:
        order_pk = find(session, command)
        return order_pk if order_pk is not None and _has_a_group(session, order_pk, command) else None
    found = _of_accession(session, command)
    exact = pk_by_accession(session, command.accession_number, command.accession_issuer)
    if exact is None:  # of other issuers: the number alone may be another order's
        groups = (command, *command.replaces)
        found = {pk for pk in found if any(_has_a_group(session, pk, one) for one in groups)}
    return found.pop() if len(found) == 1 else None


def check_patient(session: Session, order: ImagingOrder, person: PersonCommand, at: dt.datetime | None) -> None:
    leading = person.identifiers[0]
    whose = identity.find(session, leading.value, leading.issuer)
    if whose is None or whose.pk != order.patient_pk:
        raise DuplicateKey("patient.id", "the order is another patient's")
    refuse_somebody_else(session, whose, person, at)


def refuse_somebody_else(session: Session, patient: Patient, person: PersonCommand, at: dt.datetime | None) -> None:
    """A retired number may have been given to somebody else since."""
    if patients.under_retired(session, patient, person, at):
        raise DuplicateKey("patient.id", "the number was retired, and leads to a patient who is plainly another person")


def locked(session: Session, order_pk: int) -> ImagingOrder:
    """Patient before order (architecture.md 7). A merge or a move may have been committed between the look and the
    lock: then it is whose it is now."""
    held: set[int] = set()
    while (patient_pk := _patient_pk(session, order_pk)) not in held:
        db.lock(session, Patient, patient_pk)
        held.add(patient_pk)
    return db.lock(session, ImagingOrder, order_pk)


def _patient_pk(session: Session, order_pk: int) -> int:
    """As it is now: a column is read anew, a row that this session has met is not."""
    patient_pk: int = PATIENT_OF.first(session, order_pk=order_pk).patient_pk
    return patient_pk


def pk_by_accession(session: Session, number: str, issuer: str) -> int | None:
    found = OF_ACCESSION.first(session, number=number, issuer=issuer)
    return found and found.pk


def _of_accession(session: Session, command: OrderCommand) -> set[int]:
    """Of the stated issuer. Where it is not stated: the order of the site's own, or of none, else all of that number;
    where these are several, another number must tell which."""
    exact = pk_by_accession(session, command.accession_number, command.accession_issuer)
    if exact is not None or (command.accession_issuer and not command.is_issuer_assumed):
        return {exact} if exact is not None else set()
    found = [row.pk for row in OF_ANY_ISSUER.rows(session, number=command.accession_number)]
    return {pk for pk in found if not _contradicts_all(session, pk, command)}


def _has_accession(order: ImagingOrder, command: OrderCommand) -> bool:
    is_issuers = command.is_issuer_assumed or command.accession_issuer in ("", order.accession_issuer)
    return order.accession_number == command.accession_number and is_issuers


def _named_orders(session: Session, command: OrderCommand) -> Iterator[set[int | None]]:
    """For each stated number the orders that have it."""
    if command.accession_number:
        yield set(_of_accession(session, command))
    stated = [one for wanted in command.procedures for one in (wanted, *wanted.steps)]
    for number, issuer in STEP_NUMBERS:
        values = ((getattr(one, number, ""), getattr(one, issuer, "")) for one in stated)
        for value, owner in dict.fromkeys(pair for pair in values if pair[0]):
            yield set(_orders_with(session, number, value, issuer, owner))
    for uid in filter(None, (wanted.study_instance_uid for wanted in command.procedures)):
        yield {found.order_pk for found in OF_STUDY.rows(session, uid=uid)}


def _orders_with(session: Session, number: str, value: str, issuer: str, owner: str) -> Iterator[int]:
    for table in TABLES:
        if hasattr(table, number):
            found = having(table, number, issuer).rows(session, **{number: value, issuer: owner})
            yield from (row.order_pk for row in found)


@cache
def having(table: type[RequestedProcedure | ScheduledStep], *names: str) -> db.Prepared:
    """`order_pk` of the rows with these values in columns of that name; the oldest first."""
    query = db.columns(table.order_pk).where(*(getattr(table, name) == bindparam(name) for name in names))
    return db.Prepared(query.order_by(col(table.pk)))


def _has_a_group(session: Session, order_pk: int, command: OrderCommand) -> bool:
    rows = (*steps.procedures_of(session, order_pk), *steps.of(session, order_pk))
    wanted = [one for procedure in command.procedures for one in (procedure, *procedure.steps)]
    return any(has_numbers(row, one) for row in rows for one in wanted)


def _contradicts_all(session: Session, order_pk: int, command: OrderCommand) -> bool:
    """Each part of the order has another placer, filler or appointment number than those that the message states, of
    what it orders and of what that replaces."""
    rows = (*steps.procedures_of(session, order_pk), *steps.of(session, order_pk))
    said = [procedure for group in (command, *command.replaces) for procedure in group.procedures]
    wanted = [one for procedure in said for one in (procedure, *procedure.steps) if _stated(one)]
    return bool(wanted) and all(contradicts(row, one) for row in rows for one in wanted)


# Its parts


def procedures(
    session: Session, order: ImagingOrder, wanted: Sequence[ProcedureCommand], what: str
) -> list[RequestedProcedure | None]:
    """The row of each, None for one that is new: by Requested Procedure ID, else Study UID, else placer and filler
    number, its own or its steps'. what: where the message names them, for errors.

    Raises DuplicateKey where it is known with another Study UID: its pictures may be on their way already."""
    rows = steps.procedures_of(session, order.key)
    names = ("requested_procedure_id", "study_instance_uid")
    is_searched = rows and not all(any(getattr(one, name) for name in names) for one in wanted)
    all_steps = steps.of(session, order.key) if is_searched else ()

    def fits(row: RequestedProcedure, one: ProcedureCommand) -> bool:
        own = [step for step in all_steps if step.requested_procedure_pk == row.key]
        by_steps = not _stated(one) and any(has_numbers(step, each) for step in own for each in one.steps)
        return by_steps or has_numbers(row, one)

    found = _pair(rows, wanted, names, fits, what)
    for row, one in zip(found, wanted, strict=True):
        if row is not None and one.study_instance_uid not in ("", row.study_instance_uid):
            raise DuplicateKey(what, "one of its procedures has another Study Instance UID, which cannot be changed")
    return found


def steps_of(
    session: Session, procedure: RequestedProcedure, wanted: Sequence[StepCommand], what: str
) -> list[ScheduledStep | None]:
    """The row of each, None for one that is new: by SPS ID, else the numbers of its order group or appointment."""
    rows = steps.of(session, procedure.order_pk, procedure.key)
    return _pair(rows, wanted, ("sps_id",), has_numbers, what)


def _pair(
    rows: Sequence[P], wanted: Sequence[W], names: Sequence[str], fits: Callable[[P, W], bool], what: str
) -> list[P | None]:
    """The row of each: by the first of `names` that it states. Those that state none: by their numbers, or any where
    they state no number that is known; as many as there are such rows, in their order."""

    stated = [None if any(getattr(one, name) for name in names) else _values(one) for one in wanted]
    paired: list[P | None] = []
    for place, (one, numbers) in enumerate(zip(wanted, stated, strict=True)):
        if numbers is None:
            name = next(name for name in names if getattr(one, name))
            paired.append(next((row for row in rows if getattr(row, name) == getattr(one, name)), None))
            continue
        fitting = [row for row in rows if fits(row, one)] or [row for row in rows if _is_open(row, one)]
        if not fitting:
            paired.append(None)
            continue
        alike = [other == numbers for other in stated]
        if len(fitting) != sum(alike):
            raise DuplicateKey(
                what, f"the order has {len(fitting)} such parts, {sum(alike)} are named; state their IDs"
            )
        paired.append(fitting[sum(alike[:place])])
    return paired


def targets(session: Session, order: ImagingOrder, command: OrderCommand) -> list[Part]:
    """The parts of the order that the command names: a step, all of a procedure named without steps, all of the order
    where it names neither.

    Raises UnknownKey where it names one that the order does not have: a cancel never reaches further than it says."""
    rows, all_steps = steps.procedures_of(session, order.key), steps.of(session, order.key)
    chosen: list[Part] = []
    for wanted in command.procedures:
        own = _named_parts(rows, all_steps, wanted)
        pks = {getattr(part, "requested_procedure_pk", part.pk) for part in (rows if own is None else own)}
        under = [step for step in all_steps if step.requested_procedure_pk in pks]
        named = [[step for step in under if _is_step(step, one)] for one in wanted.steps if _names_a_step(one)]
        if not pks or not all(named):
            raise UnknownKey(command.place or "order", "the order has no such requested procedure or scheduled step")
        chosen += [step for found in named for step in found] or ([order] if own is None else own)
    return chosen if command.procedures else [order]


def _named_parts(
    rows: Sequence[RequestedProcedure], all_steps: Sequence[ScheduledStep], wanted: ProcedureCommand
) -> Sequence[RequestedProcedure | ScheduledStep] | None:
    """By ID or Study UID; else by its numbers, also those of one order group of a procedure that came in several. None:
    it states nothing."""
    for name in ("requested_procedure_id", "study_instance_uid"):
        if value := getattr(wanted, name):
            return [row for row in rows if getattr(row, name) == value]
    if not _stated(wanted):
        return None
    return [row for row in rows if has_numbers(row, wanted)] or [row for row in all_steps if has_numbers(row, wanted)]


def _is_step(step: ScheduledStep, wanted: StepCommand) -> bool:
    return step.sps_id == wanted.sps_id if wanted.sps_id else has_numbers(step, wanted)


def _names_a_step(wanted: StepCommand) -> bool:
    return bool(wanted.sps_id or _stated(wanted))


def has_numbers(row: Any, wanted: Any) -> bool:
    """At least one of the numbers stated, and none of them otherwise."""
    both = [(number, issuer) for number, issuer in _stated(wanted) if getattr(row, number, "")]
    return bool(both) and all(
        (getattr(row, number), getattr(row, issuer)) == (getattr(wanted, number), getattr(wanted, issuer))
        for number, issuer in both
    )


def add_numbers(row: Part, wanted: Any) -> list[str]:
    """A filler number often comes with the first change. One that is there stays: others find the order by it."""
    added = []
    for number, issuer in _stated(wanted):
        if getattr(row, number, None) == "":
            setattr(row, number, getattr(wanted, number))
            setattr(row, issuer, getattr(wanted, issuer))
            added.append(number)
    return added


def contradicts(row: Any, wanted: Any) -> bool:
    """Another number of a kind that it has already."""
    return any(
        getattr(row, number, "")
        and (getattr(row, number), getattr(row, issuer)) != (getattr(wanted, number), getattr(wanted, issuer))
        for number, issuer in _stated(wanted)
    )


def _stated(wanted: Any) -> list[tuple[str, str]]:
    """Which of the numbers it has."""
    return [pair for pair in STEP_NUMBERS if getattr(wanted, pair[0], "")]


def _is_open(row: Any, wanted: Any) -> bool:
    """None of the numbers that it states is known of the row, and none contradicts: they say nothing."""
    return all(not getattr(row, number, "") for number, _ in _stated(wanted))


def _values(wanted: Any) -> list[Any]:
    own = [getattr(wanted, name) for pair in _stated(wanted) for name in pair]
    return [own, *(_values(step) for step in getattr(wanted, "steps", ()))]
