"""Merges, moves and changes of a patient's identifier, and how each of them is taken back.

Whatever goes over leaves a PatientMerge row that says what it was before; nothing is copied and nothing deleted, so
that taking it back restores the very rows. Of two events about one identifier the newer one holds, in whatever order
they come."""

import datetime as dt
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from sqlmodel import Session, col, or_, select

from broker import audit, casebook, db
from broker.errors import InvalidValue, MissingField, UnknownKey, WrongState
from broker.model.images import ReconciliationCase, Study
from broker.model.orders import ImagingOrder
from broker.model.patients import Patient, PatientIdentifier, PatientMerge, PatientVersion
from broker.model.work import AuditEvent
from broker.mwl import belongings, identity, merge_log
from broker.mwl.commands import Identifier, PatientCommand
from broker.mwl.merge_log import COLUMNS, Moved
from broker.states import CASE, advance

CONFLICT = "identifier_conflict"
ACTIONS: dict[str, audit.Action] = {
    "merge": "patient.merge", "move": "patient.move", "change_id": "patient.change_id",
}  # fmt: skip


@dataclass(frozen=True)
class Event:
    """What is carried out, of whom, by whom, and what it has moved so far."""

    session: Session
    command: PatientCommand
    patient: Patient
    prior: Patient | None
    moved: Moved
    now: dt.datetime
    actor: str

    @property
    def current(self) -> Identifier:
        return self.command.patient.identifiers[0]


def prior_of(command: PatientCommand) -> Identifier:
    """Raises MissingField without one, InvalidValue where it is the very identifier that stays."""
    if command.prior is None or not command.prior.value:
        raise MissingField("patient.prior", "a merge names the identifier that goes away")
    leading = command.patient.identifiers[0]
    if (command.prior.value, command.prior.issuer) == (leading.value, leading.issuer):
        raise InvalidValue("patient.prior", "a patient cannot be merged with itself")
    return command.prior


def carry_out(
    session: Session,
    command: PatientCommand,
    patient: Patient,
    prior: Patient | None,
    *,
    subject: Patient | None,
    record: dict[str, list[Any]],
    now: dt.datetime,
    actor: str,
) -> PatientMerge | None:
    """The identifier that the event names as current lives, the prior one leads there. None where that was so before.

    patient, prior: locked; prior is None where nobody has that identifier, so that later data under it finds the
    survivor. subject, record: Moved.of and Moved.record."""
    one, leading = prior_of(command), belongings.leading(session, patient, prior)
    moved = Moved(
        [one.value, one.issuer], [command.patient.identifiers[0].value, command.patient.identifiers[0].issuer]
    )
    moved.own = belongings.unlinked(session, patient.key)
    event = Event(session, command, patient, prior, moved, now, actor)
    {"merge": _merge, "move": _move, "change_id": _change_id}[command.event](event)
    if not moved.touched:
        return None
    moved.of, moved.record = subject.key if subject else None, record
    moved.named = [row.key for row in (identity.row(session, *pair) for pair in (moved.prior, moved.current)) if row]
    _answer_cases(event)
    merge = PatientMerge(
        event=command.event, patient_pk=patient.key, prior_pk=prior.key if prior else None, cause=command.cause,
        moved=asdict(moved), happened_at=command.at or now,
    )  # fmt: skip
    session.add(merge)
    session.flush()
    belongings.report(session, merge, ACTIONS[command.event], moved.orders, moved.studies, now=now, actor=actor)
    belongings.touch_renamed(session, leading)
    return merge


# What each of them does


def _merge(event: Event) -> None:
    prior = event.prior
    if prior is not None and prior.key != event.patient.key:
        _hand_over_all(event, prior)
    _claim(event, prior_of(event.command), retired=True)
    _claim(event, event.current, retired=False)


