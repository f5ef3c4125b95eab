"""What should be on a worklist and is not: each step with what it lacks, and how to mend it (conformance.md 1.3, 7)."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import or_
from sqlmodel import Session, col, select

from broker import clock
from broker.model.images import ReconciliationCase
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStep
from broker.model.patients import Patient, PatientIdentifier
from broker.mwl import identity, items


@dataclass(frozen=True)
class Mend:
    """words: what it is. rest: its place in the body of PATCH /api/v1/orders/{id}; empty: REST cannot change it. hl7:
    where an order message has it, unless a mapping profile says otherwise."""

    words: str
    rest: str
    hl7: str


STEP = "requested_procedures.steps"
MENDS: Mapping[str, Mend] = {
    "PatientName": Mend("the patient's name", "patient.name", "PID-5"),
    "PatientID": Mend("the patient's ID", "", "PID-3 of an ADT that gives the patient a number (A40, A47)"),
    "StudyInstanceUID": Mend("the Study Instance UID", "requested_procedures.study_instance_uid", "IPC-3, else ZDS-1"),
    "RequestedProcedureID": Mend("the Requested Procedure ID", "requested_procedures.id", "IPC-2, else OBR-19"),
    "ScheduledStationAETitle": Mend("the station's AE title", f"{STEP}.station_ae_titles", "IPC-9, else ORC-18"),
    "ScheduledProcedureStepStartDate": Mend(
        "the date on which it starts", f"{STEP}.scheduled_start", "TQ1-7, else OBR-27 or ORC-7; AIS-4 or SCH-11 of SIU"
    ),
    "ScheduledProcedureStepStartTime": Mend(
        "the time at which it starts", f"{STEP}.scheduled_start", "TQ1-7, else OBR-27 or ORC-7; AIS-4 or SCH-11 of SIU"
    ),
    "Modality": Mend("the modality", f"{STEP}.modality", "IPC-5, else OBR-24"),
    "ScheduledProcedureStepID": Mend("the Scheduled Procedure Step ID", f"{STEP}.sps_id", "IPC-4, else OBR-20"),
}
ROMAJI = Mend("the name in romaji", "patient.name.alphabetic", "PID-5, its alphabetic repetition")
CHARACTERS: Mapping[str, tuple[str, tuple[Mend, ...]]] = {"romaji missing": ("add the name in romaji", (ROMAJI,))}
OTHER_TEXT = "write it so that the device can show it"
OTHER_SET = "or give the device another character set (character_set, character_sets_also of its node)"
WITHHELD = re.compile(re.sub(r"\\\{\\\}", "(.*?)", re.escape(items.WITHHELD)), re.S)


def listing(session: Session, limit: int, after: int = 0) -> tuple[list[dict[str, Any]], int | None]:
    """Of at most `limit` orders by the age of their case, and the key to go on from. Keys and identifiers, no name."""
    kind = col(ReconciliationCase.kind)
    query = (
        select(ReconciliationCase)
        .join(ImagingOrder, col(ImagingOrder.pk) == col(ReconciliationCase.order_pk))
        .where(
            col(ReconciliationCase.pk) > after,
            ReconciliationCase.state != "RESOLVED",
            or_(kind.in_(TELL), kind == col(ImagingOrder.withheld)),
        )
    )
    cases = session.exec(query.order_by(col(ReconciliationCase.pk)).limit(limit + 1)).all()
    found = [one for case in cases[:limit] for one in _of_case(session, case)]
    return found, cases[limit - 1].key if len(cases) > limit else None


def _of_case(session: Session, case: ReconciliationCase) -> Iterator[dict[str, Any]]:
    order = session.get_one(ImagingOrder, case.order_pk)
    parts = session.exec(
        select(ScheduledStep, RequestedProcedure)
        .where(RequestedProcedure.pk == ScheduledStep.requested_procedure_pk, ScheduledStep.order_pk == order.key)
        .where(col(ScheduledStep.status).in_(items.LIVE))
        .order_by(col(ScheduledStep.pk))
    ).all()
    for step, procedure, said in TELL.get(case.kind, _held)(session, case, order, parts):
        yield {
            "case_id": case.key, "kind": case.kind, "since": clock.iso(case.created_at), "order_id": order.key,
            "accession_number": order.accession_number, "accession_issuer": order.accession_issuer,
            "requested_procedure_id": procedure.requested_procedure_id, "step_id": step.key, "sps_id": step.sps_id,
            "state": step.status, "ae_title": None, "request": f"PATCH /api/v1/orders/{order.key}", **said,
        }  # fmt: skip


Parts = Sequence[tuple[ScheduledStep, RequestedProcedure]]
Told = Iterator[tuple[ScheduledStep, RequestedProcedure, dict[str, Any]]]


def _incomplete(session: Session, _case: ReconciliationCase, order: ImagingOrder, parts: Parts) -> Told:
    patient = session.get_one(Patient, order.patient_pk)
    known: Sequence[PatientIdentifier] = identity.identifiers(session, patient.key)
    for step, procedure in parts:
        names = items.missing_of(patient, known, procedure, step, items.stations(session, step.key))
        if names:
            mends = [MENDS[name] for name in names]
            yield step, procedure, {
                "says": f"no device is shown it: it lacks {_joined([one.words for one in mends])}",
                "missing": [_mend(name, one) for name, one in zip(names, mends, strict=True)],
                "mend": "complete the order: by REST as `rest` says, or by a change (XO) of the RIS with `hl7`",
            }  # fmt: skip


def _withheld(_session: Session, case: ReconciliationCase, _order: ImagingOrder, parts: Parts) -> Told:
    by_id = {(step.sps_id, procedure.requested_procedure_id): (step, procedure) for step, procedure in parts}
    for match in filter(None, map(WITHHELD.fullmatch, case.reasons)):
        sps_id, procedure_id, version, ae_title, why = match.groups()
        step, procedure = by_id.get((sps_id, procedure_id), (None, None))
        if step is None or procedure is None or step.version != int(version):
            continue
        what, missing = CHARACTERS.get(why, (OTHER_TEXT, ()))
        yield step, procedure, {
            "ae_title": ae_title, "says": f"{ae_title} is not shown it: {why}",
            "missing": [_mend("PatientName", one) for one in missing], "mend": f"{what}, {OTHER_SET}",
        }  # fmt: skip


def _held(_session: Session, case: ReconciliationCase, _order: ImagingOrder, parts: Parts) -> Told:
    """An order that is offered to nobody while a person has not looked."""
    for step, procedure in parts:
        yield step, procedure, {
            "says": f"no device is shown it: {case.kind} is a question for a person (case {case.key})", "missing": [],
            "mend": "look at the case, correct what is wrong, and resolve it",
            "request": f"POST /api/v1/cases/{case.key}/resolve",
        }  # fmt: skip


TELL: Mapping[str, Callable[[Session, ReconciliationCase, ImagingOrder, Parts], Told]] = {
    items.INCOMPLETE: _incomplete, items.CHARACTERS: _withheld,
}  # fmt: skip


def _mend(keyword: str, mend: Mend) -> dict[str, Any]:
    return {"attribute": keyword, "words": mend.words, "rest": mend.rest or None, "hl7": mend.hl7}


def _joined(words: Sequence[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last
