"""What waits for a person: listed, decided, and taken back (reconciliation.md 3.2, contract.md 4).

Red cases take the same decision from two principals. Every decision can be taken back; no bytes are ever deleted."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlmodel import Session, col, select

from broker import audit, casebook, clock, db, outbox
from broker.archive import release
from broker.archive.decide import decide
from broker.archive.gather import Gathering
from broker.archive.release import Desk, Wanted
from broker.config import Settings
from broker.errors import InvalidValue, UnknownKey, Unsupported, WrongState
from broker.model.images import ReconciliationCase, Study
from broker.model.orders import ImagingOrder
from broker.mwl import items, order_finding
from broker.states import CASE, advance

PATIENT_CONFLICT = "patient_conflict"
WAITING = ("OPEN", "TAKEN")  # for a person, the first or the second

# Reads


def listing(
    session: Session, states: Sequence[str] = WAITING, limit: int = 100, after: int = 0
) -> tuple[list[dict[str, Any]], int | None]:
    """Cases by age, and the key to go on from."""
    query = select(ReconciliationCase).where(
        col(ReconciliationCase.pk) > after, col(ReconciliationCase.state).in_(states)
    )
    rows = session.exec(query.order_by(col(ReconciliationCase.pk)).limit(limit + 1)).all()
    return [_document(session, row) for row in rows[:limit]], rows[limit - 1].key if len(rows) > limit else None


def get(session: Session, case_pk: int) -> dict[str, Any]:
    return _document(session, _case(session, case_pk))


def _document(session: Session, case: ReconciliationCase) -> dict[str, Any]:
    """Keys, identifiers, reasons: no name and no birth date."""
    study = session.get(Study, case.study_pk) if case.study_pk else None
    return {
        "id": case.key,
        "kind": case.kind,
        "subject": case.subject,
        "level": case.level,
        "state": case.state,
        "row": case.row,
        "reasons": case.reasons,
        "candidates": case.candidates,
        "approvals": case.approvals,
        "resolution": case.resolution or None,
        "order_id": case.order_pk,
        "study_instance_uid": study.study_instance_uid if study else None,
        "opened_at": clock.iso(case.created_at),
        "resolved_at": clock.iso(case.resolved_at) if case.resolved_at else None,
        "resolved_by": case.resolved_by or None,
    }


def _case(session: Session, case_pk: int) -> ReconciliationCase:
    case = session.get(ReconciliationCase, case_pk)
    if case is None:
        raise UnknownKey("case", "no such case")
    return case


# Deciding


def resolve(
    session: Session,
    case_pk: int,
    action: str,
    *,
    principal: str,
    is_person: bool,
    now: dt.datetime,
    settings: Settings,
    order_id: int | None = None,
    sps_id: str | None = None,
    code: str | None = None,
    reason: str = "",
) -> ReconciliationCase:
    """Carry out what a person decided, or note the first of two decisions on a red case.

    Raises UnknownKey for a case, order or step that is none; WrongState where the case is resolved or the two decisions
    differ; InvalidValue and MissingField for an action that this case or its target does not allow."""
    desk = Desk(Wanted(action, order_id, sps_id, code), principal, is_person, reason, now, settings)
    if _case(session, case_pk).kind != "study":
        return _acknowledge(session, case_pk, desk)
    if action == "split":
        raise Unsupported("action", "split is not possible yet: match or reject the study, or leave it held")
    if action not in release.ACTIONS:
        raise InvalidValue("action", f"is none of {', '.join(release.ACTIONS)}")
    find_target, carry_out = release.ACTIONS[action]
    study_pk = _case(session, case_pk).study_pk
    assert study_pk is not None
    target = find_target(session, study_pk, desk)  # first, since locks are taken in the order patient, order, study
    study = db.lock(session, Study, study_pk)
    case = _locked(session, case_pk)
    if action != "reject":
        gathered = Gathering(session, study, now=desk.now, settings=desk.settings)
        _refuse_what_got_worse(gathered, case)
        if release.is_another_patient(gathered, case, target):
            case.level = "red"  # whatever the case asks: an image of one patient under another's name takes two
    if _agreed(session, case, desk):
        carry_out(session, case, study, target, desk)
    return case


def _refuse_what_got_worse(gathered: Gathering, case: ReconciliationCase) -> None:
    """One person decides what one person may: an MPPS, a patient or further objects may have come since the case was
    opened. The next pass of the gate brings it up to date."""
    if case.level != "red" and gathered.new and decide(gathered.facts).outcome == "HH":
        raise WrongState("case", "has become more doubtful since it was opened: look at it again in a moment")


def _locked(session: Session, case_pk: int) -> ReconciliationCase:
    case = db.lock(session, ReconciliationCase, case_pk)
    if case.state == "RESOLVED":
        raise WrongState("case", "is resolved already; undo it first")
    return case


def _agreed(session: Session, case: ReconciliationCase, desk: Desk) -> bool:
    """Whether enough people said the same. A person who speaks again replaces what that person said before."""
    said = asdict(desk.wanted)
    others = [one for one in case.approvals if one["by"] != desk.principal]
    if any(one["wanted"] != said for one in others):
        raise WrongState("approvals", "another person decided differently about this case; both must say the same")
    mine = {"by": desk.principal, "person": desk.is_person, "at": clock.iso(desk.now), "wanted": said}
    case.approvals = [*others, mine]
    session.add(case)
    if case.level != "red" or others:
        return True
    if case.state == "OPEN":
        case.state = advance(CASE, case.state, "take")
    audit.record(session, "case.approve", f"case:{case.key}", actor=desk.principal, now=desk.now, wanted=said)
    return False


# Cases without images


def _acknowledge(session: Session, case_pk: int, desk: Desk) -> ReconciliationCase:
    """A person has seen it. A patient conflict: the patient's record holds, and the order is offered with it."""
    if desk.wanted.action != "acknowledge":
        raise InvalidValue("action", "a case without images can only be acknowledged")
    order_pk = _case(session, case_pk).order_pk
    order = order_finding.locked(session, order_pk) if order_pk is not None else None
    case = _locked(session, case_pk)
    if not _agreed(session, case, desk):
        return case
    if case.kind == PATIENT_CONFLICT and order is not None:
        _withhold(session, order, "", now=desk.now)
    resolution = {**asdict(desk.wanted), "reason": desk.reason}
    casebook.close_case(session, case, now=desk.now, actor=desk.principal, resolution=resolution)
    return case