def _move(event: Event) -> None:
    """A43: one identifier goes over, with what was placed under it. It stays in use where the message says that the
    patient has it still; else it leads to the patient's own."""
    one, prior = prior_of(event.command), event.prior
    row = identity.row(event.session, one.value, one.issuer)
    retired = (one.value, one.issuer) not in {(own.value, own.issuer) for own in event.command.patient.identifiers}
    if row is None:
        _claim(event, one, retired=retired)
    elif prior is not None and prior.key != event.patient.key:
        others = [other for other in identity.identifiers(event.session, prior.key) if not other.retired]
        if all(other.key == row.key for other in others):
            _hand_over_all(event, prior)
        else:
            orders = belongings.orders_under(event.session, prior.key, [row])
            studies, doubtful = belongings.studies_with(event.session, prior.key, orders, [row])
            _hand_over(event, [row], orders, studies)
            belongings.ask_about(event.session, doubtful, now=event.now, actor=event.actor)
            _ask_about_orders(event, prior)
        row.retired = retired
        event.session.add(row)
        event.session.flush()


def _change_id(event: Event) -> None:
    """A47: the number of a patient is written differently. What was placed under it follows, since the row is the same;
    the old number is a further row, which leads there."""
    session, old, new = event.session, prior_of(event.command), event.current
    known = identity.row(session, old.value, old.issuer)
    if identity.row(session, new.value, new.issuer) is None:
        assert known is not None, "a patient of whom neither is known was made with the new one"
        if not known.retired:
            event.moved.keep(known)
            kind, known.value, known.issuer, known.type = known.type, new.value, new.issuer, new.type
            session.add(known)
            session.flush()  # before the old one is free, another row cannot have it
            _make(event, Identifier(old.value, old.issuer, kind), retired=True, beside=known)
            return
        _make(event, new, retired=merge_log.is_settled(session, known, event.command.at), beside=known)
    _claim(event, old, retired=True)
    _claim(event, new, retired=False)


def _hand_over_all(event: Event, prior: Patient) -> None:
    session = event.session
    orders = set(session.exec(select(ImagingOrder.pk).where(ImagingOrder.patient_pk == prior.key)).all())
    studies = session.exec(select(Study.pk).where(Study.patient_pk == prior.key)).all()
    _hand_over(
        event, identity.identifiers(session, prior.key), {pk for pk in orders if pk}, [pk for pk in studies if pk]
    )
    prior.merged_into, event.moved.whole = event.patient.key, True
    session.add(prior)


def _hand_over(
    event: Event, rows: Iterable[PatientIdentifier], orders: Collection[int], studies: Collection[int]
) -> None:
    for row in rows:
        event.moved.keep(row)
        row.patient_pk, row.retired = event.patient.key, True
        event.session.add(row)
    event.moved.orders, event.moved.studies = sorted(orders), sorted(studies)
    belongings.give(event.session, orders, studies, event.patient.key)


def _claim(event: Event, identifier: Identifier, *, retired: bool) -> None:
    """Make the identifier the patient's, living or retired."""
    row = identity.row(event.session, identifier.value, identifier.issuer)
    if row is None:
        _make(event, identifier, retired=retired)
    elif row.retired != retired and not merge_log.is_settled(event.session, row, event.command.at):
        event.moved.keep(row)
        row.retired = retired
        event.session.add(row)
        event.session.flush()


def _make(event: Event, identifier: Identifier, *, retired: bool, beside: PatientIdentifier | None = None) -> None:
    row = PatientIdentifier(
        patient_pk=event.patient.key, value=identifier.value, issuer=identifier.issuer, type=identifier.type,
        retired=retired,
    )  # fmt: skip
    event.session.add(row)
    event.session.flush()
    event.moved.made.append([row.key, beside.key if beside else None])


# Cases


def conflict(other: int) -> str:
    return f"one of its identifiers belongs to patient {other} already; only a merge joins two"


