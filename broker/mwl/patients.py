"""Patients: who they are, what an order or an ADT message may change of them, and merges."""

import datetime as dt
from collections.abc import Iterable
from typing import Any

from sqlmodel import Session, col, select

from broker import audit, casebook, db, outbox
from broker.errors import InvalidValue, MissingField
from broker.model.images import Study
from broker.model.orders import ImagingOrder, ScheduledStep
from broker.model.patients import Patient, PatientIdentifier, PatientVersion
from broker.mwl import items, names
from broker.mwl.commands import Identifier, PatientCommand, PersonCommand
from broker.mwl.identity import find, history, identifiers, survivor

__all__ = ["apply", "find", "for_order", "history", "identifiers"]

IDENTITY = ("name", "birth_date", "sex")
COMPARED_SEXES = ("M", "F")  # O, U and empty count as missing (reconciliation.md 3.3)


def apply(session: Session, command: PatientCommand, *, now: dt.datetime, actor: str) -> Patient:
    """Do what an ADT message asks for. An unknown patient is made, whatever the event.

    A further identifier that is another patient's stays that patient's, and a person is asked. Raises InvalidValue for
    a merge with itself."""
    patient = _locked(session, command.patient) or _create(session, command.patient, now=now, actor=actor)
    merge_from = _prior(session, command, patient) if command.event == "merge" else None
    changed = _update(session, patient, command.patient, cause=command.cause)
    added, others = _add_identifiers(session, patient, command.patient.identifiers)
    changed += added
    if others:
        casebook.open_case(
            session, "identifier_conflict", f"patient:{patient.key}", level="amber", now=now, actor=actor,
            reasons=[f"one of its identifiers belongs to patient {other} already; only a merge joins two"
                     for other in others],
        )  # fmt: skip
    if changed:
        audit.record(
            session, "patient.update", f"patient:{patient.key}",
            actor=actor, now=now, cause=command.cause, changed=changed,
        )  # fmt: skip
    if command.event == "merge" and command.prior is not None:
        _merge(session, merge_from, patient, command, now=now, actor=actor)
    _rebuild(session, patient.key, now=now)
    return patient


def for_order(session: Session, person: PersonCommand, *, now: dt.datetime, actor: str) -> tuple[Patient, list[str]]:
    """The patient of an order, locked, and where the order contradicts what is known.

    An order creates a patient or fills what is empty; it never overwrites (reconciliation.md 3.3), and while it
    contradicts it fills nothing either. Reasons hold no patient data."""
    patient = _locked(session, person)
    if patient is None:
        patient = _create(session, person, now=now, actor=actor)
        return patient, _conflicts(session, patient, person)
    conflicts = _conflicts(session, patient, person)
    if conflicts:
        return patient, conflicts
    filled = _update(session, patient, _only_gaps(patient, person), cause="order")
    filled += _add_identifiers(session, patient, person.identifiers)[0]
    if filled:
        audit.record(
            session, "patient.update", f"patient:{patient.key}", actor=actor, now=now, cause="order", changed=filled
        )
        _rebuild(session, patient.key, now=now)
    return patient, []


def _locked(session: Session, person: PersonCommand) -> Patient | None:
    """The patient whom the leading identifier names, locked. The others name nobody: a family may share them, and a
    number that is wrong in one field must not bring two people together."""
    if not person.identifiers or not person.identifiers[0].value:
        raise MissingField("patient.id", "a patient has an identifier")
    leading = person.identifiers[0]
    found = find(session, leading.value, leading.issuer)
    if found is None:
        return None
    patient = db.lock(session, Patient, found.key)
    # A merge may have been committed between the look and the lock.
    return patient if patient.merged_into is None else db.lock(session, Patient, survivor(session, found.key).key)


def _create(session: Session, person: PersonCommand, *, now: dt.datetime, actor: str) -> Patient:
    patient = Patient(
        name=person.name or "",
        birth_date=person.birth_date or "",
        sex=person.sex or "",
        attributes={name: value for name, value in person.attributes.items() if value not in (None, "")},
    )
    session.add(patient)
    session.flush()
    _add_identifiers(session, patient, person.identifiers)
    audit.record(session, "patient.create", f"patient:{patient.key}", actor=actor, now=now)
    return patient


def _add_identifiers(session: Session, patient: Patient, wanted: Iterable[Identifier]) -> tuple[list[str], list[int]]:
    """Register the identifiers that are new: what changed, and the other patients who have one of them already."""
    added: list[str] = []
    others: list[int] = []
    for identifier in wanted:
        owner = find(session, identifier.value, identifier.issuer)
        if owner is None:
            session.add(
                PatientIdentifier(
                    patient_pk=patient.key, value=identifier.value, issuer=identifier.issuer, type=identifier.type
                )
            )
            session.flush()
            added.append("identifiers")
        elif owner.pk != patient.pk:
            others.append(owner.key)
    return added, others


def _update(session: Session, patient: Patient, person: PersonCommand, *, cause: str) -> list[str]:
    """Take over what the message says (None: nothing, empty: delete); the names of the fields that changed."""
    said: dict[str, Any] = {name: getattr(person, name) for name in IDENTITY}
    attributes = {**patient.attributes, **{k: v for k, v in person.attributes.items() if v is not None}}
    said["attributes"] = {name: value for name, value in attributes.items() if value != ""}
    changes = {name: value for name, value in said.items() if value is not None and value != getattr(patient, name)}
    if changes.keys() & set(IDENTITY):
        session.add(
            PatientVersion(
                patient_pk=patient.key,
                name=patient.name,
                birth_date=patient.birth_date,
                sex=patient.sex,
                cause=cause,
            )
        )
    for name, value in changes.items():
        setattr(patient, name, value)
    session.add(patient)
    return sorted(changes)


