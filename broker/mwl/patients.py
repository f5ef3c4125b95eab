"""Patients: who they are, and what an order or an ADT message may change of them. Merges: mwl/merges.py."""

import datetime as dt
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from sqlmodel import Session

from broker import audit, clock
from broker.errors import DuplicateKey, MissingField
from broker.model.patients import Patient, PatientIdentifier, PatientVersion
from broker.mwl import belongings, identity, merge_log, merges, names, said
from broker.mwl.commands import Identifier, OrderCommand, PatientCommand, PersonCommand
from broker.mwl.dataset import SHOWN_TOGETHER, listed
from broker.mwl.identity import FIELDS, find, history, identifiers

__all__ = ["apply", "find", "for_order", "history", "identifiers", "with_visit"]

COMPARED_SEXES = ("M", "F")  # O, U and empty count as missing (reconciliation.md 3.3)
RECORD = (*FIELDS, "romanised", "attributes", "said")
# Of the patient, but another at the next visit: where an order says it, it is the order's.
OF_A_VISIT = (
    "PatientWeight", "PatientSize", "PatientState", "PregnancyStatus", "LastMenstrualDate", "SpecialNeeds",
    "AdditionalPatientHistory", "PatientComments", *SHOWN_TOGETHER,
)  # fmt: skip


def apply(session: Session, command: PatientCommand, *, now: dt.datetime, actor: str) -> Patient:
    """Do what an ADT message asks for. An unknown patient is made, whatever the event.

    Of each field the newest message counts, in whatever order they come; one that says no time counts always, and one
    from far in the future is from now. A further identifier that is another patient's stays that patient's, and what
    comes under a retired number of somebody who is plainly not the one to whom it leads changes nothing: a person is
    asked. Raises InvalidValue for a merge with itself, DuplicateKey where an identifier is changed to another
    patient's."""
    command = replace(command, at=said.not_ahead(command.at, now))
    leading = _leading(command.patient)
    wanted = [leading] if command.event == "update" else [leading, merges.prior_of(command)]
    found = identity.locked(session, *wanted, also=lambda: merge_log.owner_then(session, leading, command.at))
    patient, prior = found[0], found[1] if len(found) > 1 else None
    if command.event == "change_id":
        if patient and prior and patient.key != prior.key:
            raise DuplicateKey("patient.id", "belongs to another patient already; only a merge joins two")
        patient = patient or prior
    record: dict[str, list[Any]] = {}
    subject: Patient | None
    if patient is None:
        own = tuple(one for one in command.patient.identifiers if one == leading or command.event == "update")
        person = replace(command.patient, identifiers=own)  # of the others, some may go over first
        patient = subject = _create(session, person, now=now, actor=actor, at=command.at)
    elif merge_log.was_taken_back(session, command):
        audit.record(
            session, merges.ACTIONS[command.event], f"patient:{patient.key}", actor=actor, now=now, outcome="stale"
        )
        return patient
    else:
        subject = _subject(session, patient, command)
        if subject is patient and _is_somebody_else(session, patient, command, now=now, actor=actor):
            return patient
        record = _take(session, subject, command, now=now, actor=actor)
    if command.event != "update":
        merges.carry_out(session, command, patient, prior, subject=subject, record=record, now=now, actor=actor)
    if subject is patient:
        _take_identifiers(session, patient, command, now=now, actor=actor)
    for pk in sorted({one.key for one in (patient, prior, subject) if one}):
        belongings.rebuild(session, pk, now=now)
    return patient


def for_order(session: Session, person: PersonCommand, *, now: dt.datetime, actor: str) -> tuple[Patient, list[str]]:
    """The patient of an order, locked, and where the order contradicts what is known.

    An order creates a patient or fills what is empty; it never overwrites (reconciliation.md 3.3), and while it
    contradicts it fills nothing either. Reasons hold no patient data."""
    (patient,) = identity.locked(session, _leading(person))
    if patient is None:
        patient = _create(session, replace(person, attributes=_lasting(person)), now=now, actor=actor)
        return patient, _conflicts(session, patient, person)
    conflicts = _conflicts(session, patient, person)
    if conflicts:
        return patient, conflicts
    filled, _ = _update(session, patient, _only_gaps(patient, person), cause="order")
    filled += _add_identifiers(session, patient, person.identifiers[1:])[0]
    if filled:
        audit.record(
            session, "patient.update", f"patient:{patient.key}", actor=actor, now=now, cause="order", changed=filled
        )
        belongings.rebuild(session, patient.key, now=now)
    return patient, []