def _withhold(session: Session, order: ImagingOrder, why: str, *, now: dt.datetime) -> None:
    order.withheld = why
    session.add(order)
    items.rebuild(session, order.key, now=now)


# Taking back


def undo(
    session: Session, case_pk: int, *, principal: str, is_person: bool, now: dt.datetime, reason: str = ""
) -> ReconciliationCase:
    """As if it had not been decided: images hidden again, the case open. One person is enough, since it only holds.

    Raises WrongState where the case is not resolved, has been opened anew, or the study is just being received."""
    found = _case(session, case_pk)
    order = order_finding.locked(session, found.order_pk) if found.order_pk is not None else None
    study = db.lock(session, Study, found.study_pk) if found.study_pk is not None else None
    case = db.lock(session, ReconciliationCase, case_pk)
    if case.state != "RESOLVED":
        raise WrongState("case", "is not resolved")
    if casebook.find_open(session, case.kind, case.subject):
        raise WrongState("case", "another case of the same subject is open")
    if case.kind == "study" and study is not None:
        release.take_back(session, study, case, principal, now)
    elif case.kind == PATIENT_CONFLICT and order is not None:
        _withhold(session, order, PATIENT_CONFLICT, now=now)
    undone, case.resolution = case.resolution, {}
    case.state = advance(CASE, case.state, "reopen")
    case.approvals, case.resolved_at, case.resolved_by = [], None, ""
    session.add(case)
    audit.record(
        session, "case.undo", f"case:{case.key}", actor=principal, now=now, person=is_person, reason=reason,
        undone=undone,
    )  # fmt: skip
    outbox.touch(session, case.order_pk)
    return case