# An order's person


def _conflicts(session: Session, patient: Patient, person: PersonCommand) -> list[str]:
    reasons = []
    if person.name and patient.name and names.grade(patient.name, person.name) == "N4":
        reasons.append("the order gives another name than the patient record")
    if person.birth_date and patient.birth_date and person.birth_date != patient.birth_date:
        reasons.append("the order gives another birth date than the patient record")
    if {person.sex, patient.sex} == set(COMPARED_SEXES):
        reasons.append("the order gives another sex than the patient record")
    if any((owner := find(session, i.value, i.issuer)) and owner.pk != patient.pk for i in person.identifiers):
        reasons.append("one of the order's patient identifiers belongs to another patient")
    return reasons


def _only_gaps(patient: Patient, person: PersonCommand) -> PersonCommand:
    """What of the order's person is empty in the record; a name is filled group by group."""
    return PersonCommand(
        identifiers=person.identifiers,
        name=_filled_name(patient.name, person.name or "") or None,
        birth_date=None if patient.birth_date else person.birth_date or None,
        sex=None if patient.sex else person.sex or None,
        attributes={k: v for k, v in person.attributes.items() if v not in (None, "") and k not in patient.attributes},
    )


def _filled_name(known: str, said: str) -> str:
    """`known` with the component groups that only `said` has, where both are plainly the same name."""
    if known and names.grade(known, said) not in ("N0", "N1", "N2"):
        return known
    groups = [mine or theirs for mine, theirs in zip(_groups(known), _groups(said), strict=True)]
    return "=".join(groups).rstrip("=")


def _groups(name: str) -> list[str]:
    return [*name.split("="), "", "", ""][:3]


# Merges


def _prior(session: Session, command: PatientCommand, patient: Patient) -> Patient | None:
    """The patient that goes away, locked; None where the prior identifier is unknown or already the survivor's."""
    if command.prior is None or not command.prior.value:
        raise MissingField("patient.prior", "a merge names the identifier that goes away")
    leading = command.patient.identifiers[0]
    if (command.prior.value, command.prior.issuer) == (leading.value, leading.issuer):
        raise InvalidValue("patient.prior", "a patient cannot be merged with itself")
    prior = find(session, command.prior.value, command.prior.issuer)
    return None if prior is None or prior.pk == patient.pk else db.lock(session, Patient, prior.key)


def _merge(
    session: Session, prior: Patient | None, patient: Patient, command: PatientCommand, *, now: dt.datetime, actor: str
) -> None:
    """The identifier that the message names as current lives, the prior one is retired and leads to the survivor."""
    assert command.prior is not None
    moved: dict[str, Any] = {}
    if prior is not None:
        moved = _move(session, prior, patient)
        prior.merged_into = patient.key
        session.add(prior)
    retired = _claim(session, command.prior, patient, retired=True)
    revived = _claim(session, command.patient.identifiers[0], patient, retired=False)
    if prior is None and not retired and not revived:
        return  # the same merge again
    detail = {"survivor": patient.key, "prior": prior.key if prior else None, "cause": command.cause, **moved}
    for side in filter(None, (patient, prior)):
        audit.record(session, "patient.merge", f"patient:{side.key}", actor=actor, now=now, **detail)


def _move(session: Session, prior: Patient, patient: Patient) -> dict[str, list[int]]:
    """Give everything of `prior` to `patient`; the keys of what moved, from which the merge can be undone.

    Performed steps follow by their links and identifiers."""
    moved = {"identifiers": [], "orders": [], "studies": []}  # type: dict[str, list[int]]
    for identifier in identifiers(session, prior.key):
        identifier.patient_pk, identifier.retired = patient.key, True
        session.add(identifier)
        moved["identifiers"].append(identifier.key)
    for kind, table in (("orders", ImagingOrder), ("studies", Study)):
        rows = session.exec(
            select(table).where(table.patient_pk == prior.key).order_by(col(table.pk)).with_for_update()
        ).all()
        for row in rows:
            row.patient_pk = patient.key
            session.add(row)
            moved[kind].append(row.key)
    for order_pk in moved["orders"]:
        outbox.touch(session, order_pk)  # ended ones, too: a status document names the patient's identifier
    session.flush()
    return moved


def _claim(session: Session, identifier: Identifier, patient: Patient, *, retired: bool) -> bool:
    """Make the identifier the patient's, living or retired; whether that changed anything."""
    row = session.exec(
        select(PatientIdentifier).where(
            PatientIdentifier.value == identifier.value, PatientIdentifier.issuer == identifier.issuer
        )
    ).first()
    if row is not None and row.retired == retired:
        return False
    row = row or PatientIdentifier(
        patient_pk=patient.key, value=identifier.value, issuer=identifier.issuer, type=identifier.type
    )
    row.retired = retired
    session.add(row)
    session.flush()
    return True


def _rebuild(session: Session, patient_pk: int, *, now: dt.datetime) -> None:
    """Encode the items of every order of the patient that still has a live step."""
    orders = session.exec(
        select(ScheduledStep.order_pk)
        .join(ImagingOrder, col(ScheduledStep.order_pk) == col(ImagingOrder.pk))
        .where(ImagingOrder.patient_pk == patient_pk, col(ScheduledStep.status).in_(items.LIVE))
        .distinct()
        .order_by(col(ScheduledStep.order_pk))
    ).all()
    for order_pk in orders:
        items.rebuild(session, order_pk, now=now)