def with_visit(command: OrderCommand) -> OrderCommand:
    """What a new order says of its patient that changes from visit to visit is among what it says of itself."""
    if command.patient is None:
        return command
    own = {name: value for name, value in command.patient.attributes.items() if name in OF_A_VISIT}
    return replace(command, attributes=own | command.attributes)


def _leading(person: PersonCommand) -> Identifier:
    """It alone names the patient. The others name nobody: a family may share them, and a number that is wrong in one
    field must not bring two people together."""
    if not person.identifiers or not person.identifiers[0].value:
        raise MissingField("patient.id", "a patient has an identifier")
    return person.identifiers[0]


def _create(
    session: Session, person: PersonCommand, *, now: dt.datetime, actor: str, at: dt.datetime | None = None
) -> Patient:
    patient = Patient(
        name=person.name or "",
        romanised=bool(person.name) and person.romanised,
        birth_date=person.birth_date or "",
        sex=person.sex or "",
        attributes={name: value for name, value in person.attributes.items() if value not in (None, "", [])},
        said=dict.fromkeys(_said(person), clock.iso(at)) if at else {},
    )
    session.add(patient)
    session.flush()
    _add_identifiers(session, patient, person.identifiers)
    audit.record(session, "patient.create", f"patient:{patient.key}", actor=actor, now=now)
    return patient


# An ADT message's person


def _subject(session: Session, patient: Patient, command: PatientCommand) -> Patient | None:
    """Of whom the message speaks: where it is older than the merge of the number that it names, of the one who had
    that number then, not of the survivor. None: of somebody nobody knew."""
    named = _leading(command.patient)
    row = identity.row(session, named.value, named.issuer)
    if row is None or command.at is None:
        return patient
    owner = merge_log.owner_at(session, row, command.at)
    if owner is None or owner == patient.pk:
        return patient if owner else None
    return session.get_one(Patient, owner)  # locked with the others


def _is_somebody_else(
    session: Session, patient: Patient, command: PatientCommand, *, now: dt.datetime, actor: str
) -> bool:
    """An update under a retired number that would make another person of the one to whom that number leads: it may
    have been given to somebody else since. As with orders, nothing is changed and a person is asked."""
    named = _leading(command.patient)
    reasons = under_retired(session, patient, command.patient, command.at) if command.event == "update" else []
    if not reasons:
        return False
    belongings.ask_about_patient(session, merges.CONFLICT, patient.key, reasons, now=now, actor=actor)
    row = identity.row(session, named.value, named.issuer)
    audit.record(
        session, "patient.update", f"patient:{patient.key}", actor=actor, now=now, cause=command.cause,
        outcome="refused", under=row and row.key,
    )  # fmt: skip
    return True


def under_retired(session: Session, patient: Patient, person: PersonCommand, at: dt.datetime | None) -> list[str]:
    """Why the person of that message is not the patient to whom the retired number leads that it names; empty: is, or
    the number is in use."""
    named = _leading(person)
    row = identity.row(session, named.value, named.issuer)
    if row is None or not row.retired:
        return []
    taken = _current(patient, person, at)
    current: dict[str, Any] = {name: taken.get(name) for name in FIELDS}
    return contradictions(patient, replace(person, **current), "a message under a number that was retired")


def _take(
    session: Session, patient: Patient | None, command: PatientCommand, *, now: dt.datetime, actor: str
) -> dict[str, list[Any]]:
    """Column -> [before, after] of what changed. The audit row says under which number, where that is a retired one."""
    named = _leading(command.patient)
    row = identity.row(session, named.value, named.issuer)
    if patient is None:
        assert row is not None
        subject = f"patient:{row.patient_pk}"
        audit.record(session, "patient.update", subject, actor=actor, now=now, cause=command.cause, outcome="stale")
        return {}
    before = {name: getattr(patient, name) for name in RECORD}
    changed, stale = _update(session, patient, command.patient, cause=command.cause, at=command.at)
    if changed or stale:
        under = {"under": row.key} if row is not None and row.retired else {}
        audit.record(
            session, "patient.update", f"patient:{patient.key}", actor=actor, now=now, cause=command.cause,
            outcome="ok" if changed else "stale", changed=changed, **under,
        )  # fmt: skip
    return {name: [old, getattr(patient, name)] for name, old in before.items() if old != getattr(patient, name)}