def _answer_cases(event: Event) -> None:
    """The question to whom an identifier belongs is answered where those whom it was about are one now."""
    family, added = {event.patient.key}, {event.patient.key}
    while added:
        query = select(Patient.pk).where(col(Patient.merged_into).in_(added))
        added = {pk for pk in event.session.exec(query).all() if pk is not None} - family
        family |= added
    sentences = {conflict(pk) for pk in family}
    for pk in sorted(family):
        case = casebook.find_open(event.session, CONFLICT, f"patient:{pk}")
        if case is not None and set(case.reasons) <= sentences:
            casebook.close_case(event.session, case, now=event.now, actor=event.actor, resolution={"action": "merged"})
            event.moved.cases.append(case.key)


def _reopen_cases(session: Session, moved: Moved, *, now: dt.datetime, actor: str) -> None:
    for pk in moved.cases:
        case = db.lock(session, ReconciliationCase, pk)
        if case.state != "RESOLVED" or casebook.find_open(session, case.kind, case.subject):
            continue
        undone, case.resolution = case.resolution, {}
        case.state = advance(CASE, case.state, "reopen")
        case.resolved_at, case.resolved_by = None, ""
        session.add(case)
        audit.record(session, "case.undo", f"case:{case.key}", actor=actor, now=now, undone=undone)


def _ask_about_orders(event: Event, prior: Patient) -> None:
    """Some of them may be the other patient's now."""
    unknown = belongings.orders_unknown(event.session, prior.key)
    if unknown:
        belongings.ask_about_patient(
            event.session, belongings.DOUBT, prior.key, now=event.now, actor=event.actor,
            reasons=[f"one of its identifiers is patient {event.patient.key}'s now, and nobody knows under which one it"
                     f" was that orders {', '.join(map(str, unknown))} were placed; they stay whose they were"],
        )  # fmt: skip


def _ask_about_record(
    session: Session, merge: PatientMerge, back: Iterable[PatientIdentifier], *, now: dt.datetime, actor: str
) -> None:
    """What was said of the prior since, under one of its identifiers, stands in the survivor's record."""
    said = session.exec(
        select(AuditEvent.detail)
        .where(AuditEvent.subject == f"patient:{merge.patient_pk}", AuditEvent.action == "patient.update")
        .where(AuditEvent.at >= merge.created_at)
    ).all()
    if {row.key for row in back} & {detail.get("under") for detail in said}:
        belongings.ask_about_patient(
            session, belongings.DOUBT, merge.patient_pk, now=now, actor=actor,
            reasons=["its record was changed under an identifier that is another patient's again"],
        )  # fmt: skip


# Taking back


def undo(session: Session, merge_pk: int, *, now: dt.datetime, actor: str, reason: str = "") -> PatientMerge:
    """As if it had not been: every row is what it was, and what came since under an identifier of the prior goes back
    with it. Where nobody had that identifier, what came under it gets a patient of its own.

    Raises UnknownKey for none, WrongState where it was taken back already or a later one stands on it."""
    found = session.get(PatientMerge, merge_pk)
    if found is None:
        raise UnknownKey("merge", "no such merge")
    keys = {found.patient_pk, found.prior_pk, found.moved["of"]} - {None}
    touched = [db.lock(session, Patient, pk) for pk in sorted(keys)]
    merge = db.lock(session, PatientMerge, merge_pk)
    if merge.undone_at is not None:
        raise WrongState("merge", "was taken back already")
    _refuse_where_another_stands_on_it(session, merge)
    moved, leading = Moved(**merge.moved), belongings.leading(session, *touched)
    _restore_record(session, moved)
    back = _returning(session, merge, moved)
    orders = belongings.orders_under(session, merge.patient_pk, back, moved.orders)
    studies, doubtful = belongings.studies_with(session, merge.patient_pk, orders, back, moved.studies, moved.own)
    owner = _owner_of(session, merge, orders, studies, now=now, actor=actor)
    _restore_identifiers(session, moved, owner)
    if owner is not None:
        belongings.give(session, orders, studies, owner)
    _reopen_cases(session, moved, now=now, actor=actor)
    belongings.ask_about(session, doubtful, now=now, actor=actor)
    _ask_about_record(session, merge, back, now=now, actor=actor)
    merge.undone_at, merge.undone_by = now, actor
    session.add(merge)
    session.flush()
    belongings.report(session, merge, "patient.undo", orders, studies, now=now, actor=actor, owner=owner, reason=reason)
    belongings.touch_renamed(session, leading)
    for pk in sorted({*leading, owner or merge.patient_pk}):
        belongings.rebuild(session, pk, now=now)
    return merge


def _refuse_where_another_stands_on_it(session: Session, merge: PatientMerge) -> None:
    """A later one that names or moved what this one moved, or merged the patient to whom it would go back."""
    mine, owners = merge_log.touched(merge), [pk for pk in (merge.patient_pk, merge.prior_pk) if pk is not None]
    later = session.exec(
        select(PatientMerge)
        .where(col(PatientMerge.pk) > merge.key, col(PatientMerge.undone_at).is_(None))
        .where(or_(col(PatientMerge.patient_pk) == merge.patient_pk, col(PatientMerge.prior_pk).in_(owners)))
        .order_by(col(PatientMerge.pk).desc())
    ).all()
    for one in later:
        has_no_owner = one.moved["whole"] and one.prior_pk == merge.prior_pk
        if has_no_owner or mine & {*one.moved["named"], *merge_log.touched(one)}:
            raise WrongState("merge", f"merge {one.key} stands on it: take that one back first")


def _returning(session: Session, merge: PatientMerge, moved: Moved) -> list[PatientIdentifier]:
    """The identifiers that go away from the survivor: to the prior, or to nobody."""
    keys = [one["pk"] for one in moved.identifiers if one["patient_pk"] != merge.patient_pk]
    keys += [made for made, beside in moved.made if beside is None]
    query = select(PatientIdentifier).where(col(PatientIdentifier.pk).in_(keys)).order_by(col(PatientIdentifier.pk))
    return list(session.exec(query.execution_options(populate_existing=True)).all())


def _owner_of(
    session: Session, merge: PatientMerge, orders: Collection[int], studies: Collection[int], *, now: dt.datetime,
    actor: str,
) -> int | None:  # fmt: skip
    """To whom things go back: the prior, else a new patient of whom nothing is known yet, where there is anything."""
    if merge.prior_pk is None:
        if not (orders or studies):
            return None
        nobody = Patient()
        session.add(nobody)
        session.flush()
        audit.record(session, "patient.create", f"patient:{nobody.key}", actor=actor, now=now)
        return nobody.key
    prior = session.get_one(Patient, merge.prior_pk)
    if merge.moved["whole"]:
        prior.merged_into = None
        session.add(prior)
    return prior.key


def _restore_identifiers(session: Session, moved: Moved, owner: int | None) -> None:
    """owner: of what nobody had before, where things were placed under it; else that goes."""
    for made, other in moved.made:
        row = session.get_one(PatientIdentifier, made)
        if other is None and owner is not None:
            row.patient_pk, row.retired = owner, False
            session.add(row)
            continue
        for order in session.exec(select(ImagingOrder).where(ImagingOrder.identifier_pk == row.key)).all():
            order.identifier_pk = other
            session.add(order)
        session.flush()
        session.delete(row)
        session.flush()  # its value may be what another was called before
    for one in moved.identifiers:
        session.get_one(PatientIdentifier, one["pk"]).sqlmodel_update({name: one[name] for name in COLUMNS})
    session.flush()


def _restore_record(session: Session, moved: Moved) -> None:
    """What the event said of the person, where nothing newer has been said since."""
    if moved.of is None:
        return
    patient = session.get_one(Patient, moved.of)
    changes = {
        name: before for name, (before, after) in moved.record.items()
        if getattr(patient, name) == after and before != after
    }  # fmt: skip
    if changes.keys() & set(identity.FIELDS):
        known = {name: getattr(patient, name) for name in identity.FIELDS}
        session.add(PatientVersion(patient_pk=patient.key, **known, cause="undo"))
    patient.sqlmodel_update(changes)
    session.add(patient)