def _take_identifiers(
    session: Session, patient: Patient, command: PatientCommand, *, now: dt.datetime, actor: str
) -> None:
    added, others = _add_identifiers(session, patient, command.patient.identifiers)
    if others:
        reasons = [merges.conflict(other) for other in others]
        belongings.ask_about_patient(session, merges.CONFLICT, patient.key, reasons, now=now, actor=actor)
    if added:
        audit.record(
            session, "patient.update", f"patient:{patient.key}",
            actor=actor, now=now, cause=command.cause, changed=added,
        )  # fmt: skip


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


def _update(
    session: Session, patient: Patient, person: PersonCommand, *, cause: str, at: dt.datetime | None = None
) -> tuple[list[str], bool]:
    """Take over what the message says (None: nothing, empty: delete), but for what a newer one has said: the names of
    the fields that changed, and whether some were left."""
    stamp, taken = clock.iso(at) if at else "", _current(patient, person, at)
    attributes = {**patient.attributes, **{name: value for name, value in taken.items() if name not in FIELDS}}
    changes: dict[str, Any] = {name: value for name, value in taken.items() if name in FIELDS}
    if "name" in taken:
        changes["romanised"] = bool(person.name) and person.romanised
    changes["attributes"] = {name: value for name, value in attributes.items() if value not in ("", [])}
    changes = {name: value for name, value in changes.items() if value != getattr(patient, name)}
    if changes.keys() & set(FIELDS):
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
    if stamp:
        patient.said = {**patient.said, **dict.fromkeys(taken, stamp)}
    session.add(patient)
    return sorted(changes), len(taken) < len(_said(person))


def _current(patient: Patient, person: PersonCommand, at: dt.datetime | None) -> dict[str, Any]:
    """What a message of that time says and no newer one has said."""
    stamp = clock.iso(at) if at else ""
    return {
        name: value for name, value in _said(person).items() if not stamp or patient.said.get(name, "") <= stamp
    }  # fmt: skip


def _said(person: PersonCommand) -> dict[str, Any]:
    """Field or DICOM keyword -> what the message says of it; empty: delete."""
    fields = {name: getattr(person, name) for name in FIELDS}
    return {name: value for name, value in {**fields, **person.attributes}.items() if value is not None}


# An order's person


def contradictions(patient: Patient, person: PersonCommand, who: str) -> list[str]:
    """In what they are plainly two persons (reconciliation.md 3.3)."""
    different = {
        "name": bool(person.name and patient.name) and names.grade(patient.name, person.name or "") == "N4",
        "birth date": bool(person.birth_date and patient.birth_date) and person.birth_date != patient.birth_date,
        "sex": {person.sex, patient.sex} == set(COMPARED_SEXES),
    }
    return [f"{who} gives another {what} than the patient record" for what, differs in different.items() if differs]


def _conflicts(session: Session, patient: Patient, person: PersonCommand) -> list[str]:
    reasons = contradictions(patient, person, "the order")
    others = person.identifiers[1:]
    if any((owner := find(session, one.value, one.issuer)) and owner.pk != patient.pk for one in others):
        reasons.append("one of the order's patient identifiers belongs to another patient")
    return reasons


def _only_gaps(patient: Patient, person: PersonCommand) -> PersonCommand:
    """What of the order's person is empty in the record; a name is filled group by group, and to allergies and alerts
    those are added that are new."""
    name, attributes = _filled_name(patient.name, person.name or ""), _lasting(person)
    more = {one: listed(one, patient.attributes, attributes) for one in SHOWN_TOGETHER if attributes.get(one)}
    return PersonCommand(
        identifiers=person.identifiers,
        name=name or None,
        romanised=patient.romanised if _groups(patient.name)[0] else person.romanised,
        birth_date=None if patient.birth_date else person.birth_date or None,
        sex=None if patient.sex else person.sex or None,
        attributes={k: v for k, v in attributes.items() if v not in (None, "") and k not in patient.attributes} | more,
    )


def _lasting(person: PersonCommand) -> dict[str, Any]:
    """What an order says of the patient that is true of the next order, too."""
    return {
        name: value for name, value in person.attributes.items()
        if name not in OF_A_VISIT or name in SHOWN_TOGETHER
    }  # fmt: skip


def _filled_name(known: str, said: str) -> str:
    """`known` with the component groups that only `said` has, where both are plainly the same name."""
    if known and names.grade(known, said) not in ("N0", "N1", "N2"):
        return known
    groups = [mine or theirs for mine, theirs in zip(_groups(known), _groups(said), strict=True)]
    return "=".join(groups).rstrip("=")


def _groups(name: str) -> list[str]:
    return [*name.split("="), "", "", ""][:3]
